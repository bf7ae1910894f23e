//! The host loop: forward passes of three models, the shift, a sampler, until each sequence ends.
//!
//! A step drafts tokens with the tuned proxy where that pays (`drafting`), runs the host over all drafted positions at once
//! (`passes`), and keeps what the shifted distribution accepts (`choose`, `accept`).

pub mod accept;
mod choose;
mod cost;
mod draft;
mod draft_length;
mod drafting;
pub(crate) mod explain;
#[cfg(feature = "cli")]
mod explain_json;
mod gate;
mod job;
mod passes;
mod text;
mod trio;
mod tuned_prompts;

pub use explain::{Candidate, MOST_CANDIDATES, Mover, Position, Probabilities};
pub use job::{Finish, Job, Outcome, Stats};
pub use text::TextStream;
pub use trio::{MappedProxies, Models, NAMES, RunOptions, load_proxies, model_path, pair, token_map};
pub use tuned_prompts::TunedPrompts;

use crate::config::{Control, OnError, Speculate};
use crate::error::Result;
use crate::pair::{CachedModel, Pair, SequenceId, Work};
use crate::vocab::Token;
use draft_length::DraftLength;
use job::Running;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the loop must know of the host's vocabulary.
pub trait Pieces: Send + Sync {
    /// Whether a token ends the generation.
    fn is_end(&self, token: Token) -> bool;

    /// The bytes that a token spells; a control token's name where `control`, else nothing.
    fn piece(&self, token: Token, control: bool) -> Vec<u8>;
}

/// How a [`Decoder`] goes about it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DecodeOptions {
    /// What happens to a sequence whose proxies fail.
    pub on_error: OnError,
    /// Whether the tuned proxy drafts.
    pub speculate: Speculate,
    /// Schedule and guards of all sequences.
    pub control: Control,
    /// Candidates that are kept of each position where positions are explained: so many before the shift and so many
    /// after it, at most [`MOST_CANDIDATES`].
    pub candidates: usize,
    /// Accepts each drafted token with this probability, whatever the models say. The text means nothing then: it is
    /// for timing models with random weights.
    pub force_accept: Option<f64>,
    /// Leaves out the proxies' pass where the host's most likely token has a probability above this. `None`: never.
    pub skip_above: Option<f32>,
}

/// What a caller of [`Decoder::generate`] is told on the way.
pub enum Event<'a> {
    /// Prompts are being read: tokens done and tokens in all, over the three models.
    Prefill {
        /// Tokens computed or found in a cache.
        done: usize,
        /// Tokens of all prompts.
        total: usize,
    },
    /// A token was chosen.
    Token {
        /// Which of the jobs.
        job: usize,
        /// Text that can be shown now; may be empty.
        text: &'a str,
        /// What the shift did here.
        position: &'a Position,
    },
}

/// Host and pair with their caches; decodes any number of sequences at once.
pub struct Decoder {
    pieces: Arc<dyn Pieces>,
    host: CachedModel,
    pair: Option<Pair>,
    options: DecodeOptions,
    lengths: DraftLength,
    work: Work,
    scratch: Vec<f32>,
    next: SequenceId,
}

impl Decoder {
    /// A decoder over a host and, unless it is to run alone, its proxies.
    pub fn new(
        pieces: Arc<dyn Pieces>,
        host: CachedModel,
        pair: Option<Pair>,
        options: DecodeOptions,
    ) -> Self {
        let lengths = DraftLength::new(options.speculate);
        Self { pieces, host, pair, options, lengths, work: Work::default(), scratch: Vec::new(), next: 0 }
    }

    /// Decodes all jobs together and returns their outcomes in the same order.
    ///
    /// `listen` hears of every event; its `Break` ends the call early with what there is.
    ///
    /// # Errors
    /// When the engine is gone. The failure of a single job is its outcome's [`Finish::Error`].
    pub fn generate(
        &mut self,
        jobs: Vec<Job>,
        explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Outcome>> {
        let begin = Instant::now();
        let mut running: Vec<Running> = Vec::with_capacity(jobs.len());
        for job in jobs {
            let index = running.len();
            self.pair.as_ref().map_or(Ok(()), |pair| pair.rule().check_alpha(job.alpha))?;
            let (control, host) = (self.options.control, self.host.capabilities());
            running.push(Running::new(index, self.next, job, control, host)?);
            self.next += 1;
        }
        let mut clock = self.clock();
        let (mut first, mut positions) = (true, running.len());
        while running.iter().any(Running::is_active) {
            let step = Instant::now();
            if !first {
                self.pair.iter_mut().for_each(|pair| pair.begin(positions));
                self.draft(&mut running)?;
            }
            let (check, before) = (Instant::now(), tokens(&running));
            if self.forward(&mut running, &mut listen_prefill(first, listen))?.is_break() {
                break;
            }
            if first {
                let prefill = begin.elapsed();
                running.iter_mut().for_each(|r| r.stats.prefill = prefill);
                clock = self.clock();
            }
            if self.choose(&mut running, explain, listen)?.is_break() {
                break;
            }
            positions = self.work.wanted();
            if let Some(pair) = self.pair.as_mut().filter(|_| !first) {
                pair.took(positions, step.elapsed());
                let sequences = self.work.len();
                self.lengths.checked(sequences, positions, check.elapsed());
                let gained = tokens(&running) - before;
                self.lengths.stepped(sequences, positions > sequences, gained, step.elapsed());
            }
            first = false;
        }
        let spent = self.clock() - clock;
        self.host.rest();
        for r in &running {
            self.host.remove(r.id);
            self.pair.iter_mut().for_each(|p| p.remove(r.id));
        }
        Ok(running
            .into_iter()
            .map(|r| r.finish(begin.elapsed(), spent.host, spent.tuned, spent.untuned))
            .collect())
    }

    fn clock(&self) -> Clock {
        let [tuned, untuned] =
            self.pair.as_ref().map(Pair::usage).unwrap_or_default().map(|usage| usage.time);
        Clock { host: self.host.usage().time, tuned, untuned }
    }
}

/// Tokens generated so far, over all sequences.
fn tokens(running: &[Running]) -> usize {
    running.iter().map(|r| r.positions.len()).sum()
}

/// Time in each engine.
#[derive(Clone, Copy)]
struct Clock {
    host: Duration,
    tuned: Duration,
    untuned: Duration,
}

impl std::ops::Sub for Clock {
    type Output = Self;
    fn sub(self, earlier: Self) -> Self {
        Self {
            host: self.host - earlier.host,
            tuned: self.tuned - earlier.tuned,
            untuned: self.untuned - earlier.untuned,
        }
    }
}

/// The first pass reads prompts and reports; later ones only give the listener a chance to stop.
fn listen_prefill<'a>(
    first: bool,
    listen: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> impl FnMut(usize, usize) -> ControlFlow<()> + 'a {
    move |done, total| if first { listen(Event::Prefill { done, total }) } else { ControlFlow::Continue(()) }
}
