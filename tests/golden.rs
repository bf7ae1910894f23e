//! The llama.cpp path against the oracle: the paper's algorithm in plain transformers on the same float32 weights.
#![cfg(feature = "llama")]

mod common;

use common::{Case, cases, fixture_config, golden_rows, models, take_turns};
use proxytune::decode::{Finish, Job, Models, Outcome, RunOptions};
use proxytune::pair::{Placement, Runner};
use std::ops::ControlFlow;

const PLACEMENTS: [Placement; 5] =
    [Placement::Auto, Placement::AutoEarly, Placement::InTurn, Placement::SideBySide, Placement::Together];

fn decode(models: &Models, jobs: Vec<Job>, placement: Placement, slots: usize) -> Vec<Outcome> {
    let mut config = fixture_config();
    config.proxy_tuning.slots = slots;
    let run = RunOptions {
        sequences: jobs.len(),
        longest: 512,
        placement: Some(placement),
        ..RunOptions::default()
    };
    let mut decoder = models.decoder(&config, run).unwrap();
    decoder.generate(jobs, false, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn assert_tokens(case: &Case, outcome: &Outcome, expected: &[u32]) {
    assert!(matches!(outcome.finish, Finish::Length), "{}: {:?}", case.name, outcome.finish);
    assert_eq!(outcome.tokens, expected, "{}", case.name);
}

#[test]
fn the_tokenizer_splits_as_the_oracles() {
    let _turn = take_turns();
    let models = models(&fixture_config(), true);
    for case in cases() {
        assert_eq!(models.host.tokenize(&case.prompt, true), case.prompt_tokens, "{}", case.name);
    }
}

#[test]
fn greedy_tokens_are_the_oracles_one_sequence_at_a_time() {
    let _turn = take_turns();
    let models = models(&fixture_config(), false);
    for placement in PLACEMENTS {
        for case in cases() {
            let outcomes = decode(&models, vec![case.job()], placement, 1);
            assert_tokens(&case, &outcomes[0], &case.tokens);
        }
    }
}

#[test]
fn greedy_tokens_are_the_oracles_with_all_sequences_in_one_batch() {
    let _turn = take_turns();
    let models = models(&fixture_config(), false);
    let cases = cases();
    // With fewer slots than sequences the proxies' caches are evicted and filled again at every step.
    for slots in [cases.len(), 3] {
        let outcomes = decode(&models, cases.iter().map(Case::job).collect(), Placement::SideBySide, slots);
        for (case, outcome) in cases.iter().zip(&outcomes) {
            assert_tokens(case, outcome, &case.tokens);
            assert_eq!(outcome.stats.unshifted + outcome.stats.ignored, 0, "{}", case.name);
        }
    }
}

#[test]
fn the_host_alone_and_alpha_zero_give_the_oracles_host_tokens() {
    let _turn = take_turns();
    let alone = models(&fixture_config(), true);
    let trio = models(&fixture_config(), false);
    for models in [alone, trio] {
        for case in cases() {
            let unshifted = Job { alpha: 0.0, ..case.job() };
            let outcomes = decode(&models, vec![unshifted], Placement::SideBySide, 1);
            assert_tokens(&case, &outcomes[0], &case.host_tokens);
            assert_eq!(outcomes[0].stats.shifted, 0);
        }
    }
}

#[test]
fn offsets_are_the_oracles_within_two_thousandths() {
    let _turn = take_turns();
    let models = models(&fixture_config(), false);
    let config = fixture_config();
    let run = RunOptions { sequences: 4, longest: 512, ..RunOptions::default() };
    let runner = Runner::new(models.pair(&config, run).unwrap().unwrap()).unwrap();
    for case in cases() {
        let golden = golden_rows(&format!("{}.offset", case.name));
        let mut sequence = runner.sequence(case.history(), 1.0);
        let mut done = 0;
        for (&position, golden) in case.positions.iter().zip(&golden) {
            sequence.extend(&case.tokens[done..position]);
            done = position;
            let worst = sequence
                .offset()
                .unwrap()
                .iter()
                .zip(golden)
                .map(|(ours, golden)| (case.alpha * ours - golden).abs())
                .fold(0.0, f32::max);
            assert!(worst <= 2e-3, "{} at {position}: off by {worst}", case.name);
        }
    }
}
