//! The handle to a pair that many sequences share.

use super::message::Message;
use super::owner::Owner;
use super::sync::{Arc, Mutex, PoisonError, Receiver, Sender, TryLockError, TryRecvError, thread, unbounded};
use super::{History, Pair, Placement, RunnerStats, SequenceId};
use crate::combine::Rule;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Messages that nobody has taken in yet, beyond which those who send them do it where the runner has no thread. Few where orders of
/// events are tried.
const MOST_UNREAD: usize = if cfg!(shuttle) { 2 } else { 1024 };

/// Owns a [`Pair`] and serves any number of [`Sequence`](super::Sequence)s: on a thread of its own, or on the threads
/// of those who wait.
///
/// After it is dropped, sequences that outlive it get [`Error::Stopped`].
pub struct Runner {
    inbox: Sender<Message>,
    thread: Option<thread::JoinHandle<()>>,
    /// The owner, where it has no thread.
    here: Option<Arc<Mutex<Owner>>>,
    placement: Placement,
    stats: Arc<RunnerStats>,
    vocab: usize,
    context: [usize; 2],
    rule: std::sync::Arc<dyn Rule>,
    next: AtomicU64,
    process: u32,
}

impl Runner {
    /// Moves the pair to its thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(pair: Pair) -> Result<Self> {
        let (mut runner, mut owner) = Self::with_owner(pair);
        let thread = thread::Builder::new()
            .name("proxytune-runner".into())
            .spawn(move || owner.serve())
            .map_err(|e| Error::engine("runner", format!("cannot start its thread: {e}")))?;
        runner.thread = Some(thread);
        Ok(runner)
    }

    /// Keeps the pair where it is: whoever waits for an offset runs the rounds, for all that have been announced.
    ///
    /// Best where the proxies want the same cores as the host, which waits meanwhile: no thread has to be woken, and
    /// nothing runs before somebody waits for it, or before the engine's step [begins](Self::start).
    pub fn without_thread(pair: Pair) -> Self {
        let (mut runner, owner) = Self::with_owner(pair);
        runner.here = Some(Arc::new(Mutex::new(owner)));
        runner
    }

    fn with_owner(pair: Pair) -> (Self, Owner) {
        let (inbox, messages) = unbounded();
        let stats = Arc::new(RunnerStats::default());
        let (vocab, context, rule) = (pair.host_vocab(), pair.context(), pair.rule().clone());
        let placement = pair.placement();
        let owner = Owner::new(pair, messages, stats.clone());
        let (next, process) = (AtomicU64::new(0), std::process::id());
        (
            Self { inbox, thread: None, here: None, placement, stats, vocab, context, rule, next, process },
            owner,
        )
    }

    /// Says that the engine's next step begins, and returns at once. What sequences have announced is started in one round for all
    /// ([`Sequence::announce`](super::Sequence::announce)); without a thread of its own only with [`Placement::AutoEarly`], where that has
    /// measured faster. Else whoever waits first does it.
    pub fn start(&self) {
        if has_forked(self.process) {
            return;
        }
        match &self.here {
            // A runner that has stopped says so to those who wait.
            None => drop(self.inbox.send(Message::Start)),
            Some(owner) if self.placement == Placement::AutoEarly => match owner.try_lock() {
                Ok(mut owner) => owner.begin_step(),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().begin_step(),
                // Somebody waits already.
                Err(TryLockError::WouldBlock) => {}
            },
            Some(_) => {}
        }
    }

    /// A handle for a new sequence. No model runs before its first offset is asked for.
    pub fn sequence(&self, history: History, alpha: f32) -> super::Sequence {
        super::Sequence::new(self.link(), history, alpha)
    }

    /// Whether it works on a thread of its own, while those who wait do something else.
    pub fn has_thread(&self) -> bool {
        self.thread.is_some()
    }

    /// Length of the host's rows.
    pub fn host_vocab(&self) -> usize {
        self.vocab
    }

    /// Tokens that a slot of the tuned and of the untuned proxy holds.
    pub fn context(&self) -> [usize; 2] {
        self.context
    }

    /// How host and proxies are combined.
    pub fn rule(&self) -> &dyn Rule {
        &*self.rule
    }

    /// What it has done so far.
    pub fn stats(&self) -> &Arc<RunnerStats> {
        &self.stats
    }

    fn link(&self) -> Link {
        let sequence = self.next.fetch_add(1, Relaxed);
        let (inbox, rule, here) = (self.inbox.clone(), self.rule.clone(), self.here.clone());
        Link { sequence, inbox, vocab: self.vocab, rule, here, process: self.process }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if has_forked(self.process) {
            // What waits for threads that are not there would wait for ever.
            return std::mem::forget((self.thread.take(), self.here.take()));
        }
        let _ = self.inbox.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A sequence's way to the runner.
pub(super) struct Link {
    pub sequence: SequenceId,
    pub vocab: usize,
    pub rule: std::sync::Arc<dyn Rule>,
    inbox: Sender<Message>,
    here: Option<Arc<Mutex<Owner>>>,
    process: u32,
}

impl Link {
    /// Whether nothing runs before somebody waits.
    pub fn is_lazy(&self) -> bool {
        self.here.is_some()
    }

    /// Leaves a message. An engine may announce for ever and never wait: without a thread that would take it in, the queue is
    /// emptied here, so that it holds no more than a wish of each sequence. Whoever runs a round empties it anyway.
    pub fn send(&self, message: Message) -> Result<()> {
        if has_forked(self.process) {
            return Err(Error::Stopped(
                "this process is a fork of the one that loaded the proxies, and has none of their threads: load them after the fork".into(),
            ));
        }
        self.inbox.send(message).map_err(|_| stopped())?;
        let Some(owner) = self.here.as_ref().filter(|_| self.inbox.len() > MOST_UNREAD) else {
            return Ok(());
        };
        match owner.try_lock() {
            Ok(mut owner) => owner.take_all(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take_all(),
            Err(TryLockError::WouldBlock) => {}
        }
        Ok(())
    }

    /// Waits for an answer; runs the rounds for it where nobody else does.
    pub fn wait(&self, answer: &Receiver<Result<Vec<f32>>>) -> Result<Vec<f32>> {
        loop {
            match answer.try_recv() {
                Ok(offset) => return offset,
                Err(TryRecvError::Disconnected) => return Err(stopped()),
                Err(TryRecvError::Empty) => {}
            }
            self.send(Message::Start)?;
            let Some(owner) = &self.here else {
                return answer.recv().map_err(|_| stopped())?;
            };
            let mut owner = owner.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever held it before may have answered this as well, and the last round as the first.
            if answer.is_empty() && !owner.turn() && answer.is_empty() {
                return Err(stopped());
            }
        }
    }
}

/// Whether this process is a child of the one that made a runner: a fork copies locks and queues as they were, and no thread.
fn has_forked(from: u32) -> bool {
    std::process::id() != from
}

pub(super) fn stopped() -> Error {
    Error::Stopped("no thread serves this sequence any more".into())
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::backend::{Capabilities, toy::Toy};
    use crate::pair::{CachedModel, Placement, Proxy};
    use crate::vocab::TokenMap;

    #[test]
    fn engines_that_never_wait_fill_no_queue() {
        let proxy = |seed| {
            let capabilities =
                Capabilities { slots: 2, context: 64, batch: 16, vocab: 4, truncate: true, fork: true };
            Proxy { model: CachedModel::new("toy", Toy::new(capabilities, seed)), map: TokenMap::identity(4) }
        };
        let runner = Runner::without_thread(Pair::new(proxy(1), proxy(2), Placement::InTurn).unwrap());
        let mut most = 0;
        // Enough to fill it once, where each step takes long.
        for _ in 0..if cfg!(miri) { 12 } else { 100 } {
            // Moves on without asking what came of it, and leaves.
            let mut moving = runner.sequence(History::new(vec![1], None), 1.0);
            for token in 0..48 {
                moving.extend(&[token % 4]);
                moving.prefetch().unwrap();
                most = most.max(runner.inbox.len());
            }
        }
        assert!((MOST_UNREAD / 2..=MOST_UNREAD).contains(&most), "{most}");
        let mut waiting = runner.sequence(History::new(vec![1, 2], None), 1.0);
        assert!(waiting.offset().is_ok() && runner.stats().failures() == 0);
        // Nothing ran for those who did not wait.
        assert_eq!(runner.stats().sequences(), 1);
    }
}
