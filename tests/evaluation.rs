//! Scores against the oracle's, on the float32 trio; runs that are interrupted and gone on with.
#![cfg(feature = "eval")]

mod common;

use common::{fixture_config, models, path, take_turns};
use proxytune::Error;
use proxytune::backend::llama::SamplerOptions;
use proxytune::config::{Control, Speculate};
use proxytune::decode::{Job, RunOptions};
use proxytune::eval::{
    self, Column, Items, Journal, Metric, Passage, PromptOptions, Report, Scorer, Setup, Window,
};
use proxytune::pair::History;
use serde_json::{Value, json};
use std::ops::ControlFlow;

const ALPHAS: [f32; 5] = [-0.5, 0.0, 0.25, 1.0, 2.0];
/// On bits per byte and shares; the engines differ in rounding only.
const TOLERANCE: f64 = 1e-4;

fn setup(slots: usize) -> Setup {
    let mut config = fixture_config();
    config.proxy_tuning.slots = slots;
    let models = models(&config, false);
    Setup { config, models, direct: None, alphas: ALPHAS.to_vec() }
}

fn text() -> String {
    let whole = std::fs::read_to_string(path("models/heldout-code.txt")).unwrap();
    whole.chars().take(4000).collect()
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(path("tests/golden/evaluation.json")).unwrap()).unwrap()
}

fn score(setup: &Setup, window: impl Into<Window>, journal: &mut Journal) -> Report {
    eval::text(setup, &text(), window, journal, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn holds(metric: &Metric, expected: &Value) {
    let mut scores = vec![
        ("host".into(), metric.host),
        ("untuned".into(), metric.untuned),
        ("tuned".into(), metric.tuned),
    ];
    scores.extend(metric.shifted.iter().map(|s| (Column::Shifted(s.alpha).key(), s.score)));
    for (name, score) in scores {
        let expected = expected[&name].as_f64().unwrap();
        assert!(
            (score - expected).abs() < TOLERANCE,
            "{} of {name}: {score}, oracle {expected}",
            metric.unit
        );
    }
}

#[test]
fn bits_per_byte_are_the_oracles_for_every_model_and_alpha() {
    let _turn = take_turns();
    let setup = setup(16);
    for window in [64, 512] {
        let report = score(&setup, window, &mut Journal::none());
        holds(&report.metrics[0], &expected()["bits_per_byte"][window.to_string()]);
        let zero = report.metrics[0].shifted.iter().find(|s| s.alpha == 0.0).unwrap();
        assert_eq!(zero.score, report.metrics[0].host, "alpha 0 is the host, to the bit");
    }
}

#[test]
fn mc1_and_mc2_are_the_oracles_for_every_model_and_alpha() {
    let _turn = take_turns();
    let (kind, items) = eval::read(&path("tests/tasks/truthfulqa.jsonl"), None, None).unwrap();
    assert_eq!(kind.name(), "truthfulqa");
    let Items::Questions(questions) = items else { panic!("questions") };
    let listen = &mut |_| ControlFlow::Continue(());
    let options = PromptOptions::default();
    let report = eval::choices(&setup(16), &questions, &options, &mut Journal::none(), listen).unwrap();
    holds(&report.metrics[0], &expected()["mc1"]);
    holds(&report.metrics[1], &expected()["mc2"]);
}

#[test]
fn windows_scored_together_score_as_each_by_itself() {
    let _turn = take_turns();
    let [together, alone] = [16, 1].map(|slots| score(&setup(slots), 48, &mut Journal::none()).metrics);
    for (a, b) in together[0].shifted.iter().zip(&alone[0].shifted) {
        assert!((a.score - b.score).abs() < 1e-6, "{a:?} {b:?}");
    }
}

#[test]
fn passages_scored_piece_by_piece_score_as_a_whole() {
    let _turn = take_turns();
    let setup = setup(16);
    let tokens = setup.models.host.tokenize(&text(), false);
    let passage = |tokens: &[u32]| {
        let mut passage = Passage::new(tokens[..3].to_vec(), None);
        passage.extend(&tokens[3..]);
        passage
    };
    let passages = [passage(&tokens[..60]), passage(&tokens[60..90]), passage(&tokens[90..170])];
    let score = |rows: usize| {
        let mut scorer = Scorer::new(&setup.config, &setup.models, None, &setup.alphas, 80).unwrap();
        scorer.limit_rows(rows);
        let mut found = vec![Vec::new(); passages.len()];
        let mut done = |index: usize, nats| {
            found[index] = nats;
            Ok(())
        };
        scorer.score(&passages, &mut done, &mut |_| ControlFlow::Continue(())).unwrap();
        found
    };
    for (whole, pieces) in score(10_000).iter().zip(&score(13)) {
        assert_eq!(whole.len(), 3 + ALPHAS.len());
        for (a, b) in whole.iter().zip(pieces) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped_and_ends_the_same() {
    let _turn = take_turns();
    let setup = setup(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.jsonl");
    let open = || Journal::open(&path, &json!({ "test": 1 }), false).unwrap();
    let mut stop = |p: eval::Progress| {
        if p.done > p.total / 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let interrupted = eval::text(&setup, &text(), 64, &mut open(), &mut stop);
    assert!(matches!(interrupted, Err(Error::Interrupted)));
    let done = open().len();
    assert!(done > 0);

    let mut first = None;
    let mut listen = |p: eval::Progress| {
        first.get_or_insert(p.done);
        ControlFlow::Continue(())
    };
    let resumed = eval::text(&setup, &text(), 64, &mut open(), &mut listen).unwrap();
    assert!(first.unwrap() > 0, "what was done counts");
    assert_eq!(resumed.json(), score(&setup, 64, &mut Journal::none()).json());
    assert!(open().len() > done);
}

#[test]
fn a_calibration_text_chooses_the_alpha_that_predicts_it_best() {
    let _turn = take_turns();
    let mut setup = setup(16);
    let metric = eval::calibrate(&mut setup, &text(), 512, &mut |_| ControlFlow::Continue(())).unwrap();
    let best = metric.best().unwrap();
    assert!(metric.shifted.iter().all(|s| s.score >= best.score));
    assert!(best.alpha > 0.0 && best.score < metric.host, "{best:?}");
    assert_eq!(setup.alphas, ALPHAS, "the sweep asked for is left as it was");
}

#[test]
fn texts_and_windows_that_cannot_be_scored_are_refused() {
    let _turn = take_turns();
    let setup = setup(1);
    let refused = |text: &str, window: usize| {
        let listen = &mut |_| ControlFlow::Continue(());
        eval::text(&setup, text, window, &mut Journal::none(), listen).unwrap_err().to_string()
    };
    assert!(refused("some words here", 1).contains("--window"));
    assert!(refused("some words here", 100_000).contains("context"));
    assert!(refused("x", 512).contains("two tokens"));
}

/// Negative log-likelihoods of passages under the trio's settings, by passage and column.
fn nats(setup: &Setup, passages: &[Passage]) -> Vec<Vec<f64>> {
    let longest = passages.iter().map(|p| p.history().tokens().len()).max().unwrap();
    let mut scorer = Scorer::new(&setup.config, &setup.models, None, &setup.alphas, longest).unwrap();
    let mut found = vec![Vec::new(); passages.len()];
    let mut done = |index: usize, nats| {
        found[index] = nats;
        Ok(())
    };
    scorer.score(passages, &mut done, &mut |_| ControlFlow::Continue(())).unwrap();
    found
}

fn passage(prompt: &[u32], rest: &[u32]) -> Passage {
    let mut passage = Passage::new(prompt.to_vec(), None);
    passage.extend(rest);
    passage
}

#[test]
fn a_window_that_slides_scores_each_token_once_after_all_that_it_holds() {
    let _turn = take_turns();
    let setup = setup(16);
    let tokens = setup.models.host.tokenize(&text(), false);
    let bytes: Vec<u8> = tokens[..50].iter().flat_map(|&t| setup.models.host.piece(t, false)).collect();
    let short = String::from_utf8(bytes).unwrap();
    let tokens = setup.models.host.tokenize(&short, false);
    let bits = |window: Window| {
        let listen = &mut |_| ControlFlow::Continue(());
        eval::text(&setup, &short, window, &mut Journal::none(), listen).unwrap()
    };
    let (report, count) = (bits(Window { tokens: 8, stride: 1 }), tokens.len());
    assert!(report.size.starts_with(&format!("{} tokens ", count - 1)), "{}", report.size);
    assert!(report.size.ends_with("windows of 8, one every 1"), "{}", report.size);
    // The first window as a whole, then token by token.
    let one = |i: usize| passage(&tokens[i - 7..i], &tokens[i..=i]);
    let by_hand: Vec<Passage> =
        std::iter::once(passage(&tokens[..1], &tokens[1..8])).chain((8..count).map(one)).collect();
    let sums = nats(&setup, &by_hand);
    let bytes: usize = tokens[1..].iter().map(|&t| setup.models.host.piece(t, false).len()).sum();
    let host = sums.iter().map(|s| s[0]).sum::<f64>() / std::f64::consts::LN_2 / bytes as f64;
    assert!((report.metrics[0].host - host).abs() < 1e-6, "{} {host}", report.metrics[0].host);
    let whole = bits(Window { tokens: 500, stride: 3 });
    assert_eq!(whole.metrics[0].host, bits(500.into()).metrics[0].host, "one window reaches all");
    let refused = |stride: usize| {
        let window = Window { tokens: 8, stride };
        let listen = &mut |_| ControlFlow::Continue(());
        eval::text(&setup, &short, window, &mut Journal::none(), listen).unwrap_err().to_string()
    };
    assert!(refused(0).contains("--stride") && refused(9).contains("1 to 8"));
}

#[test]
fn schedule_and_guards_count_in_a_given_text_as_they_do_in_the_same_text_generated() {
    let _turn = take_turns();
    let mut setup = setup(1);
    setup.alphas = vec![1.0];
    let prompt = setup.models.host.tokenize("import os\n\ndef ", false);
    for (schedule, cap, guard) in
        [("constant", 0.0, 0), ("warm-up:9,stop:20", 0.0, 0), ("decay:12", 0.5, 0), ("constant", 0.25, 2)]
    {
        let tuning = &mut setup.config.proxy_tuning;
        (tuning.alpha_schedule, tuning.shift_cap) = (schedule.parse().unwrap(), cap);
        (tuning.repetition_guard, tuning.speculate) = (guard, Speculate::Off);
        assert_eq!(tuning.control() == Control::default(), (schedule, cap, guard) == ("constant", 0.0, 0));
        let run = RunOptions { sequences: 1, longest: 64, ..RunOptions::default() };
        let job = Job {
            history: History::new(prompt.clone(), None),
            alpha: 1.0,
            sampler: SamplerOptions::default(),
            max_tokens: 40,
            stops: vec![],
            control: true,
            ignore_end: true,
        };
        let mut decoder = setup.models.decoder(&setup.config, run).unwrap();
        let outcome =
            decoder.generate(vec![job], true, &mut |_| ControlFlow::Continue(())).unwrap().remove(0);
        let tokens: Vec<u32> = outcome.positions.iter().map(|p| p.token).collect();
        let told: f64 =
            outcome.positions.iter().map(|p| -f64::from(p.probabilities.unwrap().shifted).ln()).sum();
        let found = nats(&setup, &[passage(&prompt, &tokens)]);
        assert!((found[0][3] - told).abs() < 0.01, "{schedule} {cap} {guard}: {} {told}", found[0][3]);
    }
}
