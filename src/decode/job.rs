//! One sequence to decode: what is asked, how it stands, what came of it.

use super::TextStream;
use super::accept::Dice;
use super::draft::Draft;
use super::explain::Position;
use crate::backend::Capabilities;
use crate::backend::llama::{Sampler, SamplerOptions};
use crate::combine::Control;
use crate::error::{Error, Result};
use crate::pair::{History, SequenceId};
use crate::vocab::Token;
use std::time::Duration;

/// A sequence to decode.
#[derive(Debug, Clone)]
pub struct Job {
    /// Prompts of host and tuned proxy.
    pub history: History,
    /// Weight of the shift.
    pub alpha: f32,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Strings that end the text and are not part of it.
    pub stops: Vec<String>,
    /// Whether control tokens show in the text.
    pub control: bool,
    /// Goes on after an end token, up to `max_tokens`.
    pub ignore_end: bool,
}

/// Why a sequence ended.
#[derive(Debug, Clone)]
pub enum Finish {
    /// By an end token or a stop string.
    Stop,
    /// By the number of tokens, or a full context.
    Length,
    /// The listener said stop.
    Interrupted,
    /// The host failed on it, or a proxy did and the policy is to stop.
    Error(Error),
}

/// Figures of one sequence. Times of the engines cover the decoding of all sequences of the call together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the host's prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// From the call to the first logits.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
    /// In the host's engine, while decoding.
    pub host: Duration,
    /// In the tuned proxy's engine, while decoding.
    pub tuned: Duration,
    /// In the untuned proxy's engine, while decoding.
    pub untuned: Duration,
    /// In the shift.
    pub combine: Duration,
    /// Forward passes of the host for this sequence after the prompt: fewer than tokens where drafts were accepted.
    pub steps: usize,
    /// Tokens drafted.
    pub drafted: usize,
    /// Drafted tokens that were kept.
    pub accepted: usize,
    /// Positions whose most likely token the shift changed.
    pub shifted: usize,
    /// Positions that went unshifted because a proxy failed.
    pub unshifted: usize,
    /// Positions that the schedule or the repetition guard left to the host.
    pub left_to_host: usize,
    /// Single logits whose shift was not a number.
    pub ignored: usize,
    /// Positions left as the host had them because it was sure.
    pub skipped: usize,
    /// Of these, where the shift would have made another token the most likely; known only where rows are explained.
    pub missed: usize,
}

impl Stats {
    /// Tokens a second after the first one, which comes with the prompt.
    pub fn tokens_per_s(&self) -> f64 {
        self.per_s(self.decode)
    }

    /// What tokens a second would be if nothing but the three engines' passes took time.
    pub fn floor_tokens_per_s(&self) -> f64 {
        self.per_s(self.host + self.tuned + self.untuned)
    }

    fn per_s(&self, time: Duration) -> f64 {
        let seconds = time.as_secs_f64();
        if seconds > 0.0 { self.tokens.saturating_sub(1) as f64 / seconds } else { 0.0 }
    }
}

/// A decoded sequence.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The host's prompt.
    pub prompt_tokens: Vec<Token>,
    /// The text, without stop strings.
    pub text: String,
    /// The generated tokens, an end token included.
    pub tokens: Vec<Token>,
    /// One a token.
    pub positions: Vec<Position>,
    /// Why it ended.
    pub finish: Finish,
    /// Figures.
    pub stats: Stats,
}

/// A job on its way.
pub(super) struct Running {
    pub index: usize,
    pub id: SequenceId,
    pub history: History,
    pub alpha: f32,
    /// Schedule and guards.
    pub guides: Control,
    pub sampler: Sampler,
    pub dice: Dice,
    /// Whether its seed is to fix its text.
    pub fixed: bool,
    pub draft: Draft,
    /// Scratch: a distribution over the host's vocabulary.
    pub probabilities: Vec<f32>,
    pub control: bool,
    pub ignore_end: bool,
    pub positions: Vec<Position>,
    pub stats: Stats,
    /// Its place among the host's requests of this step.
    pub request: usize,
    /// Its place among the pair's requests, while it drafts.
    pub pair_request: Option<usize>,
    /// What made a proxy fail on it in this step.
    pub proxy_error: Option<Error>,
    /// Whether it goes without the shift in this step, because of that or because of the gate.
    pub unshifted: bool,
    /// Whether the host is so sure of its next token that the shift is left out.
    pub gated: bool,
    /// The position of the step at which its next token is to be chosen; `None` when the step is over for it.
    pub at: Option<usize>,
    text: TextStream,
    room: usize,
    ended: Option<Finish>,
}

impl Running {
    pub fn new(index: usize, id: SequenceId, job: Job, guides: Control, host: &Capabilities) -> Result<Self> {
        crate::config::check_alpha(job.alpha)?;
        let prompt = job.history.tokens().len();
        if prompt == 0 {
            return Err(Error::invalid("prompt", "no tokens", "at least one token"));
        }
        if let Some(&token) = job.history.tokens().iter().find(|&&t| t as usize >= host.vocab) {
            return Err(Error::invalid(
                "--tokens",
                token,
                format!("ids below the vocabulary's {}", host.vocab),
            ));
        }
        if prompt > host.context {
            let (tokens, context) = (prompt, host.context);
            return Err(Error::Length { model: "the prompt on the host".into(), tokens, context });
        }
        let mut sampler = Sampler::new(&job.sampler, host.vocab)?;
        job.history.tokens().iter().for_each(|&t| sampler.accept(t));
        Ok(Self {
            index,
            id,
            // The last token generated need not fit: nothing follows it.
            room: job.max_tokens.min(host.context + 1 - prompt),
            stats: Stats { prompt_tokens: prompt, ..Stats::default() },
            history: job.history,
            alpha: job.alpha,
            guides,
            fixed: job.sampler.seed.is_some() && !sampler.is_greedy(),
            sampler,
            dice: Dice::new(job.sampler.seed),
            draft: Draft::default(),
            probabilities: Vec::new(),
            control: job.control,
            ignore_end: job.ignore_end,
            positions: Vec::new(),
            request: 0,
            pair_request: None,
            proxy_error: None,
            unshifted: false,
            gated: false,
            at: None,
            text: TextStream::new(&job.stops),
            ended: (job.max_tokens == 0).then_some(Finish::Length),
        })
    }

    pub fn is_active(&self) -> bool {
        self.ended.is_none()
    }

    /// The weight of the shift for the token that follows its present history.
    pub fn weight(&self) -> f32 {
        self.guides.weight(self.alpha, self.history.generated())
    }

    /// Tokens that may still be generated.
    pub fn room_left(&self) -> usize {
        self.room - self.positions.len()
    }

    pub fn fail(&mut self, error: Error) {
        self.ended = Some(Finish::Error(error));
    }

    pub fn go_unshifted(&mut self, error: &Error) {
        if self.stats.unshifted == 0 {
            tracing::warn!(%error, sequence = self.index, "a proxy failed, going on without the shift");
        }
        self.stats.unshifted += 1;
    }

    /// Takes in a chosen token; returns the text that can be shown now.
    pub fn take(&mut self, position: Position, piece: &[u8], ends: bool) -> String {
        self.stats.shifted += usize::from(position.is_shifted());
        self.history.extend(&[position.token]);
        self.sampler.accept(position.token);
        self.positions.push(position);
        let stopped = ends || self.text.push(piece);
        if stopped {
            self.ended = Some(Finish::Stop);
        } else if self.positions.len() == self.room {
            self.ended = Some(Finish::Length);
        }
        if self.ended.is_some() { self.text.finish() } else { self.text.take() }
    }

    pub fn finish(mut self, total: Duration, host: Duration, tuned: Duration, untuned: Duration) -> Outcome {
        let tokens: Vec<Token> = self.positions.iter().map(|p| p.token).collect();
        self.stats.tokens = tokens.len();
        self.stats.decode = total.saturating_sub(self.stats.prefill);
        (self.stats.host, self.stats.tuned, self.stats.untuned) = (host, tuned, untuned);
        let finish = self.ended.unwrap_or(Finish::Interrupted);
        let prompt_tokens = self.history.prompt().to_vec();
        Outcome {
            prompt_tokens,
            text: self.text.text(),
            tokens,
            positions: self.positions,
            finish,
            stats: self.stats,
        }
    }
}
