//! The shipped trio with its engines: a decoder, and the same forward passes with nothing around them.

use super::NoText;
use proxytune::backend::llama::{ContextOptions, LlamaContext, LlamaModel, SamplerOptions, ThreadPool};
use proxytune::backend::{Backend, Span};
use proxytune::config::{Config, Speculate};
use proxytune::decode::{DecodeOptions, Decoder, Job, MappedProxies, Models};
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of one forward pass, as in the program.
const BATCH: usize = 512;

/// The weights of the tiny trio, and how many tokens a history may reach.
pub struct Trio {
    host: Arc<LlamaModel>,
    proxies: MappedProxies,
    context: usize,
}

impl Trio {
    /// Loads it.
    pub fn load(context: usize) -> Self {
        let model =
            |name: &str| Some(format!("{}/models/tiny-{name}.gguf", env!("CARGO_MANIFEST_DIR")).into());
        let mut config = Config::default();
        config.host.model = model("host");
        config.proxy_tuning.tuned = model("tuned");
        config.proxy_tuning.untuned = model("untuned");
        let models = Models::load(&config, false, &mut |_, _| true).unwrap();
        Self { host: models.host, proxies: models.proxies.unwrap(), context }
    }

    /// Any tokens will do; those of another `salt` share no beginning, and so no cache.
    pub fn prompt(&self, len: usize, salt: u32) -> Vec<u32> {
        // A proxy may know fewer tokens. The first ids are control tokens.
        let vocab =
            [&self.host, &self.proxies[0].0, &self.proxies[1].0].map(|m| m.vocab_len()).into_iter().min();
        let vocab = vocab.unwrap() as u32 - 300;
        (0..len as u32).map(|i| 300 + (i * 7919 + salt * 104_729) % vocab).collect()
    }

    /// Threads for passes that take turns.
    fn pool() -> Arc<ThreadPool> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(ThreadPool::new(cores, 50).unwrap())
    }

    fn context(&self, model: &Arc<LlamaModel>, pool: &Arc<ThreadPool>) -> LlamaContext {
        let (context, pool) = (self.context, pool.clone());
        let options =
            ContextOptions { name: "model".into(), slots: 1, context, batch: BATCH, pool, pool_alone: None };
        LlamaContext::new(model.clone(), &options).unwrap()
    }

    /// One sequence, the three models in turn on all threads, as in [`Bare`]. No token ends the text.
    pub fn decoder(&self, speculate: Speculate, force_accept: Option<f64>) -> Decoder {
        let pool = Self::pool();
        let proxy = |index: usize, name| {
            let (model, map) = &self.proxies[index];
            Proxy { model: CachedModel::new(name, self.context(model, &pool)), map: map.clone() }
        };
        let pair = Pair::new(proxy(0, "tuned"), proxy(1, "untuned"), Placement::InTurn).unwrap();
        let host = CachedModel::new("host", self.context(&self.host, &pool));
        let options = DecodeOptions { speculate, force_accept, ..DecodeOptions::default() };
        Decoder::new(Arc::new(NoText), host, Some(pair), options)
    }

    /// The same three models without a decoder.
    pub fn bare(&self) -> Bare {
        let pool = Self::pool();
        let model = |model| BareModel { context: self.context(model, &pool), len: 0 };
        Bare { host: model(&self.host), tuned: model(&self.proxies[0].0), untuned: model(&self.proxies[1].0) }
    }
}

/// A greedy job; `seed` decides which drafts are accepted by force.
pub fn job(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> Job {
    Job {
        history: History::new(prompt, None),
        alpha: 1.0,
        sampler: SamplerOptions { seed: Some(seed), ..SamplerOptions::default() },
        max_tokens,
        stops: vec![],
        control: false,
        ignore_end: true,
    }
}

/// Host and proxies for bare passes, one sequence.
pub struct Bare {
    pub host: BareModel,
    pub tuned: BareModel,
    pub untuned: BareModel,
}

impl Bare {
    /// Reads a prompt with each in turn, and says how long that took.
    pub fn prefill(&mut self, prompt: &[u32]) -> Duration {
        let time = [&mut self.host, &mut self.tuned, &mut self.untuned].map(|model| model.prefill(prompt));
        time.into_iter().sum()
    }

    /// Their threads stop spinning, so as not to be in the way of what is timed next.
    pub fn rest(&mut self) {
        self.host.context.rest();
    }
}

/// One model, and how many tokens its cache holds.
pub struct BareModel {
    context: LlamaContext,
    len: usize,
}

impl BareModel {
    fn prefill(&mut self, prompt: &[u32]) -> Duration {
        self.context.clear(0);
        self.len = 0;
        let count = prompt.len().div_ceil(BATCH);
        let pass = |(i, tokens): (usize, &[u32])| self.pass(tokens, usize::from(i + 1 == count));
        prompt.chunks(BATCH).enumerate().map(pass).sum()
    }

    /// One forward pass over tokens that follow what the cache holds, with logits for the last `rows` of them.
    pub fn pass(&mut self, tokens: &[u32], rows: usize) -> Duration {
        let begin = Instant::now();
        self.context.forward(&[Span { slot: 0, start: self.len, tokens, rows }]).unwrap();
        // On a device that is where one waits.
        for row in 0..rows {
            black_box(self.context.logits(row));
        }
        self.len += tokens.len();
        begin.elapsed()
    }

    /// Forgets the last tokens.
    pub fn drop_last(&mut self, count: usize) {
        self.len -= count;
        self.context.truncate(0, self.len).unwrap();
    }
}
