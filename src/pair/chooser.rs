//! Which of two ways to run a step is faster, found by trying both, for each size of batch.

use crate::recent::Recent;
use std::time::Duration;

/// Measured steps between two trials of the way that lost.
const PERIOD: u32 = 1024;

/// The second way must be faster by this factor: what looks like less is noise.
const CLEARLY: f64 = 1.04;

/// Measurements that a median is made of at most.
const MOST: usize = 15;

/// Steps that go one way before the other has its turn, as a change costs something by itself. One where orders of events are tried.
const IN_A_ROW: usize = if cfg!(shuttle) { 1 } else { 5 };

/// See the [module](self). Ways are numbered 0 and 1.
#[derive(Debug)]
pub(super) struct Chooser {
    /// By the logarithm of the batch: what is right for one sequence is wrong for sixteen.
    sizes: Vec<Choice>,
    /// Measurements of each way before one is chosen.
    trials: usize,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    ways: [Recent<MOST>; 2],
    steps: u32,
}

impl Chooser {
    /// `trials`: measurements of each way, [`MOST`] of them at most.
    pub(super) fn new(trials: usize) -> Self {
        Self { sizes: Vec::new(), trials: trials.min(MOST) }
    }

    /// The way to go for a batch of `size`: one not yet tried enough, else the faster one. The same at every call until
    /// the next [`Chooser::record`].
    pub(super) fn way(&self, size: usize) -> usize {
        self.sizes.get(class(size)).map_or(0, |choice| choice.way(self.trials))
    }

    /// Takes note of how long a step took.
    pub(super) fn record(&mut self, size: usize, way: usize, time: Duration) {
        let class = class(size);
        if self.sizes.len() <= class {
            self.sizes.resize(class + 1, Choice::default());
        }
        let choice = &mut self.sizes[class];
        choice.ways[way].push(time);
        choice.steps += 1;
        if choice.steps.is_multiple_of(PERIOD) {
            choice.ways[1 - choice.way(self.trials)] = Recent::default();
        }
    }
}

impl Choice {
    fn way(&self, trials: usize) -> usize {
        let [first, second] = self.ways.each_ref().map(|way| way.held().min(trials));
        if first < trials && (second == trials || first / IN_A_ROW <= second / IN_A_ROW) {
            return 0;
        }
        if second < trials {
            return 1;
        }
        let [first, second] = self.ways.each_ref().map(Recent::median);
        let clearly = first.zip(second).is_some_and(|(first, second)| second.mul_f64(CLEARLY) < first);
        usize::from(clearly)
    }
}

fn class(size: usize) -> usize {
    size.max(1).ilog2() as usize
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// Runs steps whose two ways take these milliseconds; returns how often the second was taken.
    fn run(chooser: &mut Chooser, size: usize, ms: [u64; 2], steps: usize) -> usize {
        let step = |_| {
            let way = chooser.way(size);
            chooser.record(size, way, Duration::from_millis(ms[way]));
            way
        };
        (0..steps).map(step).sum()
    }

    #[test]
    fn both_ways_are_tried_then_the_faster_one_is_taken() {
        for trials in [5, 15] {
            let mut chooser = Chooser::new(trials);
            assert_eq!(run(&mut chooser, 1, [3, 2], 100), 100 - trials);
            assert_eq!(run(&mut chooser, 16, [2, 3], 100), trials);
            assert_eq!(run(&mut chooser, 1, [3, 2], 100), 100);
        }
    }

    #[test]
    fn trials_take_turns_a_few_steps_at_a_time() {
        let mut chooser = Chooser::new(15);
        let taken: Vec<usize> = (0..6).map(|_| run(&mut chooser, 1, [2, 2], IN_A_ROW)).collect();
        assert_eq!(taken, [0, 5, 0, 5, 0, 5]);
    }

    #[test]
    fn a_way_that_has_become_the_faster_one_is_found() {
        let mut chooser = Chooser::new(5);
        run(&mut chooser, 4, [3, 2], 100);
        let steps = 2 * PERIOD as usize;
        assert!(run(&mut chooser, 4, [1, 2], steps) < steps * 6 / 10);
        assert_eq!(run(&mut chooser, 4, [1, 2], 100), 0);
    }
}
