//! The host's own loop.

use super::*;
use proxytune::backend::llama::SamplerOptions;
use proxytune::config::{OnError, Speculate};
use proxytune::decode::{DecodeOptions, Decoder, Finish, Job, Outcome, Pieces};
use std::ops::ControlFlow;
use std::sync::Arc;

struct NoText;

impl Pieces for NoText {
    fn is_end(&self, _: Token) -> bool {
        false
    }
    fn piece(&self, _: Token, _: bool) -> Vec<u8> {
        vec![]
    }
}

fn job(first: Token, alpha: f32) -> Job {
    Job {
        history: History::new(vec![first, 1], None),
        alpha,
        sampler: SamplerOptions::default(),
        max_tokens: 12,
        stops: vec![],
        control: true,
        ignore_end: true,
    }
}

/// Three texts at once; the switch is set before, and `at` hears of every token.
fn decode(
    (pair, on_error, speculate): (Pair, OnError, Speculate),
    alpha: f32,
    at: &mut dyn FnMut(usize),
) -> Vec<Outcome> {
    let options = DecodeOptions { on_error, speculate, ..DecodeOptions::default() };
    let host = CachedModel::new("host", toy(1));
    let mut decoder = Decoder::new(Arc::new(NoText), host, Some(pair), options);
    let mut told = 0;
    let jobs = (0..3).map(|i| job(i, alpha)).collect();
    let outcomes = decoder.generate(jobs, false, &mut |_| {
        told += 1;
        at(told);
        ControlFlow::Continue(())
    });
    outcomes.unwrap()
}

fn tokens(outcomes: &[Outcome]) -> Vec<Vec<Token>> {
    outcomes.iter().map(|o| o.tokens.clone()).collect()
}

/// A proxy that hangs from the start, and one that does for a while.
fn hang(faulty: usize, placement: Placement, speculate: Speculate) {
    let pair = || pair(faulty, placement, Some(LIMIT));
    let alone = decode((pair().0, OnError::Host, speculate), 0.0, &mut |_| {});
    let (hanging, switch) = pair();
    switch.set(Fault::Hang);
    let outcomes = decode((hanging, OnError::Host, speculate), 1.0, &mut |_| {});
    assert_eq!(tokens(&outcomes), tokens(&alone));
    assert!(outcomes.iter().all(|o| matches!(o.finish, Finish::Length)));

    let (hanging, switch) = pair();
    switch.set(Fault::Hang);
    let outcomes = decode((hanging, OnError::Stop, speculate), 1.0, &mut |_| {});
    let ended = |o: &Outcome| matches!(o.finish, Finish::Error(Error::Timeout { .. }));
    assert!(outcomes.iter().all(ended));

    let quiet = decode((pair().0, OnError::Host, speculate), 1.0, &mut |_| {});
    let (passing, switch) = pair();
    let outcomes = decode((passing, OnError::Host, speculate), 1.0, &mut |told| match told {
        10 => switch.set(Fault::Hang),
        20 => switch.set(Fault::None),
        _ => {}
    });
    for (outcome, quiet) in outcomes.iter().zip(&quiet) {
        assert_eq!(outcome.tokens[..2], quiet.tokens[..2]);
        assert_eq!(outcome.tokens.len(), 12);
    }
}

#[test]
fn texts_go_on_as_the_hosts_while_a_proxy_hangs() {
    thread::scope(|scope| {
        for placement in PLACEMENTS {
            for speculate in [Speculate::Off, Speculate::Tokens(3)] {
                for faulty in [0, 1] {
                    scope.spawn(move || hang(faulty, placement, speculate));
                }
            }
        }
    });
}

#[test]
fn a_fault_of_one_text_leaves_the_others_as_they_are() {
    for fault in [Fault::Fail, Fault::Nan, Fault::Short, Fault::Panic] {
        let quiet =
            decode((pair(0, Placement::Auto, None).0, OnError::Stop, Speculate::Off), 1.0, &mut |_| {});
        let (faulty, switch) = pair(0, Placement::Auto, None);
        // A token that is nowhere read.
        switch.set_for(fault, 1_000);
        let outcomes = decode((faulty, OnError::Stop, Speculate::Off), 1.0, &mut |_| {});
        assert_eq!(tokens(&outcomes), tokens(&quiet));

        let (faulty, switch) = pair(0, Placement::Auto, None);
        switch.set_for(fault, 2);
        let outcomes = decode((faulty, OnError::Stop, Speculate::Off), 1.0, &mut |_| {});
        for (outcome, quiet) in outcomes.iter().zip(&quiet) {
            // A text ends where it reads the token; what it wrote until then, and all others, are as in a quiet run.
            let read = [outcome.prompt_tokens.as_slice(), &quiet.tokens[..11]].concat();
            match read.iter().position(|&t| t == 2) {
                None => assert_eq!(outcome.tokens, quiet.tokens),
                Some(at) => {
                    let written = at.saturating_sub(1);
                    assert_eq!(outcome.tokens, quiet.tokens[..written]);
                    assert!(matches!(outcome.finish, Finish::Error(Error::Engine { .. })));
                }
            }
        }
    }
}
