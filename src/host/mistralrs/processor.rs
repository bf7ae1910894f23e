//! One request's logits processor.

use super::positions::Positions;
use super::sampling::{SamplingOptions, Scratch};
use super::{EarlyStart, ProxyTuning, RequestOptions};
use crate::combine::argmax;
use crate::config::{Control, OnError};
use crate::decode::Position;
use crate::decode::accept::Dice;
use crate::decode::explain::{Rows, explain};
use crate::error::{Error, Result};
use crate::host::{Group, Member};
use crate::vocab::Token;
use mistralrs::{CustomLogitsProcessor, DType, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shifts the logits of one request, all its choices included, and never fails towards mistral.rs: there an error costs
/// batch-mates a token, and a panic the engine.
pub struct Processor {
    tuning: ProxyTuning,
    alpha: f32,
    early_start: EarlyStart,
    sampling: SamplingOptions,
    group: Mutex<Group<State>>,
    report: Mutex<Report>,
    /// Candidates of each position that are kept; 0: none is.
    explain: usize,
    positions: Mutex<Positions>,
    cancelled: AtomicBool,
}

/// What became of a request.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Weight of the shift.
    pub alpha: f32,
    /// Positions that were shifted.
    pub positions: u64,
    /// Those of them whose most likely token the shift changed.
    pub shifted: u64,
    /// Positions that went as the host had them because a proxy failed.
    pub unshifted: u64,
    /// The most likely token before and after the shift, at the position shifted last.
    pub tops: Option<[Token; 2]>,
    /// The last failure of a proxy on this request.
    pub error: Option<Error>,
}

/// What is kept with each of a request's sequences.
#[derive(Default)]
struct State {
    dice: Option<Dice>,
    scratch: Scratch,
}

impl Processor {
    pub(super) fn new(tuning: ProxyTuning, alpha: f32, control: Control, options: RequestOptions) -> Self {
        let sampling = options.sampling.unwrap_or_default();
        let early_start = match options.early_start {
            EarlyStart::Sample if options.sampling.is_none() || sampling.is_greedy() => EarlyStart::Guess,
            otherwise => otherwise,
        };
        let explain = options.explain;
        let group = Group::new(alpha, options.tuned_prompt, options.choices).with_control(control);
        let group = Mutex::new(group.with_explanations(explain > 0));
        let report = Mutex::new(Report { alpha, ..Report::default() });
        let (positions, cancelled) = Default::default();
        Self { tuning, alpha, early_start, sampling, group, report, explain, positions, cancelled }
    }

    /// Ends the request's texts at their next token. For a client that has gone: mistral.rs takes a responder that is
    /// dropped ill.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// What became of the request so far.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Takes out what the shift did at each position since the last time, in order, where
    /// [that is kept](RequestOptions::explain). The newest one may change until mistral.rs has sampled its token, as with a grammar
    /// that refuses it; `all`: with that one.
    pub fn take_positions(&self, all: bool) -> Vec<Position> {
        lock(&self.positions).take(all)
    }

    /// What is done in one call of mistral.rs, whatever happens.
    fn step(&self, row: &mut [f32], history: &[Token]) {
        let shared = &self.tuning.0;
        shared.counters.enter(lock(&self.report).positions > 0);
        let shift = || self.shift(row, history);
        let done = catch_unwind(AssertUnwindSafe(shift))
            .unwrap_or_else(|_| Err(Error::engine("proxytune", "a panic, which was caught")));
        if let Err(error) = done {
            self.fail(error, row);
        }
        if shared.counters.leave() {
            // The host's next pass begins now; the proxies' may as well.
            shared.runner.start();
        }
    }

    /// Shifts a row, and draws from it where that is wanted.
    fn shift(&self, row: &mut [f32], history: &[Token]) -> Result<()> {
        let runner = &self.tuning.0.runner;
        let vocab = runner.host_vocab();
        let got = row.len();
        // Some models' rows are padded beyond their last token.
        let row = row.get_mut(..vocab).ok_or(Error::Shape { what: "host", got, expected: vocab })?;
        let mut member = lock(&self.group).take(runner, history)?;
        let host_top = argmax(row) as Token;
        let host = (self.explain > 0).then(|| row.to_vec());
        let begin = Instant::now();
        let shifted = member.shift(row);
        let wait = begin.elapsed();
        let top = argmax(row) as Token;
        if shifted.is_ok() {
            self.note([host_top, top], wait);
        }
        // What goes unshifted is drawn by the same dice. A text that is to end needs no token.
        if shifted.is_ok() || self.tuning.on_error() == OnError::Host {
            let next = self.next(&mut member, row, top);
            if let (Some(host), Some(token)) = (host, next) {
                let proxies = member.log_probabilities().filter(|_| shifted.is_ok());
                let rows = Rows { host: &host, shifted: row, proxies };
                let (probabilities, candidates) = explain(&rows, token, self.explain);
                let probabilities = Some(probabilities);
                let position = Position { token, host_top, top, probabilities, candidates };
                lock(&self.positions).keep(history.len(), position);
            }
            if let Some(token) = next.filter(|_| self.early_start == EarlyStart::Sample) {
                row.fill(f32::NEG_INFINITY);
                row[token as usize] = 0.0;
            }
            if let Some(token) = next.filter(|t| shifted.is_ok() && !self.tuning.0.ends.contains(t)) {
                member.guess(token)?;
            }
        }
        lock(&self.group).put(member);
        shifted.map(drop)
    }

    /// Counts a position.
    fn note(&self, tops: [Token; 2], wait: Duration) {
        if self.alpha != 0.0 {
            let changed = tops[0] != tops[1];
            self.tuning.0.counters.shifted(changed, wait);
            let mut report = lock(&self.report);
            report.positions += 1;
            report.shifted += u64::from(changed);
            report.tops = Some(tops);
        }
    }

    /// The token that comes next, as far as that can be known. `None` also where there is nothing to draw from, which is left
    /// for mistral.rs to report.
    fn next(&self, member: &mut Member<State>, row: &[f32], top: Token) -> Option<Token> {
        match self.early_start {
            EarlyStart::Off => None,
            EarlyStart::Guess => Some(top),
            EarlyStart::Sample => {
                let seed = || self.sampling.seed.map(|seed| seed.wrapping_add(member.number as u64));
                let State { dice, scratch } = &mut member.state;
                self.sampling.draw(row, dice.get_or_insert_with(|| Dice::new(seed())), scratch)
            }
        }
    }

    /// Takes note of a failure, and does what the configuration says about it.
    fn fail(&self, error: Error, row: &mut [f32]) {
        let policy = self.tuning.on_error();
        if self.tuning.0.counters.failed(&error) {
            let then = match policy {
                OnError::Host => "requests go on unshifted where this happens",
                OnError::Stop => "requests end where this happens",
            };
            tracing::warn!(%error, "{then} (said once)");
        }
        let mut report = lock(&self.report);
        report.unshifted += 1;
        report.error = Some(error);
        if policy == OnError::Stop {
            self.end(row);
        }
    }

    /// Leaves only tokens that end the text, as far as there are any that may come.
    fn end(&self, row: &mut [f32]) {
        let possible = |&&t: &&Token| row.get(t as usize).is_some_and(|&l| l > f32::NEG_INFINITY);
        if let Some(&token) = self.tuning.0.ends.iter().find(possible) {
            row.fill(f32::NEG_INFINITY);
            row[token as usize] = 0.0;
        }
    }
}

impl CustomLogitsProcessor for Processor {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> mistralrs::Result<Tensor> {
        let cancelled = self.cancelled.load(Relaxed);
        let only_looks = self.alpha == 0.0 && self.early_start != EarlyStart::Sample && self.explain == 0;
        if only_looks && !cancelled || context.is_empty() {
            return Ok(logits.clone());
        }
        let mut row = match logits.to_dtype(DType::F32).and_then(|row| row.to_vec1::<f32>()) {
            Ok(row) => row,
            Err(error) => {
                self.fail(Error::engine("mistral.rs", error.to_string()), &mut []);
                return Ok(logits.clone());
            }
        };
        let len = row.len();
        if cancelled {
            self.end(&mut row);
        } else {
            self.step(&mut row, context);
        }
        Ok(Tensor::from_vec(row, len, logits.device()).unwrap_or_else(|_| logits.clone()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
