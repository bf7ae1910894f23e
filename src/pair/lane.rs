//! Where a model's passes run: on the thread that asks, or on one of their own.

use super::cached::{CachedModel, Usage};
use super::plan::SequenceId;
use super::sync::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, thread};
use super::work::Work;
use crate::error::{Error, Result};
use std::time::Instant;

/// A model, and a thread that it can be sent to for a pass.
pub(super) struct Lane {
    /// `None` while it is away.
    model: Option<Box<CachedModel>>,
    /// Whether the pass that it is away for is waited for no more.
    late: bool,
    /// Work of a pass that is to run here.
    held: Option<Work>,
    removed: Vec<SequenceId>,
    helper: Option<Helper>,
    usage: Usage,
}

struct Helper {
    orders: Sender<(Box<CachedModel>, Work)>,
    done: Receiver<(Box<CachedModel>, Work)>,
    thread: thread::JoinHandle<()>,
}

fn gone() -> Error {
    Error::Stopped("a proxy's thread ended".into())
}

impl Lane {
    /// Sequences that end while the model is away, and are freed once it is back.
    const MOST_REMOVED: usize = 4096;

    /// A lane without a thread of its own.
    pub(super) fn here(model: CachedModel) -> Self {
        Self {
            model: Some(Box::new(model)),
            late: false,
            held: None,
            removed: Vec::new(),
            helper: None,
            usage: Usage::default(),
        }
    }

    /// A lane with a thread, called `name`.
    pub(super) fn with_thread(name: &str, model: CachedModel) -> Result<Self> {
        let (orders, inbox) = bounded::<(Box<CachedModel>, Work)>(1);
        let (outbox, done) = bounded(1);
        let serve = move || {
            while let Ok((mut model, mut work)) = inbox.recv() {
                model.advance(&mut work);
                if outbox.send((model, work)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name(format!("proxytune-{name}"))
            .spawn(serve)
            .map_err(|e| Error::engine(name, format!("cannot start its thread: {e}")))?;
        let mut lane = Self::here(model);
        lane.helper = Some(Helper { orders, done, thread });
        Ok(lane)
    }

    /// Begins one pass: `away` at once on the lane's thread, where it has one, else here within [`Lane::finish`].
    /// `alone` says that no other model computes at the same time.
    pub(super) fn start(&mut self, work: Work, away: bool, alone: bool) {
        self.model.iter_mut().for_each(|model| model.set_alone(alone));
        match (&self.helper, self.model.take()) {
            // A dead thread shows in `finish`.
            (Some(helper), Some(model)) if away => drop(helper.orders.send((model, work))),
            (_, model) => {
                self.model = model;
                self.held = Some(work);
            }
        }
    }

    /// Ends the pass begun by [`Lane::start`]. Where that has not ended by `until`, the pass goes on by itself, is
    /// waited for no more ([`Lane::is_late`]), and there is no work to return. A lane with a thread computes there, if
    /// `until` is given: nobody can be taken off a pass of his own. Without `begin` what has not begun is given back as it is.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the lane's thread is gone, and its model with it.
    pub(super) fn finish(&mut self, until: Option<Instant>, begin: bool) -> Result<Option<Work>> {
        if let (Some(_), Some(helper)) = (until, &self.helper)
            && let Some(work) = self.held.take()
        {
            if !begin {
                return Ok(Some(work));
            }
            if let Some(model) = self.model.take() {
                drop(helper.orders.send((model, work)));
            }
        }
        let (model, work) = match (self.model.take(), self.held.take()) {
            (Some(mut model), Some(mut work)) => {
                model.advance(&mut work);
                (model, work)
            }
            (Some(model), None) => (model, Work::default()),
            (None, _) => {
                let done = &self.helper.as_ref().ok_or_else(gone)?.done;
                let answer = match until {
                    Some(until) => done.recv_deadline(until),
                    None => done.recv().map_err(RecvTimeoutError::from),
                };
                match answer {
                    Ok(back) => back,
                    Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                    Err(RecvTimeoutError::Timeout) => {
                        self.late = true;
                        return Ok(None);
                    }
                }
            }
        };
        self.welcome(model);
        Ok(Some(work))
    }

    /// Whether a pass that is waited for no more still runs. Once it has ended the model is back, and what it has read
    /// stands in its cache.
    ///
    /// # Errors
    /// As [`Lane::finish`].
    pub(super) fn is_late(&mut self) -> Result<bool> {
        if self.late {
            match self.helper.as_ref().ok_or_else(gone)?.done.try_recv() {
                Ok((model, _)) => self.welcome(model),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(gone()),
            }
        }
        Ok(self.late)
    }

    fn welcome(&mut self, mut model: Box<CachedModel>) {
        self.removed.drain(..).for_each(|sequence| model.remove(sequence));
        self.usage = model.usage();
        self.model = Some(model);
        self.late = false;
    }

    pub(super) fn remove(&mut self, sequence: SequenceId) {
        match &mut self.model {
            Some(model) => model.remove(sequence),
            // Those that a model has slots for come first. What is not noted gives way as the least recently used.
            None if self.removed.len() < Self::MOST_REMOVED => self.removed.push(sequence),
            None => {}
        }
    }

    /// Its model, between passes.
    ///
    /// # Errors
    /// [`Error::Stopped`] while it is away.
    pub(super) fn model(&self) -> Result<&CachedModel> {
        self.model.as_deref().ok_or_else(gone)
    }

    /// A row of a request that is done.
    pub(super) fn row<'a>(&'a self, work: Option<&'a Work>, index: usize, row: usize) -> Result<&'a [f32]> {
        let work = work.ok_or_else(gone)?;
        work.outcome(index)?;
        self.model()?.row(work, index, row)
    }

    /// What its model had done when the last pass ended.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(Helper { orders, done, thread }) = self.helper.take() {
            // Closing the channels ends the thread; a model that is away is freed there before we go on, unless nobody
            // knows when that will be.
            drop((orders, done));
            if !self.late {
                let _ = thread.join();
            }
        }
    }
}
