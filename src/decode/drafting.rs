//! Drafting: the tuned proxy goes ahead of the host, whose next pass then checks several positions at once. The untuned
//! proxy goes along where it runs beside the tuned one; else it checks several at once like the host. Under a rule that
//! reads the untuned proxy alone, that one drafts.

use super::Decoder;
use super::job::Running;
use crate::combine::log_sum_exp_of_numbers;
use crate::config::Speculate;
use crate::error::Result;
use crate::pair::Pair;
use crate::vocab::{Token, TokenMap};
use std::time::Instant;

impl Decoder {
    /// Drafts tokens for every sequence that has room for them, as long as that pays.
    ///
    /// A proxy that fails on a sequence ends its draft; the step's own pass will tell.
    pub(super) fn draft(&mut self, running: &mut [Running]) -> Result<()> {
        running.iter_mut().for_each(|r| r.draft.clear());
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let most = pair.context().into_iter().chain([self.host.capabilities().context]).min().unwrap_or(0);
        let active = running.iter().filter(|r| r.is_active()).count();
        // Such a draft's length goes by the clock, and with it which random numbers a token is drawn by.
        let by_the_clock = self.options.speculate == Speculate::Auto;
        let in_lockstep = pair.is_side_by_side() && !pair.is_early();
        for length in 0.. {
            // Sequences whose draft has ended take no further part.
            let drafting = |r: &Running| {
                r.draft.tokens.len() == length && r.can_draft(most) && !(by_the_clock && r.fixed)
            };
            let reach = running.iter().filter(|r| drafting(r)).map(|r| r.draft.reach).sum();
            if reach == 0.0 || !self.lengths.goes_on(active, length, reach) {
                break;
            }
            let begin = Instant::now();
            pair.clear();
            for r in running.iter_mut() {
                let rows = pair.rows_of(1, usize::from(in_lockstep));
                r.pair_request = drafting(r).then(|| pair.push(r.id, &r.history, rows));
            }
            while !pair.all_done() {
                self.host.rest_for(pair);
                pair.start();
                pair.finish()?;
            }
            for r in running.iter_mut() {
                let Some(request) = r.pair_request.take() else { continue };
                if pair.append_rows(request, &mut r.draft.rows).is_ok() {
                    r.draft.in_lockstep = in_lockstep;
                    r.extend_draft(pair, &mut self.scratch)?;
                    let chance = self.lengths.chance(r.draft.confidence[length]);
                    r.draft.reach *= if self.pieces.is_end(r.draft.tokens[length]) { 0.0 } else { chance };
                }
            }
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
        let useful = self.is_active() && self.draft.reach > 0.0;
        // Where there is no shift the proxies need not run at all.
        useful && ahead < self.room_left() && read <= context && self.weight() != 0.0
    }

    /// Draws the next token of the draft from the latest row of the proxy that goes ahead.
    fn extend_draft(&mut self, pair: &Pair, scratch: &mut Vec<f32>) -> Result<()> {
        let (draft, maps, leader) = (&mut self.draft, pair.maps(), pair.leader());
        let len = maps[leader].proxy_len();
        let row = &draft.rows[leader][draft.tokens.len() * len..][..len];
        let identities = maps.iter().all(TokenMap::is_identity);
        let row = if identities { row } else { over_host(row, [&maps[leader], &maps[1 - leader]], scratch) };
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
        Ok(())
    }
}

/// The row of the proxy that goes ahead, in the host's order. Tokens that either proxy lacks are never drafted: such a token is
/// several of the proxy's, and the rows that follow would no longer stand beside the host's.
fn over_host<'a>(row: &[f32], [leader, other]: [&TokenMap; 2], scratch: &'a mut Vec<f32>) -> &'a [f32] {
    scratch.clear();
    let logit = |(&id, &other): (&Token, &Token)| match row.get(id as usize) {
        Some(&logit) if other != TokenMap::NONE => logit,
        _ => f32::NEG_INFINITY,
    };
    scratch.extend(leader.ids().iter().zip(other.ids()).map(logit));
    scratch
}

/// Softmax of a row at one token.
fn confidence(row: &[f32], token: Token) -> f32 {
    (f64::from(row[token as usize]) - log_sum_exp_of_numbers(row)).exp() as f32
}
