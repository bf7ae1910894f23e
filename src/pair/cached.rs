//! A model behind a planner: histories in, rows of logits out, the KV cache used as far as it reaches.

use super::plan::{Change, Pass, Planner, Progress, Request, SequenceId};
use super::work::{InPlace, Rows, Work};
use crate::backend::{Backend, Capabilities, Span};
use crate::error::{Error, Result};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a model has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time spent in the engine, fetching its logits included: on an accelerator that is where one waits.
    pub time: Duration,
    /// Tokens computed, those found in the cache left out.
    pub tokens: u64,
}

/// A model whose slots are caches of histories. Host and proxies alike.
pub struct CachedModel {
    name: String,
    backend: Box<dyn Backend>,
    planner: Planner,
    pass: Pass,
    before: Vec<Progress>,
    /// Passes begun so far.
    passes: u64,
    usage: Usage,
}

impl CachedModel {
    /// A model with empty slots; `name` is used in errors.
    pub fn new(name: impl Into<String>, backend: impl Backend + 'static) -> Self {
        let planner = Planner::new(backend.capabilities().clone());
        Self {
            name: name.into(),
            backend: Box::new(backend),
            planner,
            pass: Pass::default(),
            before: Vec::new(),
            passes: 0,
            usage: Usage::default(),
        }
    }

    /// What the model can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.planner.capabilities()
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has done so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Sequences that have lost their slot to another so far.
    pub fn evictions(&self) -> u64 {
        self.planner.evictions()
    }

    /// Gives up cores that the engine keeps busy between passes.
    pub fn rest(&mut self) {
        self.backend.rest();
    }

    /// Says whether other models compute at the same time as this one.
    pub fn set_alone(&mut self, alone: bool) {
        self.backend.set_alone(alone);
    }

    /// Frees the slot of a sequence that is gone.
    pub fn remove(&mut self, sequence: SequenceId) {
        self.planner.remove(sequence);
    }

    /// Runs passes until every request is done.
    pub fn run(&mut self, work: &mut Work) {
        while !work.all_done() {
            self.advance(work);
        }
    }

    /// Runs one forward pass over whatever fits it. A failure stays with the request that caused it.
    pub fn advance(&mut self, work: &mut Work) {
        self.refuse_misfits(work);
        if work.all_done() {
            return;
        }
        let suspect = (0..work.len()).find(|&i| work.suspect[i] && !work.progress[i].complete);
        let range = suspect.map_or(0..work.len(), |i| i..i + 1);
        self.before.clear();
        self.before.extend_from_slice(&work.progress);
        let requests = &work.requests[range.clone()];
        self.planner.plan(requests, &mut work.progress[range.clone()], &mut self.pass);
        self.pass.pieces.iter_mut().for_each(|p| p.request += range.start);
        let begin = Instant::now();
        self.copy_rows(work);
        self.passes += 1;
        // A backend's panic is a failure like others: its slots are cleared.
        let executed = catch_unwind(AssertUnwindSafe(|| self.execute(&work.requests)))
            .unwrap_or_else(|panic| Err(Error::engine(&self.name, format!("a panic: {}", words(&*panic)))));
        match executed {
            Ok(()) => self.deliver(work),
            Err(error) => self.recover(work, error),
        }
        self.usage.time += begin.elapsed();
    }

    fn refuse_misfits(&self, work: &mut Work) {
        let context = self.capabilities().context;
        for index in 0..work.len() {
            let tokens = work.requests[index].history.len();
            if work.progress[index].complete {
                continue;
            } else if tokens == 0 {
                let error =
                    Error::invalid(format!("history of the {}", self.name), "no tokens", "at least one");
                work.fail(index, error);
            } else if tokens > context {
                work.fail(index, Error::Length { model: self.name.clone(), tokens, context });
            }
        }
    }

    fn execute(&mut self, requests: &[Request]) -> Result<()> {
        for change in &self.pass.changes {
            match *change {
                Change::Clear { slot } => self.backend.clear(slot),
                Change::Truncate { slot, len } => self.backend.truncate(slot, len)?,
                Change::Fork { from, to, len } => self.backend.fork(from, to, len)?,
            }
        }
        let spans: Vec<Span<'_>> = self.pass.pieces.iter().map(|p| p.span(requests)).collect();
        self.usage.tokens += spans.iter().map(|span| span.tokens.len() as u64).sum::<u64>();
        self.backend.forward(&spans)?;
        let rows = self.pass.pieces.iter().map(|piece| piece.rows).sum();
        (0..rows).try_for_each(|row| self.check_row(self.backend.logits(row)))
    }

    /// Weights or a cache that are broken show in rows that are NaN from end to end, which no shift can be made of.
    fn check_row(&self, row: &[f32]) -> Result<()> {
        let vocab = self.capabilities().vocab;
        if row.len() != vocab {
            let what = format!("a row of {} logits, {vocab} were expected", row.len());
            return Err(Error::engine(&self.name, what));
        }
        if row.iter().all(|logit| logit.is_nan()) {
            return Err(Error::engine(&self.name, "all logits of a row are NaN"));
        }
        Ok(())
    }

    /// Rows stay where they are, unless they come from several passes.
    fn deliver(&self, work: &mut Work) {
        let mut first = 0;
        for piece in &self.pass.pieces {
            let rows = &mut work.rows[piece.request];
            if piece.rows == work.requests[piece.request].rows {
                rows.in_place = Some(InPlace { pass: self.passes, first });
            } else {
                self.copy(first, piece.rows, &mut rows.copies);
            }
            first += piece.rows;
        }
    }

    fn copy(&self, first: usize, rows: usize, into: &mut Vec<f32>) {
        (first..first + rows).for_each(|row| into.extend_from_slice(self.backend.logits(row)));
    }

    /// Copies the rows that the engine still holds, so that they outlive its next pass. A pass over the same work does
    /// so by itself.
    pub fn copy_rows(&self, work: &mut Work) {
        for (request, rows) in work.requests.iter().zip(&mut work.rows) {
            if let Some(InPlace { first, .. }) = rows.in_place.take_if(|at| at.pass == self.passes) {
                self.copy(first, request.rows, &mut rows.copies);
            }
        }
    }

    /// Row `row` of a request of `work` that is done, counted from its oldest position: `vocab` logits. Valid until the
    /// model's next pass over other work.
    ///
    /// # Errors
    /// What made this request fail; those beside it are not affected. [`Error::Shape`] for a row that there is not, or
    /// not any more.
    pub fn row<'a>(&'a self, work: &'a Work, index: usize, row: usize) -> Result<&'a [f32]> {
        match self.place(work, index, row)? {
            Place::Engine(row) => Ok(self.backend.logits(row)),
            Place::Copy(range) => Ok(&work.rows[index].copies[range]),
        }
    }

    /// As [`row`](Self::row), to be changed in place.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn row_mut<'a>(&'a mut self, work: &'a mut Work, index: usize, row: usize) -> Result<&'a mut [f32]> {
        match self.place(work, index, row)? {
            Place::Engine(row) => Ok(self.backend.logits_mut(row)),
            Place::Copy(range) => Ok(&mut work.rows[index].copies[range]),
        }
    }

    /// Adds copies of all rows of a request to the end of `into`, oldest position first.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn append_rows(&self, work: &Work, index: usize, into: &mut Vec<f32>) -> Result<()> {
        (0..work.requests[index].rows).try_for_each(|row| {
            into.extend_from_slice(self.row(work, index, row)?);
            Ok(())
        })
    }

    fn place(&self, work: &Work, index: usize, row: usize) -> Result<Place> {
        work.outcome(index)?;
        let vocab = self.capabilities().vocab;
        let Rows { copies, in_place } = &work.rows[index];
        let held = match in_place {
            Some(InPlace { pass, first }) if *pass == self.passes && row < work.requests[index].rows => {
                return Ok(Place::Engine(first + row));
            }
            Some(_) => 0,
            None => copies.len() / vocab,
        };
        if row < held {
            return Ok(Place::Copy(row * vocab..(row + 1) * vocab));
        }
        Err(Error::Shape { what: "rows", got: held, expected: row + 1 })
    }

    /// After a failed pass nothing is known of its slots. Those that shared it are computed again, one by one.
    fn recover(&mut self, work: &mut Work, error: Error) {
        let touched = self.pass.changes.iter().map(|c| match *c {
            Change::Clear { slot } | Change::Truncate { slot, .. } | Change::Fork { to: slot, .. } => slot,
        });
        for slot in touched.chain(self.pass.pieces.iter().map(|p| p.slot)) {
            self.backend.clear(slot);
            self.planner.forget(slot);
        }
        work.progress.copy_from_slice(&self.before);
        if let [piece] = self.pass.pieces[..] {
            tracing::debug!(model = self.name, %error, "forward pass failed");
            work.fail(piece.request, error);
        } else {
            tracing::debug!(model = self.name, %error, "shared forward pass failed, trying one request at a time");
            self.pass.pieces.iter().for_each(|p| work.suspect[p.request] = true);
        }
    }
}

/// Where one row stands.
enum Place {
    /// In the engine: that row of its last pass.
    Engine(usize),
    /// In these places of the copies.
    Copy(Range<usize>),
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}
