//! The decode loop with several sequences at once: each ends by itself, and a proxy's failure stays with its sequence.
#![cfg(feature = "llama")]

mod common;

use common::{Case, cases, fixture_config, models, take_turns};
use proxytune::config::{Config, OnError, Speculate};
use proxytune::decode::{Event, Finish, Job, Outcome, RunOptions};
use std::ops::ControlFlow;

fn job(case: &Case, stops: &[&str]) -> Job {
    Job { max_tokens: 48, stops: stops.iter().map(|s| s.to_string()).collect(), ..case.job() }
}

/// Decodes together; returns outcomes and the text streamed for each job.
fn decode(config: &Config, jobs: Vec<Job>) -> (Vec<Outcome>, Vec<String>) {
    let run = RunOptions { sequences: jobs.len(), longest: 512, ..RunOptions::default() };
    let mut decoder = models(config, false).decoder(config, run).unwrap();
    let mut streamed = vec![String::new(); jobs.len()];
    let outcomes = decoder.generate(jobs, false, &mut |event| {
        if let Event::Token { job, text, .. } = event {
            streamed[job] += text;
        }
        ControlFlow::Continue(())
    });
    (outcomes.unwrap(), streamed)
}

#[test]
fn a_gate_leaves_sure_positions_to_the_host_and_counts_what_it_got_wrong() {
    let _turn = take_turns();
    let cases: Vec<Case> = cases().into_iter().filter(|c| c.alpha != 0.0).collect();
    let run = |skip_above, speculate, explain| {
        let mut config = fixture_config();
        (config.proxy_tuning.skip_above, config.proxy_tuning.speculate) = (skip_above, speculate);
        let run = RunOptions { sequences: cases.len(), longest: 512, ..RunOptions::default() };
        let mut decoder = models(&config, false).decoder(&config, run).unwrap();
        let jobs = cases.iter().map(|case| job(case, &[])).collect();
        decoder.generate(jobs, explain, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let plain = run(1.0, Speculate::Off, false);
    let mut skipped = 0;
    let mut unharmed = 0;
    let ways = [Speculate::Off, Speculate::Tokens(3)];
    for (speculate, threshold) in ways.into_iter().flat_map(|way| [0.6, 0.8, 0.9].map(|p| (way, p))) {
        let (gated, explained) = (run(threshold, speculate, false), run(threshold, speculate, true));
        for (i, case) in cases.iter().enumerate() {
            let stats = &explained[i].stats;
            // The gate's choices do not depend on whether its errors are counted.
            assert_eq!(gated[i].tokens, explained[i].tokens, "{}", case.name);
            assert_eq!((gated[i].stats.skipped, gated[i].stats.missed), (stats.skipped, 0), "{}", case.name);
            assert!(stats.missed <= stats.skipped && stats.skipped < stats.tokens, "{}", case.name);
            if stats.missed == 0 {
                assert_eq!(gated[i].tokens, plain[i].tokens, "{}: nothing was missed", case.name);
            }
            skipped += stats.skipped;
        }
        unharmed += explained.iter().filter(|o| o.stats.missed == 0 && o.stats.skipped > 0).count();
    }
    assert!(skipped > 0 && unharmed > 0, "nothing to compare");
    assert!(plain.iter().all(|o| o.stats.skipped == 0));
    // Left to the host everywhere but at the first token, which comes with the prompts.
    let off = run(1e-6, Speculate::Off, false);
    for (outcome, case) in off.iter().zip(&cases) {
        assert_eq!(outcome.stats.skipped, outcome.tokens.len() - 1, "{}", case.name);
        assert_eq!(outcome.tokens[0], case.tokens[0], "{}", case.name);
        if case.tokens[0] == case.host_tokens[0] {
            assert_eq!(outcome.tokens[..], case.host_tokens[..outcome.tokens.len()], "{}", case.name);
        }
    }
}

#[test]
fn a_stop_string_ends_its_own_sequence_only_and_streams_are_the_texts() {
    let _turn = take_turns();
    let cases: Vec<Case> = cases().into_iter().filter(|c| c.prompt_tokens.len() < 100).collect();
    let config = fixture_config();
    let (free, streamed) = decode(&config, cases.iter().map(|c| job(c, &[])).collect());
    for (outcome, streamed) in free.iter().zip(&streamed) {
        assert_eq!(&outcome.text, streamed);
    }
    let middle = free[0].text.char_indices().nth(free[0].text.chars().count() / 2).unwrap().0;
    let stop: String = free[0].text[middle..].chars().take(4).collect();
    let jobs =
        cases.iter().enumerate().map(|(i, c)| if i == 0 { job(c, &[&stop]) } else { job(c, &[]) }).collect();
    let (stopped, streamed) = decode(&config, jobs);
    assert!(matches!(stopped[0].finish, Finish::Stop));
    assert_eq!(stopped[0].text, free[0].text[..free[0].text.find(&stop).unwrap()]);
    assert_eq!(stopped[0].text, streamed[0]);
    for (with, without) in stopped.iter().zip(&free).skip(1) {
        assert_eq!(with.tokens, without.tokens);
    }
}

#[test]
fn a_full_proxy_ends_the_shift_or_the_request_as_configured_and_leaves_neighbours_alone() {
    let _turn = take_turns();
    let cases = cases();
    let short = cases.iter().find(|c| c.prompt_tokens.len() == 5).unwrap();
    let long = cases.iter().find(|c| c.name == "prose-64").unwrap();
    let mut config = fixture_config();
    // The short one fits with its 48 tokens, the long one has room for 16 of them.
    config.proxy_tuning.ctx = 80;
    let jobs = || vec![job(short, &[]), job(long, &[])];

    let (outcomes, _) = decode(&config, jobs());
    assert_eq!(outcomes[0].tokens, short.tokens[..48]);
    assert_eq!(outcomes[0].stats.unshifted, 0);
    assert!(matches!(outcomes[1].finish, Finish::Length));
    assert_eq!(outcomes[1].tokens[..17], long.tokens[..17]);
    assert_eq!(outcomes[1].stats.unshifted, 48 - 17);

    config.proxy_tuning.on_error = OnError::Stop;
    let (outcomes, _) = decode(&config, jobs());
    assert_eq!(outcomes[0].tokens, short.tokens[..48]);
    assert!(matches!(&outcomes[1].finish, Finish::Error(e) if e.to_string().contains("proxy")));
    assert_eq!(outcomes[1].tokens, long.tokens[..17]);
}
