//! What one sampler knows, and what it does to candidates.

use super::passes::Place;
use super::tuner::{Row, Running, Tuner};
use crate::backend::llama::sys::llama_token_data;
use crate::combine::Logits;
use crate::config::OnError;
use crate::error::{Error, Result};
use crate::pair::{History, Sequence};
use crate::vocab::Token;
use std::sync::Arc;

/// The tokens that one sampler was told of, and its way to the proxies.
///
/// All but [`apply`](Self::apply) is bookkeeping. A chain that is never applied, or that is a drafter's, runs no model.
pub struct Chain {
    tuner: Arc<Tuner>,
    history: Vec<Token>,
    /// Tokens told of before the first one was sampled.
    prompt: Option<usize>,
    /// Whether the last tokens were sampled, so that more will be.
    generating: bool,
    /// From the first application on; not copied to clones.
    sequence: Option<(Arc<Running>, Sequence)>,
    /// Tokens that the host verifies together with the next one.
    draft: Vec<Token>,
    logits: Vec<f32>,
    offset: Vec<f32>,
}

impl Chain {
    /// A sampler that has been told of nothing.
    pub fn new(tuner: Arc<Tuner>) -> Self {
        let (history, draft, logits, offset) = Default::default();
        Self { tuner, history, prompt: None, generating: false, sequence: None, draft, logits, offset }
    }

    /// A token was read or sampled. `at_once`: nobody will say when the host computes next.
    pub fn accept(&mut self, token: Token, at_once: bool) {
        self.history.push(token);
        if !self.generating {
            return;
        }
        if let Some((running, sequence)) = &mut self.sequence {
            sequence.extend(&[token]);
            let asked = if running.background && at_once { sequence.prefetch() } else { sequence.announce() };
            // A runner that is gone shows when the offset is waited for.
            drop(asked);
        }
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.history.clear();
        self.prompt = None;
        self.generating = false;
    }

    /// A sampler with the same tokens that goes its own way. No model runs and no cache is copied.
    pub fn fork(&self) -> Self {
        let (history, prompt) = (self.history.clone(), self.prompt);
        Self { history, prompt, generating: self.generating, ..Self::new(self.tuner.clone()) }
    }

    /// Takes over another sampler's tokens; the proxies' caches are kept as far as those are the same.
    pub fn copy_from(&mut self, other: &Self) {
        self.history.clone_from(&other.history);
        self.prompt = other.prompt;
        // What has been announced may be for other tokens now.
        self.generating = false;
    }

    /// Learns what the model has read up to the row that comes next. Programs that do not tell their samplers of the
    /// prompt are made up for.
    pub fn learn(&mut self, place: &Place<'_>) {
        self.draft.clone_from(&place.ahead);
        if place.len != self.history.len()
            && let Some(read) = place.read
            && read.ends_with(&self.history)
        {
            self.history.clear();
            self.history.extend_from_slice(read);
        }
    }

    /// Shifts the candidates for the next token. `row`: whose logits these are, where that is known.
    pub fn apply(&mut self, row: Option<Row<'_>>, candidates: &mut [llama_token_data]) {
        if self.tuner.alpha() == 0.0 || row.is_some_and(|row| self.tuner.is_draft(row)) {
            return;
        }
        if self.history.is_empty() {
            return;
        }
        let Some(running) = self.tuner.running(row) else {
            if self.tuner.on_error() == OnError::Stop
                && let Some(row) = row
            {
                let host = (row.host)();
                end(candidates, |token| host.model.is_end(token));
            }
            return;
        };
        if let Err(error) = self.shift(&running, candidates) {
            self.tuner.fail(&error);
            if self.tuner.on_error() == OnError::Stop {
                end(candidates, |token| running.ends.contains(&token));
            }
        }
    }

    fn shift(&mut self, running: &Arc<Running>, candidates: &mut [llama_token_data]) -> Result<()> {
        let (alpha, control) = (self.tuner.alpha(), self.tuner.control());
        if self.sequence.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, running)) {
            let sequence = running.runner.sequence(History::default(), alpha);
            self.sequence = Some((running.clone(), sequence));
        }
        let Some((_, sequence)) = &mut self.sequence else { return Ok(()) };
        self.generating = true;
        sequence.sync(&self.history)?;
        // A text that is shorter than it was is another one.
        let prompt = self.prompt.filter(|&prompt| prompt <= self.history.len());
        sequence.set_control(control, *self.prompt.insert(prompt.unwrap_or(self.history.len())));
        let weight = sequence.weight();
        sequence.draft(&self.draft);
        let (rule, offset) = (running.runner.rule(), sequence.offset()?);
        self.logits.clear();
        self.logits.extend(candidates.iter().map(|c| c.logit));
        let in_order = candidates.iter().enumerate().all(|(i, c)| c.id == i as i32);
        if in_order && candidates.len() > offset.len() {
            let (got, expected) = (candidates.len(), offset.len());
            return Err(Error::Shape { what: "the host's row", got, expected });
        }
        if in_order && candidates.len() == offset.len() {
            rule.apply_within(Logits::F32(&mut self.logits), offset, weight, control.cap)?;
        } else {
            // Some of the tokens, or in another order. One that the proxies do not know is left to the host.
            let of = |c: &llama_token_data| usize::try_from(c.id).ok().and_then(|id| offset.get(id));
            self.offset.clear();
            self.offset.extend(candidates.iter().map(|c| of(c).copied().unwrap_or(rule.unknown())));
            rule.apply_within(Logits::F32(&mut self.logits), &self.offset, weight, control.cap)?;
        }
        candidates.iter_mut().zip(&self.logits).for_each(|(c, &logit)| c.logit = logit);
        Ok(())
    }
}

/// Leaves nothing but the tokens that end a text, so that the request does.
fn end(candidates: &mut [llama_token_data], is_end: impl Fn(Token) -> bool) {
    for candidate in candidates.iter_mut() {
        if !Token::try_from(candidate.id).is_ok_and(&is_end) {
            candidate.logit = f32::NEG_INFINITY;
        }
    }
}
