//! What the shift did at each token of one text, until somebody takes it.

use crate::decode::Position;

/// The positions of a text that have not been taken yet, by the lengths of their histories.
#[derive(Default)]
pub(super) struct Positions {
    /// Tokens of the prompt.
    first: Option<usize>,
    taken: usize,
    kept: Vec<Position>,
}

impl Positions {
    /// Keeps what was done after a history of so many tokens. Asked again there, as a grammar does that refuses a token, the
    /// later answer counts.
    pub fn keep(&mut self, history: usize, position: Position) {
        let first = *self.first.get_or_insert(history);
        let Some(place) = history.checked_sub(first + self.taken) else { return };
        self.kept.truncate(place);
        self.kept.push(position);
    }

    /// Takes them out in order; `all`: the last one too, which may still be replaced while its token is not settled.
    pub fn take(&mut self, all: bool) -> Vec<Position> {
        let count = self.kept.len().saturating_sub(usize::from(!all));
        self.taken += count;
        self.kept.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Token;

    fn position(token: Token) -> Position {
        Position { token, host_top: 0, top: 0, probabilities: None, candidates: Vec::new() }
    }

    #[test]
    fn a_position_that_is_asked_for_again_counts_once() {
        let mut positions = Positions::default();
        let tokens = |of: Vec<Position>| of.into_iter().map(|p| p.token).collect::<Vec<_>>();
        for (history, token) in [(5, 1), (6, 2), (6, 3)] {
            positions.keep(history, position(token));
        }
        assert_eq!(tokens(positions.take(false)), [1]);
        positions.keep(6, position(4));
        // Gone already.
        positions.keep(5, position(9));
        assert_eq!(tokens(positions.take(true)), [4]);
        positions.keep(7, position(5));
        assert_eq!((tokens(positions.take(false)), tokens(positions.take(true))), (vec![], vec![5]));
    }
}
