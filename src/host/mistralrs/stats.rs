//! What the proxies of one model have done, for a server's metrics.

use crate::error::Error;
use crate::pair::RunnerStats;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counters since the start; they only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Positions that were shifted.
    pub positions: u64,
    /// Those of them whose most likely token the shift changed.
    pub shifted: u64,
    /// Positions that went as the host had them because a proxy failed.
    pub unshifted: u64,
    /// Failures by [`Error::kind`].
    pub failures: BTreeMap<&'static str, u64>,
    /// Rounds of the proxies, and sequences in all of them together: their quotient is the mean batch.
    pub rounds: u64,
    /// Rounds that began with the host's step, where that has measured faster than to wait for it.
    pub early_rounds: u64,
    /// See `rounds`.
    pub sequences: u64,
    /// Rounds by size, as [`RunnerStats::batches`].
    pub batches: [u64; RunnerStats::BATCHES.len() + 1],
    /// Tokens of all histories that the proxies have answered, over both of them, and those that were in their caches.
    pub history_tokens: u64,
    /// See `history_tokens`.
    pub cached_tokens: u64,
    /// Time in the tuned proxy's engine.
    pub tuned: Duration,
    /// Time in the untuned proxy's engine.
    pub untuned: Duration,
    /// Time that mistral.rs waited for the proxies, over all sequences.
    pub wait: Duration,
    /// Time between the steps of mistral.rs while sequences run: its own forward passes and all else that it does.
    pub host: Duration,
    /// Steps that `host` was measured over.
    pub host_steps: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    positions: AtomicU64,
    shifted: AtomicU64,
    wait_us: AtomicU64,
    unshifted: AtomicU64,
    failures: Mutex<BTreeMap<&'static str, u64>>,
    steps: Mutex<Steps>,
}

/// Tells the host's steps from the calls of the processors.
#[derive(Default)]
struct Steps {
    active: usize,
    idle_since: Option<Instant>,
    host: Duration,
    count: u64,
}

impl Counters {
    pub fn shifted(&self, changed: bool, wait: Duration) {
        self.positions.fetch_add(1, Relaxed);
        self.shifted.fetch_add(changed.into(), Relaxed);
        self.wait_us.fetch_add(wait.as_micros() as u64, Relaxed);
    }

    /// Returns whether it is the first failure of its kind.
    pub fn failed(&self, error: &Error) -> bool {
        self.unshifted.fetch_add(1, Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(error.kind()).or_default();
        *count += 1;
        *count == 1
    }

    /// A processor is called. `decoding`: not for the first time, so that the host has just made a step for it.
    pub fn enter(&self, decoding: bool) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.active += 1;
        if let Some(since) = steps.idle_since.take()
            && decoding
        {
            steps.host += since.elapsed();
            steps.count += 1;
        }
    }

    /// It returns. Whether it was the last one at work.
    pub fn leave(&self) -> bool {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.active -= 1;
        let last = steps.active == 0;
        if last {
            steps.idle_since = Some(Instant::now());
        }
        last
    }

    pub fn read(&self, runner: &RunnerStats) -> Stats {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        Stats {
            positions: self.positions.load(Relaxed),
            shifted: self.shifted.load(Relaxed),
            unshifted: self.unshifted.load(Relaxed),
            failures: self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            rounds: runner.rounds(),
            early_rounds: runner.early_rounds(),
            sequences: runner.sequences(),
            batches: runner.batches(),
            history_tokens: runner.history_tokens(),
            cached_tokens: runner.history_tokens().saturating_sub(runner.computed_tokens()),
            tuned: Duration::from_micros(runner.tuned_us()),
            untuned: Duration::from_micros(runner.untuned_us()),
            wait: Duration::from_micros(self.wait_us.load(Relaxed)),
            host: steps.host,
            host_steps: steps.count,
        }
    }
}
