//! Where a model's passes run: on the thread that asks, or on one of their own.

use super::cached::{CachedModel, Work};
use super::plan::SequenceId;
use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::thread::JoinHandle;
use std::time::Duration;

/// A model and the thread that runs it.
pub(super) enum Lane {
    /// On the caller's thread, within [`Lane::finish`].
    Here(Box<CachedModel>, Option<Work>),
    /// On its own thread, from [`Lane::start`] on.
    Thread { orders: Sender<Order>, done: Receiver<(Work, Duration)>, thread: Option<JoinHandle<()>>, time: Duration },
}

pub(super) enum Order {
    Advance(Work),
    Remove(SequenceId),
}

impl Lane {
    pub(super) fn here(model: CachedModel) -> Self {
        Self::Here(Box::new(model), None)
    }

    /// Moves the model to a thread called `name`.
    pub(super) fn thread(name: &str, mut model: CachedModel) -> Result<Self> {
        let (orders, inbox) = unbounded();
        let (outbox, done) = bounded(1);
        let work = move || {
            for order in inbox {
                match order {
                    Order::Remove(sequence) => model.remove(sequence),
                    Order::Advance(mut work) => {
                        model.advance(&mut work);
                        if outbox.send((work, model.forward_time())).is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("proxytune-{name}"))
            .spawn(work)
            .map_err(|e| Error::engine(name, format!("cannot start its thread: {e}")))?;
        Ok(Self::Thread { orders, done, thread: Some(thread), time: Duration::ZERO })
    }

    /// Begins one pass; returns at once.
    pub(super) fn start(&mut self, work: Work) {
        match self {
            Self::Here(_, held) => *held = Some(work),
            // A dead thread shows in `finish`.
            Self::Thread { orders, .. } => drop(orders.send(Order::Advance(work))),
        }
    }

    /// Ends the pass begun by [`Lane::start`].
    ///
    /// # Errors
    /// [`Error::Stopped`] when the lane's thread is gone.
    pub(super) fn finish(&mut self) -> Result<Work> {
        match self {
            Self::Here(model, held) => {
                let mut work = held.take().unwrap_or_default();
                model.advance(&mut work);
                Ok(work)
            }
            Self::Thread { done, time, .. } => {
                let gone = |_| Error::Stopped("a proxy's thread ended".into());
                let (work, spent) = done.recv().map_err(gone)?;
                *time = spent;
                Ok(work)
            }
        }
    }

    pub(super) fn remove(&mut self, sequence: SequenceId) {
        match self {
            Self::Here(model, _) => model.remove(sequence),
            Self::Thread { orders, .. } => drop(orders.send(Order::Remove(sequence))),
        }
    }

    /// Time spent in the engine so far.
    pub(super) fn forward_time(&self) -> Duration {
        match self {
            Self::Here(model, _) => model.forward_time(),
            Self::Thread { time, .. } => *time,
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Self::Thread { orders, thread, .. } = self {
            // Closing the channel ends the thread; the model is freed there before we go on.
            *orders = unbounded().0;
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
