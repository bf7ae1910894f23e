//! The thread that owns a pair and batches whatever sequences wait for.

use super::{History, Pair, SequenceId};
use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

/// A wish for the offset at the end of a history.
pub(super) struct Wish {
    pub sequence: SequenceId,
    pub history: History,
    /// A buffer to write into.
    pub offset: Vec<f32>,
    pub reply: Sender<Result<Vec<f32>>>,
}

pub(super) enum Message {
    Wish(Wish),
    Remove(SequenceId),
    Stop,
}

/// What a runner has done so far. Counters only grow; read at any time.
#[derive(Debug, Default)]
pub struct RunnerStats {
    rounds: AtomicU64,
    offsets: AtomicU64,
    failures: AtomicU64,
    tuned_us: AtomicU64,
    untuned_us: AtomicU64,
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
    offsets: "Offsets handed out.",
    failures: "Wishes that ended in an error.",
    tuned_us: "Time in the tuned proxy's engine, microseconds.",
    untuned_us: "Time in the untuned proxy's engine, microseconds.",
}

/// Owns a [`Pair`] on a thread of its own and serves any number of [`Sequence`](super::Sequence)s.
///
/// Dropping it ends the thread; sequences that outlive it get [`Error::Stopped`].
pub struct Runner {
    inbox: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    stats: Arc<RunnerStats>,
    vocab: usize,
    next: AtomicU64,
}

impl Runner {
    /// Moves the pair to its thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(pair: Pair) -> Result<Self> {
        let (inbox, messages) = unbounded();
        let stats = Arc::new(RunnerStats::default());
        let vocab = pair.host_vocab();
        let mut owner = Owner { pair, messages, wishes: Vec::new(), stats: stats.clone(), open: true };
        let thread = std::thread::Builder::new()
            .name("proxytune-runner".into())
            .spawn(move || owner.serve())
            .map_err(|e| Error::engine("runner", format!("cannot start its thread: {e}")))?;
        Ok(Self { inbox, thread: Some(thread), stats, vocab, next: AtomicU64::new(0) })
    }

    /// A handle for a new sequence. No model runs before its first offset is asked for.
    pub fn sequence(&self, history: History, alpha: f32) -> super::Sequence {
        super::Sequence::new(self.link(), history, alpha)
    }

    /// What it has done so far.
    pub fn stats(&self) -> &Arc<RunnerStats> {
        &self.stats
    }

    fn link(&self) -> Link {
        let sequence = self.next.fetch_add(1, Relaxed);
        Link { sequence, inbox: self.inbox.clone(), vocab: self.vocab }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A sequence's way to the runner.
pub(super) struct Link {
    pub sequence: SequenceId,
    pub inbox: Sender<Message>,
    pub vocab: usize,
}

/// What runs on the runner's thread.
struct Owner {
    pair: Pair,
    messages: Receiver<Message>,
    /// The wish behind each of the pair's requests, in the same order.
    wishes: Vec<Wish>,
    stats: Arc<RunnerStats>,
    open: bool,
}

impl Owner {
    fn serve(&mut self) {
        while self.open {
            self.listen();
            if self.wishes.is_empty() {
                continue;
            }
            let (begin, positions) = (Instant::now(), self.pair.len());
            self.pair.begin(positions);
            self.pair.start();
            if let Err(error) = self.pair.finish() {
                return self.give_up(error);
            }
            self.pair.took(positions, begin.elapsed());
            self.answer_done();
            self.count();
        }
    }

    /// Takes in all that waits; sleeps only when there is nothing to do.
    fn listen(&mut self) {
        if self.wishes.is_empty() {
            match self.messages.recv() {
                Ok(message) => self.take(message),
                Err(_) => self.open = false,
            }
        }
        while let Ok(message) = self.messages.try_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Wish(wish) => {
                // A sequence that has moved on no longer wants its old wish.
                self.drop_wish(wish.sequence);
                self.pair.push(wish.sequence, &wish.history, [1, 1]);
                self.wishes.push(wish);
            }
            Message::Remove(sequence) => {
                self.drop_wish(sequence);
                self.pair.remove(sequence);
            }
            Message::Stop => self.open = false,
        }
    }

    fn drop_wish(&mut self, sequence: SequenceId) {
        if let Some(index) = self.wishes.iter().position(|w| w.sequence == sequence) {
            self.wishes.swap_remove(index);
            self.pair.swap_remove(index);
        }
    }

    fn answer_done(&mut self) {
        for index in (0..self.wishes.len()).rev().filter(|&i| self.pair.is_done(i)).collect::<Vec<_>>() {
            let Wish { mut offset, reply, .. } = self.wishes.swap_remove(index);
            offset.resize(self.pair.host_vocab(), 0.0);
            let offset = self.pair.offset(index, 0, &mut offset).map(|()| offset);
            self.pair.swap_remove(index);
            let counter = if offset.is_ok() { &self.stats.offsets } else { &self.stats.failures };
            counter.fetch_add(1, Relaxed);
            // Nobody listens when the sequence was dropped meanwhile.
            let _ = reply.send(offset);
        }
    }

    fn count(&self) {
        let [tuned, untuned] = self.pair.forward_time();
        self.stats.rounds.fetch_add(1, Relaxed);
        self.stats.tuned_us.store(tuned.as_micros() as u64, Relaxed);
        self.stats.untuned_us.store(untuned.as_micros() as u64, Relaxed);
    }

    /// A proxy's thread is gone: everyone who waits is told, everyone who comes finds the channel closed.
    fn give_up(&mut self, error: Error) {
        tracing::error!(%error, "proxy-tuning stops");
        for wish in self.wishes.drain(..) {
            self.stats.failures.fetch_add(1, Relaxed);
            let _ = wish.reply.send(Err(error.clone()));
        }
    }
}
