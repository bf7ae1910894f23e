//! How well the models predict a text: bits per byte and perplexity.
//!
//! The text is cut into windows, side by side or overlapping. What nothing in its window predicts, the first token of each one
//! side by side, is not scored; the bits of all others are divided by the bytes that they spell. Bytes, not tokens, make
//! models of different vocabularies comparable.

use super::bootstrap::Items;
use super::metric::{Metric, PERPLEXITY};
use super::passage::Passage;
use super::report::{Report, counted};
use super::setup::{Listen, Progress, Setup, check_alphas};
use super::sweep::Scorer;
use super::{Column, Journal};
use crate::backend::llama::LlamaModel;
use crate::error::{Error, Result};
use crate::vocab::Token;
use serde_json::{Value, json};

/// The weights that [`calibrate`] chooses from.
pub const CALIBRATION_GRID: [f32; 17] =
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875, 2.0];

/// How a text is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Tokens of a window.
    pub tokens: usize,
    /// Tokens from the beginning of one window to that of the next. Less than a window has makes a sliding window: of each
    /// but the first only what the one before did not reach is scored, so every token has at least `tokens - stride` before it.
    pub stride: usize,
}

/// Side by side.
impl From<usize> for Window {
    fn from(tokens: usize) -> Self {
        Self { tokens, stride: tokens }
    }
}

/// Scores a text in windows: bits per byte, then perplexity, both lower the better. Schedule and guards of the shift count each
/// window's scored tokens as a generated text.
///
/// # Errors
/// [`Error::Invalid`] for a text without two tokens or a window that no context holds; when a model or the journal
/// fails; [`Error::Interrupted`].
pub fn text(
    setup: &Setup,
    text: &str,
    window: impl Into<Window>,
    journal: &mut Journal,
    listen: &mut Listen<'_>,
) -> Result<Report> {
    check_alphas(&setup.alphas)?;
    let window = window.into();
    let windows = Windows::cut(setup, text, window)?;
    let columns = setup.columns();
    let mut scores: Vec<Option<Vec<f64>>> =
        (0..windows.passages.len()).map(|i| recorded(journal.get(&key(i))?, &columns)).collect();
    let missing: Vec<usize> = (0..scores.len()).filter(|&i| scores[i].is_none()).collect();
    let passages: Vec<Passage> = missing.iter().map(|&i| windows.passages[i].clone()).collect();
    let count = |passages: &[Passage]| passages.iter().map(|p| p.generated().len() as u64).sum::<u64>();
    let total = count(&windows.passages);
    let before = total - count(&passages);
    let mut scorer =
        Scorer::new(&setup.config, &setup.models, setup.direct.as_ref(), &setup.alphas, windows.longest)?;
    let mut done = |index: usize, nats: Vec<f64>| {
        journal.put(key(missing[index]), record(&nats, &columns))?;
        scores[missing[index]] = Some(nats);
        Ok(())
    };
    scorer.score(&passages, &mut done, &mut |scored| {
        listen(Progress { done: before + scored as u64, total, unit: "tokens" })
    })?;
    let sum = |column: usize| scores.iter().flatten().map(|nats| nats[column]).sum::<f64>();
    let nats: Vec<f64> = (0..columns.len()).map(sum).collect();
    let per = |scale: &dyn Fn(f64) -> f64| nats.iter().map(|&n| scale(n)).collect::<Vec<f64>>();
    let bytes = windows.bytes as f64 * std::f64::consts::LN_2;
    let of_column = |column: usize| scores.iter().flatten().map(|nats| nats[column]).collect();
    let bits = |&bytes: &usize| bytes as f64 * std::f64::consts::LN_2;
    let items = Items {
        values: (0..columns.len()).map(of_column).collect(),
        sizes: windows.bytes_of.iter().map(bits).collect(),
    };
    let metrics = vec![
        Metric::new("bits_per_byte", true, &columns, &per(&|n| n / bytes)).over(&items),
        Metric::new(PERPLEXITY, true, &columns, &per(&|n| (n / total as f64).exp())),
    ];
    let Window { tokens, stride } = window;
    let every = if stride < tokens { format!(", one every {stride}") } else { String::new() };
    let size = format!(
        "{total} tokens ({} bytes) in {} of {tokens}{every}",
        windows.bytes,
        counted(scores.len(), "window")
    );
    Ok(Report { task: "text".into(), size, metrics, ..Report::default() })
}

/// The weight of [`CALIBRATION_GRID`] under which the shifted host predicts a text best, and all of their scores.
///
/// # Errors
/// As [`text`].
pub fn calibrate(
    setup: &mut Setup,
    calibration: &str,
    window: impl Into<Window>,
    listen: &mut Listen<'_>,
) -> Result<Metric> {
    let alphas = std::mem::replace(&mut setup.alphas, CALIBRATION_GRID.to_vec());
    let direct = setup.direct.take();
    let report = text(setup, calibration, window, &mut Journal::none(), listen);
    (setup.alphas, setup.direct) = (alphas, direct);
    report?.metrics.into_iter().next().ok_or(Error::Interrupted)
}

fn key(window: usize) -> String {
    format!("window {window}")
}

fn record(nats: &[f64], columns: &[Column]) -> Value {
    columns
        .iter()
        .zip(nats)
        .map(|(column, &nats)| (column.key(), json!(nats)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Scores of a journal, where it has all columns. An infinite one is null in JSON.
fn recorded(value: &Value, columns: &[Column]) -> Option<Vec<f64>> {
    columns.iter().map(|c| value.get(c.key()).map(|v| v.as_f64().unwrap_or(f64::INFINITY))).collect()
}

/// A text cut up.
pub(super) struct Windows {
    pub passages: Vec<Passage>,
    /// Bytes of all tokens that are scored.
    bytes: usize,
    /// The same by passage.
    bytes_of: Vec<usize>,
    /// Tokens of the longest passage.
    pub longest: usize,
}

impl Windows {
    pub fn cut(setup: &Setup, text: &str, window: impl Into<Window>) -> Result<Self> {
        let Window { tokens: window, stride } = window.into();
        let host = &setup.models.host;
        let begin: Vec<Token> = setup.begin().into_iter().collect();
        let (context, whose) = setup.context();
        if window < 2 || window + begin.len() > context {
            let most = context.saturating_sub(begin.len());
            let expected = format!("2 to {most} tokens, which is what the {whose}'s context holds");
            return Err(Error::invalid("--window", window, expected));
        }
        if stride == 0 || stride > window {
            let expected = format!("1 to {window} tokens, as many as a window has");
            return Err(Error::invalid("--stride", stride, expected));
        }
        let tokens = host.tokenize_bytes(text.as_bytes(), false, false);
        let (mut passages, mut reached) = (Vec::new(), 0);
        for first in (0..tokens.len()).step_by(stride) {
            let end = tokens.len().min(first + window);
            // Nothing predicts a window's first token.
            let scored = reached.max(first + 1);
            if scored < end {
                let mut passage = Passage::new([&begin, &tokens[first..scored]].concat(), None);
                passage.extend(&tokens[scored..end]);
                passages.push(passage);
            }
            reached = end;
        }
        let bytes_of: Vec<usize> = passages.iter().map(|passage| scored_bytes(host, passage)).collect();
        let bytes = bytes_of.iter().sum();
        if bytes == 0 {
            return Err(Error::invalid(
                "text",
                format!("{} tokens", tokens.len()),
                "a text of at least two tokens",
            ));
        }
        let longest = window.min(tokens.len()) + begin.len();
        Ok(Self { passages, bytes, bytes_of, longest })
    }
}

/// Bytes that the scored tokens of a passage spell.
pub(super) fn scored_bytes(host: &LlamaModel, passage: &Passage) -> usize {
    passage.generated().iter().map(|&t| host.piece(t, false).len()).sum()
}
