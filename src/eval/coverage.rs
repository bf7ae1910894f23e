//! How much of what the host would say the proxies' vocabularies can say.

use super::setup::{Listen, Progress, Setup};
use super::sweep::{Scorer, Seat};
use super::table::{Measure, Scratch, Table, Unit};
use super::text::Windows;
use crate::combine::log_sum_exp;
use crate::error::Result;
use crate::vocab::{Token, TokenMap};

/// The share of the host's probability that stands on tokens which all proxies have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coverage {
    /// Mean over all positions, 0 to 1.
    pub mean: f64,
    /// The least at any position.
    pub least: f64,
    /// Positions.
    pub tokens: u64,
}

/// Runs the host alone over a text in windows of `window` tokens, and looks at its probabilities through these maps.
///
/// # Errors
/// As [`text`](super::text()).
pub fn coverage(
    setup: &Setup,
    maps: &[TokenMap],
    text: &str,
    window: usize,
    listen: &mut Listen<'_>,
) -> Result<Coverage> {
    let windows = Windows::cut(setup, text, window)?;
    let seats = vec![Seat::host(&setup.config, &setup.models)];
    let mut scorer = Scorer::over(&setup.config, seats, windows.longest)?;
    let total = windows.passages.iter().map(|p| p.generated().len() as u64).sum();
    let (mut sum, mut least) = (0.0, 1.0f64);
    let mut each = |_: usize, share: &[f64]| {
        sum += share[0];
        least = least.min(share[0]);
    };
    scorer.run(&windows.passages, &Known(maps), &mut each, &mut |_, _| Ok(()), &mut |scored| {
        listen(Progress { done: scored as u64, total, unit: "tokens" })
    })?;
    Ok(Coverage { mean: sum / total as f64, least, tokens: total })
}

struct Known<'a>(&'a [TokenMap]);

impl Measure for Known<'_> {
    fn width(&self) -> usize {
        1
    }

    fn reads(&self, _: usize) -> bool {
        true
    }

    fn measure(&self, table: &Table<'_>, unit: Unit, share: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        let host = table.row(unit, 0)?;
        let is_known = |token: usize| self.0.iter().all(|map| map.is_one_to_one(&[token as Token]));
        let known = host.iter().enumerate().map(|(t, &x)| if is_known(t) { x } else { f32::NEG_INFINITY });
        scratch[0].clear();
        scratch[0].extend(known);
        share[0] = (log_sum_exp(&scratch[0]) - log_sum_exp(host)).exp().min(1.0);
        Ok(())
    }
}
