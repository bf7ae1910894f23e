//! Who drafts for a call, and how many positions it asks for.

use super::Draft;
use crate::config::Speculate;

/// Most tokens of one call where the number is left open: what the host writes beyond the first that is changed is paid for.
const MOST: usize = 32;

/// Chooses lengths by how far the last calls went.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CallLength {
    speculate: Speculate,
    /// A moving mean of the tokens kept of a call.
    kept: f64,
}

impl CallLength {
    pub fn new(speculate: Speculate) -> Self {
        Self { speculate, kept: 4.0 }
    }

    /// Tokens for the next call.
    pub fn next(&self) -> usize {
        match self.speculate {
            Speculate::Off => 1,
            // The drafted ones and the one that follows them.
            Speculate::Tokens(tokens) => usize::from(tokens) + 1,
            Speculate::Auto => ((2.0 * self.kept).ceil() as usize).clamp(2, MOST),
        }
    }

    /// Notes how many tokens of a call were kept.
    pub fn record(&mut self, kept: usize) {
        self.kept = 0.7 * self.kept + 0.3 * kept as f64;
    }
}

/// Chooses between the two that may draft.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Drafters {
    /// Moving means of the tokens kept: of the tuned proxy's calls, and of the host's.
    kept: [f64; 2],
    calls: usize,
}

impl Drafters {
    /// Every so many calls the worse one is tried again: texts change.
    const AGAIN: usize = 16;

    /// Who drafts next.
    pub fn next(&self) -> Draft {
        let by_host = match self.calls {
            0 => false,
            1 => true,
            calls => (self.kept[1] > self.kept[0]) != calls.is_multiple_of(Self::AGAIN),
        };
        if by_host { Draft::Host } else { Draft::Tuned }
    }

    /// Notes how many tokens of a call were kept.
    pub fn record(&mut self, by: Draft, kept: usize) {
        let mean = &mut self.kept[usize::from(by == Draft::Host)];
        *mean = if *mean == 0.0 { kept as f64 } else { 0.7 * *mean + 0.3 * kept as f64 };
        self.calls += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_kept_for_longer_drafts_and_the_other_is_tried_now_and_then() {
        for better in [Draft::Host, Draft::Tuned] {
            let mut drafters = Drafters::default();
            let mut counts = [0; 2];
            for _ in 0..34 {
                let by = drafters.next();
                counts[usize::from(by == better)] += 1;
                drafters.record(by, if by == better { 5 } else { 1 });
            }
            assert_eq!(counts, [3, 31], "{better:?}");
        }
    }

    #[test]
    fn calls_grow_where_the_host_agrees_and_shrink_where_it_does_not() {
        let mut length = CallLength::new(Speculate::Auto);
        (0..20).for_each(|_| length.record(length.next()));
        assert_eq!(length.next(), MOST);
        (0..20).for_each(|_| length.record(1));
        assert!(length.next() <= 3);
        assert_eq!(CallLength::new(Speculate::Off).next(), 1);
        assert_eq!(CallLength::new(Speculate::Tokens(3)).next(), 4);
    }
}
