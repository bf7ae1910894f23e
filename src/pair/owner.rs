//! What owns a pair behind a [`Runner`](super::Runner), on whichever thread it runs: takes messages in, and runs rounds for the wishes in
//! them.

use super::message::{Message, Wish};
use super::sync::{Arc, Receiver};
use super::whole_step::{Done, WholeStep};
use super::{Pair, Placement, RunnerStats, SequenceId};
use crate::error::Error;
use std::time::Instant;

/// See the [module](self).
pub(super) struct Owner {
    pair: Pair,
    messages: Receiver<Message>,
    /// Wishes that wait for the next start.
    queued: Vec<Wish>,
    /// The wish behind each of the pair's requests, in the same order.
    wishes: Vec<Wish>,
    /// When the round under way was begun, and for how many wishes. Until it has ended the pair's requests stay as they are.
    round: Option<(Instant, usize)>,
    step: WholeStep,
    stats: Arc<RunnerStats>,
    open: bool,
}

impl Owner {
    pub(super) fn new(pair: Pair, messages: Receiver<Message>, stats: Arc<RunnerStats>) -> Self {
        let (queued, wishes, round) = Default::default();
        Self { pair, messages, queued, wishes, round, step: WholeStep::default(), stats, open: true }
    }

    /// Runs rounds for whoever waits until there is nobody left.
    pub(super) fn serve(&mut self) {
        while self.open {
            if self.wishes.is_empty() {
                match self.messages.recv() {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                }
            }
            self.turn();
        }
    }

    /// Ends the round under way; else takes in all that waits, and runs one round for it. Returns false when that is over for good.
    pub(super) fn turn(&mut self) -> bool {
        if self.round.is_none() {
            self.take_all();
            // What has begun a step settles it; else each round is a step of its own.
            if self.pair.placement() != Placement::AutoEarly {
                self.pair.begin(self.pair.len());
            }
            self.start_round();
        }
        self.end_round();
        self.open
    }

    /// A step of the engine begins: takes in all that waits, and begins a round for it where that has measured faster than to wait with it.
    pub(super) fn begin_step(&mut self) {
        self.take_all();
        self.take(Message::Start);
        let tokens = self.pair.usage().iter().map(|proxy| proxy.tokens).sum();
        let done = Done { tokens, answers: self.stats.offsets() + self.stats.failures() };
        let (size, last) = self.step.begin(Instant::now(), self.pair.len(), done);
        if let Some((size, time)) = last {
            self.pair.took(size, time);
        }
        self.pair.begin(size);
        if self.pair.is_early() {
            self.stats.early_round(size > 0);
            self.start_round();
        }
    }

    /// Takes in all that waits, once no round is under way.
    pub(super) fn take_all(&mut self) {
        self.end_round();
        while let Ok(message) = self.messages.try_recv() {
            self.take(message);
        }
    }

    fn start_round(&mut self) {
        let positions = self.pair.len();
        if !self.open || positions == 0 {
            return;
        }
        self.round = Some((Instant::now(), positions));
        self.stats.begin_round(positions);
        self.pair.start();
    }

    fn end_round(&mut self) {
        let Some((begin, positions)) = self.round.take() else { return };
        let finished = self.pair.finish();
        self.stats.end_round(self.pair.usage(), self.pair.late_rounds());
        match finished {
            Ok(()) => {
                // Else whole steps are compared.
                if self.pair.placement() != Placement::AutoEarly {
                    self.pair.took(positions, begin.elapsed());
                }
                self.answer_done();
            }
            Err(error) => self.give_up(error),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Wish(wish) => {
                // A sequence that has moved on no longer wants its old wish.
                self.drop_wish(wish.sequence);
                self.queued.push(wish);
            }
            Message::Start => {
                for mut wish in self.queued.drain(..) {
                    let tokens = wish.history.tokens();
                    let draft = &tokens[tokens.len() + 1 - wish.rows..];
                    // Rows are counted from a history's end, which needs a proxy's token for each of the host's.
                    if !self.pair.maps().iter().all(|map| map.is_one_to_one(draft)) {
                        wish.history.rollback(wish.rows - 1);
                        wish.rows = 1;
                    }
                    self.pair.push(wish.sequence, &wish.history, [wish.rows; 2]);
                    self.wishes.push(wish);
                }
            }
            Message::Remove(sequence) => {
                self.drop_wish(sequence);
                self.pair.remove(sequence);
            }
            Message::Stop => self.open = false,
        }
    }

    fn drop_wish(&mut self, sequence: SequenceId) {
        self.queued.retain(|w| w.sequence != sequence);
        if let Some(index) = self.wishes.iter().position(|w| w.sequence == sequence) {
            self.wishes.swap_remove(index);
            self.pair.swap_remove(index);
        }
    }

    fn answer_done(&mut self) {
        for index in (0..self.wishes.len()).rev().filter(|&i| self.pair.is_done(i)).collect::<Vec<_>>() {
            let Wish { mut offset, reply, rows, history, explains, .. } = self.wishes.swap_remove(index);
            let done = self.pair.answer(index, rows, explains, &mut offset);
            let offset = done.map(|()| offset);
            self.pair.swap_remove(index);
            let models = self.pair.reads().into_iter().filter(|&runs| runs).count();
            self.stats.answered(offset.is_ok(), models * history.tokens().len());
            // Nobody listens when the sequence was dropped meanwhile.
            let _ = reply.send(offset);
        }
    }

    /// A proxy's thread is gone: everyone who waits is told, everyone who comes finds the channel closed.
    fn give_up(&mut self, error: Error) {
        tracing::error!(%error, "proxy-tuning stops");
        self.open = false;
        for wish in self.wishes.drain(..).chain(self.queued.drain(..)) {
            self.stats.failed();
            let _ = wish.reply.send(Err(error.clone()));
        }
    }
}
