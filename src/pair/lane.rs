//! Where a model's passes run: on the thread that asks, or on one of their own.

use super::cached::{CachedModel, Usage, Work};
use super::plan::SequenceId;
use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread::JoinHandle;

/// A model, and a thread that it can be sent to for a pass.
pub(super) struct Lane {
    /// `None` while it is away.
    model: Option<Box<CachedModel>>,
    /// Work of a pass that is to run here.
    held: Option<Work>,
    removed: Vec<SequenceId>,
    helper: Option<Helper>,
    usage: Usage,
}

struct Helper {
    orders: Sender<(Box<CachedModel>, Work)>,
    done: Receiver<(Box<CachedModel>, Work)>,
    thread: JoinHandle<()>,
}

impl Lane {
    /// A lane without a thread of its own.
    pub(super) fn here(model: CachedModel) -> Self {
        Self {
            model: Some(Box::new(model)),
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
            for (mut model, mut work) in inbox {
                model.advance(&mut work);
                if outbox.send((model, work)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
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

    /// Ends the pass begun by [`Lane::start`].
    ///
    /// # Errors
    /// [`Error::Stopped`] when the lane's thread is gone, and its model with it.
    pub(super) fn finish(&mut self) -> Result<Work> {
        let gone = || Error::Stopped("a proxy's thread ended".into());
        let (mut model, work) = match (self.model.take(), self.held.take()) {
            (Some(mut model), Some(mut work)) => {
                model.advance(&mut work);
                (model, work)
            }
            (Some(model), None) => (model, Work::default()),
            (None, _) => {
                let helper = self.helper.as_ref().ok_or_else(gone)?;
                helper.done.recv().map_err(|_| gone())?
            }
        };
        self.removed.drain(..).for_each(|sequence| model.remove(sequence));
        self.usage = model.usage();
        self.model = Some(model);
        Ok(work)
    }

    pub(super) fn remove(&mut self, sequence: SequenceId) {
        match &mut self.model {
            Some(model) => model.remove(sequence),
            None => self.removed.push(sequence),
        }
    }

    /// What its model had done when the last pass ended.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(Helper { orders, done, thread }) = self.helper.take() {
            // Closing the channels ends the thread; a model that is away is freed there before we go on.
            drop((orders, done));
            let _ = thread.join();
        }
    }
}
