//! What a runner counts.

use super::Usage;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a runner has done so far. Counters only grow; read at any time.
#[derive(Debug, Default)]
pub struct RunnerStats {
    batches: [AtomicU64; Self::BATCHES.len() + 1],
    rounds: AtomicU64,
    early_rounds: AtomicU64,
    sequences: AtomicU64,
    history_tokens: AtomicU64,
    computed_tokens: AtomicU64,
    offsets: AtomicU64,
    failures: AtomicU64,
    late: AtomicU64,
    tuned_us: AtomicU64,
    untuned_us: AtomicU64,
}

impl RunnerStats {
    /// Sizes that [`batches`](Self::batches) counts up to.
    pub const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];

    /// Rounds by their number of sequences: those of at most as many as each of [`BATCHES`](Self::BATCHES) says and more
    /// than the one before, then those of more.
    pub fn batches(&self) -> [u64; Self::BATCHES.len() + 1] {
        self.batches.each_ref().map(|count| count.load(Relaxed))
    }

    pub(super) fn begin_round(&self, sequences: usize) {
        self.rounds.fetch_add(1, Relaxed);
        self.sequences.fetch_add(sequences as u64, Relaxed);
        self.batches[Self::BATCHES.partition_point(|&most| most < sequences)].fetch_add(1, Relaxed);
    }

    /// The next round, if there is anything to do in it, begins with the engine's step.
    pub(super) fn early_round(&self, any: bool) {
        self.early_rounds.fetch_add(u64::from(any), Relaxed);
    }

    /// What the proxies have done by the end of a round.
    pub(super) fn end_round(&self, [tuned, untuned]: [Usage; 2], late: u64) {
        self.late.store(late, Relaxed);
        self.computed_tokens.store(tuned.tokens + untuned.tokens, Relaxed);
        self.tuned_us.store(tuned.time.as_micros() as u64, Relaxed);
        self.untuned_us.store(untuned.time.as_micros() as u64, Relaxed);
    }

    /// A wish has its answer; its history had so many tokens, over the proxies that run.
    pub(super) fn answered(&self, well: bool, tokens: usize) {
        let counter = if well { &self.offsets } else { &self.failures };
        counter.fetch_add(1, Relaxed);
        self.history_tokens.fetch_add(tokens as u64, Relaxed);
    }

    /// A wish has none, and never will.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }
}

macro_rules! counters {
    ($($name:ident: $doc:literal),* $(,)?) => {
        impl RunnerStats {
            $(#[doc = $doc] pub fn $name(&self) -> u64 { self.$name.load(Relaxed) })*
        }
    };
}
counters! {
    rounds: "Rounds: at most one forward pass of each proxy, over all sequences that waited.",
    early_rounds: "Those of them that began with the engine's step, see [`Runner::start`](super::Runner::start).",
    sequences: "Sequences in all rounds together.",
    history_tokens: "Tokens of the histories that were answered, over both proxies.",
    computed_tokens: "Tokens that the proxies computed. Those of the histories beyond that stood in their caches already.",
    offsets: "Offsets handed out.",
    failures: "Wishes that ended in an error.",
    late: "Rounds that a proxy did not end in time.",
    tuned_us: "Time in the tuned proxy's engine, microseconds.",
    untuned_us: "Time in the untuned proxy's engine, microseconds.",
}
