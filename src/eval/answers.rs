//! Questions that the models answer in words: right or wrong by a [`Rule`].

use super::Journal;
use super::bootstrap::Items;
use super::generation::{GenerationOptions, Prompt, Verdict, Verdicts, generate};
use super::metric::Metric;
use super::report::{Example, Report, counted};
use super::rule::Rule;
use super::setup::{Listen, Setup, check_alphas};
use super::task::{Ask, Kind};
use crate::error::Result;

/// Has the questions answered by every column: the share of right answers.
///
/// # Errors
/// When a prompt cannot be made, a model or the journal fails; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn answers(
    setup: &Setup,
    kind: Kind,
    asks: &[Ask],
    rule: &Rule,
    options: &GenerationOptions,
    journal: &mut Journal,
    listen: &mut Listen<'_>,
) -> Result<Report> {
    check_alphas(&setup.alphas)?;
    let prompt = |ask: &Ask| Prompt { text: ask.question.clone(), framed: kind.frame(&ask.question) };
    let prompts: Vec<Prompt> = asks.iter().map(prompt).collect();
    let judge = |texts: &[(usize, String)]| {
        let verdict = |(item, text): &(usize, String)| Verdict {
            text: text.clone(),
            right: rule.is_right(text, &asks[*item].answers),
            why: rule.extract(text).unwrap_or_default(),
        };
        Ok(texts.iter().map(verdict).collect())
    };
    let (verdicts, notes) = generate(setup, &prompts, options, &judge, journal, listen)?;
    let columns = setup.columns();
    let right = |of: &Vec<Vec<Verdict>>| {
        let all = of.iter().flatten();
        all.clone().filter(|v| v.right).count() as f64 / all.count().max(1) as f64
    };
    let scores: Vec<f64> = verdicts.iter().map(right).collect();
    let of_item =
        |item: &Vec<Verdict>| item.iter().filter(|v| v.right).count() as f64 / item.len().max(1) as f64;
    let items = Items::alike(verdicts.iter().map(|of| of.iter().map(of_item).collect()).collect());
    let metrics = vec![Metric::new("accuracy", false, &columns, &scores).over(&items)];
    let expected = |i: usize| asks[i].answers.first().cloned().unwrap_or_default();
    let examples = examples(setup, &metrics[0], &verdicts, |i| (asks[i].question.clone(), expected(i)));
    let size = counted(asks.len(), "question");
    Ok(Report { task: kind.name().into(), size, metrics, notes, examples, ..Report::default() })
}

/// Items shown in a report; more would only make it long.
const EXAMPLES: usize = 12;

/// The first items with the texts of host, tuned proxy and the best alpha.
pub(super) fn examples(
    setup: &Setup,
    metric: &Metric,
    verdicts: &Verdicts,
    item: impl Fn(usize) -> (String, String),
) -> Vec<Example> {
    let columns = setup.columns();
    let best = metric.best().map(|b| super::Column::Shifted(b.alpha));
    let shown = |c: super::Column| {
        matches!(c, super::Column::Host | super::Column::Tuned | super::Column::Direct) || Some(c) == best
    };
    let items = verdicts.first().map_or(0, Vec::len).min(EXAMPLES);
    let example = |i: usize| {
        let (prompt, expected) = item(i);
        let all = columns.iter().zip(verdicts).filter(|(c, _)| shown(**c));
        let outputs = all.filter_map(|(c, of)| Some((c.name(), of[i].first()?.clone()))).collect();
        Example { prompt, expected, outputs }
    };
    (0..items).map(example).collect()
}
