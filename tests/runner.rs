//! What runs when, and in which round: the runner by its counters.

use proxytune::backend::Capabilities;
use proxytune::backend::toy::Toy;
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy, Runner, Sequence};
use proxytune::vocab::{Token, TokenMap};
use std::thread;

const VOCAB: usize = 16;

fn capabilities() -> Capabilities {
    Capabilities { slots: 8, context: 96, batch: 64, vocab: VOCAB, truncate: true, fork: true }
}

fn pair(map: TokenMap) -> Pair {
    pair_at(Placement::InTurn, map)
}

fn pair_at(placement: Placement, map: TokenMap) -> Pair {
    let proxy = |name, seed| Proxy {
        model: CachedModel::new(name, Toy::new(capabilities(), seed)),
        map: map.clone(),
    };
    Pair::new(proxy("tuned", 1), proxy("untuned", 2), placement).unwrap()
}

/// With a thread of its own, and without.
fn runners() -> [Runner; 2] {
    let pair = || pair(TokenMap::identity(VOCAB));
    [Runner::new(pair()).unwrap(), Runner::without_thread(pair())]
}

fn sequence(runner: &Runner, history: &[Token]) -> Sequence {
    runner.sequence(History::new(history.to_vec(), None), 1.0)
}

fn from_scratch(history: &[Token]) -> Vec<f32> {
    let logits = |seed| Toy::new(capabilities(), seed).logits_after(history);
    logits(1).into_iter().zip(logits(2)).map(|(t, u)| t - u).collect()
}

#[test]
fn what_was_announced_runs_in_one_round_once_somebody_waits() {
    for runner in runners() {
        let mut sequences: Vec<_> = (0..8).map(|i| sequence(&runner, &[i, 1, 2])).collect();
        for step in 1..=3 {
            sequences.iter_mut().for_each(|s| s.announce().unwrap());
            for (i, s) in (0..).zip(&mut sequences) {
                let history = [&[i, 1, 2][..], &vec![5; step - 1]].concat();
                assert_eq!(s.offset().unwrap(), from_scratch(&history));
                assert_eq!(runner.stats().rounds(), step as u64);
            }
            sequences.iter_mut().for_each(|s| s.extend(&[5]));
        }
    }
}

#[test]
fn those_who_sample_one_after_the_other_share_rounds_all_the_same() {
    // As a server does: sample a slot, announce its next token, go on to the next slot.
    for runner in runners() {
        let mut sequences: Vec<_> = (0..4).map(|i| sequence(&runner, &[i, 1])).collect();
        sequences.iter_mut().for_each(|s| s.announce().unwrap());
        for step in 1..=5 {
            for s in &mut sequences {
                s.offset().unwrap();
                s.extend(&[3]);
                s.announce().unwrap();
            }
            assert_eq!(runner.stats().rounds(), step);
        }
    }
}

#[test]
fn drafted_tokens_are_computed_with_the_token_before_them() {
    for runner in runners() {
        let mut s = sequence(&runner, &[1, 2]);
        s.draft(&[3, 4, 5]);
        for taken in 0..3 {
            let history = &[1, 2, 3, 4][..2 + taken];
            s.sync(history).unwrap();
            assert_eq!(s.offset().unwrap(), from_scratch(history));
        }
        // The draft was wrong here.
        s.rollback(1);
        assert_eq!(s.offset().unwrap(), from_scratch(&[1, 2, 3]));
        assert_eq!(runner.stats().rounds(), 1);
        s.extend(&[9]);
        assert_eq!(s.offset().unwrap(), from_scratch(&[1, 2, 3, 9]));
        assert_eq!(runner.stats().rounds(), 2);
    }
}

#[test]
fn a_draft_that_comes_before_anybody_waits_joins_what_was_announced() {
    let runner = Runner::without_thread(pair(TokenMap::identity(VOCAB)));
    let mut s = sequence(&runner, &[1, 2]);
    s.announce().unwrap();
    s.draft(&[3]);
    s.offset().unwrap();
    s.extend(&[3]);
    assert_eq!(s.offset().unwrap(), from_scratch(&[1, 2, 3]));
    assert_eq!(runner.stats().rounds(), 1);
}

#[test]
fn a_draft_that_fails_is_left_out_and_what_it_follows_is_computed() {
    for runner in runners() {
        let history = vec![1; capabilities().context - 1];
        let mut s = sequence(&runner, &history);
        // One token too many for the context.
        s.draft(&[3, 4]);
        s.prefetch().unwrap();
        assert_eq!(s.offset().unwrap(), from_scratch(&history));
        s.extend(&[3]);
        assert_eq!(s.offset().unwrap(), from_scratch(&[&history[..], &[3]].concat()));
        s.extend(&[4]);
        assert!(s.offset().is_err());
    }
}

#[test]
fn threads_that_wait_at_once_are_all_served() {
    for runner in runners() {
        thread::scope(|scope| {
            for i in 0..6 {
                let mut s = sequence(&runner, &[i, 7]);
                scope.spawn(move || {
                    for step in 0..20 {
                        let history = [&[i, 7][..], &vec![2; step]].concat();
                        assert_eq!(s.offset().unwrap(), from_scratch(&history));
                        s.extend(&[2]);
                    }
                });
            }
        });
    }
}

#[test]
fn a_runner_without_a_thread_ends_as_one_with() {
    let runner = Runner::without_thread(pair(TokenMap::identity(VOCAB)));
    let mut s = sequence(&runner, &[1]);
    s.announce().unwrap();
    drop(runner);
    assert!(matches!(s.offset(), Err(proxytune::Error::Stopped(_))));
}

/// Steps of an engine that samples a slot, announces its next token, and says when the last one is done. The token `taken` comes
/// where 3 was guessed.
fn steps(runner: &Runner, sequences: &mut [Sequence], count: usize, taken: Token) {
    for _ in 0..count {
        for s in sequences.iter_mut() {
            let history = s.history().tokens().to_vec();
            assert_eq!(s.offset().unwrap(), from_scratch(&history));
            s.extend(&[3]);
            s.announce().unwrap();
        }
        runner.start();
        if taken != 3 {
            sequences.iter_mut().for_each(|s| (s.rollback(1), s.extend(&[taken])).1);
        }
    }
}

#[test]
fn both_beginnings_are_tried_and_counted() {
    let runner = Runner::without_thread(pair_at(Placement::AutoEarly, TokenMap::identity(VOCAB)));
    let mut sequences: Vec<_> = (0..4).map(|i| sequence(&runner, &[i, 1])).collect();
    sequences.iter_mut().for_each(|s| s.announce().unwrap());
    steps(&runner, &mut sequences, 32, 3);
    // Fifteen measured steps each way, a few at a time; whatever is faster then.
    assert!((15..=18).contains(&runner.stats().early_rounds()), "{}", runner.stats().early_rounds());
    // One round a step, of all; and one that the last step may have begun for the next.
    assert!((32..=33).contains(&runner.stats().rounds()), "{}", runner.stats().rounds());
}

#[test]
fn a_wrong_guess_costs_a_round_where_it_has_begun() {
    let runner = Runner::without_thread(pair_at(Placement::AutoEarly, TokenMap::identity(VOCAB)));
    let mut sequences: Vec<_> = (0..2).map(|i| sequence(&runner, &[i, 1])).collect();
    steps(&runner, &mut sequences, 11, 5);
    let stats = runner.stats();
    assert_eq!((stats.early_rounds(), stats.failures()), (5, 0));
    assert!(stats.rounds() >= 11 + 5, "{}", stats.rounds());
}

#[test]
fn other_placements_do_not_begin_before_somebody_waits() {
    for placement in [Placement::Auto, Placement::InTurn, Placement::SideBySide, Placement::Together] {
        let runner = Runner::without_thread(pair_at(placement, TokenMap::identity(VOCAB)));
        let mut s = sequence(&runner, &[1, 2]);
        s.announce().unwrap();
        runner.start();
        assert_eq!((runner.stats().rounds(), runner.stats().early_rounds()), (0, 0));
        assert_eq!(s.offset().unwrap(), from_scratch(&[1, 2]));
    }
}
