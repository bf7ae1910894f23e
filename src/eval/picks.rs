//! Multiple choice by letter, one call of the host for each question (Liu et al. 2024, section 6): accuracy of host, proxies and
//! shifted host.

use super::bootstrap::Items;
use super::metric::Metric;
use super::realtimeqa::Pick;
use super::report::{Report, counted};
use super::setup::{Listen, Progress, check_alphas};
use super::{Column, Journal};
use crate::combine::Control;
use crate::error::{Error, Result};
use crate::host::blackbox::{Advisers, Answered, BlackBox, Prompt, Weight, choose};
use crate::prompt::Message;
use crate::vocab::Token;
use serde_json::{Value, json};
use std::sync::Arc;

/// How questions are put.
#[derive(Debug, Clone, Default)]
pub struct PickOptions {
    /// Before each question.
    pub preamble: String,
    /// A system prompt for the tuned proxy alone.
    pub tuned_system: Option<String>,
    /// As a user's message.
    pub chat: bool,
    /// Schedule and guards: a letter is the first token of an answer.
    pub control: Control,
}

/// What is kept of a question.
struct Scored {
    /// Whether each column is right.
    right: Vec<bool>,
    visible: usize,
    mass: f64,
}

/// Scores questions. A question that the journal holds is not asked, and paid, again.
///
/// # Errors
/// When the host or a proxy fails, or [`Error::Interrupted`]; what is finished stands in the journal.
pub async fn picks(
    host: &dyn BlackBox,
    advisers: &Arc<Advisers>,
    questions: &[Pick],
    alphas: &[f32],
    options: &PickOptions,
    journal: &mut Journal,
    listen: &mut Listen<'_>,
) -> Result<Report> {
    check_alphas(alphas)?;
    let columns = Column::all(false, alphas);
    let control = &options.control;
    let weight = |&alpha: &f32| Weight { alpha: control.weight::<Token>(alpha, &[]), cap: control.cap };
    let weights: Vec<Weight> = alphas.iter().map(weight).collect();
    let (total, mut scored) = (questions.len(), Vec::with_capacity(questions.len()));
    for (number, question) in questions.iter().enumerate() {
        let progress = Progress { done: number as u64, total: total as u64, unit: "questions" };
        if listen(progress).is_break() {
            return Err(Error::Interrupted);
        }
        let key = format!("question {number}");
        if let Some(known) = journal.get(&key).and_then(|value| recorded(value, &columns)) {
            scored.push(known);
            continue;
        }
        let text = format!("{}{}", options.preamble, question.prompt());
        let prompt =
            if options.chat { Prompt::Chat(vec![Message::new("user", &text)]) } else { Prompt::Text(text) };
        let system = options.tuned_system.as_deref();
        let answered = choose(host, advisers, &prompt, system, &question.letters(), &weights).await?;
        let one = score(question, &answered);
        journal.put(key, record(&one, &columns))?;
        scored.push(one);
    }
    let share = |column: usize| {
        let right = scored.iter().filter(|s| s.right[column]).count();
        right as f64 / total.max(1) as f64
    };
    let scores: Vec<f64> = (0..columns.len()).map(share).collect();
    let one = |column: usize| scored.iter().map(|s| f64::from(u8::from(s.right[column]))).collect();
    let items = Items::alike((0..columns.len()).map(one).collect());
    let metrics = vec![Metric::new("accuracy", false, &columns, &scores).over(&items)];
    let notes = notes(questions, &scored);
    let size = counted(total, "question");
    Ok(Report { task: "realtimeqa".into(), size, metrics, notes, ..Report::default() })
}

fn score(question: &Pick, answered: &Answered) -> Scored {
    let is_right = |choice: &Option<usize>| choice.is_some_and(|choice| question.answers.contains(&choice));
    let models = [&answered.host, &answered.untuned, &answered.tuned];
    let right = models.into_iter().chain(&answered.shifted).map(is_right).collect();
    Scored { right, visible: answered.visible, mass: answered.mass }
}

fn notes(questions: &[Pick], scored: &[Scored]) -> Vec<String> {
    let hidden = scored.iter().filter(|s| s.visible == 0).count();
    let some = scored.iter().zip(questions).filter(|(s, q)| s.visible < q.choices.len()).count();
    let mass = scored.iter().map(|s| s.mass).sum::<f64>() / scored.len().max(1) as f64;
    let mut notes = vec![format!(
        "the host gives the visible choices {:.1} % of its probability, on average",
        100.0 * mass
    )];
    if some > 0 {
        notes.push(format!(
            "of {some} questions the host did not show all choices, of {hidden} none: what is not shown cannot be chosen"
        ));
    }
    notes
}

fn record(scored: &Scored, columns: &[Column]) -> Value {
    let right: serde_json::Map<_, _> =
        columns.iter().zip(&scored.right).map(|(c, r)| (c.key(), json!(r))).collect();
    json!({ "right": right, "visible": scored.visible, "mass": scored.mass })
}

fn recorded(value: &Value, columns: &[Column]) -> Option<Scored> {
    let right = columns.iter().map(|c| value["right"][c.key()].as_bool()).collect::<Option<_>>()?;
    let visible = usize::try_from(value["visible"].as_u64()?).ok()?;
    Some(Scored { right, visible, mass: value["mass"].as_f64()? })
}
