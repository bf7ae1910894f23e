//! What does a step of drafting cost, and what does it gain? The tiny trio decodes one sequence with drafts of 1 to 8 tokens,
//! each accepted by force with a given probability, and without drafts. The floor is the bare forward passes that the
//! very same steps need.

mod common;

use common::trio::{Bare, Trio, job};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proxytune::config::Speculate;
use proxytune::decode::accept::Dice;
use proxytune::decode::{Decoder, Event, Outcome};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

const PROMPT: usize = 64;
const TOKENS: usize = 65;
const MOST_DRAFTS: u8 = 8;
/// Of the drafts that are accepted: the same ones each time.
const SEED: u64 = 1;

/// Tokens drafted and accepted in one step.
#[derive(Clone, Copy)]
struct Step {
    drafted: usize,
    accepted: usize,
}

/// The steps in which drafts of `longest` tokens make all tokens but the first, which comes with the prompt.
fn steps(longest: usize, share: f64) -> Vec<Step> {
    let (mut dice, mut made, mut steps) = (Dice::new(Some(SEED)), 1, Vec::new());
    while made < TOKENS {
        // The last of all is the host's own.
        let drafted = longest.min(TOKENS - made - 1);
        let accepted = (0..drafted).take_while(|_| dice.roll() < share).count();
        steps.push(Step { drafted, accepted });
        made += accepted + 1;
    }
    steps
}

/// Decodes once, and says how long the tokens after the first took.
fn decode(decoder: &mut Decoder, prompt: &[u32]) -> (Duration, Outcome) {
    let (mut first, mut last) = (None, Instant::now());
    let listen = &mut |event: Event<'_>| {
        if let Event::Token { .. } = event {
            last = Instant::now();
            first.get_or_insert(last);
        }
        ControlFlow::Continue(())
    };
    let outcome =
        decoder.generate(vec![job(prompt.to_vec(), TOKENS, SEED)], false, listen).unwrap().remove(0);
    (last - first.unwrap(), outcome)
}

/// The passes of these steps and nothing else.
fn passes(bare: &mut Bare, prompt: &[u32], steps: &[Step]) -> Duration {
    bare.prefill(prompt);
    let mut time = Duration::ZERO;
    for &Step { drafted, accepted } in steps {
        // Which tokens they are does not matter.
        let tokens = &prompt[..drafted + 1];
        let full = accepted == drafted;
        (0..drafted).for_each(|at| time += bare.tuned.pass(&tokens[at..=at], 1));
        time += bare.host.pass(tokens, drafted + 1);
        if drafted > 0 {
            time += bare.untuned.pass(&tokens[1..], drafted);
        }
        if full {
            time += bare.tuned.pass(&tokens[..1], 1) + bare.untuned.pass(&tokens[..1], 1);
        } else {
            bare.host.drop_last(drafted - accepted);
            bare.tuned.drop_last(drafted - accepted - 1);
            bare.untuned.drop_last(drafted - accepted - 1);
        }
    }
    bare.rest();
    time
}

/// Drafts of `longest` tokens, or none, beside their floor.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, trio: &Trio, bare: &mut Bare, longest: u8, share: f64) {
    let speculate = if longest == 0 { Speculate::Off } else { Speculate::Tokens(longest) };
    let prompt = trio.prompt(PROMPT, 0);
    let mut decoder = trio.decoder(speculate, Some(share));
    let steps = steps(longest.into(), share);
    // The floor must be one of the same steps.
    let stats = decode(&mut decoder, &prompt).1.stats;
    let sum = |of: fn(&Step) -> usize| steps.iter().map(of).sum::<usize>();
    let expected = [steps.len(), sum(|s| s.drafted), sum(|s| s.accepted)];
    assert_eq!([stats.steps, stats.drafted, stats.accepted], expected, "steps, drafted, accepted");
    group.sample_size(10).throughput(Throughput::Elements(TOKENS as u64 - 1));
    group.bench_function(BenchmarkId::new("ours", longest), |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| decode(&mut decoder, &prompt).0).sum())
    });
    group.bench_function(BenchmarkId::new("floor", longest), |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| passes(bare, &prompt, &steps)).sum())
    });
}

fn speculate(criterion: &mut Criterion) {
    let trio = Trio::load(PROMPT + TOKENS + 1);
    let mut bare = trio.bare();
    for share in [0.5, 0.7, 0.9, 1.0] {
        let mut group = criterion.benchmark_group(format!("speculate/{:.0} % accepted", 100.0 * share));
        for longest in 0..=MOST_DRAFTS {
            measure(&mut group, &trio, &mut bare, longest, share);
        }
        group.finish();
    }
}

criterion_group!(benches, speculate);
criterion_main!(benches);
