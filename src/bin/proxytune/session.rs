//! A host that mistral.rs runs, for the commands that take `--engine mistralrs`.

use proxytune::backend::llama::{LlamaModel, SamplerOptions};
use proxytune::config::Config;
use proxytune::decode::{Job, model_path};
use proxytune::host::mistralrs::{
    Chosen, Completion, Completions, EarlyStart, Host, LoadOptions, Processor, ProxyTuning, RequestOptions,
    SamplingOptions, load,
};
use proxytune::host::vocabulary;
use proxytune::{Error, Result};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use tokio::runtime::Runtime;

/// A host in mistral.rs.
pub struct Session {
    runtime: Runtime,
    completions: Completions,
    host: Host,
    /// The host's vocabulary; its weights are mistral.rs's.
    vocabulary: LlamaModel,
}

impl Session {
    pub fn load(config: &Config, options: &LoadOptions) -> Result<Self> {
        let failed = |e: std::io::Error| Error::engine("tokio", e.to_string());
        let runtime = Runtime::new().map_err(failed)?;
        let (engine, host) = runtime.block_on(load(config, options))?;
        let vocabulary = vocabulary::of_gguf(model_path(&config.host.model, "--host")?)?;
        Ok(Self { runtime, completions: Completions::new(engine, &host), host, vocabulary })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn vocabulary(&self) -> &LlamaModel {
        &self.vocabulary
    }

    /// Hands a text to mistral.rs.
    pub fn start(&self, job: &Job, processor: Option<Arc<Processor>>) -> Receiver<Result<Chosen>> {
        let _runtime = self.runtime.enter();
        self.completions.start(Completion {
            prompt: job.history.prompt().to_vec(),
            max_tokens: job.max_tokens,
            sampling: sampling(&job.sampler),
            repeat_penalty: job.sampler.repeat_penalty,
            constraint: mistralrs::Constraint::None,
            processor,
        })
    }
}

/// The shift for one text.
pub fn processor(tuning: &ProxyTuning, job: &Job, early_start: EarlyStart) -> Result<Arc<Processor>> {
    tuning.processor(RequestOptions {
        alpha: Some(job.alpha),
        tuned_prompt: job.history.tuned_prompt().map(<[u32]>::to_vec),
        early_start,
        sampling: Some(sampling(&job.sampler)),
        ..RequestOptions::default()
    })
}

fn sampling(options: &SamplerOptions) -> SamplingOptions {
    SamplingOptions {
        temperature: options.temperature.into(),
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        seed: options.seed,
    }
}
