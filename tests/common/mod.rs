//! What several test files share: the float32 trio and the golden files of the transformers oracle.
#![allow(dead_code)]

use proxytune::backend::llama::{ContextOptions, LlamaContext, SamplerOptions, ThreadPool};
use proxytune::backend::{Backend, Span};
use proxytune::config::Config;
use proxytune::decode::{Job, Models};
use proxytune::pair::History;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// The float32 trio of the golden files.
pub fn fixture_config() -> Config {
    let mut config = Config::default();
    config.host.model = Some(path("tests/fixtures/host-f32.gguf"));
    config.proxy_tuning.tuned = Some(path("tests/fixtures/tuned-f32.gguf"));
    config.proxy_tuning.untuned = Some(path("tests/fixtures/untuned-f32.gguf"));
    config
}

pub fn models(config: &Config, alone: bool) -> Models {
    Models::load(config, alone, &mut |_, _| true).unwrap()
}

/// The host's logits for the token after a history, from llama.cpp.
pub fn host_row(models: &Models, history: &History) -> Vec<f32> {
    let options = ContextOptions {
        name: "host".into(),
        slots: 1,
        context: history.tokens().len(),
        batch: 512,
        pool: Arc::new(ThreadPool::new(1, 0).unwrap()),
        pool_alone: None,
    };
    let mut context = LlamaContext::new(models.host.clone(), &options).unwrap();
    context.forward(&[Span { slot: 0, start: 0, tokens: history.tokens(), rows: 1 }]).unwrap();
    context.logits(0).to_vec()
}

/// Tests that compute take turns: the engine's threads spin, and several engines on two cores slow each other to a crawl.
pub fn take_turns() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One case of the oracle.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    pub prompt: String,
    pub alpha: f32,
    pub prompt_tokens: Vec<u32>,
    pub tuned_prompt_tokens: Vec<u32>,
    pub tokens: Vec<u32>,
    pub host_tokens: Vec<u32>,
    pub positions: Vec<usize>,
}

impl Case {
    pub fn history(&self) -> History {
        let own = self.tuned_prompt_tokens != self.prompt_tokens;
        History::new(self.prompt_tokens.clone(), own.then(|| self.tuned_prompt_tokens.clone()))
    }

    /// Its greedy text, as long as the oracle's and whatever ends a text.
    pub fn job(&self) -> Job {
        Job {
            history: self.history(),
            alpha: self.alpha,
            sampler: SamplerOptions::default(),
            max_tokens: self.tokens.len(),
            stops: vec![],
            control: true,
            ignore_end: true,
        }
    }
}

pub fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(path("tests/golden/golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = |c: &serde_json::Value| {
        let ids = |key: &str| c[key].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
        let positions: Vec<u32> = ids("positions");
        Case {
            name: c["name"].as_str().unwrap().into(),
            prompt: c["prompt"].as_str().unwrap().into(),
            alpha: c["alpha"].as_f64().unwrap() as f32,
            prompt_tokens: ids("prompt_tokens"),
            tuned_prompt_tokens: ids("tuned_prompt_tokens"),
            tokens: ids("tokens"),
            host_tokens: ids("host_tokens"),
            positions: positions.into_iter().map(|p| p as usize).collect(),
        }
    };
    let cases: Vec<Case> = golden["cases"].as_array().unwrap().iter().map(case).collect();
    assert!(cases.len() >= 10, "golden files hold {} cases", cases.len());
    cases
}

/// Rows of a golden tensor `[positions, vocabulary]`.
pub fn golden_rows(name: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path("tests/golden/golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let width = tensor.shape()[1];
    let values: Vec<f32> =
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}
