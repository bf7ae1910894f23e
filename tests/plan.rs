//! The planner by itself: its passes, executed literally on a strict backend.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proxytune::backend::toy::Toy;
use proxytune::backend::{Backend, Capabilities};
use proxytune::pair::plan::{Change, Pass, Planner, Progress, Request};
use proxytune::vocab::Token;

const CONTEXT: usize = 96;

fn capabilities(slots: usize, batch: usize, truncate: bool, fork: bool) -> Capabilities {
    Capabilities { slots, context: CONTEXT, batch, vocab: 4, truncate, fork }
}

/// A planner, the backend that does as it says, and the requests in flight.
struct Engine {
    planner: Planner,
    toy: Toy,
    pass: Pass,
    requests: Vec<Request>,
    progress: Vec<Progress>,
    rows: Vec<Vec<Vec<f32>>>,
}

impl Engine {
    fn new(capabilities: Capabilities) -> Self {
        Self {
            planner: Planner::new(capabilities.clone()),
            toy: Toy::new(capabilities, 1),
            pass: Pass::default(),
            requests: vec![],
            progress: vec![],
            rows: vec![],
        }
    }

    /// Adds a request; one of the same sequence that is in flight is given up.
    fn ask(&mut self, sequence: u64, history: &[Token], rows: usize) {
        if let Some(index) = self.requests.iter().position(|r| r.sequence == sequence) {
            self.take(index);
        }
        let rows = rows.clamp(1, history.len());
        self.requests.push(Request { sequence, history: history.to_vec(), rows });
        self.progress.push(Progress::default());
        self.rows.push(vec![]);
    }

    fn take(&mut self, index: usize) -> (Request, Vec<Vec<f32>>) {
        self.progress.swap_remove(index);
        (self.requests.swap_remove(index), self.rows.swap_remove(index))
    }

    /// One pass as planned, each promise of the planner checked.
    fn pass(&mut self) {
        let Capabilities { batch, .. } = *self.toy.capabilities();
        self.planner.plan(&self.requests, &mut self.progress, &mut self.pass);
        for change in &self.pass.changes {
            match *change {
                Change::Clear { slot } => self.toy.clear(slot),
                Change::Truncate { slot, len } => self.toy.truncate(slot, len).unwrap(),
                Change::Fork { from, to, len } => self.toy.fork(from, to, len).unwrap(),
            }
        }
        let pieces = &self.pass.pieces;
        assert!(!pieces.is_empty(), "every pass makes progress");
        assert!(pieces.windows(2).all(|p| p[0].slot < p[1].slot), "each slot once, in order: {pieces:?}");
        assert!(pieces.iter().map(|p| p.end - p.start).sum::<usize>() <= batch, "{pieces:?}");
        let spans: Vec<_> = pieces.iter().map(|p| p.span(&self.requests)).collect();
        self.toy.forward(&spans).unwrap();
        let mut row = 0;
        for piece in pieces {
            assert_eq!(piece.last, self.progress[piece.request].complete);
            for _ in 0..piece.rows {
                self.rows[piece.request].push(self.toy.logits(row).to_vec());
                row += 1;
            }
        }
    }

    /// Takes out what is complete, its rows compared with a computation from scratch.
    fn collect(&mut self) {
        for index in (0..self.requests.len()).rev().filter(|&i| self.progress[i].complete).collect::<Vec<_>>()
        {
            let (Request { history, rows, .. }, got) = self.take(index);
            let ends = history.len() - rows + 1..=history.len();
            let expected: Vec<_> = ends.map(|end| self.toy.logits_after(&history[..end])).collect();
            assert_eq!(got, expected);
        }
    }

    /// Passes until all is complete; returns how many tokens were computed, and the copies made.
    fn run(&mut self) -> (usize, Vec<Change>) {
        let batch = self.toy.capabilities().batch;
        let passes = |r: &Request| r.history.len().div_ceil(batch) + 1;
        let bound: usize = self.requests.iter().map(passes).sum();
        let (mut tokens, mut forks) = (0, vec![]);
        for _ in 0..bound {
            if self.requests.is_empty() {
                break;
            }
            self.pass();
            tokens += self.pass.pieces.iter().map(|p| p.end - p.start).sum::<usize>();
            forks.extend(self.pass.changes.iter().filter(|c| matches!(c, Change::Fork { .. })).copied());
            self.collect();
        }
        assert!(self.requests.is_empty(), "not done in {bound} passes: {:?}", self.progress);
        (tokens, forks)
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A sequence keeps a part of one's history, goes on in its own way and wants rows.
    Ask {
        sequence: u64,
        like: u64,
        keep: usize,
        tokens: Vec<Token>,
        rows: usize,
    },
    Pass,
    Run,
    Remove(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let token = 0..3 as Token;
    let tokens = prop_oneof![3 => vec(token.clone(), 1..4), 1 => vec(token, 20..70)];
    let keep = prop_oneof![2 => Just(CONTEXT), 1 => 0..CONTEXT];
    let rows = prop_oneof![2 => Just(1usize), 1 => 2..12usize, 1 => Just(CONTEXT)];
    let (sequence, like) = (0..6u64, prop::option::of(0..6u64));
    let ask =
        (sequence.clone(), like, keep, tokens, rows).prop_map(|(sequence, like, keep, tokens, rows)| {
            Step::Ask { sequence, like: like.unwrap_or(sequence), keep, tokens, rows }
        });
    prop_oneof![8 => ask, 3 => Just(Step::Pass), 3 => Just(Step::Run), 1 => sequence.prop_map(Step::Remove)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_plan_runs_without_error_to_the_right_rows(
        steps in vec(step(), 1..40),
        (slots, batch) in (1..5usize, select(vec![1, 5, 16, 64])),
        (truncate, fork) in (any::<bool>(), any::<bool>()),
    ) {
        let mut engine = Engine::new(capabilities(slots, batch, truncate, fork));
        let mut histories = vec![Vec::<Token>::new(); 6];
        for step in steps {
            match step {
                Step::Ask { sequence, like, keep, tokens, rows } => {
                    let mut history = histories[like as usize].clone();
                    history.truncate(keep.min(CONTEXT - tokens.len()));
                    history.extend(tokens);
                    engine.ask(sequence, &history, rows);
                    histories[sequence as usize] = history;
                }
                Step::Pass if engine.requests.is_empty() => {}
                Step::Pass => {
                    engine.pass();
                    engine.collect();
                }
                Step::Run => drop(engine.run()),
                Step::Remove(sequence) => {
                    if let Some(index) = engine.requests.iter().position(|r| r.sequence == sequence) {
                        engine.take(index);
                    }
                    engine.planner.remove(sequence);
                }
            }
        }
        engine.run();
    }
}

fn prompt(len: usize) -> Vec<Token> {
    (0..len as Token).map(|i| i * i % 7).collect()
}

#[test]
fn a_forked_sequence_computes_only_its_new_tokens() {
    let mut engine = Engine::new(capabilities(4, 16, true, true));
    let mut history = prompt(60);
    engine.ask(0, &history, 1);
    assert_eq!(engine.run(), (60, vec![]));
    history.extend([8, 9]);
    engine.ask(1, &history, 1);
    assert_eq!(engine.run(), (2, vec![Change::Fork { from: 0, to: 1, len: 60 }]));
}

#[test]
fn a_fork_of_the_very_history_computes_its_last_token_alone() {
    let mut engine = Engine::new(capabilities(4, 16, true, true));
    engine.ask(0, &prompt(60), 1);
    engine.run();
    engine.ask(1, &prompt(60), 1);
    let (tokens, forks) = engine.run();
    assert_eq!((tokens, forks.len()), (1, 1));
}

#[test]
fn sequences_with_one_prompt_read_it_once() {
    let mut engine = Engine::new(capabilities(4, 64, true, true));
    for sequence in 0..4 {
        let mut history = prompt(60);
        history.push(sequence as Token);
        engine.ask(sequence, &history, 1);
    }
    let (tokens, forks) = engine.run();
    assert_eq!((tokens, forks.len()), (61 + 3, 3));
}

#[test]
fn without_copies_a_fork_is_computed_in_full() {
    let mut engine = Engine::new(capabilities(2, 16, true, false));
    engine.ask(0, &prompt(60), 1);
    engine.run();
    engine.ask(1, &prompt(60), 1);
    assert_eq!(engine.run(), (60, vec![]));
}

#[test]
fn a_step_computes_one_token_a_sequence_in_one_pass() {
    let mut engine = Engine::new(capabilities(8, 16, true, true));
    for len in [10, 11, 12] {
        (0..8).for_each(|s| engine.ask(s, &[&[s as Token], &prompt(len)[..]].concat(), 1));
        let before = engine.toy.passes();
        let (tokens, _) = engine.run();
        if len > 10 {
            assert_eq!((tokens, engine.toy.passes() - before), (8, 1));
        }
    }
    assert_eq!(engine.planner.evictions(), 0);
}

#[test]
fn one_that_decodes_is_not_held_up_by_one_that_prefills() {
    let mut engine = Engine::new(capabilities(2, 16, true, true));
    engine.ask(0, &prompt(10), 1);
    engine.run();
    engine.ask(1, &[&[99], &prompt(80)[..]].concat(), 1);
    for len in 11..15 {
        engine.ask(0, &prompt(len), 1);
        engine.pass();
        engine.collect();
        assert!(engine.requests.iter().all(|r| r.sequence == 1));
    }
    engine.run();
}
