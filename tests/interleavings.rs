//! The runner's queue and the life of its sequences under a scheduler that tries many orders of events. `make test-orders`.
#![cfg(shuttle)]

use proxytune::backend::Capabilities;
use proxytune::backend::toy::Toy;
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy, Runner, Sequence};
use proxytune::vocab::{Token, TokenMap};
use proxytune::{Error, Result};
use shuttle::{sync::Arc, thread};
use std::time::Duration;

const VOCAB: usize = 4;
const PLACEMENTS: [Placement; 4] =
    [Placement::InTurn, Placement::SideBySide, Placement::Together, Placement::AutoEarly];

fn toy(seed: u64) -> Toy {
    let capabilities =
        Capabilities { slots: 2, context: 32, batch: 16, vocab: VOCAB, truncate: true, fork: true };
    Toy::new(capabilities, seed)
}

fn runner(placement: Placement, with_thread: bool, limit: Option<Duration>) -> Runner {
    let proxy =
        |name, seed| Proxy { model: CachedModel::new(name, toy(seed)), map: TokenMap::identity(VOCAB) };
    let pair = Pair::with_limit(proxy("tuned", 1), proxy("untuned", 2), placement, limit).unwrap();
    if with_thread { Runner::new(pair).unwrap() } else { Runner::without_thread(pair) }
}

fn sequence(runner: &Runner, history: &[Token]) -> Sequence {
    runner.sequence(History::new(history.to_vec(), None), 1.0)
}

fn expected(history: &[Token]) -> Vec<f32> {
    let [tuned, untuned] = [1, 2].map(|seed| toy(seed).logits_after(history));
    tuned.into_iter().zip(untuned).map(|(t, u)| t - u).collect()
}

/// The right offset, or one of the errors that are allowed here.
fn check(sequence: &mut Sequence, allowed: fn(&Error) -> bool) -> bool {
    let history = sequence.history().tokens().to_vec();
    let offset: Result<Vec<f32>> = sequence.offset().map(<[f32]>::to_vec);
    match offset {
        Ok(offset) => assert_eq!(offset, expected(&history)),
        Err(error) => {
            assert!(allowed(&error), "{error}");
            return false;
        }
    }
    true
}

/// Many orders of events, the same each time; `SHUTTLE_ITERATIONS` asks for more.
fn explore(test: impl Fn(Placement, bool) + Send + Sync + Copy + 'static) {
    let iterations = std::env::var("SHUTTLE_ITERATIONS").map_or(500, |n| n.parse().unwrap());
    for placement in PLACEMENTS {
        for with_thread in [true, false] {
            shuttle::check_random(move || test(placement, with_thread), iterations);
            shuttle::check_pct(move || test(placement, with_thread), iterations, 3);
        }
    }
}

#[test]
fn everybody_is_answered_whatever_the_order() {
    explore(|placement, with_thread| {
        let runner = Arc::new(runner(placement, with_thread, None));
        let tasks: Vec<_> = (0..3)
            .map(|i| {
                let (mut s, runner) = (sequence(&runner, &[i, 1]), runner.clone());
                thread::spawn(move || {
                    s.announce().unwrap();
                    runner.start();
                    assert!(check(&mut s, |_| false));
                    s.extend(&[i]);
                    s.prefetch().unwrap();
                    // With the second one the proxies begin early, if all goes well.
                    runner.start();
                    // Moves on while the answer is under way.
                    s.extend(&[2]);
                    assert!(check(&mut s, |_| false));
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| task.join().unwrap());
        assert!(runner.stats().offsets() >= 6 && runner.stats().failures() == 0);
    });
}

#[test]
fn nobody_waits_for_a_runner_that_ends() {
    explore(|placement, with_thread| {
        let runner = runner(placement, with_thread, None);
        let tasks: Vec<_> = (0..2)
            .map(|i| {
                let mut s = sequence(&runner, &[i, 1]);
                thread::spawn(move || {
                    for token in 0..2 {
                        check(&mut s, |error| matches!(error, Error::Stopped(_)));
                        s.extend(&[token]);
                    }
                })
            })
            .collect();
        // It ends with a round under way, or without.
        runner.start();
        drop(runner);
        tasks.into_iter().for_each(|task| task.join().unwrap());
    });
}

#[test]
fn what_is_late_is_told_once_and_comes_back() {
    explore(|placement, with_thread| {
        // The scheduler says which round is late.
        let runner = Arc::new(runner(placement, with_thread, Some(Duration::from_nanos(1))));
        let tasks: Vec<_> = (0..2)
            .map(|i| {
                let (mut s, runner) = (sequence(&runner, &[i, 1]), runner.clone());
                thread::spawn(move || {
                    for token in 0..3 {
                        let _ = s.announce();
                        runner.start();
                        check(&mut s, |error| matches!(error, Error::Timeout { .. }));
                        s.extend(&[token]);
                    }
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| task.join().unwrap());
    });
}
