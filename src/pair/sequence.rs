//! A sequence as an engine's adapter holds it.

use super::History;
use super::message::{Message, Wish};
use super::runner::Link;
use super::sync::{Receiver, bounded};
use crate::combine::{Control, Logit, Shift};
use crate::error::Result;
use crate::vocab::Token;

/// A handle to one sequence of a [`Runner`](super::Runner).
///
/// Changing it ([`extend`](Self::extend), [`rollback`](Self::rollback), [`sync`](Self::sync)) is bookkeeping and runs
/// no model; [`announce`](Self::announce) and [`prefetch`](Self::prefetch) ask for the proxies, [`offset`](Self::offset)
/// and [`shift`](Self::shift) wait
/// for them. For an unchanged history the offset is computed once, however often it is asked for. Dropping the handle
/// frees its slots in the proxies' caches.
pub struct Sequence {
    link: Link,
    history: History,
    alpha: f32,
    control: Control,
    /// Tokens of the history before the generated ones.
    start: usize,
    /// The offset for the present history, where it is known or on its way.
    pending: Option<Receiver<Result<Vec<f32>>>>,
    known: bool,
    /// Whether the proxies' log-probabilities come with the offsets.
    explains: bool,
    /// Where the last offsets stand; the memory goes to the runner and back.
    offset: Vec<f32>,
    /// What follows the history by guess, see [`Sequence::draft`].
    draft: Vec<Token>,
    /// The history with its draft that was last asked for, its length without, and which row is the present history's.
    asked: Vec<Token>,
    first: usize,
    row: usize,
}

impl Sequence {
    pub(super) fn new(link: Link, history: History, alpha: f32) -> Self {
        let (offset, draft, asked) = Default::default();
        let (control, start) = (Control::default(), history.prompt().len());
        Self {
            link,
            history,
            alpha,
            control,
            start,
            pending: None,
            known: false,
            explains: false,
            offset,
            draft,
            asked,
            first: 0,
            row: 0,
        }
    }

    /// What the models have read.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The weight of the shift.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// Sets the weight of the shift; negative turns it round.
    pub fn set_alpha(&mut self, alpha: f32) {
        self.alpha = alpha;
    }

    /// Sets schedule and guards. `start`: tokens at the beginning of its histories that are its prompt; the others count
    /// as generated.
    pub fn set_control(&mut self, control: Control, start: usize) {
        (self.control, self.start) = (control, start);
    }

    /// Asks for the proxies' [log-probabilities](Self::log_probabilities) beside the offsets from here on.
    pub fn explain(&mut self) {
        (self.explains, self.known, self.pending) = (true, false, None);
    }

    /// Values that a row takes in an answer of the runner.
    fn width(&self) -> usize {
        self.link.vocab * if self.explains { 3 } else { 1 }
    }

    /// The weight of the shift for the token that follows the present history.
    pub fn weight(&self) -> f32 {
        let generated = self.history.tokens().get(self.start..).unwrap_or_default();
        self.control.weight(self.alpha, generated)
    }

    /// Appends generated tokens, in the host's vocabulary.
    pub fn extend(&mut self, tokens: &[Token]) {
        self.history.extend(tokens);
        self.changed(!tokens.is_empty());
    }

    /// Drops the last `count` generated tokens; never any of the prompt.
    pub fn rollback(&mut self, count: usize) {
        let before = self.history.tokens().len();
        self.history.rollback(count);
        self.changed(before != self.history.tokens().len());
    }

    /// Takes over a full history, prompt included.
    ///
    /// # Errors
    /// When it is shorter than the prompt; nothing is changed then.
    pub fn sync(&mut self, history: &[Token]) -> Result<()> {
        let changed = self.history.sync(history)?;
        self.changed(changed);
        Ok(())
    }

    /// Says which tokens will follow the present history if a guess is right. The offsets after each of them are then
    /// computed in the same round, and are there when the history has come that far. Too late when that round runs.
    pub fn draft(&mut self, tokens: &[Token]) {
        let on_its_way = self.pending.as_ref().is_some_and(|p| !self.link.is_lazy() || !p.is_empty());
        if !self.known && !on_its_way && self.draft != tokens {
            self.pending = None;
            self.draft.clear();
            self.draft.extend_from_slice(tokens);
        }
    }

    /// What was computed, or is on its way, is for another history now, unless that was drafted.
    fn changed(&mut self, changed: bool) {
        if !changed {
            return;
        }
        let tokens = self.history.tokens();
        let asked = self.known || self.pending.is_some();
        let rows = if self.known { self.offset.len() / self.width() } else { usize::MAX };
        let within = (self.first..self.first.saturating_add(rows)).contains(&tokens.len());
        if asked && within && self.asked.get(..tokens.len()) == Some(tokens) {
            self.row = tokens.len() - self.first;
        } else {
            self.pending = None;
            self.known = false;
            self.draft.clear();
        }
    }

    /// A sequence with the same history that goes its own way. Lazy: no cache is copied and no model runs now; once
    /// the fork needs an offset, it copies what the original has cached.
    pub fn fork(&self, runner: &super::Runner) -> Self {
        let mut fork = runner.sequence(self.history.clone(), self.alpha);
        fork.set_control(self.control, self.start);
        fork.explains = self.explains;
        fork
    }

    /// Starts computing the offset for the present history, and whatever else has been announced; returns at once.
    /// Nothing happens when it is there or on its way already, or when its [weight](Self::weight) is 0. A runner without a thread starts
    /// when somebody waits.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn prefetch(&mut self) -> Result<()> {
        if !self.known && self.weight() != 0.0 {
            self.announce()?;
            self.link.send(Message::Start)?;
        }
        Ok(())
    }

    /// Says that the offset for the present history will be wanted. It is computed in one round with all others
    /// announced, once one of them is prefetched or waited for, or the runner is told to
    /// [`start`](super::Runner::start).
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn announce(&mut self) -> Result<()> {
        if self.known || self.pending.is_some() || self.weight() == 0.0 {
            return Ok(());
        }
        let (reply, pending) = bounded(1);
        let mut history = self.history.clone();
        history.extend(&self.draft);
        self.asked.clear();
        self.asked.extend_from_slice(history.tokens());
        self.first = self.history.tokens().len();
        self.row = 0;
        let wish = Wish {
            sequence: self.link.sequence,
            history,
            rows: self.draft.len() + 1,
            explains: self.explains,
            offset: std::mem::take(&mut self.offset),
            reply,
        };
        self.link.send(Message::Wish(wish))?;
        self.pending = Some(pending);
        Ok(())
    }

    /// The offset `tuned - untuned` for the token that follows the present history: one value for each of the
    /// host's tokens, not yet weighed by `alpha`; under another rule than proxy-tuning its
    /// [advice](crate::combine::Rule::advise). Waits for the proxies where it must. All zero where its [weight](Self::weight) is 0:
    /// then no model runs.
    ///
    /// # Errors
    /// When a proxy failed on this sequence, its context is full, or the runner is gone.
    pub fn offset(&mut self) -> Result<&[f32]> {
        if self.weight() == 0.0 {
            (self.known, self.pending, self.row) = (false, None, 0);
            self.offset.clear();
            self.offset.resize(self.link.vocab, 0.0);
            return Ok(&self.offset);
        }
        let vocab = self.link.vocab;
        self.announce()?;
        while let Some(pending) = self.pending.take() {
            let reached_further = self.asked.len() > self.history.tokens().len();
            match self.link.wait(&pending) {
                Ok(offset) => self.offset = offset,
                // What failed may be the draft, which is not asked for now.
                Err(_) if reached_further => self.offset.clear(),
                Err(error) => return Err(error),
            }
            self.known = self.row < self.offset.len() / self.width();
            // A draft that the proxies could not follow was left out.
            if !self.known {
                self.draft.clear();
                self.announce()?;
            }
        }
        Ok(&self.offset[self.row * vocab..][..vocab])
    }

    /// Takes the offset for the present history out, in exchange for a buffer that the next one may use; asked for again, it is
    /// computed again. Returns false, and takes nothing, where it is not there or stands among those of a draft.
    pub fn take_offset(&mut self, into: &mut Vec<f32>) -> bool {
        let whole = self.known && self.offset.len() == self.width();
        if whole {
            std::mem::swap(&mut self.offset, into);
            self.known = false;
        }
        whole
    }

    /// Log-probabilities of the token that follows the present history, to the tuned and then to the untuned proxy, each over the
    /// host's vocabulary: [`UNKNOWN`](crate::combine::UNKNOWN) for tokens that a proxy lacks, NaN for a proxy that the rule does not
    /// read. `None` where they were not [asked for](Self::explain), or the offset is not there.
    pub fn log_probabilities(&self) -> Option<&[f32]> {
        if self.known { self.log_probabilities_in(&self.offset, self.row) } else { None }
    }

    /// As [`log_probabilities`](Self::log_probabilities), out of an answer that was [taken](Self::take_offset) or not, of its row `row`.
    pub(crate) fn log_probabilities_in<'a>(&self, answer: &'a [f32], row: usize) -> Option<&'a [f32]> {
        let (rows, vocab) = (answer.len() / self.width(), self.link.vocab);
        let known = self.explains && row < rows;
        known.then(|| &answer[(rows + 2 * row) * vocab..][..2 * vocab])
    }

    /// Combines the host's logits for the present history with what the proxies say, in place: adds
    /// `alpha * (tuned - untuned)`, unless the pair has another [rule](super::Pair::with_rule).
    ///
    /// Asked twice for one history it computes once, and shifts whatever it is given. With a [weight](Self::weight) of 0 no model runs.
    ///
    /// # Errors
    /// As [`offset`](Self::offset), and when `logits` has not the length of the host's vocabulary; `logits` is
    /// untouched then.
    pub fn shift<L: Logit>(&mut self, logits: &mut [L]) -> Result<Shift> {
        let (weight, cap) = (self.weight(), self.control.cap);
        if weight == 0.0 {
            return Ok(Shift::default());
        }
        let rule = self.link.rule.clone();
        rule.apply_within(L::of_row(logits), self.offset()?, weight, cap)
    }

    /// As [`shift`](Self::shift) with an offset that was [taken out](Self::take_offset), weighed for the first so many tokens of the
    /// history.
    ///
    /// # Errors
    /// When the lengths differ; `logits` is untouched then.
    pub fn shift_at<L: Logit>(&self, logits: &mut [L], offset: &[f32], tokens: usize) -> Result<Shift> {
        let generated = self.history.tokens().get(self.start..tokens).unwrap_or_default();
        let weight = self.control.weight(self.alpha, generated);
        let offset = &offset[..offset.len().min(self.link.vocab)];
        self.link.rule.apply_within(L::of_row(logits), offset, weight, self.control.cap)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let _ = self.link.send(Message::Remove(self.link.sequence));
    }
}
