//! Contrastive decoding and mixtures from the models to the tokens: against the oracle (`tests/oracle/rules.py`), with one proxy
//! only, and where an engine hands over rows.
#![cfg(feature = "eval")]

mod common;

use common::{cases, fixture_config, host_row, models, path, take_turns};
use proxytune::Error;
use proxytune::backend::llama::SamplerOptions;
use proxytune::combine::log_sum_exp;
use proxytune::config::{Combine, Config, Speculate};
use proxytune::decode::{Finish, Job, Outcome, RunOptions};
use proxytune::eval::{Journal, Setup, text};
use proxytune::host::llama_sampler::{Chain, Tuner, llama_token_data};
use proxytune::host::requests::{Logits, Requests, Row, TunedPrompt};
use proxytune::host::requests::{Outcome as RowOutcome, RequestId};
use proxytune::host::{HostShape, Proxies};
use proxytune::pair::{Placement, Runner};
use serde_json::Value;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A rule of the oracle, and what came of it.
struct Golden {
    name: String,
    config: Config,
    alpha: f32,
    bits_per_byte: Option<f64>,
    texts: Vec<Text>,
}

struct Text {
    case: String,
    tokens: Vec<u32>,
    /// Positions, each with log-probabilities of its likeliest tokens.
    tops: Vec<(usize, Vec<(usize, f64)>)>,
}

fn golden() -> Vec<Golden> {
    let text = std::fs::read_to_string(path("tests/golden/rules.json")).unwrap();
    let rules: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(rules.len() >= 7);
    rules.iter().map(read).collect()
}

fn read(rule: &Value) -> Golden {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let id = |value: &Value| value.as_u64().unwrap() as usize;
    let pair = |value: &Value| (id(&value[0]), value[1].as_f64().unwrap());
    let top = |top: &Value| (id(&top["position"]), list(&top["top"]).iter().map(pair).collect());
    let text = |text: &Value| Text {
        case: text["case"].as_str().unwrap().into(),
        tokens: list(&text["tokens"]).iter().map(|t| id(t) as u32).collect(),
        tops: list(&text["tops"]).iter().map(top).collect(),
    };
    let mut config = fixture_config();
    config.proxy_tuning.combine = Combine::Rule(serde_json::from_value(rule["combine"].clone()).unwrap());
    config.proxy_tuning.alpha = rule["alpha"].as_f64().unwrap() as f32;
    Golden {
        name: rule["name"].as_str().unwrap().into(),
        alpha: config.proxy_tuning.alpha,
        config,
        bits_per_byte: rule["bits_per_byte"].as_f64(),
        texts: list(&rule["texts"]).iter().map(text).collect(),
    }
}

impl Golden {
    fn jobs(&self) -> Vec<Job> {
        let cases = cases();
        let job = |text: &Text| Job {
            history: cases.iter().find(|case| case.name == text.case).unwrap().history(),
            alpha: self.alpha,
            sampler: SamplerOptions::default(),
            max_tokens: text.tokens.len(),
            stops: vec![],
            control: true,
            ignore_end: true,
        };
        self.texts.iter().map(job).collect()
    }
}

fn decode(config: &Config, jobs: Vec<Job>, speculate: Speculate, placement: Placement) -> Vec<Outcome> {
    let mut config = config.clone();
    config.proxy_tuning.speculate = speculate;
    let run = RunOptions {
        sequences: jobs.len(),
        longest: 512,
        placement: Some(placement),
        ..RunOptions::default()
    };
    let mut decoder = models(&config, false).decoder(&config, run).unwrap();
    decoder.generate(jobs, false, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn assert_tokens(golden: &Golden, outcomes: &[Outcome], how: &str) {
    for (text, outcome) in golden.texts.iter().zip(outcomes) {
        assert!(matches!(outcome.finish, Finish::Length), "{:?}", outcome.finish);
        assert_eq!(outcome.tokens, text.tokens, "{} {} {how}", golden.name, text.case);
        assert_eq!((outcome.stats.unshifted, outcome.stats.ignored), (0, 0));
    }
}

#[test]
fn greedy_tokens_are_the_oracles_with_and_without_drafts() {
    let _turn = take_turns();
    for golden in golden() {
        let mut accepted = 0;
        for speculate in [Speculate::Off, Speculate::Tokens(1), Speculate::Tokens(3)] {
            for placement in [Placement::InTurn, Placement::SideBySide, Placement::Together] {
                let outcomes = decode(&golden.config, golden.jobs(), speculate, placement);
                assert_tokens(&golden, &outcomes, &format!("{speculate:?} {placement:?}"));
                let drafted: usize = outcomes.iter().map(|o| o.stats.drafted).sum();
                assert_eq!(drafted > 0, speculate != Speculate::Off);
                accepted += outcomes.iter().map(|o| o.stats.accepted).sum::<usize>();
            }
        }
        assert!(accepted > 0, "{}: no draft was ever right", golden.name);
    }
}

#[test]
fn the_proxy_that_a_rule_does_not_read_need_not_be_there() {
    let _turn = take_turns();
    for golden in golden() {
        let mut config = golden.config.clone();
        let [read_tuned, _] = config.proxy_tuning.combine.rule().unwrap().reads();
        let unread = match read_tuned {
            true => config.proxy_tuning.untuned.take(),
            false => config.proxy_tuning.tuned.take(),
        };
        assert!(unread.is_some());
        // What the tuned proxy would read means nothing where it is not there.
        let outcomes = decode(&config, golden.jobs(), Speculate::Tokens(2), Placement::Together);
        assert_tokens(&golden, &outcomes, "with one proxy");
        let run = RunOptions { sequences: 1, longest: 64, ..RunOptions::default() };
        let mut pair = models(&golden.config, false).pair(&golden.config, run).unwrap().unwrap();
        pair.push(1, &golden.jobs()[0].history, [1, 1]);
        pair.run().unwrap();
        let computed = pair.usage().map(|usage| usage.tokens > 0);
        assert_eq!(computed, [read_tuned, !read_tuned], "{}: both are named, one runs", golden.name);
    }
}

/// Distributions at some positions, through the handle that adapters hold.
#[test]
fn log_probabilities_are_the_oracles() {
    let _turn = take_turns();
    for golden in golden() {
        let models = models(&golden.config, false);
        let run = RunOptions { sequences: 2, longest: 512, ..RunOptions::default() };
        let runner = Runner::new(models.pair(&golden.config, run).unwrap().unwrap()).unwrap();
        for (text, job) in golden.texts.iter().zip(golden.jobs()) {
            for (position, top) in &text.tops {
                let mut history = job.history.clone();
                history.extend(&text.tokens[..*position]);
                let mut row = host_row(&models, &history);
                runner.sequence(history, golden.alpha).shift(&mut row).unwrap();
                let sum = log_sum_exp(&row);
                for &(token, expected) in top {
                    let got = f64::from(row[token]) - sum;
                    let what = format!("{} {} at {position}, token {token}", golden.name, text.case);
                    assert!((got - expected).abs() < 2e-3, "{what}: {got} instead of {expected}");
                }
                let kept = row.iter().filter(|&&x| x > f32::NEG_INFINITY).count();
                assert!(kept >= top.len() && (top.len() == 8 || kept == top.len()), "as many are masked");
            }
        }
    }
}

#[test]
fn bits_per_byte_are_the_oracles() {
    let _turn = take_turns();
    let whole = std::fs::read_to_string(path("models/heldout-code.txt")).unwrap();
    let piece: String = whole.chars().take(4000).collect();
    for Golden { name, config, alpha, bits_per_byte, .. } in golden() {
        let models = models(&config, false);
        let setup = Setup { config, models, direct: None, alphas: vec![alpha] };
        let report =
            text(&setup, &piece, 64, &mut Journal::none(), &mut |_| ControlFlow::Continue(())).unwrap();
        let got = report.metrics[0].shifted[0].score;
        match bits_per_byte {
            Some(expected) => assert!((got - expected).abs() < 1e-4, "{name}: {got} instead of {expected}"),
            None => assert_eq!(got, f64::INFINITY, "{name}: a token of the text is masked"),
        }
    }
}

struct Line {
    history: Vec<u32>,
    logits: Vec<half::f16>,
    outcome: Option<RowOutcome>,
}

impl Row for Line {
    fn request(&self) -> RequestId {
        7
    }
    fn history(&self) -> &[u32] {
        &self.history
    }
    fn logits(&mut self) -> Logits<'_> {
        Logits::F16(&mut self.logits)
    }
    fn report(&mut self, outcome: RowOutcome) {
        self.outcome = Some(outcome);
    }
}

#[test]
fn batches_of_rows_are_combined_and_offsets_alone_refused() {
    let _turn = take_turns();
    for golden in golden().into_iter().filter(|golden| ["contrastive", "mean"].contains(&&*golden.name)) {
        let models = models(&golden.config, false);
        let shape = HostShape { vocabulary: models.host.vocabulary(), context: 512, ..HostShape::default() };
        let mut requests = Requests::load(golden.config.clone(), &shape).unwrap();
        let history = golden.jobs()[1].history.clone();
        requests.add(7, None, TunedPrompt::Host, None).unwrap();
        let row = host_row(&models, &history);
        let mut lines = [Line {
            history: history.tokens().to_vec(),
            logits: row.iter().map(|&x| half::f16::from_f32(x)).collect(),
            outcome: None,
        }];
        requests.apply(&mut lines).unwrap();
        assert_eq!(lines[0].outcome, Some(RowOutcome::Shifted));
        let wide: Vec<f32> = lines[0].logits.iter().map(|x| x.to_f32()).collect();
        assert_eq!(proxytune::combine::argmax(&wide) as u32, golden.texts[1].tokens[0]);
        let sum = log_sum_exp(&wide);
        let &(token, expected) = &golden.texts[1].tops[0].1[0];
        assert!((f64::from(wide[token]) - sum - expected).abs() < 0.03, "to the precision of halves");
        let mut out = vec![1.0; wide.len()];
        let refused = requests.offsets(&mut lines, &mut out, wide.len()).unwrap_err().to_string();
        assert!(refused.contains("proxy-tuning where only offsets are taken"), "{refused}");
        assert!(out.iter().all(|&x| x == 1.0));
        assert!(requests.offsets::<Line>(&mut [], &mut [], wide.len()).is_err(), "asked beforehand");
        if golden.name == "mean" {
            let error = requests.add(8, None, TunedPrompt::Host, Some(-1.0)).unwrap_err().to_string();
            assert!(error.contains("0 or more"), "{error}");
        }
        requests.remove(7).unwrap();
    }
}

/// As a llama.cpp program calls it, with all candidates in order and in another one.
#[test]
fn a_chain_of_samplers_combines_by_the_rule() {
    let _turn = take_turns();
    for golden in golden() {
        let mut config = golden.config.clone();
        config.proxy_tuning.ctx = 256;
        let mut chain = Chain::new(Arc::new(Tuner::new(config).unwrap()));
        let history = golden.jobs()[1].history.clone();
        history.tokens().iter().for_each(|&token| chain.accept(token, true));
        let row = host_row(&models(&golden.config, true), &history);
        let candidate = |(id, &logit)| llama_token_data { id: id as i32, logit, p: 0.0 };
        let mut candidates: Vec<_> = row.iter().enumerate().map(candidate).collect();
        for _ in 0..2 {
            let mut shifted = candidates.clone();
            chain.apply(None, &mut shifted);
            let mut combined = vec![0.0; row.len()];
            shifted.iter().for_each(|c| combined[c.id as usize] = c.logit);
            let sum = log_sum_exp(&combined);
            let (position, top) = &golden.texts[1].tops[0];
            assert_eq!(*position, 0);
            for &(token, expected) in top {
                let got = f64::from(combined[token]) - sum;
                assert!((got - expected).abs() < 2e-3, "{}: {got} instead of {expected}", golden.name);
            }
            candidates.reverse();
        }
    }
}

#[test]
fn a_rule_that_cannot_be_served_is_refused_before_anything_runs() {
    let with = |combine: &str| {
        let mut config = fixture_config();
        config.proxy_tuning.combine = combine.parse().unwrap();
        config
    };
    let mut config = with("mean");
    config.proxy_tuning.alpha = -1.0;
    assert!(Proxies::load(config).err().unwrap().to_string().contains("0 or more"));
    let mut config = with("contrastive");
    config.proxy_tuning.tuned_prompt.system = Some("Be brief.".into());
    assert!(
        matches!(Proxies::load(config), Err(Error::Invalid { name, .. }) if name == "tuned_prompt.system")
    );
    let mut config = with("contrastive");
    config.proxy_tuning.untuned = None;
    assert!(Proxies::load(config).err().unwrap().to_string().contains("untuned"));
    assert!(matches!(Proxies::load(with("missing.toml")), Err(Error::Config { .. })));
}
