//! The lockstep pair and its runner, against offsets computed from scratch. Every comparison is exact.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proxytune::backend::Capabilities;
use proxytune::backend::toy::Toy;
use proxytune::combine;
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy, Runner, Sequence};
use proxytune::vocab::{Token, TokenMap};
use proxytune::{Error, Result};
use std::sync::mpsc;
use std::time::Duration;

const CONTEXT: usize = 96;
const VOCAB: usize = 16;
const PLACEMENTS: [Placement; 5] =
    [Placement::Auto, Placement::AutoEarly, Placement::InTurn, Placement::SideBySide, Placement::Together];
const POISON: Token = 13;

fn capabilities(slots: usize, batch: usize) -> Capabilities {
    Capabilities { slots, context: CONTEXT, batch, vocab: VOCAB, truncate: true, fork: true }
}

/// A pair of toys to be run, and the same toys for computing from scratch.
struct Trio {
    tuned: Toy,
    untuned: Toy,
}

impl Trio {
    fn new(capabilities: Capabilities) -> Self {
        Self { tuned: Toy::new(capabilities.clone(), 1), untuned: Toy::new(capabilities, 2) }
    }

    fn pair(&self, placement: Placement) -> Pair {
        let proxy = |name, toy: &Toy| Proxy {
            model: CachedModel::new(name, toy.clone()),
            map: TokenMap::identity(VOCAB),
        };
        Pair::new(proxy("tuned", &self.tuned), proxy("untuned", &self.untuned), placement).unwrap()
    }

    fn runner(&self, placement: Placement) -> Runner {
        Runner::new(self.pair(placement)).unwrap()
    }

    fn offset(&self, tuned: &[Token], untuned: &[Token]) -> Vec<f32> {
        let rows = self.tuned.logits_after(tuned).into_iter().zip(self.untuned.logits_after(untuned));
        rows.map(|(t, u)| t - u).collect()
    }

    fn assert_right(&self, sequence: &mut Sequence) {
        let history = sequence.history().tokens().to_vec();
        assert_eq!(sequence.offset().unwrap(), self.offset(&history, &history));
    }
}

fn plain(history: &[Token]) -> History {
    History::new(history.to_vec(), None)
}

#[derive(Debug, Clone)]
enum Step {
    /// The engine's next step begins.
    Begin,
    New(Vec<Token>, Option<Vec<Token>>),
    /// Something happens to one of the live sequences.
    To(usize, Event),
}

#[derive(Debug, Clone)]
enum Event {
    Extend(Vec<Token>),
    Rollback(usize),
    /// The history up to a place, then other tokens.
    Sync(usize, Vec<Token>),
    Fork,
    Draft(Vec<Token>),
    Announce,
    Prefetch,
    Offset,
    Shift,
    Alpha(f32),
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    let tokens = |n| vec(0..3 as Token, n);
    let event = prop_oneof![
        5 => tokens(0..4).prop_map(Event::Extend),
        1 => tokens(20..60).prop_map(Event::Extend),
        2 => (0..8usize).prop_map(Event::Rollback),
        2 => (0..CONTEXT, tokens(0..9)).prop_map(|(keep, t)| Event::Sync(keep, t)),
        2 => Just(Event::Fork),
        2 => tokens(1..5).prop_map(Event::Draft),
        2 => Just(Event::Announce),
        5 => Just(Event::Prefetch),
        6 => Just(Event::Offset),
        2 => Just(Event::Shift),
        1 => select(vec![0.0, 1.0, -0.5]).prop_map(Event::Alpha),
        1 => Just(Event::Drop),
    ];
    prop_oneof![
        1 => (tokens(1..50), prop::option::of(tokens(1..50))).prop_map(|(p, t)| Step::New(p, t)),
        2 => Just(Step::Begin),
        8 => (0..100usize, event).prop_map(|(who, event)| Step::To(who, event)),
    ]
}

/// What a sequence should have read, kept beside it.
#[derive(Clone)]
struct Model {
    host: Vec<Token>,
    prompt: usize,
    tuned: Option<Vec<Token>>,
}

impl Model {
    /// Tokens that the longer of the two histories has.
    fn longest(&self) -> usize {
        let tuned = self.tuned.as_ref().map_or(0, |own| own.len() + self.host.len() - self.prompt);
        tuned.max(self.host.len())
    }

    /// The offset from scratch; `None` where a history does not fit.
    fn offset(&self, trio: &Trio, alpha: f32) -> Option<Vec<f32>> {
        let own = |p: &Vec<Token>| [p, &self.host[self.prompt..]].concat();
        let tuned = self.tuned.as_ref().map_or_else(|| self.host.clone(), own);
        let fits = self.longest() <= CONTEXT;
        if alpha == 0.0 { Some(vec![0.0; VOCAB]) } else { fits.then(|| trio.offset(&tuned, &self.host)) }
    }
}

struct World {
    trio: Trio,
    runner: Runner,
    live: Vec<(Sequence, Model)>,
}

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::New(prompt, tuned) => {
                let sequence = self.runner.sequence(History::new(prompt.clone(), tuned.clone()), 1.0);
                self.live.push((sequence, Model { prompt: prompt.len(), host: prompt, tuned }));
            }
            Step::Begin => self.runner.start(),
            Step::To(_, _) if self.live.is_empty() => {}
            Step::To(who, event) => self.happen(who % self.live.len(), event),
        }
    }

    fn happen(&mut self, who: usize, event: Event) {
        let (sequence, model) = &mut self.live[who];
        let expected = model.offset(&self.trio, sequence.alpha());
        match event {
            Event::Extend(tokens) => {
                sequence.extend(&tokens);
                model.host.extend(tokens);
            }
            Event::Rollback(count) => {
                sequence.rollback(count);
                model.host.truncate(model.host.len().saturating_sub(count).max(model.prompt));
            }
            Event::Sync(keep, tokens) => {
                let history = [&model.host[..keep.min(model.host.len())], &tokens].concat();
                if sequence.sync(&history).is_ok() {
                    model.host = history;
                } else {
                    assert!(history.len() < model.prompt);
                }
            }
            Event::Fork => {
                let fork = (sequence.fork(&self.runner), model.clone());
                self.live.push(fork);
            }
            // One that does not fit the context is the caller's to leave out.
            Event::Draft(tokens) if model.longest() + tokens.len() > CONTEXT => sequence.draft(&[]),
            Event::Draft(tokens) => sequence.draft(&tokens),
            Event::Announce => sequence.announce().unwrap(),
            Event::Prefetch => sequence.prefetch().unwrap(),
            Event::Offset => match (sequence.offset(), expected) {
                (Ok(offset), Some(expected)) => assert_eq!(offset, expected),
                (Err(Error::Length { context: CONTEXT, .. }), None) => {}
                (got, expected) => panic!("{got:?} instead of {expected:?}"),
            },
            Event::Shift => {
                let before: Vec<f32> = (0..VOCAB).map(|i| i as f32).collect();
                let (mut logits, mut by_hand) = (before.clone(), before);
                match (sequence.shift(&mut logits), expected) {
                    (Ok(_), Some(expected)) => {
                        combine::shift_by(&mut by_hand, &expected, sequence.alpha()).unwrap();
                        assert_eq!(logits, by_hand);
                    }
                    (Err(Error::Length { .. }), None) => assert_eq!(logits, by_hand),
                    (got, expected) => panic!("{got:?} instead of {expected:?}"),
                }
            }
            Event::Alpha(alpha) => sequence.set_alpha(alpha),
            Event::Drop => drop(self.live.swap_remove(who)),
        }
        assert!(self.live.iter().all(|(s, m)| s.history().tokens() == m.host));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn whatever_happens_to_sequences_their_offsets_are_as_from_scratch(
        steps in vec(step(), 1..80),
        (slots, batch) in (2..5usize, 5..17usize),
        (truncate, fork) in (any::<bool>(), any::<bool>()),
        (placement, thread) in (select(PLACEMENTS.to_vec()), any::<bool>()),
    ) {
        let trio = Trio::new(Capabilities { truncate, fork, ..capabilities(slots, batch) });
        let pair = trio.pair(placement);
        let runner = if thread { Runner::new(pair).unwrap() } else { Runner::without_thread(pair) };
        let mut world = World { runner, trio, live: vec![] };
        steps.into_iter().for_each(|step| world.take(step));
        let all = 0..world.live.len();
        all.clone().for_each(|who| world.happen(who, Event::Prefetch));
        all.for_each(|who| world.happen(who, Event::Offset));
    }
}

#[test]
fn asking_twice_is_asking_once_and_runs_no_further_round() {
    for placement in PLACEMENTS {
        let trio = Trio::new(capabilities(2, 16));
        let runner = trio.runner(placement);
        let stats = runner.stats().clone();
        let mut sequence = runner.sequence(plain(&[1, 2, 3]), 1.0);
        (0..3).for_each(|_| trio.assert_right(&mut sequence));
        sequence.prefetch().unwrap();
        sequence.extend(&[]);
        sequence.rollback(1);
        sequence.sync(&[1, 2, 3]).unwrap();
        trio.assert_right(&mut sequence);
        drop(runner);
        assert_eq!((stats.rounds(), stats.offsets()), (1, 1));
    }
}

#[test]
fn weight_zero_runs_no_model_and_leaves_every_bit() {
    let trio = Trio::new(capabilities(2, 16));
    let runner = trio.runner(Placement::SideBySide);
    let stats = runner.stats().clone();
    let odd = [-0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
    let mut logits: Vec<f32> = odd.into_iter().cycle().take(VOCAB).collect();
    let before: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
    let mut sequence = runner.sequence(plain(&[1, 2, 3]), 0.0);
    sequence.prefetch().unwrap();
    sequence.shift(&mut logits).unwrap();
    assert_eq!(sequence.offset().unwrap(), [0.0; VOCAB]);
    drop(runner);
    assert_eq!(logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), before);
    assert_eq!(stats.rounds(), 0);
}

#[test]
fn equal_proxies_leave_every_bit() {
    let tuned = Toy::new(capabilities(2, 16), 1);
    let runner = Trio { untuned: tuned.clone(), tuned }.runner(Placement::InTurn);
    let mut logits: Vec<f32> = (0..VOCAB).map(|i| if i % 2 == 0 { -0.0 } else { i as f32 / 3.0 }).collect();
    let before: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
    runner.sequence(plain(&[1, 2, 3]), 1.5).shift(&mut logits).unwrap();
    assert_eq!(logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), before);
}

#[test]
fn sixty_four_sequences_share_eight_slots() {
    for placement in PLACEMENTS {
        let trio = Trio::new(capabilities(8, 64));
        let runner = trio.runner(placement);
        let prompt = |i: Token| [&[i % 11; 5][..], &[i % 7, i % 5]].concat();
        let mut sequences: Vec<_> = (0..64).map(|i| runner.sequence(plain(&prompt(i)), 1.0)).collect();
        for step in 0..4 {
            sequences.iter_mut().for_each(|s| s.prefetch().unwrap());
            runner.start();
            sequences.iter_mut().rev().for_each(|s| trio.assert_right(s));
            (0..).zip(&mut sequences).for_each(|(i, s)| s.extend(&[(i + step) % 12]));
        }
    }
}

#[test]
fn the_tuned_proxy_may_read_a_prompt_of_its_own() {
    let trio = Trio::new(capabilities(2, 8));
    let runner = trio.runner(Placement::SideBySide);
    let mut sequence = runner.sequence(History::new(vec![1, 2], Some(vec![7; 20])), 1.0);
    assert_eq!(sequence.offset().unwrap(), trio.offset(&[7; 20], &[1, 2]));
    sequence.extend(&[3, 4]);
    assert_eq!(sequence.offset().unwrap(), trio.offset(&[&[7; 20][..], &[3, 4]].concat(), &[1, 2, 3, 4]));
    sequence.rollback(9);
    assert_eq!(sequence.offset().unwrap(), trio.offset(&[7; 20], &[1, 2]));
}

/// A trio whose tuned proxy fails on [`POISON`].
fn poisoned(slots: usize) -> Trio {
    let Trio { tuned, untuned } = Trio::new(capabilities(slots, 64));
    Trio { tuned: tuned.poisoned_by(POISON), untuned }
}

#[test]
fn a_failure_stays_with_its_sequence_and_ends_with_its_cause() {
    for placement in PLACEMENTS {
        let trio = poisoned(4);
        let runner = trio.runner(placement);
        let stats = runner.stats().clone();
        let mut sequences: Vec<_> = (0..4).map(|i| runner.sequence(plain(&[i, 1, 2]), 1.0)).collect();
        for _ in 0..3 {
            sequences.iter_mut().for_each(|s| trio.assert_right(s));
            sequences.iter_mut().for_each(|s| s.extend(&[5]));
            sequences[2].extend(&[POISON]);
            sequences.iter_mut().for_each(|s| s.prefetch().unwrap());
            for (i, sequence) in sequences.iter_mut().enumerate() {
                match i {
                    2 => assert!(matches!(sequence.offset(), Err(Error::Engine { .. }))),
                    _ => trio.assert_right(sequence),
                }
            }
            sequences[2].rollback(1);
        }
        sequences.iter_mut().for_each(|s| trio.assert_right(s));
        drop(runner);
        assert_eq!(stats.failures(), 3);
    }
}

/// Rounds until all requests of these histories are done, and their outcomes.
fn rounds(pair: &mut Pair, histories: &[&[Token]]) -> (usize, Vec<Result<Vec<f32>>>) {
    pair.clear();
    for (sequence, history) in (0..).zip(histories) {
        pair.push(sequence, &plain(history), [1, 1]);
    }
    let mut rounds = 0;
    while !pair.all_done() {
        pair.start();
        pair.finish().unwrap();
        rounds += 1;
    }
    let offset = |index| {
        let mut offset = vec![0.0; VOCAB];
        pair.offset(index, 0, &mut offset).map(|()| offset)
    };
    (rounds, (0..histories.len()).map(offset).collect())
}

#[test]
fn after_a_failure_sequences_are_batched_again() {
    let trio = poisoned(4);
    let mut pair = trio.pair(Placement::InTurn);
    let (_, outcomes) = rounds(&mut pair, &[&[1], &[2, POISON], &[3], &[4]]);
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true]);
    let (count, outcomes) = rounds(&mut pair, &[&[1, 5], &[2, 5], &[3, 5], &[4, 5]]);
    assert_eq!(count, 1);
    for (outcome, first) in outcomes.into_iter().zip(1..) {
        assert_eq!(outcome.unwrap(), trio.offset(&[first, 5], &[first, 5]));
    }
}

#[test]
fn those_who_come_after_a_failure_do_not_overtake_those_it_delayed() {
    let trio = poisoned(4);
    let mut pair = trio.pair(Placement::InTurn);
    for (sequence, history) in (0..).zip([&[POISON][..], &[1], &[2], &[3]]) {
        pair.push(sequence, &plain(history), [1, 1]);
    }
    // As a runner does: what is done is taken out, and its place goes to the last.
    let mut delayed = vec![0, 1, 2, 3];
    for newcomer in 10..20 {
        pair.start();
        pair.finish().unwrap();
        for index in (0..pair.len()).rev().filter(|&i| pair.is_done(i)).collect::<Vec<_>>() {
            pair.swap_remove(index);
            delayed.swap_remove(index);
        }
        pair.push(newcomer, &plain(&[newcomer as Token]), [1, 1]);
        delayed.push(newcomer);
    }
    assert!(delayed.iter().all(|&s| s >= 10), "{delayed:?}");
}

#[test]
fn histories_that_no_model_can_read_are_errors_of_their_own() {
    let trio = Trio::new(capabilities(2, 16));
    let runner = trio.runner(Placement::SideBySide);
    let mut empty = runner.sequence(plain(&[]), 1.0);
    let mut long = runner.sequence(plain(&[1; CONTEXT]), 1.0);
    assert!(matches!(empty.offset(), Err(Error::Invalid { .. })));
    trio.assert_right(&mut long);
    long.extend(&[2]);
    let error = long.offset().unwrap_err();
    assert!(matches!(error, Error::Length { tokens: 97, context: CONTEXT, .. }), "{error:?}");
    long.rollback(1);
    trio.assert_right(&mut long);
    empty.extend(&[4]);
    trio.assert_right(&mut empty);
}

#[test]
fn sequences_that_outlive_their_runner_are_told_at_once() {
    for placement in PLACEMENTS {
        let (done, finished) = mpsc::channel();
        std::thread::spawn(move || {
            let runner = Trio::new(capabilities(2, 16)).runner(placement);
            let mut fresh = runner.sequence(plain(&[1]), 1.0);
            let mut known = runner.sequence(plain(&[2]), 1.0);
            known.offset().unwrap();
            drop(runner);
            known.extend(&[3]);
            let told = [&mut fresh, &mut known].map(|s| matches!(s.offset(), Err(Error::Stopped(_))));
            done.send(told).unwrap();
        });
        let told = finished.recv_timeout(Duration::from_secs(30)).expect("no sequence waits for ever");
        assert_eq!(told, [true, true]);
    }
}
