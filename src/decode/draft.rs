//! What was drafted for one sequence.

use crate::backend::llama::Sampler;
use crate::pair::Pair;
use crate::vocab::Token;

/// The tokens drafted for one sequence in this step; they stand at the end of its history until they are judged.
#[derive(Default)]
pub(super) struct Draft {
    /// In the host's vocabulary.
    pub tokens: Vec<Token>,
    /// Rows of tuned and untuned proxy at this step's positions so far, each over its own vocabulary: those that the
    /// tokens were drawn from, in the end one more.
    pub rows: [Vec<f32>; 2],
    /// Whether the other proxy, in general the untuned one, went along.
    pub in_lockstep: bool,
    /// What they were drawn by, over the host's vocabulary, one after the other; none where drafting is greedy.
    pub probabilities: Vec<f32>,
    /// How likely the proxy thought each.
    pub confidence: Vec<f32>,
    /// How likely all will be accepted.
    pub reach: f64,
    /// Has read the drafted tokens, which the sequence's own has not; none where that makes no difference.
    pub sampler: Option<Sampler>,
}

impl Draft {
    pub fn clear(&mut self) {
        let Self { tokens, rows, in_lockstep, probabilities, confidence, reach, sampler } = self;
        tokens.clear();
        rows.iter_mut().for_each(Vec::clear);
        *in_lockstep = false;
        probabilities.clear();
        confidence.clear();
        *sampler = None;
        *reach = 1.0;
    }
}

impl Draft {
    /// Tuned and untuned row at one position of the step; empty for a proxy that does not run.
    pub(super) fn rows_at(&self, at: usize, pair: &Pair) -> [&[f32]; 2] {
        [0, 1].map(|i| pair.row_at(i, &self.rows[i], at))
    }
}
