//! Confidence intervals by the bootstrap (Efron 1979): items are drawn again, with replacement, and everything is scored anew.
//!
//! All columns are scored on the same draws, so a gap's interval knows that they were hard or easy for all. The random numbers
//! are fixed: the same results have the same intervals.

use crate::decode::accept::Dice;

/// How sure an interval is.
pub const LEVEL: f64 = 0.95;
/// Draws of all items.
pub const RESAMPLES: usize = 2000;
const SEED: u64 = 1979;

/// Where a score lies with a probability of [`LEVEL`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// 2.5 % lie below.
    pub low: f64,
    /// 2.5 % lie above.
    pub high: f64,
}

/// The intervals of a metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Intervals {
    /// Of the scores: host, untuned and tuned proxy, the directly tuned model where there is one, then each alpha.
    pub scores: Vec<Interval>,
    /// Of the gap closed, by alpha; `None` without a directly tuned model, or where the draws do not even agree that it is
    /// better than the host.
    pub gaps: Vec<Option<Interval>>,
}

/// What one metric is made of, by item: a score is the sum of a column's values over the sum of the sizes.
pub(super) struct Items {
    /// By column, then by item.
    pub values: Vec<Vec<f64>>,
    /// By item: 1 where a score is a mean, bits where it is bits per byte.
    pub sizes: Vec<f64>,
}

impl Items {
    /// Items that count alike.
    pub fn alike(values: Vec<Vec<f64>>) -> Self {
        let sizes = vec![1.0; values.first().map_or(0, Vec::len)];
        Self { values, sizes }
    }

    /// The intervals over these items, with or without a directly tuned model among the columns; none for fewer than two items.
    /// `is_worse` says whether its first score is worse than its second.
    pub fn intervals(&self, has_direct: bool, is_worse: impl Fn(f64, f64) -> bool) -> Option<Intervals> {
        let count = self.sizes.len();
        if count < 2 {
            return None;
        }
        let mut dice = Dice::new(Some(SEED));
        let mut scores: Vec<Vec<f64>> = vec![Vec::with_capacity(RESAMPLES); self.values.len()];
        let mut draw = vec![0; count];
        for _ in 0..RESAMPLES {
            draw.iter_mut().for_each(|item| *item = ((dice.roll() * count as f64) as usize).min(count - 1));
            let size: f64 = draw.iter().map(|&item| self.sizes[item]).sum();
            for (scores, values) in scores.iter_mut().zip(&self.values) {
                scores.push(draw.iter().map(|&item| values[item]).sum::<f64>() / size);
            }
        }
        let first = 3 + usize::from(has_direct);
        let gaps = scores.iter().skip(first).map(|shifted| {
            if !has_direct {
                return None;
            }
            // `None` where there is no gap in a draw.
            let of = |draw: usize| {
                let (host, direct) = (scores[0][draw], scores[3][draw]);
                is_worse(host, direct).then(|| (shifted[draw] - host) / (direct - host))
            };
            let gaps: Option<Vec<f64>> = (0..RESAMPLES).map(of).collect();
            gaps.map(interval)
        });
        let gaps = gaps.collect();
        Some(Intervals { scores: scores.into_iter().map(interval).collect(), gaps })
    }
}

fn interval(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    let tail = (1.0 - LEVEL) / 2.0;
    Interval { low: at(tail), high: at(1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(right: &[usize], of: usize) -> Items {
        let values: Vec<Vec<f64>> = right
            .iter()
            .map(|&right| (0..of).map(|item| f64::from(u8::from(item < right))).collect())
            .collect();
        Items::alike(values)
    }

    #[test]
    fn a_shares_interval_is_the_normal_one_and_always_the_same() {
        let items = shares(&[100, 50, 120, 200, 160], 400);
        let found = items.intervals(true, |a, b| a < b).unwrap();
        assert_eq!(found, items.intervals(true, |a, b| a < b).unwrap());
        for (interval, p) in found.scores.iter().zip([0.25, 0.125, 0.3, 0.5, 0.4f64]) {
            let half = 1.96 * (p * (1.0 - p) / 400.0).sqrt();
            assert!((interval.low - (p - half)).abs() < 0.25 * half, "{p}: {interval:?}");
            assert!((interval.high - (p + half)).abs() < 0.25 * half, "{p}: {interval:?}");
        }
        // 60 of 100: of the items that the direct model gains, so many are gained by the shift.
        let gap = found.gaps[0].unwrap();
        assert!(gap.low > 0.48 && gap.low < 0.55 && gap.high > 0.65 && gap.high < 0.72, "{gap:?}");
    }

    #[test]
    fn a_gap_that_may_not_be_there_has_no_interval() {
        let items = shares(&[100, 50, 120, 101, 100], 400);
        let found = items.intervals(true, |a, b| a < b).unwrap();
        // The one item that makes the gap is not in every draw.
        assert_eq!(found.gaps, [None]);
        assert_eq!(Items::alike(vec![vec![1.0]; 5]).intervals(true, |a, b| a < b), None);
    }

    #[test]
    fn items_count_by_their_size() {
        let items = Items { values: vec![vec![2.0, 400.0]; 4], sizes: vec![1.0, 200.0] };
        let found = items.intervals(false, |a, b| a > b).unwrap();
        assert!(found.scores.iter().all(|i| (i.low, i.high) == (2.0, 2.0)), "{found:?}");
    }
}
