//! Drafting: the tuned proxy goes ahead of the host, whose next pass then checks several positions at once.

use super::Decoder;
use super::job::Running;
use crate::backend::llama::Sampler;
use crate::combine::argmax;
use crate::error::Result;
use crate::vocab::{Token, TokenMap};
use std::time::Instant;

/// The tokens drafted for one sequence in this step; they stand at the end of its history until they are judged.
#[derive(Default)]
pub(super) struct Draft {
    /// In the host's vocabulary.
    pub tokens: Vec<Token>,
    /// The tuned proxy's rows that they were drawn from, over its own vocabulary, one after the other.
    pub rows: Vec<f32>,
    /// What they were drawn by, over the host's vocabulary, one after the other; none where drafting is greedy.
    pub probabilities: Vec<f32>,
    /// How likely the proxy thought each.
    pub confidence: Vec<f32>,
    /// How likely all will be accepted.
    pub reach: f64,
    /// Has read the drafted tokens, which the sequence's own has not; none where that makes no difference.
    sampler: Option<Sampler>,
    request: usize,
}

impl Draft {
    pub fn clear(&mut self) {
        let Self { tokens, rows, probabilities, confidence, reach, sampler, .. } = self;
        tokens.clear();
        rows.clear();
        probabilities.clear();
        confidence.clear();
        *sampler = None;
        *reach = 1.0;
    }
}

impl Decoder {
    /// Drafts tokens for every sequence that has room for them, as long as that pays.
    ///
    /// A proxy that fails on a sequence ends its draft; the step's own pass will tell.
    pub(super) fn draft(&mut self, running: &mut [Running]) -> Result<()> {
        running.iter_mut().for_each(|r| r.draft.clear());
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let most = pair.context().into_iter().chain([self.host.capabilities().context]).min().unwrap_or(0);
        let active = running.iter().filter(|r| r.is_active()).count();
        let mut drafting: Vec<usize> = (0..running.len()).filter(|&i| running[i].is_active()).collect();
        for length in 0.. {
            drafting.retain(|&i| running[i].can_draft(most));
            let reach = drafting.iter().map(|&i| running[i].draft.reach).sum();
            if drafting.is_empty() || !self.lengths.goes_on(active, length, reach) {
                return Ok(());
            }
            let begin = Instant::now();
            pair.clear_drafts();
            for &i in &drafting {
                running[i].draft.request = pair.push_draft(running[i].id, &running[i].history);
            }
            pair.run_drafts()?;
            drafting.retain(|&i| {
                let Ok(row) = pair.draft_row(running[i].draft.request) else { return false };
                let Ok(token) = running[i].extend_draft(row, &pair.maps()[0], &mut self.scratch) else {
                    return false;
                };
                let draft = &mut running[i].draft;
                draft.reach *= self.lengths.chance(draft.confidence[length]);
                !self.pieces.is_end(token)
            });
            self.lengths.drafted(active, begin.elapsed());
        }
        Ok(())
    }
}

impl Running {
    /// Whether one more token may be drafted: the last of all comes from the host, and every model must hold the rest.
    fn can_draft(&self, context: usize) -> bool {
        let ahead = self.draft.tokens.len() + 1;
        let read = self.history.longest_prompt() + self.history.generated().len() + 1;
        self.alpha != 0.0 && ahead < self.room_left() && read <= context
    }

    /// Draws the next token of the draft from a row of the tuned proxy.
    fn extend_draft(&mut self, row: &[f32], map: &TokenMap, scratch: &mut Vec<f32>) -> Result<Token> {
        let draft = &mut self.draft;
        draft.rows.extend_from_slice(row);
        let row = if map.is_identity() { row } else { over_host(row, map, scratch) };
        if self.sampler.penalises() && draft.sampler.is_none() {
            draft.sampler = Some(self.sampler.fork()?);
        }
        let sampler = draft.sampler.as_mut().unwrap_or(&mut self.sampler);
        let (token, confidence) = if sampler.is_greedy() {
            let token = sampler.most_likely(row);
            (token, confidence(row, token))
        } else {
            sampler.probabilities(row, &mut self.probabilities);
            draft.probabilities.extend_from_slice(&self.probabilities);
            let token = self.dice.draw(self.probabilities.iter().copied()).unwrap_or(0);
            (token, self.probabilities[token as usize])
        };
        sampler.accept(token);
        draft.tokens.push(token);
        draft.confidence.push(confidence);
        self.history.extend(&[token]);
        Ok(token)
    }
}

/// A proxy's row in the host's order; tokens that the proxy lacks are never drafted.
fn over_host<'a>(row: &[f32], map: &TokenMap, scratch: &'a mut Vec<f32>) -> &'a [f32] {
    scratch.clear();
    let logit = |&id: &Token| row.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    scratch.extend(map.ids().iter().map(logit));
    scratch
}

/// Softmax of a row at one token, to within a thousandth.
fn confidence(row: &[f32], token: Token) -> f32 {
    // What is so much less likely than the best adds nothing that matters, and need not be exponentiated.
    const NEGLIGIBLE: f32 = 16.0;
    let best = row[argmax(row)];
    let near = row.iter().filter(|&&x| x > best - NEGLIGIBLE);
    (row[token as usize] - best).exp() / near.map(|x| (x - best).exp()).sum::<f32>()
}
