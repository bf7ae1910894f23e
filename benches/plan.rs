//! What does planning a step cost? Histories of 1,024 tokens that grow by one a step, for 1 to 64 sequences; the floor is
//! one comparison of each history with what its slot holds.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proxytune::backend::Capabilities;
use proxytune::pair::plan::{Pass, Planner, Progress, Request, common_prefix};
use std::hint::black_box;

const HISTORY: usize = 1024;

fn requests(sequences: usize) -> Vec<Request> {
    let history = |s: usize| (0..HISTORY).map(|i| (i * 31 + s * 7919) as u32 % 32_000).collect();
    (0..sequences).map(|s| Request { sequence: s as u64, history: history(s), rows: 1 }).collect()
}

fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for sequences in [1, 4, 16, 64] {
        group.throughput(Throughput::Elements(sequences as u64));
        let capabilities = Capabilities {
            slots: sequences,
            context: 1 << 20,
            batch: 1 << 20,
            vocab: 32_000,
            truncate: true,
            fork: true,
        };
        let mut planner = Planner::new(capabilities);
        let mut requests = requests(sequences);
        let mut pass = Pass::default();
        group.bench_function(BenchmarkId::new("step", sequences), |bencher| {
            bencher.iter(|| {
                // The last token changes, so that each step has one to compute, and histories stay as long.
                requests.iter_mut().for_each(|r| r.history[HISTORY - 1] ^= 1);
                let mut progress = vec![Progress::default(); sequences];
                planner.plan(&requests, &mut progress, &mut pass);
                black_box(&pass);
            });
        });
        let held = requests.clone();
        group.bench_function(BenchmarkId::new("floor", sequences), |bencher| {
            bencher.iter(|| {
                let prefix = |(r, h): (&Request, &Request)| common_prefix(&r.history, &h.history);
                black_box(requests.iter().zip(&held).map(prefix).sum::<usize>())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);
