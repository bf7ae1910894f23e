//! What a pass over so many positions costs, from those seen.

use crate::recent::Recent;
use std::collections::BTreeMap;
use std::time::Duration;

/// Seconds by positions. Between two sizes seen it interpolates; it never guesses below the smaller of them.
#[derive(Debug, Default)]
pub(super) struct CostTable(BTreeMap<usize, Recent>);

impl CostTable {
    /// Takes note of one pass.
    pub(super) fn record(&mut self, positions: usize, time: Duration) {
        self.0.entry(positions).or_default().push(time);
    }

    /// Seconds that a pass over `positions` takes; `None` before anything was seen.
    pub(super) fn estimate(&self, positions: usize) -> Option<f64> {
        let seconds = |(&at, times): (&usize, &Recent)| Some((at as f64, times.median()?.as_secs_f64()));
        let below = self.0.range(..=positions).next_back().and_then(seconds);
        let above = self.0.range(positions..).next().and_then(seconds);
        let n = positions as f64;
        match (below, above) {
            (Some((a, low)), Some((b, high))) if b > a => Some(low + (high - low) * (n - a) / (b - a)),
            (Some((_, exact)), Some(_)) => Some(exact),
            // Unseen sizes are taken to be cheap enough to be tried: twice the positions for half as much again.
            (Some((a, low)), None) => Some(low * (0.5 + 0.5 * n / a)),
            (None, Some((b, high))) => Some(high * (0.5 + 0.5 * n / b)),
            (None, None) => None,
        }
    }

    /// How many passes over exactly so many positions are remembered.
    pub(super) fn seen(&self, positions: usize) -> usize {
        self.0.get(&positions).map_or(0, Recent::held)
    }

    /// The largest number of positions seen.
    pub(super) fn largest(&self) -> usize {
        self.0.keys().next_back().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_interpolated_and_follow_the_machine() {
        let mut costs = CostTable::default();
        assert_eq!(costs.estimate(3), None);
        costs.record(2, Duration::from_secs(2));
        assert_eq!((costs.estimate(2), costs.estimate(4)), (Some(2.0), Some(3.0)));
        costs.record(6, Duration::from_secs(10));
        assert_eq!((costs.estimate(4), costs.estimate(6), costs.largest()), (Some(6.0), Some(10.0), 6));
        (0..Recent::MOST).for_each(|_| costs.record(2, Duration::from_secs(4)));
        assert_eq!(costs.estimate(4), Some(7.0));
    }
}
