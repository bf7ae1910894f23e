//! Medians of the last few measurements: machines are noisy, and what was true a minute ago may no longer be.

use std::time::Duration;

/// The last `N` durations of one thing.
#[derive(Debug, Clone)]
pub struct Recent<const N: usize = 5> {
    times: [Duration; N],
    count: usize,
}

impl<const N: usize> Default for Recent<N> {
    fn default() -> Self {
        Self { times: [Duration::ZERO; N], count: 0 }
    }
}

impl<const N: usize> Recent<N> {
    /// Adds one; the oldest gives way.
    pub fn push(&mut self, time: Duration) {
        self.times[self.count % N] = time;
        self.count += 1;
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.count.min(N)
    }

    /// The median of those held; of an even number the lower one. `None` without any.
    pub fn median(&self) -> Option<Duration> {
        let mut times = self.times;
        let times = &mut times[..self.held()];
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_does_not_move_the_median_and_old_times_are_forgotten() {
        let mut recent: Recent = Recent::default();
        assert_eq!(recent.median(), None);
        [5, 900, 5].iter().for_each(|&ms| recent.push(Duration::from_millis(ms)));
        assert_eq!(recent.median(), Some(Duration::from_millis(5)));
        [8; 5].iter().for_each(|&ms| recent.push(Duration::from_millis(ms)));
        assert_eq!((recent.median(), recent.held()), (Some(Duration::from_millis(8)), 5));
    }
}
