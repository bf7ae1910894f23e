//! How long whole steps of an engine take, its own part included.

use std::time::{Duration, Instant};

/// A position may be computed again, where the token before it was guessed wrongly; what is beyond that is a prompt.
const PASSES: u64 = 2;

/// Times from the beginning of one step to that of the next.
#[derive(Debug, Default)]
pub(super) struct WholeStep {
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    since: Instant,
    size: usize,
    done: Done,
}

/// What the proxies had done when a step began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    /// Tokens that they had computed, both together.
    pub tokens: u64,
    /// Wishes that had their answers.
    pub answers: u64,
}

impl WholeStep {
    /// A step begins for which so many sequences have announced themselves. Returns its size; and of the step before the size and the
    /// time, unless prompts were read in it: then it says nothing of the next one.
    pub(super) fn begin(
        &mut self,
        since: Instant,
        announced: usize,
        done: Done,
    ) -> (usize, Option<(usize, Duration)>) {
        let last = self.open.take();
        let answered = last.map_or(0, |last| done.answers - last.done.answers);
        // Of a batch some may have been computed with the step before.
        let size = if announced == 0 { 0 } else { announced.max(answered as usize) };
        self.open = (size > 0).then_some(Open { since, size, done });
        let ordinary = |last: &Open| done.tokens - last.done.tokens <= 2 * PASSES * last.size as u64;
        let time = |last: Open| (last.size, since.saturating_duration_since(last.since));
        (size, last.filter(ordinary).map(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(step: &mut WholeStep, announced: usize, [tokens, answers]: [u64; 2]) -> (usize, Option<usize>) {
        let (size, last) = step.begin(Instant::now(), announced, Done { tokens, answers });
        (size, last.map(|last| last.0))
    }

    #[test]
    fn steps_are_timed_from_one_beginning_to_the_next() {
        let (mut step, now) = (WholeStep::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        assert_eq!(step.begin(now, 3, Done { tokens: 100, answers: 9 }), (3, None));
        let one_pass = Done { tokens: 106, answers: 12 };
        assert_eq!(step.begin(later, 3, one_pass), (3, Some((3, later - now))));
        // One was guessed wrongly.
        assert_eq!(begin(&mut step, 3, [114, 15]), (3, Some(3)));
        // Nothing goes on, and then something begins.
        assert_eq!(begin(&mut step, 0, [120, 18]), (0, Some(3)));
        assert_eq!(begin(&mut step, 1, [300, 19]), (1, None));
    }

    #[test]
    fn a_step_in_which_a_prompt_was_read_does_not_count() {
        let mut step = WholeStep::default();
        begin(&mut step, 2, [0, 0]);
        assert_eq!(begin(&mut step, 3, [60, 3]), (3, None));
        assert_eq!(begin(&mut step, 3, [66, 6]), (3, Some(3)));
    }

    #[test]
    fn sequences_that_the_step_before_has_computed_belong_to_the_batch() {
        let mut step = WholeStep::default();
        begin(&mut step, 1, [0, 0]);
        assert_eq!(begin(&mut step, 1, [8, 4]), (4, None));
        assert_eq!(begin(&mut step, 1, [16, 8]), (4, Some(4)));
    }
}
