//! What was drafted for one sequence.

use crate::backend::llama::Sampler;
use crate::error::{Error, Result};
use crate::pair::Pair;
use crate::vocab::Token;

/// The tokens drafted for one sequence in this step; they stand at the end of its history until they are judged.
#[derive(Default)]
pub(super) struct Draft {
    /// In the host's vocabulary.
    pub tokens: Vec<Token>,
    /// Rows of tuned and untuned proxy at the first positions of this step, each over its own vocabulary: those that were
    /// computed while drafting.
    pub rows: [Vec<f32>; 2],
    /// Where the pair holds those of later positions.
    pub rest: Option<Rest>,
    /// Whether the untuned proxy went along.
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

/// A request of the pair for rows that follow those of the draft.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// The request.
    pub request: usize,
    /// Positions of the step that its first rows stand at, tuned and untuned.
    pub first: [usize; 2],
    /// Positions of the step that there are rows for, both together.
    pub held: usize,
}

impl Draft {
    pub fn clear(&mut self) {
        let Self { tokens, rows, rest, in_lockstep, probabilities, confidence, reach, sampler } = self;
        tokens.clear();
        rows.iter_mut().for_each(Vec::clear);
        *rest = None;
        *in_lockstep = false;
        probabilities.clear();
        confidence.clear();
        *sampler = None;
        *reach = 1.0;
    }
}

impl Draft {
    /// Positions of the step whose rows were computed while drafting, by the tuned and by the untuned proxy.
    pub(super) fn drafted(&self) -> [usize; 2] {
        let tokens = self.tokens.len();
        [tokens, if self.in_lockstep { tokens } else { 0 }]
    }

    /// Positions of the step whose rows of both proxies are there.
    pub(super) fn held(&self) -> usize {
        let [tuned, untuned] = self.drafted();
        self.rest.map_or(tuned.min(untuned), |rest| rest.held)
    }

    /// Tuned and untuned row at one position of the step.
    ///
    /// # Errors
    /// When a row is not there.
    pub(super) fn rows_at<'a>(&'a self, at: usize, pair: &'a Pair) -> Result<[&'a [f32]; 2]> {
        let row = |which: usize| {
            let len = pair.maps()[which].proxy_len();
            match self.rest {
                Some(Rest { request, first, .. }) if at >= first[which] => {
                    let row = at - first[which];
                    if which == 0 { pair.tuned_row(request, row) } else { pair.untuned_row(request, row) }
                }
                _ => {
                    let (got, expected) = (self.rows[which].len(), (at + 1) * len);
                    let missing = || Error::Shape { what: "drafted rows", got, expected };
                    self.rows[which].get(at * len..expected).ok_or_else(missing)
                }
            }
        };
        Ok([row(0)?, row(1)?])
    }
}
