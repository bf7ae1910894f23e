//! Hosts of which only a few tokens are visible, held against whole rows of logits: the oracle's greedy tokens.
#![cfg(feature = "openai")]

mod common;

use common::{Case, cases, fixture_config, models, take_turns};
use proxytune::backend::llama::{LlamaModel, SamplerOptions};
use proxytune::config::{Control, OnError, Speculate};
use proxytune::decode::RunOptions;
use proxytune::host::blackbox::{
    Advisers, Ask, BlackBox, Choosing, Draft, Finish, Ids, Job, Local, Offers, Outcome, Prompt, Way, Weight,
    Written, choose, generate, weigh,
};
use proxytune::pair::History;
use proxytune::{Error, Result};
use std::ops::ControlFlow;
use std::sync::Arc;

const TOKENS: usize = 40;

struct Bench {
    host: Arc<LlamaModel>,
    advisers: Arc<Advisers>,
}

impl Bench {
    fn new() -> Self {
        let config = fixture_config();
        let advisers = Arc::new(Advisers::load(config.clone(), 4, 1024).unwrap());
        Self { host: models(&config, true).host, advisers }
    }

    fn local(&self, top: usize, change: impl FnOnce(&mut Offers)) -> Local {
        Local::new(self.host.clone(), 1024, 1, top).unwrap().offering(change)
    }

    fn run(&self, host: &Local, job: Job) -> Result<Outcome> {
        block(generate(host, Some(&self.advisers), &Ids::Same, job, &mut |_| ControlFlow::Continue(())))
    }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn job(case: &Case, way: Way, speculate: Speculate) -> Job {
    Job {
        prompt: Prompt::Text(case.prompt.clone()),
        tuned_system: None,
        alpha: case.alpha,
        control: Control::default(),
        sampler: SamplerOptions::default(),
        max_tokens: TOKENS,
        stops: Vec::new(),
        way,
        speculate,
        on_error: OnError::Stop,
    }
}

/// Cases whose prompt comes as text, as all models read it.
fn plain(host: &LlamaModel) -> Vec<Case> {
    let same = |c: &Case| {
        c.prompt_tokens == c.tuned_prompt_tokens && host.tokenize(&c.prompt, true) == c.prompt_tokens
    };
    let cases: Vec<Case> = cases().into_iter().filter(same).collect();
    assert!(cases.len() >= 5, "{} cases", cases.len());
    cases
}

/// What the oracle writes, up to an end.
fn expected(host: &LlamaModel, case: &Case) -> Vec<Vec<u8>> {
    let end = case.tokens.iter().position(|&t| host.is_end(t)).unwrap_or(usize::MAX);
    case.tokens[..end.min(TOKENS)].iter().map(|&t| host.piece(t, false)).collect()
}

#[test]
fn all_ways_write_what_whole_rows_do_where_every_token_is_visible() {
    let _turn = take_turns();
    let bench = Bench::new();
    let all = bench.host.vocab_len();
    for case in plain(&bench.host) {
        let expected = expected(&bench.host, &case);
        let runs = [
            (bench.local(all, |_| {}), Way::Reweigh, Speculate::Off, Draft::Off),
            (bench.local(all, |_| {}), Way::Reweigh, Speculate::Tokens(4), Draft::Tuned),
            (bench.local(all, |o| o.reads = false), Way::Reweigh, Speculate::Auto, Draft::Host),
            (bench.local(0, |_| {}), Way::Auto, Speculate::Auto, Draft::Off),
        ];
        for (host, way, speculate, draft) in runs {
            let outcome = bench.run(&host, job(&case, way, speculate)).unwrap();
            let what = format!("{} {way:?} {speculate:?} {:?}", case.name, outcome.stats);
            assert_eq!(outcome.tokens[..expected.len().min(outcome.tokens.len())], expected[..], "{what}");
            // Alpha 0 is the host alone: no proxy runs.
            let draft = if case.alpha == 0.0 && draft == Draft::Tuned { Draft::Host } else { draft };
            assert_eq!((outcome.stats.draft, outcome.stats.unshifted), (draft, 0), "{what}");
            match way {
                Way::Reweigh => assert_eq!(outcome.stats.certain, outcome.stats.tokens, "{what}"),
                _ => assert!(outcome.stats.way == Way::Bias && outcome.stats.left_out == 0.0, "{what}"),
            }
            match draft {
                Draft::Off => assert_eq!(outcome.stats.calls, outcome.stats.tokens, "{what}"),
                _ => assert!(outcome.stats.calls < outcome.stats.tokens, "{what}"),
            }
        }
    }
}

#[test]
fn where_the_winner_is_visible_it_wins_and_what_is_called_certain_is() {
    let _turn = take_turns();
    let bench = Bench::new();
    for (top, least) in [(5, 0.75), (20, 0.85)] {
        let (mut positions, mut visible, mut certain) = (0, 0, 0);
        let host = bench.local(top, |_| {});
        for case in plain(&bench.host) {
            let prompt = Prompt::Text(case.prompt.clone());
            let mut session = bench.advisers.session(&prompt, None).unwrap();
            for (at, &token) in case.tokens[..TOKENS].iter().enumerate() {
                let written = Written { bytes: Vec::new(), ids: Some(case.tokens[..at].to_vec()) };
                let ask = Ask {
                    prompt: &prompt,
                    written: &written,
                    tokens: 1,
                    bias: &[],
                    choosing: Choosing::default(),
                };
                let weighed = block(async {
                    let seen = host.write(ask).await?.next().await?.unwrap();
                    let advice = session.advise().await?;
                    weigh(seen, Some((&session, &advice)), case.alpha.into(), true).await
                })
                .unwrap();
                let wins = weighed.candidates[weighed.top].id == Some(token);
                let shows = weighed.candidates.iter().any(|c| c.id == Some(token));
                assert_eq!(wins, shows, "{} at {at}, {top} visible", case.name);
                assert!(wins || !weighed.certain, "{} at {at}, {top} visible", case.name);
                (positions, visible, certain) =
                    (positions + 1, visible + usize::from(shows), certain + usize::from(weighed.certain));
                session.extend(&[token]);
            }
        }
        println!(
            "{top} visible: the winner is among them at {visible} of {positions} positions, certain at {certain}"
        );
        assert!(
            visible as f64 > least * positions as f64 && certain > 0,
            "{visible} of {positions}, {certain} certain"
        );
    }
}

#[test]
fn with_text_alone_tokens_are_aligned_on_bytes() {
    let _turn = take_turns();
    let bench = Bench::new();
    for case in plain(&bench.host) {
        let host = bench.local(50, |o| (o.by_ids, o.reads) = (false, false));
        let outcome = bench.run(&host, job(&case, Way::Reweigh, Speculate::Off)).unwrap();
        assert_eq!(
            (outcome.stats.unshifted, outcome.stats.unreadable, outcome.stats.spelt),
            (0, 0, 0),
            "{}",
            case.name
        );
        assert!((outcome.stats.coverage() - 1.0).abs() < 1e-3, "{:?}", outcome.stats);
        assert_eq!(outcome.tokens.concat(), outcome.text.as_bytes());
    }
}

#[test]
fn sampled_text_is_fixed_by_its_seed_whoever_drafts() {
    let _turn = take_turns();
    let bench = Bench::new();
    let case = &plain(&bench.host)[1];
    let sampler = SamplerOptions { temperature: 1.0, top_p: 0.9, seed: Some(7), ..SamplerOptions::default() };
    let runs = [(Speculate::Off, true), (Speculate::Tokens(3), true), (Speculate::Auto, false)];
    let texts = runs.map(|(speculate, reads)| {
        let host = bench.local(20, |o| o.reads = reads);
        bench.run(&host, Job { sampler: sampler.clone(), ..job(case, Way::Reweigh, speculate) }).unwrap().text
    });
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    let greedy = bench.run(&bench.local(20, |_| {}), job(case, Way::Reweigh, Speculate::Off)).unwrap().text;
    assert_ne!(texts[0], greedy);
}

/// The oracle of whole rows under the same schedule and guards.
#[test]
fn schedule_and_cap_give_the_same_text_from_visible_tokens_as_from_whole_rows() {
    let _turn = take_turns();
    let bench = Bench::new();
    let case = &plain(&bench.host)[1];
    let mut seen = Vec::new();
    for (schedule, cap) in [("stop:4", None), ("warm-up:6,decay:12", None), ("constant", Some(1.5))] {
        let control = Control { schedule: schedule.parse().unwrap(), cap, ..Control::default() };
        let host = bench.local(200, |_| {});
        let outcome =
            bench.run(&host, Job { control, alpha: 2.0, ..job(case, Way::Reweigh, Speculate::Off) }).unwrap();
        assert_eq!(outcome.stats.unshifted, 0, "{schedule}");
        let mut config = fixture_config();
        config.proxy_tuning.alpha_schedule = control.schedule;
        config.proxy_tuning.shift_cap = cap.unwrap_or(0.0);
        let run = RunOptions { sequences: 1, longest: 512, ..RunOptions::default() };
        let whole = proxytune::decode::Job {
            history: History::new(case.prompt_tokens.clone(), None),
            alpha: 2.0,
            sampler: SamplerOptions::default(),
            max_tokens: TOKENS,
            stops: vec![],
            control: false,
            ignore_end: false,
        };
        let mut decoder = models(&config, false).decoder(&config, run).unwrap();
        let whole = decoder.generate(vec![whole], false, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(outcome.text, whole[0].text, "{schedule} {cap:?}");
        seen.push(outcome.text);
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "the settings make no difference: {seen:?}");
    let control = Control { cap: Some(1.0), ..Control::default() };
    let host = bench.local(20, |_| {});
    let error = bench.run(&host, Job { control, ..job(case, Way::Bias, Speculate::Off) }).unwrap_err();
    assert!(error.to_string().contains("--shift-cap"), "{error}");
}

#[test]
fn choices_by_letter_are_the_same_from_few_tokens_as_from_all_where_they_are_visible() {
    let _turn = take_turns();
    let bench = Bench::new();
    let (few, all) = (bench.local(40, |_| {}), bench.local(bench.host.vocab_len(), |_| {}));
    let (mut visible, mut weights) = (0, [0.0, 0.5, 1.0, 1.0].map(Weight::from));
    weights[3].cap = Some(1e-3);
    for text in ["Question: Which?\nA. x\nB. y\nAnswer:", "It", "The file is", "    return"] {
        let prompt = Prompt::Text(text.into());
        let written = Written::default();
        let one =
            Ask { prompt: &prompt, written: &written, tokens: 1, bias: &[], choosing: Choosing::default() };
        let seen = block(async { few.write(one).await?.next().await }).unwrap().unwrap();
        // Every other one of those that it shows.
        let words =
            seen.top.iter().filter_map(|c| Some(std::str::from_utf8(&c.bytes).ok()?.trim().to_owned()));
        let mut options: Vec<String> = words.filter(|w| !w.is_empty()).step_by(2).collect();
        options.sort();
        options.dedup();
        options.truncate(4);
        let ask = |host| block(choose(host, &bench.advisers, &prompt, None, &options, &weights)).unwrap();
        let (some, whole) = (ask(&few), ask(&all));
        assert!(whole.visible == options.len() && options.len() == 4, "{options:?}");
        assert_eq!(whole.host, whole.shifted[0], "alpha 0 is the host");
        assert_eq!((some.tuned, some.untuned), (whole.tuned, whole.untuned));
        // Under a cap of next to nothing all move alike: the host has the word.
        let moved: Vec<f32> = whole.scores[3].iter().zip(&whole.scores[0]).map(|(a, b)| a - b).collect();
        assert!(moved.iter().all(|by| (by - moved[0]).abs() < 0.01), "{moved:?}");
        assert_ne!(whole.scores[2], whole.scores[0]);
        for (some, whole) in some.scores.iter().zip(&whole.scores) {
            for (some, whole) in some.iter().zip(whole).filter(|(some, _)| some.is_finite()) {
                // A form with and one without a space may not both be visible.
                assert!(*some <= whole + 1e-3, "{some} {whole}");
            }
        }
        if some.visible == options.len() {
            visible += 1;
            assert_eq!((some.host, some.shifted), (whole.host, whole.shifted));
        }
    }
    assert!(visible > 0, "no question shows all options");
}

#[test]
fn a_vocabulary_that_covers_little_is_an_error_and_so_is_what_a_host_does_not_offer() {
    let _turn = take_turns();
    let bench = Bench::new();
    let case = &plain(&bench.host)[1];
    struct Foreign(Local);
    #[async_trait::async_trait]
    impl BlackBox for Foreign {
        fn offers(&self) -> &Offers {
            self.0.offers()
        }
        async fn write(&self, ask: Ask<'_>) -> Result<Box<dyn proxytune::host::blackbox::Writing>> {
            Ok(Box::new(Strange(self.0.write(ask).await?)))
        }
        async fn read(&self, ask: Ask<'_>, _: &[u8]) -> Result<Box<dyn proxytune::host::blackbox::Writing>> {
            self.write(ask).await
        }
        fn spent(&self) -> proxytune::host::blackbox::Spent {
            self.0.spent()
        }
    }
    struct Strange(Box<dyn proxytune::host::blackbox::Writing>);
    #[async_trait::async_trait]
    impl proxytune::host::blackbox::Writing for Strange {
        async fn next(&mut self) -> Result<Option<proxytune::host::blackbox::Seen>> {
            let mut seen = self.0.next().await?;
            if let Some(seen) = &mut seen {
                for token in seen.top.iter_mut().chain([&mut seen.chosen]) {
                    // Control tokens of nobody's vocabulary.
                    (token.bytes, token.control) = (format!("<{:?}>", token.id).into(), true);
                }
            }
            Ok(seen)
        }
        fn is_over(&self) -> bool {
            self.0.is_over()
        }
    }
    let foreign = Foreign(bench.local(20, |o| (o.reads, o.by_ids) = (false, false)));
    let run = |job| {
        block(generate(&foreign, Some(&bench.advisers), &Ids::Same, job, &mut |_| ControlFlow::Continue(())))
    };
    let error = run(job(case, Way::Reweigh, Speculate::Off)).unwrap_err();
    assert!(matches!(error, Error::Vocabulary { .. }) && error.to_string().contains(" 0 %"), "{error}");

    let silent = bench.local(0, |o| o.bias = None);
    for (way, named) in [(Way::Auto, "--way"), (Way::Reweigh, "--way"), (Way::Bias, "--way")] {
        let error = bench.run(&silent, job(case, way, Speculate::Off)).unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
    let chat = bench.local(20, |o| o.continues = false);
    let error = bench.run(&chat, job(case, Way::Auto, Speculate::Off)).unwrap_err().to_string();
    assert!(error.starts_with("--max-tokens"), "{error}");
    let one = Job { max_tokens: 1, ..job(case, Way::Auto, Speculate::Off) };
    assert_eq!(bench.run(&chat, one).unwrap().finish, Finish::Length);
    let penal = SamplerOptions { repeat_penalty: 1.2, ..SamplerOptions::default() };
    let penal = Job { sampler: penal, ..job(case, Way::Auto, Speculate::Off) };
    assert!(
        bench
            .run(&chat, Job { max_tokens: 1, ..penal })
            .unwrap_err()
            .to_string()
            .starts_with("--repeat-penalty")
    );
}
