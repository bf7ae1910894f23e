//! The sampler for llama.cpp's chains, without a host program: any order of what a chain does to its samplers.
#![cfg(feature = "llama")]

mod common;

use common::{cases, fixture_config, golden_rows, models, take_turns};
use proptest::prelude::*;
use proxytune::config::OnError;
use proxytune::decode::RunOptions;
use proxytune::host::llama_sampler::{Chain, Tuner, llama_token_data};
use proxytune::pair::{History, Runner};
use std::sync::Arc;

const VOCAB: usize = 4096;
/// Batched and single passes sum in different orders.
const ROUNDING: f32 = 2e-3;

fn tuner(change: impl FnOnce(&mut proxytune::config::Config)) -> Arc<Tuner> {
    let mut config = fixture_config();
    config.proxy_tuning.ctx = 256;
    config.proxy_tuning.slots = 4;
    change(&mut config);
    Arc::new(Tuner::new(config).unwrap())
}

fn candidates() -> Vec<llama_token_data> {
    (0..VOCAB as i32).map(|id| llama_token_data { id, logit: 0.0, p: 0.0 }).collect()
}

fn applied(chain: &mut Chain) -> Vec<f32> {
    let mut candidates = candidates();
    chain.apply(None, &mut candidates);
    candidates.iter().map(|c| c.logit).collect()
}

fn assert_close(ours: &[f32], expected: &[f32]) {
    let worst = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= ROUNDING, "off by {worst}");
}

#[test]
fn candidates_are_shifted_by_the_oracles_offsets() {
    let _turn = take_turns();
    let plain = cases().into_iter().filter(|case| case.prompt_tokens == case.tuned_prompt_tokens);
    for case in plain.filter(|case| case.prompt_tokens.len() < 100) {
        let golden = golden_rows(&format!("{}.offset", case.name));
        let mut chain = Chain::new(tuner(|config| config.proxy_tuning.alpha = case.alpha));
        case.prompt_tokens.iter().for_each(|&t| chain.accept(t, true));
        for (position, &token) in case.tokens.iter().enumerate() {
            let logits = applied(&mut chain);
            if let Some(at) = case.positions.iter().position(|&p| p == position) {
                assert_close(&logits, &golden[at]);
                assert_eq!(applied(&mut chain), logits, "twice is once");
            }
            chain.accept(token, true);
        }
    }
}

#[test]
fn candidates_may_be_few_and_in_any_order() {
    let _turn = take_turns();
    let mut chain = Chain::new(tuner(|_| {}));
    [5, 6, 7].iter().for_each(|&t| chain.accept(t, true));
    let whole = applied(&mut chain);
    let mut few = candidates();
    few.reverse();
    few.retain(|c| c.id % 7 == 3);
    few.push(llama_token_data { id: -1, logit: 1.5, p: 0.0 });
    few[0].logit = f32::NEG_INFINITY;
    chain.apply(None, &mut few);
    assert_eq!(few[0].logit, f32::NEG_INFINITY);
    assert_eq!(few.last().unwrap().logit, 1.5);
    assert!(few[1..few.len() - 1].iter().all(|c| c.logit == whole[c.id as usize]));
}

#[test]
fn what_does_not_fit_the_proxies_goes_unshifted_or_ends() {
    let _turn = take_turns();
    let run = |on_error| {
        let tuner = tuner(|config| config.proxy_tuning.on_error = on_error);
        let mut chain = Chain::new(tuner.clone());
        (0..300).for_each(|t| chain.accept(t, true));
        let logits = applied(&mut chain);
        assert_eq!(tuner.failures(), 1);
        // The same sampler goes on with what fits.
        chain.reset();
        (0..20).for_each(|t| chain.accept(t, true));
        assert!(applied(&mut chain).iter().any(|&l| l != 0.0));
        logits
    };
    assert!(run(OnError::Host).iter().all(|&l| l == 0.0));
    let host = models(&fixture_config(), true).host;
    for (token, logit) in (0..).zip(run(OnError::Stop)) {
        assert_eq!(logit == 0.0, host.is_end(token), "{token}");
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Accept(usize, Vec<u32>),
    Apply(usize),
    Reset(usize),
    Clone(usize),
    Copy(usize, usize),
    Free(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let which = 0..6usize;
    prop_oneof![
        4 => (which.clone(), prop::collection::vec(0..VOCAB as u32, 1..12)).prop_map(|(c, t)| Operation::Accept(c, t)),
        5 => which.clone().prop_map(Operation::Apply),
        1 => which.clone().prop_map(Operation::Reset),
        2 => which.clone().prop_map(Operation::Clone),
        2 => (which.clone(), which.clone()).prop_map(|(a, b)| Operation::Copy(a, b)),
        1 => which.prop_map(Operation::Free),
    ]
}

#[test]
fn any_order_of_what_happens_to_samplers_gives_the_offsets_of_their_tokens() {
    let _turn = take_turns();
    let tuner = tuner(|config| config.proxy_tuning.slots = 3);
    let run = RunOptions { sequences: 1, longest: 256, ..RunOptions::default() };
    let fresh =
        Runner::new(models(&fixture_config(), false).pair(&fixture_config(), run).unwrap().unwrap()).unwrap();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
    proptest!(config, |(operations in prop::collection::vec(operation(), 1..40))| {
        let mut live = vec![(Chain::new(tuner.clone()), Vec::<u32>::new())];
        for operation in operations {
            let count = live.len();
            match operation {
                Operation::Accept(c, tokens) => {
                    let (chain, told) = &mut live[c % count];
                    tokens.iter().for_each(|&t| chain.accept(t, t % 2 == 0));
                    told.extend(tokens);
                }
                Operation::Apply(c) => {
                    let (chain, told) = &mut live[c % count];
                    let logits = applied(chain);
                    if told.is_empty() || told.len() > 256 {
                        prop_assert!(logits.iter().all(|&l| l == 0.0));
                    } else {
                        let mut expected = fresh.sequence(History::new(told.clone(), None), 1.0);
                        assert_close(&logits, expected.offset().unwrap());
                    }
                }
                Operation::Reset(c) => {
                    let (chain, told) = &mut live[c % count];
                    chain.reset();
                    told.clear();
                }
                Operation::Clone(c) => {
                    let (chain, told) = &live[c % count];
                    let fork = (chain.fork(), told.clone());
                    live.push(fork);
                }
                Operation::Copy(from, to) if from % count != to % count => {
                    let [(from, told), (to, known)] = live.get_disjoint_mut([from % count, to % count]).unwrap();
                    to.copy_from(from);
                    known.clone_from(told);
                }
                Operation::Copy(..) => {}
                Operation::Free(c) if count > 1 => drop(live.swap_remove(c % count)),
                Operation::Free(_) => {}
            }
        }
    });
}

#[test]
fn a_schedule_counts_what_was_sampled_and_begins_anew_with_each_text() {
    let _turn = take_turns();
    let tuner = tuner(|config| config.proxy_tuning.alpha_schedule = "stop:2".parse().unwrap());
    let is_shifted = |chain: &mut Chain| applied(chain).iter().any(|&logit| logit != 0.0);
    let prompt = &cases()[0].prompt_tokens;
    let mut chain = Chain::new(tuner.clone());
    prompt.iter().for_each(|&t| chain.accept(t, true));
    let mut seen = vec![is_shifted(&mut chain)];
    for token in [5, 6, 7] {
        chain.accept(token, true);
        // A clone that was made on the way goes on counting.
        let mut fork = chain.fork();
        seen.push(is_shifted(&mut chain));
        assert_eq!(is_shifted(&mut fork), seen[seen.len() - 1]);
    }
    assert_eq!(seen, [true, true, false, false]);
    let mut copy = Chain::new(tuner);
    copy.copy_from(&chain);
    assert!(!is_shifted(&mut copy));
    chain.reset();
    prompt.iter().take(9).for_each(|&t| chain.accept(t, true));
    assert!(is_shifted(&mut chain));
}
