//! The forward passes of a step: the host over every position, the proxies over those that drafting has left open.

use super::Decoder;
use super::draft::Rest;
use super::job::Running;
use crate::error::Result;
use crate::pair::Pair;
use std::ops::ControlFlow;

impl Decoder {
    /// Runs the host to the end of every active history, and the proxies as far as is needed to judge the drafts: all the
    /// way where nothing was drafted, or where they run while the host does.
    pub(super) fn forward(
        &mut self,
        running: &mut [Running],
        prefill: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let at_once = self.pair.as_ref().is_some_and(Pair::is_early);
        self.work.clear();
        self.pair.iter_mut().for_each(Pair::clear);
        // Proxies that run together with the host have nothing to wait for.
        let gate = self.options.skip_above.is_some() && !at_once;
        for r in running.iter_mut().filter(|r| r.is_active()) {
            let rows = r.draft.tokens.len() + 1;
            r.request = self.work.push(r.id, rows, |tokens| tokens.extend_from_slice(r.history.tokens()));
            r.draft.rest = self.pair.as_mut().and_then(|pair| r.push_checks(pair, at_once, gate));
        }
        let mut started = false;
        loop {
            let pair_busy = self.pair.as_ref().is_some_and(|p| !p.all_done());
            if self.work.all_done() && !pair_busy {
                self.collect(running);
                return Ok(ControlFlow::Continue(()));
            }
            if let Some(pair) = self.pair.as_mut().filter(|_| pair_busy && at_once) {
                pair.start();
                started = true;
            }
            self.host.advance(&mut self.work);
            if let Some(pair) = self.pair.as_mut().filter(|_| pair_busy) {
                if !std::mem::take(&mut started) {
                    self.host.rest_for(pair);
                    pair.start();
                }
                pair.finish()?;
            }
            let pair_tokens = self.pair.as_ref().map_or((0, 0), Pair::tokens);
            let (total, done) = self.work.tokens();
            if prefill(done + pair_tokens.1, total + pair_tokens.0).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    /// Runs the proxies over the last position of the sequences whose whole draft was accepted.
    pub(super) fn run_last(&mut self, running: &mut [Running]) -> Result<()> {
        let Some(pair) = &mut self.pair else { return Ok(()) };
        pair.clear();
        for r in running.iter_mut() {
            r.draft.rest = r.wants_last().then(|| {
                let drafted = r.draft.tokens.len();
                let request = pair.push(r.id, &r.history, [1, 1]);
                Rest { request, first: [drafted; 2], held: drafted + 1 }
            });
        }
        while !pair.all_done() {
            self.host.rest_for(pair);
            pair.start();
            pair.finish()?;
        }
        self.collect(running);
        Ok(())
    }

    /// Tells each sequence where its rows are. They stay where the proxies left them.
    fn collect(&self, running: &mut [Running]) {
        let Some(pair) = &self.pair else { return };
        for r in running {
            let Some(rest) = &r.draft.rest else { continue };
            if let Err(error) = pair.outcome(rest.request) {
                r.proxy_error = Some(error);
            }
        }
    }
}

impl crate::pair::CachedModel {
    /// Gives up cores that the host's threads would spin on where the proxies are about to want them.
    pub(super) fn rest_for(&mut self, pair: &Pair) {
        if pair.uses_threads() {
            self.rest();
        }
    }
}

impl Running {
    /// Asks the pair for the rows that this step's positions lack; all of them where `all`, else those of the draft.
    /// With a `gate`, none of a step without a draft: whether they are wanted is known once the host has run.
    fn push_checks(&mut self, pair: &mut Pair, all: bool, gate: bool) -> Option<Rest> {
        let drafted = self.draft.tokens.len();
        let is_prompt = self.positions.is_empty();
        // Where something was drafted the shift is wanted up to there.
        if drafted == 0 && (self.weight() == 0.0 || (gate && !is_prompt)) {
            return None;
        }
        if drafted == 0 || all {
            // One proxy, in general the tuned one, has gone ahead: only its last row is missing.
            let request = pair.push(self.id, &self.history, pair.rows_of(1, drafted + 1));
            return Some(Rest { request, first: pair.rows_of(drafted, 0), held: drafted + 1 });
        }
        // Where one proxy runs alone, it has gone ahead.
        if self.draft.in_lockstep || pair.reads() != [true; 2] {
            return None;
        }
        // The row after the draft can wait until it is known that all of it was accepted.
        self.history.rollback(1);
        let request = pair.push(self.id, &self.history, pair.rows_of(0, drafted));
        self.history.extend(&self.draft.tokens[drafted - 1..]);
        Some(Rest { request, first: pair.rows_of(drafted, 0), held: drafted })
    }
}
