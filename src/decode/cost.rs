//! What a pass over so many positions costs, from those seen.

use crate::recent::Recent;
use std::collections::BTreeMap;
use std::time::Duration;

/// So many passes of a size must have been seen before it is believed: the first ones build graphs and wake threads.
const TRUSTED: usize = 3;

/// Seconds by positions. Between two sizes seen it interpolates.
#[derive(Debug, Default)]
pub(super) struct CostTable(BTreeMap<usize, Recent>);

impl CostTable {
    /// Takes note of one pass.
    pub(super) fn record(&mut self, positions: usize, time: Duration) {
        self.0.entry(positions).or_default().push(time);
    }

    /// Seconds that a pass over `positions` takes; `None` before anything can be told.
    pub(super) fn estimate(&self, positions: usize) -> Option<f64> {
        let seconds = |(&at, times): (&usize, &Recent)| {
            let trusted = times.held() >= TRUSTED;
            times.median().filter(|_| trusted).map(|time| (at as f64, time.as_secs_f64()))
        };
        let below = self.0.range(..=positions).rev().find_map(seconds);
        let above = self.0.range(positions..).find_map(seconds);
        let n = positions as f64;
        match (below, above) {
            (Some((a, low)), Some((b, high))) if b > a => Some(low + (high - low) * (n - a) / (b - a)),
            (Some((_, exact)), Some(_)) => Some(exact),
            // Unseen sizes are taken to be cheap enough to be tried: twice the positions for a quarter more.
            (Some((a, low)), None) => Some(low * (0.75 + 0.25 * n / a)),
            (None, Some((b, high))) => Some(high * (0.75 + 0.25 * n / b)),
            (None, None) => None,
        }
    }

    /// How many passes over exactly so many positions are remembered.
    pub(super) fn seen(&self, positions: usize) -> usize {
        self.0.get(&positions).map_or(0, Recent::held)
    }

    /// The largest number of positions seen often enough.
    pub(super) fn largest(&self) -> usize {
        self.0.iter().rfind(|(_, times)| times.held() >= TRUSTED).map_or(0, |(&positions, _)| positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(costs: &mut CostTable, positions: usize, seconds: u64, times: usize) {
        (0..times).for_each(|_| costs.record(positions, Duration::from_secs(seconds)));
    }

    #[test]
    fn costs_are_interpolated_and_follow_the_machine() {
        let mut costs = CostTable::default();
        assert_eq!(costs.estimate(3), None);
        record(&mut costs, 2, 2, TRUSTED);
        assert_eq!((costs.estimate(2), costs.estimate(4)), (Some(2.0), Some(2.5)));
        record(&mut costs, 6, 10, TRUSTED);
        assert_eq!((costs.estimate(4), costs.estimate(6), costs.largest()), (Some(6.0), Some(10.0), 6));
        record(&mut costs, 2, 4, 5);
        assert_eq!(costs.estimate(4), Some(7.0));
    }

    #[test]
    fn one_slow_pass_of_a_new_size_proves_nothing() {
        let mut costs = CostTable::default();
        record(&mut costs, 1, 2, TRUSTED);
        record(&mut costs, 2, 50, 1);
        assert_eq!(costs.estimate(2), Some(2.5));
    }
}
