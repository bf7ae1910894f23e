//! Task files in the forms in which TruthfulQA, GSM8K, TriviaQA, HumanEval and RealTime QA are published.

use super::realtimeqa::{Pick, pick};
use super::record::{Field, Records, kind_of, string, wrong};
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text: bits per byte.
    Text,
    /// Multiple choice by likelihood: MC1 and MC2.
    TruthfulQa,
    /// Answers whose number counts.
    Gsm8k,
    /// Answers that have to be one of several spellings.
    TriviaQa,
    /// Functions that have to pass their tests.
    HumanEval,
    /// Multiple choice by letter.
    RealtimeQa,
}

impl Kind {
    /// Those that come as task files.
    pub const TASKS: [Self; 5] =
        [Self::TruthfulQa, Self::Gsm8k, Self::TriviaQa, Self::HumanEval, Self::RealtimeQa];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::TruthfulQa => "truthfulqa",
            Self::Gsm8k => "gsm8k",
            Self::TriviaQa => "triviaqa",
            Self::HumanEval => "humaneval",
            Self::RealtimeQa => "realtimeqa",
        }
    }

    /// A question as a text that a base model can go on with.
    pub(super) fn frame(self, question: &str) -> String {
        match self {
            Self::Gsm8k => format!("Question: {question}\nAnswer:"),
            _ => format!("Q: {question}\nA:"),
        }
    }

    /// Most tokens that an item needs, as a rule.
    pub fn max_tokens(self) -> usize {
        match self {
            Self::Gsm8k => 256,
            Self::HumanEval => 512,
            _ => 64,
        }
    }

    /// Where a base model, which never ends by itself, goes on to the next item.
    pub fn stops(self) -> &'static [&'static str] {
        match self {
            Self::Gsm8k => &["\nQuestion:"],
            Self::HumanEval => &["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            _ => &["\n"],
        }
    }

    /// The kind that a record's fields speak of.
    fn of(record: &Value) -> Option<Self> {
        let has = |field: &str| record.get(field).is_some();
        let answer = |kind: fn(&Value) -> bool| record.get("answer").is_some_and(kind);
        if has("question_sentence") && has("choices") {
            Some(Self::RealtimeQa)
        } else if has("mc1_targets") || has("mc2_targets") {
            Some(Self::TruthfulQa)
        } else if has("entry_point") || (has("prompt") && has("test")) {
            Some(Self::HumanEval)
        } else if has("Answer") || answer(Value::is_object) || answer(Value::is_array) {
            Some(Self::TriviaQa)
        } else {
            answer(Value::is_string).then_some(Self::Gsm8k)
        }
    }

    /// Fields of a record, for messages.
    fn fields(self) -> &'static str {
        match self {
            Self::Text => "none",
            Self::TruthfulQa => "question, mc1_targets and mc2_targets",
            Self::Gsm8k => "question and answer (a text)",
            Self::TriviaQa => "question and answer (with value and aliases)",
            Self::HumanEval => "task_id, prompt, entry_point and test",
            Self::RealtimeQa => "question_sentence, choices and answer (places)",
        }
    }
}

/// A question with choices, true and false (Lin et al. 2021).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The question.
    pub text: String,
    /// Choices of which exactly one is true.
    pub mc1: Vec<Choice>,
    /// Choices of which several may be true.
    pub mc2: Vec<Choice>,
}

/// One choice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Whether it is true.
    pub is_true: bool,
}

/// A question to be answered in words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ask {
    /// The question.
    pub question: String,
    /// What counts as right: any of these.
    pub answers: Vec<String>,
}

/// A function to be written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Its name.
    pub id: String,
    /// Where the model goes on.
    pub prompt: String,
    /// Name of the function.
    pub entry_point: String,
    /// Defines `check(candidate)`.
    pub test: String,
}

/// The items of a task file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Items {
    /// Of TruthfulQA.
    Questions(Vec<Question>),
    /// Of GSM8K and TriviaQA.
    Asks(Vec<Ask>),
    /// Of HumanEval.
    Problems(Vec<Problem>),
    /// Of RealTime QA.
    Picks(Vec<Pick>),
}

impl Items {
    /// Number of items.
    pub fn len(&self) -> usize {
        match self {
            Self::Questions(items) => items.len(),
            Self::Asks(items) => items.len(),
            Self::Problems(items) => items.len(),
            Self::Picks(items) => items.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads a task file: JSON lines, or one JSON document. Without `kind` the first record's fields tell; with `limit` only
/// the first items are taken.
///
/// # Errors
/// [`Error::File`] with line and field for a broken record, and with what is known for a file of another kind.
pub fn read(path: &Path, kind: Option<Kind>, limit: Option<usize>) -> Result<(Kind, Items)> {
    let records = Records::read(path)?;
    let limit = limit.unwrap_or(usize::MAX);
    if limit == 0 {
        return Err(Error::invalid("--limit", 0, "at least 1"));
    }
    let kind = kind.or_else(|| Kind::of(records.first())).ok_or_else(|| unknown(path, records.first()))?;
    let items = match kind {
        Kind::TruthfulQa => Items::Questions(records.map(limit, question)?),
        Kind::Gsm8k => Items::Asks(records.map(limit, gsm8k)?),
        Kind::TriviaQa => Items::Asks(records.map(limit, triviaqa)?),
        Kind::HumanEval => Items::Problems(records.map(limit, problem)?),
        Kind::RealtimeQa => Items::Picks(records.map(limit, pick)?),
        Kind::Text => return Err(Error::invalid("--as", "text", "the kind of a task")),
    };
    Ok((kind, items))
}

fn unknown(path: &Path, first: &Value) -> Error {
    let found = match first {
        Value::Object(fields) => {
            format!("a record with the fields {}", fields.keys().cloned().collect::<Vec<_>>().join(", "))
        }
        other => kind_of(other).into(),
    };
    let known = Kind::TASKS.iter().map(|k| format!("{} has {}", k.name(), k.fields()));
    let help = format!("known are: {}", known.collect::<Vec<_>>().join("; "));
    Error::file(path, format!("is no task that is known: it begins with {found}"), help)
}

fn question(record: &Value) -> Field<Question> {
    let mc1 = choices(record, "mc1_targets")?;
    let mc2 = choices(record, "mc2_targets")?;
    if mc1.iter().filter(|c| c.is_true).count() != 1 {
        return Err(("mc1_targets".into(), "expected exactly one true choice".into()));
    }
    if mc2.iter().all(|c| c.is_true) || !mc2.iter().any(|c| c.is_true) {
        return Err(("mc2_targets".into(), "expected true and false choices".into()));
    }
    Ok(Question { text: string(record, "question")?, mc1, mc2 })
}

/// `{"text": 1, …}` as in mc_task.json, or `{"choices": […], "labels": […]}` as on the Hugging Face hub.
fn choices(record: &Value, field: &str) -> Field<Vec<Choice>> {
    let expected = "an object of choices with 0 or 1 each, or one with lists `choices` and `labels`";
    let Some(Value::Object(object)) = record.get(field) else {
        return wrong(field, record.get(field), expected);
    };
    let label = |v: &Value| v.as_i64().filter(|l| (0..=1).contains(l)).map(|l| l == 1);
    let found: Option<Vec<Choice>> = match (object.get("choices"), object.get("labels")) {
        (Some(Value::Array(texts)), Some(Value::Array(labels))) if texts.len() == labels.len() => {
            let choice =
                |(t, l): (&Value, &Value)| Some(Choice { text: t.as_str()?.into(), is_true: label(l)? });
            texts.iter().zip(labels).map(choice).collect()
        }
        _ => object.iter().map(|(t, l)| Some(Choice { text: t.clone(), is_true: label(l)? })).collect(),
    };
    let found = found.filter(|choices| choices.len() > 1);
    found.map_or_else(|| wrong(field, record.get(field), &format!("{expected}, at least two of them")), Ok)
}

fn gsm8k(record: &Value) -> Field<Ask> {
    Ok(Ask { question: string(record, "question")?, answers: vec![string(record, "answer")?] })
}

/// As on the Hugging Face hub (`question`, `answer.value`), or as published first (`Question`, `Answer.Value`); `answer`
/// may be a plain list or text as well.
fn triviaqa(record: &Value) -> Field<Ask> {
    let original = record.get("Question").is_some();
    let question = string(record, if original { "Question" } else { "question" })?;
    let field = if original { "Answer" } else { "answer" };
    let strings = |value: Option<&Value>| -> Vec<String> {
        match value {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(String::from).collect(),
            _ => Vec::new(),
        }
    };
    let answers: Vec<String> = match record.get(field) {
        Some(Value::Object(answer)) => {
            // What people answered, where it differs, is right as well.
            let names =
                if original { ["Value", "Aliases", "HumanAnswers"] } else { ["value", "aliases", ""] };
            names.iter().flat_map(|name| strings(answer.get(*name))).collect()
        }
        other => strings(other),
    };
    if answers.is_empty() {
        return wrong(field, record.get(field), "an object with `value` and `aliases`, or a list of texts");
    }
    Ok(Ask { question, answers })
}

fn problem(record: &Value) -> Field<Problem> {
    let field = |name| string(record, name);
    Ok(Problem {
        id: field("task_id")?,
        prompt: field("prompt")?,
        entry_point: field("entry_point")?,
        test: field("test")?,
    })
}
