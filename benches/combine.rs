//! The shift beside a plain copy of as many bytes: memory is its floor. Then the other rules beside the shift.

use criterion::{BenchmarkId, Criterion, Throughput};
use half::{bf16, f16};
use proxytune::combine::{
    Amateur, Contrastive, Logit, Logits, Mixture, Network, ProxyTuning, Rule, Weight, shift,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

const VOCABULARIES: [(&str, usize); 3] = [("32k", 32_000), ("128k", 128_256), ("256k", 256_000)];
/// Small, so that logits stay in range however often a row is shifted.
const ALPHA: f32 = 1e-3;

struct Rows<L> {
    host: Vec<L>,
    tuned: Vec<f32>,
    untuned: Vec<f32>,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl<L: Logit> Rows<L> {
    fn new(vocab: usize, narrow: fn(f32) -> L) -> Self {
        let row = |seed: usize| (0..vocab).map(move |i| ((i * 7919 + seed) % 2003) as f32 / 100.0 - 10.0);
        let mut rows = Self {
            host: row(1).map(narrow).collect(),
            tuned: row(2).collect(),
            untuned: row(3).collect(),
            from: vec![],
            to: vec![],
        };
        // A copy moves each byte twice.
        rows.from = vec![1; rows.moved() / 2];
        rows.to = vec![0; rows.moved() / 2];
        rows
    }

    /// Bytes that the shift moves: the host's row in and out, the proxies' rows in.
    fn moved(&self) -> usize {
        self.tuned.len() * (2 * size_of::<L>() + 2 * size_of::<f32>())
    }

    fn shift(&mut self) {
        shift(black_box(&mut self.host[..]), black_box(&self.tuned), black_box(&self.untuned), ALPHA)
            .unwrap();
    }

    fn copy(&mut self) {
        black_box(&mut self.to[..]).copy_from_slice(black_box(&self.from));
    }
}

/// Medians of the shift and of the copy, taken in turn so that both see the same machine.
fn medians<L: Logit>(rows: &mut Rows<L>) -> [Duration; 2] {
    const SAMPLES: usize = 301;
    let time = |call: &mut dyn FnMut()| {
        let begin = Instant::now();
        call();
        begin.elapsed()
    };
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..SAMPLES {
        times[0].push(time(&mut || (0..4).for_each(|_| rows.shift())));
        times[1].push(time(&mut || (0..4).for_each(|_| rows.copy())));
    }
    times.map(|mut t| {
        t.sort_unstable();
        t[SAMPLES / 2] / 4
    })
}

fn measure<L: Logit>(criterion: &mut Criterion, format: &str, narrow: fn(f32) -> L, table: &mut Vec<String>) {
    for (name, vocab) in VOCABULARIES {
        let mut rows = Rows::new(vocab, narrow);
        let mut group = criterion.benchmark_group(format!("combine/{format}"));
        group
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(30);
        group.throughput(Throughput::Bytes(rows.moved() as u64));
        group.bench_function(BenchmarkId::new("shift", name), |b| b.iter(|| rows.shift()));
        group.bench_function(BenchmarkId::new("floor", name), |b| b.iter(|| rows.copy()));
        group.finish();
        let [shift, copy] = medians(&mut rows);
        let rate = |time: Duration| rows.moved() as f64 / time.as_secs_f64() / 1e9;
        let share = 100.0 * copy.as_secs_f64() / shift.as_secs_f64();
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        table.push(format!(
            "{format:>6} {name:>10} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {share:>9.0} %",
            us(shift),
            us(copy),
            rate(shift),
            rate(copy)
        ));
    }
}

fn rules() -> [(&'static str, Box<dyn Rule>); 4] {
    let network = Network {
        deviation: [1.0; 4],
        hidden: vec![[0.1; 5]; 16],
        output: vec![0.1; 16],
        ..Network::default()
    };
    let mixture = |weight| Box::new(Mixture::new(weight).unwrap());
    [
        ("proxy-tuning", Box::new(ProxyTuning)),
        ("contrastive", Box::new(Contrastive::new(0.1, Amateur::Untuned).unwrap())),
        ("mean", mixture(Weight::Constant(0.5))),
        ("network", mixture(Weight::Learned(network))),
    ]
}

/// What a rule costs a row whose advice is there; the copy that keeps the row fresh is timed with all of them.
fn measure_rules(criterion: &mut Criterion) {
    for (name, vocab) in VOCABULARIES {
        let rows = Rows::new(vocab, std::convert::identity);
        let mut fresh = rows.host.clone();
        let mut group = criterion.benchmark_group(format!("rules/{name}"));
        group
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(30);
        for (name, rule) in rules() {
            group.bench_function(name, |b| {
                b.iter(|| {
                    fresh.copy_from_slice(&rows.host);
                    rule.apply(Logits::F32(black_box(&mut fresh)), black_box(&rows.tuned), ALPHA).unwrap()
                })
            });
        }
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Vec::new();
    measure(&mut criterion, "f32", std::convert::identity, &mut table);
    measure(&mut criterion, "f16", f16::from_f32, &mut table);
    measure(&mut criterion, "bf16", bf16::from_f32, &mut table);
    measure_rules(&mut criterion);
    criterion.final_summary();
    println!("\nShare of plain copy; medians of shift and copy, one process, taken in turn");
    println!("format vocabulary   shift us    copy us shift GB/s  copy GB/s  of copy");
    table.iter().for_each(|line| println!("{line}"));
}
