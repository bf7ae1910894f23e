//! The lockstep pair: tuned and untuned proxy, run over the same sequences at the same time.
//!
//! [`plan`] turns histories into engine calls, [`CachedModel`] executes them for one model, [`Pair`] does both proxies
//! side by side, [`Runner`] owns a pair on a thread of its own and [`Sequence`] is what an engine's adapter holds.

mod breaker;
mod cached;
mod chooser;
mod combined;
mod history;
mod lane;
mod message;
mod owner;
mod placement;
pub mod plan;
mod runner;
mod sequence;
mod stats;
mod sync;
mod whole_step;
mod work;

pub use cached::{CachedModel, Usage};
pub use history::History;
pub use placement::Placement;
pub use plan::SequenceId;
pub use runner::Runner;
pub use sequence::Sequence;
pub use stats::RunnerStats;
pub use work::Work;

use crate::combine::{ProxyTuning, Rule};
use crate::error::{Error, Result};
use crate::vocab::TokenMap;
use breaker::Breaker;
use lane::Lane;
use placement::Place;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One of the two small models, and where the host's tokens stand in its vocabulary.
pub struct Proxy {
    /// The model.
    pub model: CachedModel,
    /// From host tokens to its own.
    pub map: TokenMap,
}

/// The two proxies with the requests in flight.
///
/// Requests are pushed, rounds are run until they are done, rows are read, requests are taken out.
pub struct Pair {
    place: Place,
    tuned: Lane,
    untuned: Lane,
    maps: [TokenMap; 2],
    rule: Arc<dyn Rule>,
    /// What the rule looks at.
    reads: [bool; 2],
    works: Option<[Work; 2]>,
    context: [usize; 2],
    names: [String; 2],
    breaker: Breaker,
    /// Why the round at hand was not ended, or not even begun.
    late: Option<Error>,
    /// Requests of the round at hand.
    requests: usize,
}

impl Pair {
    /// A pair of proxies with empty caches.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(tuned: Proxy, untuned: Proxy, placement: Placement) -> Result<Self> {
        Self::with_limit(tuned, untuned, placement, None)
    }

    /// A pair whose rounds are waited for so long and no longer. What runs then is left to end by itself; its requests
    /// fail with [`Error::Timeout`], and so do all others at once until it has. For that no pass may run on the caller's
    /// thread, wherever it is placed: threads have to be woken, which without a limit they need not be in turn.
    ///
    /// # Errors
    /// As [`Pair::new`].
    pub fn with_limit(
        tuned: Proxy,
        untuned: Proxy,
        placement: Placement,
        limit: Option<Duration>,
    ) -> Result<Self> {
        let context = [tuned.model.capabilities().context, untuned.model.capabilities().context];
        let names = [&tuned, &untuned].map(|proxy| proxy.model.name().to_owned());
        let own = Lane::with_thread;
        let (t, u) = match placement {
            _ if limit.is_some() => (own("tuned", tuned.model)?, own("untuned", untuned.model)?),
            Placement::InTurn => (Lane::here(tuned.model), Lane::here(untuned.model)),
            Placement::Auto | Placement::SideBySide => {
                (Lane::here(tuned.model), own("untuned", untuned.model)?)
            }
            Placement::AutoEarly | Placement::Together => {
                (own("tuned", tuned.model)?, own("untuned", untuned.model)?)
            }
        };
        Ok(Self {
            place: Place::new(placement),
            tuned: t,
            untuned: u,
            maps: [tuned.map, untuned.map],
            rule: Arc::new(ProxyTuning),
            reads: ProxyTuning.reads(),
            works: Some(Default::default()),
            context,
            names,
            breaker: Breaker::new(limit),
            late: None,
            requests: 0,
        })
    }

    /// Where its passes run.
    pub fn placement(&self) -> Placement {
        self.place.placement()
    }

    /// Tokens that a slot of the tuned and of the untuned proxy holds.
    pub fn context(&self) -> [usize; 2] {
        self.context
    }

    /// Length of the host's rows.
    pub fn host_vocab(&self) -> usize {
        self.maps[0].host_len()
    }

    /// Adds a request for the last positions of a sequence, as many rows of the tuned and of the untuned proxy as
    /// `rows` says; returns its index. A proxy of which 0 are wanted, or that the rule does not read, does not run.
    pub fn push(&mut self, sequence: SequenceId, history: &History, rows: [usize; 2]) -> usize {
        let rows = [0, 1].map(|i| if self.reads[i] { rows[i] } else { 0 });
        let [tuned_map, untuned_map] = &self.maps;
        let [tuned, untuned] = self.works.get_or_insert_default();
        tuned.push(sequence, rows[0], |tokens| history.write_tuned(tuned_map, tokens));
        untuned.push(sequence, rows[1], |tokens| history.write_untuned(untuned_map, tokens))
    }

    /// Takes out request `index`; the last one moves to its place.
    pub fn swap_remove(&mut self, index: usize) {
        self.works.iter_mut().flatten().for_each(|w| w.swap_remove(index));
    }

    /// Takes out all requests.
    pub fn clear(&mut self) {
        self.works.iter_mut().flatten().for_each(Work::clear);
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.works.as_ref().map_or(0, |w| w[0].len())
    }

    /// Whether there are no requests.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether request `index` is done by both proxies.
    pub fn is_done(&self, index: usize) -> bool {
        self.works.iter().flatten().all(|w| w.is_done(index))
    }

    /// Whether all requests are done.
    pub fn all_done(&self) -> bool {
        self.works.iter().flatten().all(Work::all_done)
    }

    /// Tokens of all histories together, and those computed or found in a cache so far, over both proxies.
    pub fn tokens(&self) -> (usize, usize) {
        self.works
            .iter()
            .flatten()
            .map(Work::tokens)
            .fold((0, 0), |sum, (total, done)| (sum.0 + total, sum.1 + done))
    }

    /// Begins a step of about so many positions over all sequences: where its rounds run is settled with that.
    pub fn begin(&mut self, positions: usize) {
        self.place.begin(positions);
    }

    /// Tells how long the step took and how many positions it had, whatever of the caller's it slowed down included:
    /// what the placement is chosen by.
    pub fn took(&mut self, positions: usize, time: Duration) {
        if self.late.is_none() {
            self.place.took(positions, time);
        }
    }

    /// Whether the two proxies run at the same time in this step.
    pub fn is_side_by_side(&self) -> bool {
        self.place.is_side_by_side()
    }

    /// Whether they run on threads of their own in this step, while its caller may do something else.
    pub fn is_early(&self) -> bool {
        self.place.is_early()
    }

    /// Whether the next round will use another thread than the caller's.
    pub fn uses_threads(&self) -> bool {
        self.breaker.limit().is_some() || self.runs_at_once()
    }

    /// Whether a pass of the next round begins with its start.
    fn runs_at_once(&self) -> bool {
        let both = || self.works.iter().flatten().all(|w| !w.all_done());
        self.is_early() || self.is_side_by_side() && both()
    }

    /// Begins a round: at most one forward pass of each proxy, over whatever fits it.
    pub fn start(&mut self) {
        if !self.may_begin() {
            return;
        }
        self.late = None;
        self.requests = self.len();
        let side_by_side = self.runs_at_once();
        let [tuned, untuned] = self.works.take().unwrap_or_default();
        // First the one that may run elsewhere.
        self.untuned.start(untuned, side_by_side, !side_by_side);
        self.tuned.start(tuned, self.is_early(), !side_by_side);
    }

    /// Ends the round begun by [`Pair::start`].
    ///
    /// # Errors
    /// When a proxy's thread is gone; all requests are lost then. The failure of a forward pass is no such error: it
    /// stays with its request and shows in [`Pair::outcome`]. So does a round that is [late](Pair::with_limit).
    pub fn finish(&mut self) -> Result<()> {
        if let Some(error) = &self.late {
            self.works.iter_mut().flatten().for_each(|work| work.fail_open(error));
            return Ok(());
        }
        let until = self.breaker.deadline(Instant::now());
        let tuned = self.tuned.finish(until, true);
        // Nothing is begun once the time is used up.
        let untuned = self.untuned.finish(until, !matches!(tuned, Ok(None)));
        let works = [tuned?, untuned?];
        let Some(lost) = works.iter().position(Option::is_none) else {
            self.works = Some(works.map(Option::unwrap_or_default));
            self.breaker.in_time();
            return Ok(());
        };
        self.breaker.late();
        let (model, limit) = (self.names[lost].clone(), self.breaker.limit().unwrap_or_default());
        let error = Error::Timeout { model, limit };
        tracing::debug!(%error, "a round was late");
        self.works = Some(works.map(|work| match work {
            Some(mut work) => {
                work.fail_open(&error);
                work
            }
            None => Work::failed(self.requests, &error),
        }));
        self.late = Some(error);
        Ok(())
    }

    /// Rounds that were [late](Pair::with_limit) so far.
    pub fn late_rounds(&self) -> u64 {
        self.breaker.count()
    }

    /// Whether the next round may be begun: not while a proxy owes the answer to one that was late.
    fn may_begin(&mut self) -> bool {
        let mut lanes = [&mut self.tuned, &mut self.untuned].into_iter();
        // A thread that is gone shows in `finish`.
        self.breaker.allows(Instant::now(), || !lanes.any(|lane| lane.is_late().unwrap_or(false)))
    }

    /// Runs rounds until all requests are done.
    ///
    /// # Errors
    /// As [`Pair::finish`].
    pub fn run(&mut self) -> Result<()> {
        while !self.all_done() {
            self.start();
            self.finish()?;
        }
        Ok(())
    }

    /// Whether request `index`, which is done, has its rows.
    ///
    /// # Errors
    /// What made either proxy fail on it.
    pub fn outcome(&self, index: usize) -> Result<()> {
        self.works.iter().flatten().try_for_each(|work| work.outcome(index))
    }

    /// Row `row` of request `index` of the tuned proxy, over its own vocabulary; rows are counted from the oldest
    /// position. Valid until the next round begins.
    ///
    /// # Errors
    /// What made the proxy fail on this request; [`Error::Shape`] for a row that was not asked for.
    pub fn tuned_row(&self, index: usize, row: usize) -> Result<&[f32]> {
        self.tuned.row(self.works.as_ref().map(|works| &works[0]), index, row)
    }

    /// As [`tuned_row`](Self::tuned_row), of the untuned proxy.
    ///
    /// # Errors
    /// As [`tuned_row`](Self::tuned_row).
    pub fn untuned_row(&self, index: usize, row: usize) -> Result<&[f32]> {
        self.untuned.row(self.works.as_ref().map(|works| &works[1]), index, row)
    }

    /// Adds copies of the rows of request `index` to the ends of `tuned` and `untuned`.
    ///
    /// # Errors
    /// As [`Pair::outcome`]; nothing is added then.
    pub fn append_rows(&self, index: usize, [tuned, untuned]: &mut [Vec<f32>; 2]) -> Result<()> {
        self.outcome(index)?;
        let Some(works) = &self.works else { return Ok(()) };
        self.tuned.model()?.append_rows(&works[0], index, tuned)?;
        self.untuned.model()?.append_rows(&works[1], index, untuned)
    }

    /// From host tokens to the tuned and to the untuned proxy's.
    pub fn maps(&self) -> &[TokenMap; 2] {
        &self.maps
    }

    /// Frees the slots of a sequence that is gone.
    pub fn remove(&mut self, sequence: SequenceId) {
        self.tuned.remove(sequence);
        self.untuned.remove(sequence);
    }

    /// What the tuned and the untuned proxy have done so far.
    pub fn usage(&self) -> [Usage; 2] {
        [self.tuned.usage(), self.untuned.usage()]
    }
}
