//! The end of a step: each sequence's rows are shifted, its draft is judged, its tokens are chosen and told.

use super::accept::{Verdict, judge};
use super::explain::Rows;
use super::job::Running;
use super::{DecodeOptions, Decoder, Event, Position};
use crate::combine::argmax;
use crate::config::OnError;
use crate::error::Result;
use crate::pair::Pair;
use crate::vocab::Token;
use std::ops::ControlFlow;
use std::time::Instant;

impl Decoder {
    /// Chooses tokens for every active sequence: those of its draft that are accepted, and one more.
    ///
    /// # Errors
    /// When a proxy's thread is gone.
    pub(super) fn choose(
        &mut self,
        running: &mut [Running],
        explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        for r in running.iter_mut().filter(|r| r.is_active()) {
            r.history.rollback(r.draft.tokens.len());
            r.begin_choosing(self.options.on_error);
        }
        if self.choose_known(running, explain, listen).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.gate(running, explain);
        if running.iter().any(Running::wants_last) {
            self.run_last(running)?;
            for r in running.iter_mut().filter(|r| r.wants_last()) {
                r.note_proxy_error(self.options.on_error);
            }
        }
        Ok(self.choose_known(running, explain, listen))
    }

    /// Chooses tokens at all positions whose rows are there.
    fn choose_known(
        &mut self,
        running: &mut [Running],
        explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Self { host, pair, pieces, options, lengths, work, scratch, .. } = self;
        for r in running.iter_mut() {
            while let Some(at) = r.next_known(pair.as_ref()) {
                let logits = match host.row_mut(work, r.request, at) {
                    Ok(logits) => logits,
                    Err(error) => {
                        r.fail(error);
                        break;
                    }
                };
                let pair = pair.as_ref().filter(|_| r.is_shifted());
                let (position, accepted) = r.choose(at, logits, pair, scratch, explain, options);
                if let Some(&confidence) = r.draft.confidence.get(at) {
                    lengths.judged(confidence, accepted);
                }
                r.stats.accepted += usize::from(accepted);
                r.at = accepted.then_some(at + 1);
                let ends = !r.ignore_end && pieces.is_end(position.token);
                let piece = if ends { Vec::new() } else { pieces.piece(position.token, r.control) };
                let text = r.take(position, &piece, ends);
                let position = &r.positions[r.positions.len() - 1];
                listen(Event::Token { job: r.index, text: &text, position })?;
            }
        }
        ControlFlow::Continue(())
    }
}

impl Running {
    fn begin_choosing(&mut self, on_error: OnError) {
        (self.at, self.gated) = (Some(0), false);
        if self.proxy_error.is_some() {
            // Without the shift there is nothing to judge a draft by.
            self.draft.clear();
        }
        self.note_proxy_error(on_error);
        self.stats.steps += usize::from(!self.positions.is_empty());
        self.stats.drafted += self.draft.tokens.len();
    }

    /// Whether this position's logits are to be shifted.
    fn is_shifted(&self) -> bool {
        !self.unshifted && self.weight() != 0.0
    }

    /// A proxy that failed leaves this step unshifted, or ends the sequence.
    fn note_proxy_error(&mut self, on_error: OnError) {
        self.unshifted = self.proxy_error.is_some();
        match self.proxy_error.take() {
            Some(error) if on_error == OnError::Stop => self.fail(error),
            Some(error) => self.go_unshifted(&error),
            None => {}
        }
    }

    /// The next position to choose a token at, where all its rows are there.
    fn next_known(&self, pair: Option<&Pair>) -> Option<usize> {
        let at = self.at.filter(|_| self.is_active())?;
        let held = |pair: &Pair| at < self.draft.held(pair);
        (!self.is_shifted() || pair.is_none_or(held)).then_some(at)
    }

    /// Whether the whole draft was accepted, and the proxies have not been asked what follows it.
    pub(super) fn wants_last(&self) -> bool {
        self.is_active() && self.at.is_some() && !self.unshifted
    }

    /// Chooses the token at one position of the step, from the host's logits. Returns whether it is the drafted one, so
    /// that the next position counts as well.
    fn choose(
        &mut self,
        at: usize,
        logits: &mut [f32],
        pair: Option<&Pair>,
        scratch: &mut Vec<f32>,
        explain: bool,
        options: &DecodeOptions,
    ) -> (Position, bool) {
        let begin = Instant::now();
        let host_top = argmax(logits) as Token;
        let host_row = explain.then(|| logits.to_vec());
        self.stats.left_to_host += usize::from(self.alpha != 0.0 && self.weight() == 0.0);
        if let Some(pair) = pair {
            let rows = self.draft.rows_at(at, pair);
            let (weight, cap) = (self.weight(), self.guides.cap);
            match rows.and_then(|rows| pair.shift_within(logits, rows, weight, cap, scratch)) {
                Ok(shift) => self.stats.ignored += shift.ignored,
                Err(error) => self.go_unshifted(&error),
            }
        }
        let mut top = argmax(logits) as Token;
        if let Some(host_row) = host_row.as_ref().filter(|_| self.gated) {
            self.stats.missed += usize::from(top != host_top);
            logits.copy_from_slice(host_row);
            top = host_top;
        }
        self.stats.combine += begin.elapsed();
        let (token, accepted) = self.judge(at, logits, top, options.force_accept);
        let mut position = Position { token, host_top, top, probabilities: None, candidates: Vec::new() };
        if let Some(host_row) = host_row {
            let mut proxies = Vec::new();
            if let Some((pair, Ok(rows))) = pair.map(|pair| (pair, self.draft.rows_at(at, pair))) {
                pair.append_log_probabilities(rows, &mut proxies);
            }
            let proxies = Some(&proxies[..]).filter(|proxies| !proxies.is_empty());
            let rows = Rows { host: &host_row, shifted: logits, proxies };
            position.explain(&rows, options.candidates);
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
