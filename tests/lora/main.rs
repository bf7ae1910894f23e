//! The tuned proxy as a LoRA adapter over the untuned one: the same as weights with the adapter added in, and files that are
//! refused.
#![cfg(feature = "llama")]

#[path = "../common/mod.rs"]
mod common;
mod gguf;

use common::{cases, fixture_config, host_row, models, path, take_turns};
use gguf::{File, Model, Place, Value};
use proxytune::backend::llama::{LlamaModel, LoadOptions};
use proxytune::config::Config;
use proxytune::decode::{Job, Models, RunOptions};
use std::ops::ControlFlow;
use std::path::Path;

const UNTUNED: &str = "tests/fixtures/untuned-f32.gguf";
const RANK: usize = 4;
const ALPHA: f32 = 8.0;
/// `x*W + x*A*B` and `x*(W + A*B)` are summed in different orders.
const ROUNDING: f32 = 2e-3;

/// Numbers from -1 to 1 that are the same everywhere.
fn noise(seed: usize, count: usize) -> Vec<f32> {
    let mut state = seed as u64 * 0x9e37_79b9_7f4a_7c15 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// An adapter for every matrix of attention and feed-forward, large enough to matter.
fn adapter(model: &Model) -> File {
    let is_matrix = |t: &&Place| t.name.starts_with("blk.") && t.shape.len() == 2;
    let mut tensors = Vec::new();
    for (seed, Place { name, shape, .. }) in model.tensors.iter().filter(is_matrix).enumerate() {
        let factor = |scale: f32, values: Vec<f32>| values.into_iter().map(|v| v * scale).collect();
        let a = factor(1.0 / (shape[0] as f32).sqrt(), noise(2 * seed, shape[0] * RANK));
        let b = factor(0.2, noise(2 * seed + 1, RANK * shape[1]));
        tensors.push((format!("{name}.lora_a"), vec![shape[0], RANK], a));
        tensors.push((format!("{name}.lora_b"), vec![RANK, shape[1]], b));
    }
    let keys = vec![
        ("general.type", Value::Text("adapter")),
        ("general.architecture", Value::Text("llama")),
        ("adapter.type", Value::Text("lora")),
        ("adapter.lora.alpha", Value::F32(ALPHA)),
    ];
    File { keys, tensors }
}

/// The model with the adapter added to its weights.
fn merged(model: &mut Model, adapter: &File) {
    for tensor in model.tensors.clone() {
        let factor = |end: &str| {
            let name = format!("{}{end}", tensor.name);
            adapter.tensors.iter().find(|(of, ..)| *of == name).map(|(_, _, values)| values)
        };
        let (Some(a), Some(b)) = (factor(".lora_a"), factor(".lora_b")) else { continue };
        let delta = |row: usize, column: usize| {
            let product = (0..RANK).map(|r| b[row * RANK + r] * a[r * tensor.shape[0] + column]);
            ALPHA / RANK as f32 * product.sum::<f32>()
        };
        model.add(&tensor, delta);
    }
}

fn tokens(models: &Models, config: &Config) -> Vec<Vec<u32>> {
    let jobs: Vec<Job> =
        cases().iter().map(|case| Job { alpha: 1.0, max_tokens: 24, ..case.job() }).collect();
    let run = RunOptions { sequences: jobs.len(), longest: 512, ..RunOptions::default() };
    let mut decoder = models.decoder(config, run).unwrap();
    let outcomes = decoder.generate(jobs, false, &mut |_| ControlFlow::Continue(())).unwrap();
    outcomes.into_iter().map(|outcome| outcome.tokens).collect()
}

#[test]
fn an_adapter_shifts_as_the_weights_it_stands_for() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let [lora, whole] = ["lora.gguf", "whole.gguf"].map(|name| folder.path().join(name));
    let mut model = Model::read(&path(UNTUNED));
    let adapter = adapter(&model);
    std::fs::write(&lora, adapter.bytes()).unwrap();
    merged(&mut model, &adapter);
    std::fs::write(&whole, &model.bytes).unwrap();

    let (mut by_lora, mut by_weights) = (fixture_config(), fixture_config());
    (by_lora.proxy_tuning.tuned, by_lora.proxy_tuning.tuned_lora) = (None, Some(lora));
    by_weights.proxy_tuning.tuned = Some(whole);
    let (with_lora, with_weights) = (models(&by_lora, false), models(&by_weights, false));
    for case in cases() {
        let row = |models: &Models, which: usize| {
            let proxy = models.proxies.as_ref().unwrap()[which].0.clone();
            host_row(&Models { host: proxy, proxies: None }, &case.history())
        };
        let [tuned, untuned] = [0, 1].map(|which| row(&with_lora, which));
        let [expected, plain] = [0, 1].map(|which| row(&with_weights, which));
        assert_eq!(untuned, plain, "{}: the untuned proxy's weights are its own", case.name);
        let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(differ(&tuned, &plain) > 1.0, "{}: the adapter changes next to nothing", case.name);
        let off = differ(&tuned, &expected);
        assert!(off < ROUNDING, "{}: a logit is off by {off}", case.name);
    }
    assert_eq!(tokens(&with_lora, &by_lora), tokens(&with_weights, &by_weights));
    let same = [0, 1].map(|which| with_lora.proxies.as_ref().unwrap()[which].0.size());
    assert_eq!(same[0], same[1]);
}

/// What `with_lora` says of a file with these bytes.
fn refusal(bytes: &[u8], vocab_only: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter.gguf");
    std::fs::write(&file, bytes).unwrap();
    let options = LoadOptions { vocab_only, ..LoadOptions::default() };
    let model = LlamaModel::load(&path(UNTUNED), options).unwrap();
    let error = model.with_lora(&file).err().map(|error| error.to_string());
    let error = error.expect("a broken adapter was taken");
    assert!(error.contains("adapter.gguf"), "{error}");
    error
}

fn key(file: &mut File, key: &str, value: Value) {
    file.keys.iter_mut().find(|(name, _)| *name == key).unwrap().1 = value;
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let good = adapter(&Model::read(&path(UNTUNED)));
    let named = |end: &str| good.tensors.iter().position(|(name, ..)| name.ends_with(end)).unwrap();
    let (q_a, q_b) = (named("attn_q.weight.lora_a"), named("attn_q.weight.lora_b"));
    let width = good.tensors[q_a].1[0];
    type Change<'a> = (&'a str, Box<dyn Fn(&mut File) + 'a>);
    let renamed = |to: &'static str| -> Box<dyn Fn(&mut File) + '_> {
        Box::new(move |file| {
            for (at, end) in [(q_a, "lora_a"), (q_b, "lora_b")] {
                file.tensors[at].0 = format!("{to}.{end}");
            }
        })
    };
    let norm = |name: &str| (name.to_owned(), vec![width], vec![1.0; width]);
    let changes: Vec<Change<'_>> = vec![
        (
            "no LoRA adapter but \"model\"",
            Box::new(|f| f.keys = vec![("general.type", Value::Text("model"))]),
        ),
        ("no LoRA adapter", Box::new(|f| key(f, "general.type", Value::U32(1)))),
        ("no LoRA adapter but \"ia3\"", Box::new(|f| key(f, "adapter.type", Value::Text("ia3")))),
        (
            "for the architecture \"qwen2\"",
            Box::new(|f| key(f, "general.architecture", Value::Text("qwen2"))),
        ),
        ("no finite 32-bit float", Box::new(|f| key(f, "adapter.lora.alpha", Value::U32(8)))),
        ("no finite 32-bit float", Box::new(|f| key(f, "adapter.lora.alpha", Value::F32(f32::NAN)))),
        ("activated LoRA", Box::new(|f| f.keys.push(("adapter.alora.invocation_tokens", Value::U32(1))))),
        ("holds no tensors", Box::new(|f| f.tensors.clear())),
        (
            "blk.0.attn_norm.weight, which llama.cpp leaves out",
            Box::new(|f| f.tensors.push(norm("blk.0.attn_norm.weight"))),
        ),
        ("attn_norm.weight, which llama.cpp adds no adapter to", renamed("blk.0.attn_norm.weight")),
        ("attn_q.bias, which llama.cpp adds no adapter to", renamed("blk.0.attn_q.bias")),
        ("output as well", renamed("token_embd.weight")),
        ("blk.99.attn_q.weight, which the untuned proxy has not", renamed("blk.99.attn_q.weight")),
        ("without the other", Box::new(|f| drop(f.tensors.remove(q_b)))),
        ("do not fit", Box::new(|f| f.tensors[q_a].1 = vec![width / 2, 2 * RANK])),
        ("do not fit", Box::new(|f| f.tensors[q_a].1 = vec![width, RANK / 2, 2])),
        ("do not fit", Box::new(|f| f.tensors[q_b].1.swap(0, 1))),
    ];
    for (said, change) in changes {
        let mut file = good.clone();
        change(&mut file);
        for vocab_only in [false, true] {
            let error = refusal(&file.bytes(), vocab_only);
            assert!(error.contains(said), "{said}: {error}");
        }
    }
    let bytes = good.bytes();
    for share in 1..10 {
        let error = refusal(&bytes[..bytes.len() * share / 10], false);
        assert!(error.contains("truncated"), "{error}");
    }
    assert!(refusal(b"not a model", false).contains("is not a GGUF file"));
    assert!(
        refusal(&std::fs::read(path(UNTUNED)).unwrap(), false).contains("whole tuned model goes into tuned")
    );
}

#[test]
fn a_model_has_one_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter.gguf");
    std::fs::write(&file, adapter(&Model::read(&path(UNTUNED))).bytes()).unwrap();
    let model = LlamaModel::load(&path(UNTUNED), LoadOptions::default()).unwrap();
    let [_tuned, plain] = model.with_lora(&file).unwrap();
    assert!(plain.with_lora(&file).err().unwrap().to_string().contains("one for each model"));
}

#[cfg(feature = "cli")]
mod program {
    use super::*;
    use assert_cmd::Command;
    use predicates::prelude::*;
    use predicates::str::contains;

    fn proxytune(arguments: &[&str], lora: &Path) -> assert_cmd::assert::Assert {
        let mut command = Command::cargo_bin("proxytune").unwrap();
        let models = ["--host", "tests/fixtures/host-f32.gguf", "--untuned", UNTUNED, "--tuned-lora"];
        command.current_dir(path("")).args(arguments).args(models).arg(lora).assert()
    }

    #[test]
    fn the_program_takes_an_adapter_and_counts_its_weights_once() {
        let _turn = take_turns();
        let folder = tempfile::tempdir().unwrap();
        let [file, config] = ["adapter.gguf", "some.toml"].map(|name| folder.path().join(name));
        let bytes = adapter(&Model::read(&path(UNTUNED))).bytes();
        std::fs::write(&file, &bytes).unwrap();
        // The flag takes the place of the file's model.
        std::fs::write(&config, "[proxy_tuning]\ntuned = 'nowhere.gguf'\n").unwrap();
        let config = config.to_str().unwrap();
        proxytune(&["check"], &file)
            .success()
            .stdout(contains("llama + LoRA").and(contains("can work together")));
        let output = proxytune(&["check", "--format", "json", "--config", config], &file).success();
        let checked: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        assert_eq!(checked["models"][1]["lora"], true);
        assert_eq!(checked["models"][1]["weights_bytes"], bytes.len());
        proxytune(&["generate", "--prompt", "def f", "--max-tokens", "4"], &file).success();
        proxytune(&["check", "--tuned", UNTUNED], &file).code(2).stderr(contains("cannot be used with"));
        proxytune(&["check"], &path(UNTUNED)).code(2).stderr(contains("is no LoRA adapter"));
    }
}
