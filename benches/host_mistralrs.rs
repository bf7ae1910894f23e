//! What of a step of mistral.rs is the processor's own? It is asked again and again for a history whose offset it has: finding
//! the sequence, the shift, the choice of the next token, and the row's way in and out of a tensor. The floor is that way alone,
//! a processor that copies the row.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mistralrs::{CustomLogitsProcessor, Device, Tensor};
use proxytune::config::Config;
use proxytune::host::mistralrs::{EarlyStart, Host, ProxyTuning, RequestOptions, SamplingOptions};
use std::hint::black_box;

fn apply(criterion: &mut Criterion) {
    let model = |name: &str| Some(format!("{}/models/tiny-{name}.gguf", env!("CARGO_MANIFEST_DIR")).into());
    let mut config = Config::default();
    config.host.model = model("host");
    config.proxy_tuning.tuned = model("tuned");
    config.proxy_tuning.untuned = model("untuned");
    let host = Host::of_config(&config, 1).unwrap();
    let tuning = ProxyTuning::new(config, &host).unwrap();
    let vocab = host.shape.vocabulary.len();
    let row: Vec<f32> = (0..vocab).map(|i| ((i * 7919) % 2003) as f32 / 100.0).collect();
    let logits = Tensor::from_slice(&row, vocab, &Device::Cpu).unwrap();
    let history: Vec<u32> = (300..364).collect();

    let mut group = criterion.benchmark_group("mistralrs/apply");
    group.bench_function("floor", |bencher| {
        bencher.iter(|| {
            let row = logits.to_vec1::<f32>().unwrap();
            black_box(Tensor::from_vec(row, vocab, &Device::Cpu).unwrap())
        })
    });
    let ways = [("off", EarlyStart::Off), ("guess", EarlyStart::Guess), ("sample", EarlyStart::Sample)];
    for (name, early_start) in ways {
        let sampling = Some(SamplingOptions { top_p: 0.9, seed: Some(1), ..SamplingOptions::default() });
        let options = RequestOptions { early_start, sampling, ..RequestOptions::default() };
        let processor = tuning.processor(options).unwrap();
        group.bench_function(BenchmarkId::new("early start", name), |bencher| {
            bencher.iter(|| black_box(processor.apply(&logits, &history).unwrap()))
        });
    }
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
