//! What does it cost to read a prompt? Host and pair of the tiny trio read prompts of 128 to 1,000 tokens up to the first
//! token of the answer. The floor is the bare passes of the three models over the same prompt.

mod common;

use common::trio::{Trio, job};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proxytune::config::Speculate;
use proxytune::decode::Finish;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

fn prefill(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    let trio = Trio::load(1024);
    let mut decoder = trio.decoder(Speculate::Off, None);
    let mut bare = trio.bare();
    // No prompt shares its beginning with the one before.
    let mut salts = 0..;
    for len in [128, 512, 1000] {
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::new("ours", len), |bencher| {
            bencher.iter_custom(|times| {
                let mut time = Duration::ZERO;
                for salt in salts.by_ref().take(times as usize) {
                    let jobs = vec![job(trio.prompt(len, salt), 1, 1)];
                    let begin = Instant::now();
                    let outcomes = decoder.generate(jobs, false, &mut |_| ControlFlow::Continue(())).unwrap();
                    time += begin.elapsed();
                    assert!(matches!(outcomes[0].finish, Finish::Length), "{:?}", outcomes[0].finish);
                }
                time
            })
        });
        group.bench_function(BenchmarkId::new("floor", len), |bencher| {
            bencher.iter_custom(|times| {
                let prompts = salts.by_ref().take(times as usize).map(|salt| trio.prompt(len, salt));
                let time = prompts.map(|prompt| bare.prefill(&prompt)).sum();
                bare.rest();
                time
            })
        });
    }
    group.finish();
}

criterion_group!(benches, prefill);
criterion_main!(benches);
