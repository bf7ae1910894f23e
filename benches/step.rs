//! What of a step is ours? Greedy decoding over engines that take no time, for 1 to 64 sequences and two vocabularies; the
//! floor is the shift and the choice of a token alone, on rows that are there already.

mod common;

use common::{Free, NoText};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proxytune::backend::llama::SamplerOptions;
use proxytune::combine::{argmax, shift};
use proxytune::config::Speculate;
use proxytune::decode::{DecodeOptions, Decoder, Job};
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy};
use proxytune::vocab::TokenMap;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;

const TOKENS: usize = 32;

fn decoder(sequences: usize, vocab: usize) -> Decoder {
    let model = |name: &str, seed| CachedModel::new(name, Free::new(sequences, vocab, seed));
    let proxy = |name, seed| Proxy { model: model(name, seed), map: TokenMap::identity(vocab) };
    let pair = Pair::new(proxy("tuned", 2), proxy("untuned", 3), Placement::InTurn).unwrap();
    let options = DecodeOptions { speculate: Speculate::Off, ..DecodeOptions::default() };
    Decoder::new(Arc::new(NoText), model("host", 1), Some(pair), options)
}

fn jobs(sequences: usize) -> Vec<Job> {
    let job = |s| Job {
        history: History::new((0..64).map(|i| i + s).collect(), None),
        alpha: 1.0,
        sampler: SamplerOptions::default(),
        max_tokens: TOKENS,
        stops: vec![],
        control: false,
        ignore_end: true,
    };
    (0..sequences as u32).map(job).collect()
}

fn step(criterion: &mut Criterion) {
    for (name, vocab) in [("4k", 4_096), ("128k", 128_256)] {
        let mut group = criterion.benchmark_group(format!("step/{name}"));
        group.sample_size(20);
        for sequences in [1, 4, 16, 64] {
            // One element is one token of one sequence.
            group.throughput(Throughput::Elements((sequences * TOKENS) as u64));
            let mut decoder = decoder(sequences, vocab);
            group.bench_function(BenchmarkId::new("ours", sequences), |bencher| {
                bencher.iter(|| {
                    let listen = &mut |_: proxytune::decode::Event<'_>| ControlFlow::Continue(());
                    black_box(decoder.generate(jobs(sequences), false, listen).unwrap());
                });
            });
            let row = |seed: usize| (0..vocab).map(|i| ((i * 7919 + seed) % 2003) as f32 / 1e5).collect();
            let (mut host, tuned, untuned): (Vec<f32>, Vec<f32>, Vec<f32>) = (row(1), row(2), row(3));
            group.bench_function(BenchmarkId::new("floor", sequences), |bencher| {
                bencher.iter(|| {
                    for _ in 0..sequences * TOKENS {
                        shift(&mut host, &tuned, &untuned, 1e-3).unwrap();
                        black_box(argmax(&host));
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, step);
criterion_main!(benches);
