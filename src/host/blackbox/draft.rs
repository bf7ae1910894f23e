//! How many positions one call asks for.

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

#[cfg(test)]
mod tests {
    use super::*;

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
