//! Properties of the pair on the real engine: any order of operations equals recomputation from scratch, to rounding.
#![cfg(feature = "llama")]

mod common;

use common::{fixture_config, models, take_turns};
use proptest::prelude::*;
use proxytune::decode::{Models, RunOptions};
use proxytune::pair::{History, Placement, Runner, Sequence};

const VOCAB: u32 = 4096;
/// Batched and single passes sum in different orders.
const ROUNDING: f32 = 2e-3;

fn runner(models: &Models, slots: usize, placement: Placement) -> Runner {
    let run =
        RunOptions { sequences: slots, longest: 256, placement: Some(placement), ..RunOptions::default() };
    Runner::new(models.pair(&fixture_config(), run).unwrap().unwrap()).unwrap()
}

/// The offset of a history that nothing was cached for.
fn from_scratch(fresh: &Runner, history: &History) -> Vec<f32> {
    fresh.sequence(history.clone(), 1.0).offset().unwrap().to_vec()
}

fn assert_close(ours: &[f32], expected: &[f32]) {
    let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= ROUNDING, "off by {worst}");
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed * 977 + i * 131 + 5) % VOCAB).collect()
}

#[derive(Debug, Clone)]
enum Operation {
    Extend(usize, Vec<u32>),
    Rollback(usize, usize),
    Fork(usize),
    Prefetch(usize),
    Offset(usize),
    Replace(usize, u32, usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let which = 0..6usize;
    prop_oneof![
        3 => (which.clone(), prop::collection::vec(0..VOCAB, 1..40)).prop_map(|(s, t)| Operation::Extend(s, t)),
        1 => (which.clone(), 1..30usize).prop_map(|(s, n)| Operation::Rollback(s, n)),
        1 => which.clone().prop_map(Operation::Fork),
        1 => which.clone().prop_map(Operation::Prefetch),
        4 => which.clone().prop_map(Operation::Offset),
        1 => (which, 0..9u32, 1..50usize).prop_map(|(s, seed, n)| Operation::Replace(s, seed, n)),
    ]
}

#[test]
fn any_order_of_operations_equals_recomputation_from_scratch() {
    let _turn = take_turns();
    let models = models(&fixture_config(), false);
    let fresh = runner(&models, 1, Placement::InTurn);
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(operations in prop::collection::vec(operation(), 5..25), slots in 1..4usize, side in any::<bool>())| {
        let placement = if side { Placement::SideBySide } else { Placement::Together };
        let runner = runner(&models, slots, placement);
        let start = |seed: u32, len| runner.sequence(History::new(prompt(seed, len), None), 1.0);
        let mut sequences: Vec<Sequence> = (0..3).map(|i| start(i, 3 + 20 * i as usize)).collect();
        for operation in operations {
            let place = |s: usize| s % sequences.len();
            match operation {
                Operation::Extend(s, tokens) => {
                    let s = place(s);
                    let room = 250 - sequences[s].history().tokens().len();
                    sequences[s].extend(&tokens[..tokens.len().min(room)]);
                }
                Operation::Rollback(s, n) => { let s = place(s); sequences[s].rollback(n) }
                Operation::Fork(s) if sequences.len() < 6 => {
                    let fork = sequences[place(s)].fork(&runner);
                    sequences.push(fork);
                }
                Operation::Fork(_) => {}
                Operation::Prefetch(s) => { let s = place(s); sequences[s].prefetch().unwrap() }
                Operation::Offset(s) => {
                    let s = place(s);
                    let expected = from_scratch(&fresh, sequences[s].history());
                    assert_close(sequences[s].offset().unwrap(), &expected);
                }
                Operation::Replace(s, seed, len) => { let s = place(s); sequences[s] = start(seed, len) }
            }
        }
        for sequence in &mut sequences {
            let expected = from_scratch(&fresh, sequence.history());
            assert_close(sequence.offset().unwrap(), &expected);
        }
    });
}

#[test]
fn sixty_four_sequences_over_eight_slots_are_all_right() {
    let _turn = take_turns();
    let models = models(&fixture_config(), false);
    let fresh = runner(&models, 1, Placement::InTurn);
    let runner = runner(&models, 8, Placement::SideBySide);
    let mut sequences: Vec<Sequence> =
        (0..64).map(|i| runner.sequence(History::new(prompt(i, 2 + i as usize % 17), None), 1.0)).collect();
    for step in 0..3 {
        sequences.iter_mut().for_each(|s| s.prefetch().unwrap());
        for sequence in &mut sequences {
            let expected = from_scratch(&fresh, sequence.history());
            assert_close(sequence.offset().unwrap(), &expected);
            sequence.extend(&[step * 7 + 1]);
        }
    }
    assert_eq!(runner.stats().failures(), 0);
}

#[test]
fn equal_proxies_and_alpha_zero_leave_the_hosts_logits_as_they_are() {
    let _turn = take_turns();
    let mut config = fixture_config();
    config.proxy_tuning.tuned.clone_from(&config.proxy_tuning.untuned);
    let host: Vec<f32> = (0..VOCAB).map(|i| (i as f32).sin()).collect();
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (config, alpha) in [(config, 1.0), (fixture_config(), 0.0)] {
        let runner = runner(&models(&config, false), 2, Placement::SideBySide);
        let mut row = host.clone();
        runner.sequence(History::new(prompt(1, 20), None), alpha).shift(&mut row).unwrap();
        assert_eq!(bits(&row), bits(&host));
    }
}
