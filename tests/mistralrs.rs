//! The plugin in mistral.rs, against the oracle and against mistral.rs without it.
#![cfg(feature = "mistralrs")]

mod common;

use common::{Case, cases, fixture_config, take_turns};
use mistralrs::{CustomLogitsProcessor, Device, Tensor};
use proxytune::config::{Config, OnError, Placement};
use proxytune::host::mistralrs::{
    Chosen, Completion, Completions, EarlyStart, Host, LoadOptions, Processor, ProxyTuning, RequestOptions,
    SamplingOptions, load,
};
use std::sync::LazyLock;
use std::sync::mpsc::Receiver;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

struct Engine {
    completions: Completions,
    host: Host,
}

impl Engine {
    fn load() -> Self {
        let (engine, host) = RUNTIME.block_on(load(&fixture_config(), &LoadOptions::default())).unwrap();
        Self { completions: Completions::new(engine, &host), host }
    }

    fn tuning(&self, change: impl FnOnce(&mut Config)) -> ProxyTuning {
        let mut config = fixture_config();
        change(&mut config);
        ProxyTuning::new(config, &self.host).unwrap()
    }

    fn start(&self, completion: Completion) -> Receiver<proxytune::Result<Chosen>> {
        let _inside = RUNTIME.enter();
        self.completions.start(completion)
    }
}

fn completion(case: &Case) -> Completion {
    Completion {
        prompt: case.prompt_tokens.clone(),
        max_tokens: case.tokens.len(),
        sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
        repeat_penalty: 1.0,
        constraint: mistralrs::Constraint::None,
        processor: None,
    }
}

fn options(case: &Case) -> RequestOptions {
    let own = case.tuned_prompt_tokens != case.prompt_tokens;
    RequestOptions {
        alpha: Some(case.alpha),
        tuned_prompt: own.then(|| case.tuned_prompt_tokens.clone()),
        ..RequestOptions::default()
    }
}

fn tokens(text: Receiver<proxytune::Result<Chosen>>) -> Vec<u32> {
    text.into_iter().map(|chosen| chosen.unwrap().token).collect()
}

#[test]
fn greedy_tokens_are_the_oracles_one_request_at_a_time() {
    let _turn = take_turns();
    let engine = Engine::load();
    let tuning = engine.tuning(|_| {});
    for early_start in [EarlyStart::Guess, EarlyStart::Off] {
        for case in cases() {
            let processor = tuning.processor(RequestOptions { early_start, ..options(&case) }).unwrap();
            let text = engine.start(Completion { processor: Some(processor.clone()), ..completion(&case) });
            assert_eq!(tokens(text), case.tokens, "{}", case.name);
            let report = processor.report();
            let shifted = if case.alpha == 0.0 { 0 } else { case.tokens.len() as u64 };
            assert_eq!((report.positions, report.unshifted), (shifted, 0), "{}", case.name);
        }
    }
}

#[test]
fn greedy_tokens_are_the_oracles_with_all_requests_at_once() {
    let _turn = take_turns();
    let engine = Engine::load();
    // Fewer slots than requests: the proxies' caches are evicted and filled again.
    for slots in [32, 5] {
        let tuning = engine.tuning(|config| config.proxy_tuning.slots = slots);
        // Sixteen, of equal and unequal lengths.
        let cases: Vec<Case> = cases().into_iter().chain(common::cases().into_iter().take(4)).collect();
        let texts: Vec<_> = cases
            .iter()
            .map(|case| {
                let processor = Some(tuning.processor(options(case)).unwrap());
                engine.start(Completion { processor, ..completion(case) })
            })
            .collect();
        for (case, text) in cases.iter().zip(texts) {
            assert_eq!(tokens(text), case.tokens, "{}", case.name);
        }
        let stats = tuning.stats();
        assert!(stats.failures.is_empty(), "{stats:?}");
        assert!(stats.cached_tokens > stats.history_tokens / 2, "{stats:?}");
    }
}

/// Called as mistral.rs calls processors of a batch, from several threads at once, step by step: the offsets are the oracle's,
/// and one round of the proxies serves all whose next token was foreseen, unless they begin before all have announced themselves.
#[test]
fn a_batch_gets_the_oracles_offsets_in_one_round_a_step() {
    const STEPS: usize = 24;
    let _turn = take_turns();
    for placement in [Placement::SideBySide, Placement::Auto] {
        let mut config = fixture_config();
        config.proxy_tuning.placement = placement;
        let rounds = rounds_of_a_batch(config, STEPS);
        // The prompts take several passes.
        assert!(placement == Placement::Auto || rounds[1..].iter().all(|&r| r == 1), "{rounds:?}");
    }
}

/// Rounds of each step.
fn rounds_of_a_batch(config: Config, steps: usize) -> Vec<u64> {
    let host = Host::of_config(&config, 16).unwrap();
    let tuning = ProxyTuning::new(config, &host).unwrap();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.alpha != 0.0).collect();
    let golden: Vec<_> =
        cases.iter().map(|case| common::golden_rows(&format!("{}.offset", case.name))).collect();
    let processors: Vec<_> = cases.iter().map(|case| tuning.processor(options(case)).unwrap()).collect();
    let vocab = host.shape.vocabulary.len();
    let run = |step| {
        let before = tuning.stats().rounds;
        std::thread::scope(|scope| {
            for ((case, golden), processor) in cases.iter().zip(&golden).zip(&processors) {
                scope.spawn(move || {
                    let history = [&case.prompt_tokens[..], &case.tokens[..step]].concat();
                    // The next token is far ahead, so that it is the one foreseen.
                    let mut row = vec![0f32; vocab];
                    row[case.tokens[step] as usize] = 1e4;
                    let logits = Tensor::from_slice(&row, vocab, &Device::Cpu).unwrap();
                    let shifted = processor.apply(&logits, &history).unwrap().to_vec1::<f32>().unwrap();
                    let Some(place) = case.positions.iter().position(|&p| p == step) else { return };
                    for token in (0..vocab).filter(|&t| t != case.tokens[step] as usize) {
                        let off = (shifted[token] - golden[place][token]).abs();
                        assert!(off <= 2e-3, "{} at {step}: off by {off}", case.name);
                    }
                });
            }
        });
        tuning.stats().rounds - before
    };
    let rounds = (0..steps).map(run).collect();
    assert!(tuning.stats().failures.is_empty());
    rounds
}

#[test]
fn the_host_alone_and_alpha_zero_give_the_oracles_host_tokens() {
    let _turn = take_turns();
    let engine = Engine::load();
    let tuning = engine.tuning(|_| {});
    for case in cases() {
        assert_eq!(tokens(engine.start(completion(&case))), case.host_tokens, "{}", case.name);
        let options = RequestOptions { alpha: Some(0.0), ..options(&case) };
        let processor = tuning.processor(options).unwrap();
        let text = engine.start(Completion { processor: Some(processor), ..completion(&case) });
        assert_eq!(tokens(text), case.host_tokens, "{}", case.name);
    }
    assert_eq!(tuning.stats().rounds, 0);
}

#[test]
fn a_context_that_is_full_leaves_the_rest_unshifted_or_ends_the_text() {
    let _turn = take_turns();
    let engine = Engine::load();
    let cases = cases();
    let (long, short) = (
        cases.iter().find(|c| c.name == "prose-64").unwrap(),
        cases.iter().find(|c| c.name == "one-token").unwrap(),
    );
    for on_error in [OnError::Host, OnError::Stop] {
        let tuning = engine.tuning(|config| {
            config.proxy_tuning.ctx = 128;
            config.proxy_tuning.on_error = on_error;
        });
        let [hurt, other] = [long, short].map(|case| tuning.processor(options(case)).unwrap());
        let texts = [(long, &hurt), (short, &other)].map(|(case, processor)| {
            engine.start(Completion { processor: Some(processor.clone()), ..completion(case) })
        });
        let [hurt_tokens, other_tokens] = texts.map(tokens);
        assert_eq!(other_tokens, short.tokens, "a neighbour's text");
        let shifted = hurt.report().positions as usize;
        assert_eq!(shifted, 128 - 64 + 1);
        assert_eq!(hurt_tokens[..shifted], long.tokens[..shifted]);
        let expected = if on_error == OnError::Host { long.tokens.len() } else { shifted + 1 };
        assert_eq!(hurt_tokens.len(), expected, "{on_error:?}");
        let report = hurt.report();
        assert!(report.error.unwrap().to_string().contains("128"));
        assert_eq!(tuning.stats().failures.get("length"), Some(&report.unshifted));
    }
}

#[test]
fn a_reader_that_goes_away_ends_its_text_and_no_other() {
    let _turn = take_turns();
    let engine = Engine::load();
    let tuning = engine.tuning(|_| {});
    let case = &cases()[0];
    let processors = [(); 3].map(|()| tuning.processor(options(case)).unwrap());
    let mut texts = processors.clone().map(|processor| {
        Some(engine.start(Completion { processor: Some(processor), max_tokens: 96, ..completion(case) }))
    });
    texts[1].as_ref().unwrap().recv().unwrap().unwrap();
    texts[1] = None;
    for text in [texts[0].take(), texts[2].take()].into_iter().flatten() {
        assert_eq!(tokens(text), case.tokens);
    }
    assert!(processors[1].report().positions < 96, "it went on to the end");
}

#[test]
fn a_seed_fixes_a_sampled_text() {
    let _turn = take_turns();
    let engine = Engine::load();
    let tuning = engine.tuning(|_| {});
    let case = &cases()[4];
    let write = |seed, alpha| {
        let sampling = SamplingOptions { top_p: 0.9, seed: Some(seed), ..SamplingOptions::default() };
        let options = RequestOptions {
            early_start: EarlyStart::Sample,
            sampling: Some(sampling),
            alpha: Some(alpha),
            ..RequestOptions::default()
        };
        let processor = Some(tuning.processor(options).unwrap());
        engine.start(Completion { processor, sampling, ..completion(case) })
    };
    let alone = tokens(write(7, 1.0));
    let together: Vec<_> = (5..9).map(|seed| write(seed, 1.0)).collect();
    let together: Vec<Vec<u32>> = together.into_iter().map(tokens).collect();
    assert_eq!(together[2], alone, "neighbours do not matter");
    assert!(together[0] != together[1] && together[1] != together[2]);
    // Also where nothing is shifted.
    assert_eq!(tokens(write(7, 0.0)), tokens(write(7, 0.0)));
}

/// At temperature 1, tokens are drawn from the shifted distribution: by mistral.rs where the processor only shifts, and
/// by the processor where it draws itself.
#[test]
fn sampled_tokens_have_the_shifted_distribution() {
    const DRAWS: usize = 1500;
    let _turn = take_turns();
    let engine = Engine::load();
    let tuning = engine.tuning(|_| {});
    let case = &cases()[3];
    let expected = exact(&engine, &tuning, case);
    let top: Vec<usize> = {
        let mut order: Vec<usize> = (0..expected.len()).collect();
        order.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
        order[..12].to_vec()
    };
    let mut counts = vec![0usize; expected.len()];
    for seed in (0..DRAWS as u64).collect::<Vec<_>>().chunks(30) {
        let start = |&seed: &u64| {
            let sampling = SamplingOptions { seed: Some(seed), ..SamplingOptions::default() };
            let options =
                RequestOptions { early_start: EarlyStart::Sample, sampling: Some(sampling), ..options(case) };
            let processor = Some(tuning.processor(options).unwrap());
            engine.start(Completion { processor, sampling, max_tokens: 1, ..completion(case) })
        };
        let texts: Vec<_> = seed.iter().map(start).collect();
        texts.into_iter().for_each(|text| counts[tokens(text)[0] as usize] += 1);
    }
    // Twelve likely tokens, and all others together.
    let (mut chi2, mut rest_p, mut rest) = (0.0, 1.0, DRAWS);
    for &token in &top {
        let wanted = expected[token] * DRAWS as f64;
        chi2 += (counts[token] as f64 - wanted).powi(2) / wanted;
        rest_p -= expected[token];
        rest -= counts[token];
    }
    chi2 += (rest as f64 - rest_p * DRAWS as f64).powi(2) / (rest_p * DRAWS as f64);
    // Twelve degrees of freedom: above 45 by chance once in 100,000.
    assert!(chi2 < 45.0, "chi-square {chi2}");
    // The host's own distribution would not pass.
    let plain = exact(&engine, &engine.tuning(|config| config.proxy_tuning.alpha = 0.0), case);
    let distance: f64 = top.iter().map(|&t| (expected[t] - plain[t]).powi(2) / plain[t]).sum();
    assert!(distance * DRAWS as f64 > 90.0, "the test cannot tell shifted from unshifted");
}

/// The distribution of the token after a prompt, from the rows of llama.cpp.
fn exact(engine: &Engine, tuning: &ProxyTuning, case: &Case) -> Vec<f64> {
    let models = common::models(&fixture_config(), true);
    let mut row = common::host_row(&models, &case.history());
    let runner = tuning.proxies().runner(&engine.host.shape).unwrap();
    let alpha = tuning.config().proxy_tuning.alpha * case.alpha;
    runner.sequence(case.history(), alpha).shift(&mut row).unwrap();
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f64> = row.iter().map(|l| f64::from(l - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

#[test]
fn a_grammar_holds_and_the_offset_is_computed_once() {
    let _turn = take_turns();
    let engine = Engine::load();
    // Where they begin with the host's step, what was foreseen and refused has run.
    let tuning = engine.tuning(|config| config.proxy_tuning.placement = Placement::SideBySide);
    let case = &cases()[3];
    let processor = tuning.processor(options(case)).unwrap();
    let text = engine.start(Completion {
        processor: Some(processor.clone()),
        constraint: mistralrs::Constraint::Regex("[0-9]{12}x".into()),
        ..completion(case)
    });
    let mut tokens = std::collections::BTreeMap::new();
    let mut told = 0;
    for chosen in text {
        let chosen = chosen.unwrap();
        tokens.insert(chosen.position, chosen.token);
        told += 1;
    }
    let host = common::models(&fixture_config(), true).host;
    let text: Vec<u8> = tokens.values().flat_map(|&token| host.piece(token, false)).collect();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.len() == 13 && text.ends_with('x') && text[..12].bytes().all(|b| b.is_ascii_digit()),
        "{text}"
    );
    assert!(told > tokens.len(), "no token was refused, so the test shows nothing");
    // Else what is asked for twice is kept: one round a token and the prompt's.
    assert!(tuning.stats().rounds <= tokens.len() as u64 + 2, "{:?}", tuning.stats());
}

/// The choices of one request share a processor, and mistral.rs does not say which one it is called for.
#[test]
fn choices_of_one_request_do_not_mix() {
    const STEPS: usize = 12;
    let _turn = take_turns();
    let host = Host::of_config(&fixture_config(), 16).unwrap();
    let tuning = ProxyTuning::new(fixture_config(), &host).unwrap();
    let vocab = host.shape.vocabulary.len();
    let case = &cases()[3];
    let apply = |processor: &Processor, history: &[u32], next: u32| {
        let mut row = vec![0f32; vocab];
        row[next as usize] = 1e4;
        let logits = Tensor::from_slice(&row, vocab, &Device::Cpu).unwrap();
        processor.apply(&logits, history).unwrap().to_vec1::<f32>().unwrap()
    };
    let choices = [&case.tokens, &case.host_tokens, &cases()[4].tokens];
    let shared = tuning.processor(RequestOptions { choices: 3, ..options(case) }).unwrap();
    for step in 0..STEPS {
        std::thread::scope(|scope| {
            for choice in choices {
                let (shared, tuning) = (&shared, &tuning);
                scope.spawn(move || {
                    let history = [&case.prompt_tokens[..], &choice[..step]].concat();
                    let alone = tuning.processor(options(case)).unwrap();
                    let [ours, alone] = [shared, &alone].map(|p| apply(p, &history, choice[step]));
                    let worst = ours.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst <= 2e-3, "step {step}: off by {worst}");
                });
            }
        });
    }
    assert!(tuning.stats().failures.is_empty());
}

#[test]
fn the_program_writes_the_oracles_tokens() {
    let _turn = take_turns();
    let case = &cases()[10];
    let ids: Vec<String> = case.prompt_tokens.iter().map(u32::to_string).collect();
    let path = |name: &str| common::path(&format!("tests/fixtures/{name}-f32.gguf")).display().to_string();
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_proxytune"))
        .args(["generate", "--engine", "mistralrs", "--format", "json", "--max-tokens", "96", "--no-proxy"])
        .args(["--host", &path("host"), "--tokens", &ids.join(",")])
        .assert()
        .success();
    let json: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let tokens: Vec<u32> = serde_json::from_value(json["tokens"].clone()).unwrap();
    assert_eq!(tokens, case.host_tokens);
    assert_eq!(json["stats"]["tokens"], 96);
}
