//! The end of a step: each sequence's rows are shifted, its draft is judged, its tokens are chosen and told.

use super::accept::{Verdict, judge};
use super::draft::Draft;
use super::job::Running;
use super::{Decoder, Event, Position};
use crate::combine::argmax;
use crate::config::OnError;
use crate::error::Result;
use crate::pair::Pair;
use crate::vocab::Token;
use std::ops::ControlFlow;
use std::time::Instant;

impl Decoder {
    /// Chooses tokens for every active sequence: those of its draft that are accepted, and one more.
    pub(super) fn choose(
        &mut self,
        running: &mut [Running],
        explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Self { host, pair, pieces, options, lengths, work, scratch, .. } = self;
        let vocab = host.capabilities().vocab;
        for r in running.iter_mut().filter(|r| r.is_active()) {
            r.history.rollback(r.draft.tokens.len());
            let proxies = match ProxyRows::of(pair.as_ref(), r) {
                Ok(proxies) => proxies,
                Err(error) if options.on_error == OnError::Stop => {
                    r.fail(error);
                    continue;
                }
                Err(error) => {
                    r.go_unshifted(&error);
                    // Without the shift there is nothing to judge a draft by.
                    r.draft.clear();
                    None
                }
            };
            let rows = match work.rows_mut(r.request) {
                Ok(rows) => rows,
                Err(error) => {
                    r.fail(error);
                    continue;
                }
            };
            r.stats.steps += usize::from(!r.positions.is_empty());
            r.stats.drafted += r.draft.tokens.len();
            for (at, logits) in rows.chunks_exact_mut(vocab).take(r.draft.tokens.len() + 1).enumerate() {
                let (position, accepted) =
                    r.choose(at, logits, proxies.as_ref(), scratch, explain, options.force_accept);
                if let Some(&confidence) = r.draft.confidence.get(at) {
                    lengths.judged(confidence, accepted);
                }
                r.stats.accepted += usize::from(accepted);
                let ends = !r.ignore_end && pieces.is_end(position.token);
                let piece = if ends { Vec::new() } else { pieces.piece(position.token, r.control) };
                let text = r.take(position, &piece, ends);
                let position = &r.positions[r.positions.len() - 1];
                listen(Event::Token { job: r.index, text: &text, position })?;
                if !accepted || !r.is_active() {
                    break;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// The proxies' rows for one sequence's step.
struct ProxyRows<'a> {
    pair: &'a Pair,
    /// The one after the draft; those it was drawn from are with the draft.
    last_tuned: &'a [f32],
    untuned: &'a [f32],
}

impl<'a> ProxyRows<'a> {
    /// `None` for a sequence that is not shifted.
    fn of(pair: Option<&'a Pair>, r: &Running) -> Result<Option<Self>> {
        let (Some(pair), Some(index)) = (pair, r.pair_request) else { return Ok(None) };
        let [last_tuned, untuned] = pair.rows(index)?;
        Ok(Some(Self { pair, last_tuned, untuned }))
    }

    /// Tuned and untuned row at one position of the step.
    fn at<'d>(&'d self, at: usize, draft: &'d Draft) -> [&'d [f32]; 2] {
        let [tuned, untuned] = self.pair.maps().each_ref().map(|map| map.proxy_len());
        let tuned =
            if at < draft.tokens.len() { &draft.rows[at * tuned..][..tuned] } else { self.last_tuned };
        [tuned, &self.untuned[at * untuned..][..untuned]]
    }
}

impl Running {
    /// Chooses the token at one position of the step, from the host's logits. Returns whether it is the drafted one, so
    /// that the next position counts as well.
    fn choose(
        &mut self,
        at: usize,
        logits: &mut [f32],
        proxies: Option<&ProxyRows<'_>>,
        scratch: &mut Vec<f32>,
        explain: bool,
        force_accept: Option<f64>,
    ) -> (Position, bool) {
        let begin = Instant::now();
        let host_top = argmax(logits) as Token;
        let host_row = explain.then(|| logits.to_vec());
        if let Some(proxies) = proxies {
            let rows = proxies.at(at, &self.draft);
            match proxies.pair.shift(logits, rows, self.alpha, scratch) {
                Ok(shift) => self.stats.ignored += shift.ignored,
                Err(error) => self.go_unshifted(&error),
            }
        }
        let top = argmax(logits) as Token;
        self.stats.combine += begin.elapsed();
        let (token, accepted) = self.judge(at, logits, top, force_accept);
        let mut position = Position { token, host_top, top, probabilities: None };
        if let Some(host_row) = host_row {
            let rows = proxies.map(|p| (p.at(at, &self.draft), p.pair.maps()));
            position.explain(&host_row, logits, rows);
        }
        (position, accepted)
    }

    /// The token at a position, and whether it is the drafted one.
    fn judge(&mut self, at: usize, logits: &[f32], top: Token, force: Option<f64>) -> (Token, bool) {
        let drafted = self.draft.tokens.get(at).copied();
        let (token, accepted) = if self.sampler.is_greedy() {
            let token = if self.sampler.penalises() { self.sampler.most_likely(logits) } else { top };
            (token, drafted == Some(token))
        } else {
            self.sampler.probabilities(logits, &mut self.probabilities);
            self.draw(at, drafted, top)
        };
        match (force, drafted) {
            (Some(share), Some(drafted)) => {
                let accepted = self.dice.roll() < share;
                (if accepted { drafted } else { token }, accepted)
            }
            _ => (token, accepted),
        }
    }

    fn draw(&mut self, at: usize, drafted: Option<Token>, top: Token) -> (Token, bool) {
        let target = &self.probabilities;
        let Some(drafted) = drafted else {
            return (self.dice.draw(target.iter().copied()).unwrap_or(top), false);
        };
        let draft = &self.draft.probabilities[at * target.len()..][..target.len()];
        match judge(target, draft, drafted, &mut self.dice) {
            Verdict::Accepted => (drafted, true),
            Verdict::Replaced(token) => (token, false),
        }
    }
}
