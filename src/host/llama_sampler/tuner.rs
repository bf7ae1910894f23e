//! The proxies of one configuration, once in a process.

use super::say;
use crate::backend::llama::{LlamaModel, LoadOptions};
use crate::config::{Config, OnError};
use crate::decode::{Models, NAMES, RunOptions, model_path, token_map};
use crate::error::{Error, Result};
use crate::pair::{Pair, Placement, Runner};
use crate::vocab::Token;
use std::collections::HashMap;
use std::mem::Discriminant;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of the model whose logits a chain samples from, and of its context.
pub struct Host {
    /// The model.
    pub model: Arc<LlamaModel>,
    /// Tokens that one of its sequences may have; 0: not known.
    pub context: usize,
    /// Its sequences; 0: not known.
    pub sequences: usize,
    /// Threads that it computes on; 0: not known.
    pub threads: usize,
}

/// Parameters and bytes of a model: tells models apart, also after one has been freed and loaded again.
pub type Signature = (u64, u64);

/// Whose logits a chain is applied to.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// The model's.
    pub signature: Signature,
    /// The rest, which is needed once.
    pub host: &'a dyn Fn() -> Host,
}

/// The proxies of one configuration, shared by all chains of a process. Weights are loaded at once, contexts when the
/// host's vocabulary is known.
pub struct Tuner {
    config: Config,
    proxies: [Arc<LlamaModel>; 2],
    stage: Mutex<Stage>,
    failures: AtomicU64,
    told: Mutex<Vec<Discriminant<Error>>>,
}

/// The proxies at work for one host model.
pub(super) struct Running {
    pub runner: Runner,
    /// Whether the runner works while the host does something else.
    pub background: bool,
    /// The host's tokens that end a text.
    pub ends: Vec<Token>,
}

enum Stage {
    Waiting,
    Running(Signature, Arc<Running>),
    /// Told already.
    Failed(Signature),
}

impl Tuner {
    /// The tuner of a configuration file: the same for all who ask for the same file.
    ///
    /// # Errors
    /// When the file or the proxies cannot be read. The second value is what the file says about errors, as far as it
    /// can be read.
    pub fn of(path: &Path) -> std::result::Result<Arc<Self>, (Error, OnError)> {
        static TUNERS: Mutex<Option<HashMap<PathBuf, Arc<Tuner>>>> = Mutex::new(None);
        let mut tuners = lock(&TUNERS);
        let tuners = tuners.get_or_insert_default();
        let key = path.canonicalize().unwrap_or_else(|_| path.into());
        if let Some(tuner) = tuners.get(&key) {
            return Ok(tuner.clone());
        }
        let config = Config::read(path).map_err(|e| (e, OnError::Host))?;
        let policy = config.proxy_tuning.on_error;
        let tuner = Arc::new(Self::new(config).map_err(|e| (e, policy))?);
        tuners.insert(key, tuner.clone());
        Ok(tuner)
    }

    /// Loads the proxies that a configuration names.
    ///
    /// # Errors
    /// When the configuration or a model cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        config.check()?;
        let tuning = &config.proxy_tuning;
        let load = |path: &Option<PathBuf>, key: &str| {
            let device = tuning.device.clone();
            let options = LoadOptions { gpu_layers: tuning.gpu_layers, device, ..LoadOptions::default() };
            LlamaModel::load(model_path(path, key)?, options).map(Arc::new)
        };
        let proxies =
            [load(&tuning.tuned, "proxy_tuning.tuned")?, load(&tuning.untuned, "proxy_tuning.untuned")?];
        // Where the host is named, misfits show now instead of at the first request.
        if let Some(path) = &config.host.model {
            let vocabulary = vocabulary_only(path)?.vocabulary();
            for (proxy, name) in proxies.iter().zip(&NAMES[1..]) {
                token_map(&vocabulary, proxy, name)?;
            }
        }
        if tuning.tuned_prompt.system.is_some() {
            say("tuned_prompt is not used here: all three models read the host's prompt");
        }
        Ok(Self {
            config,
            proxies,
            stage: Mutex::new(Stage::Waiting),
            failures: AtomicU64::new(0),
            told: Mutex::default(),
        })
    }

    /// Weight of the shift.
    pub fn alpha(&self) -> f32 {
        self.config.proxy_tuning.alpha
    }

    /// What happens to a request whose proxies fail.
    pub fn on_error(&self) -> OnError {
        self.config.proxy_tuning.on_error
    }

    /// The proxies at work for this host; `None` where they cannot be. Of two models in a process the larger is the
    /// host.
    pub(super) fn running(&self, row: Option<Row<'_>>) -> Option<Arc<Running>> {
        let mut stage = lock(&self.stage);
        let now = row.map_or((0, 0), |row| row.signature);
        match &*stage {
            Stage::Running(of, running) if *of == now || row.is_none() => return Some(running.clone()),
            Stage::Failed(of) if *of >= now => return None,
            _ => {}
        }
        match self.start(row.map(|row| (row.host)()).as_ref()) {
            Ok(running) => {
                *stage = Stage::Running(now, running.clone());
                Some(running)
            }
            Err(error) => {
                self.fail(&error);
                *stage = Stage::Failed(now);
                None
            }
        }
    }

    /// Whether the proxies are at work for a larger host, whose draft model this one then is.
    pub(super) fn is_draft(&self, row: Row<'_>) -> bool {
        match &*lock(&self.stage) {
            Stage::Running(of, _) | Stage::Failed(of) => row.signature < *of,
            Stage::Waiting => false,
        }
    }

    /// Starts what has been announced, where the proxies work while the host computes.
    pub(super) fn host_computes(&self) {
        if let Stage::Running(_, running) = &*lock(&self.stage)
            && running.background
        {
            running.runner.start();
        }
    }

    fn start(&self, host: Option<&Host>) -> Result<Arc<Running>> {
        let mut config = self.config.clone();
        let named;
        let model = match (host, &config.host.model) {
            (Some(host), _) => &host.model,
            (None, Some(path)) => {
                named = Arc::new(vocabulary_only(path)?);
                &named
            }
            // Nothing says otherwise; rows of another length are refused.
            (None, None) => &self.proxies[1],
        };
        let vocabulary = model.vocabulary();
        let with_map = |which: usize| {
            let proxy = &self.proxies[which];
            token_map(&vocabulary, proxy, NAMES[which + 1]).map(|map| (proxy.clone(), map))
        };
        let models = Models { host: model.clone(), proxies: Some([with_map(0)?, with_map(1)?]) };
        let known = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
        let (context, sequences, threads) = host.map_or((0, 0, 0), |h| (h.context, h.sequences, h.threads));
        config.proxy_tuning.threads = known(config.proxy_tuning.threads, threads);
        let run = RunOptions {
            sequences: known(sequences, config.proxy_tuning.slots),
            longest: known(context, usize::MAX),
            ..RunOptions::default()
        };
        let pair = models.pair(&config, run)?.expect("there are proxies");
        let shortest = pair.context()[0].min(pair.context()[1]);
        if context > shortest {
            say(format_args!(
                "the host's context is {context} tokens, the proxies' {shortest}: what is longer goes on {}",
                if self.on_error() == OnError::Stop { "to its end at once" } else { "unshifted" }
            ));
        }
        let ends = (0..vocabulary.len() as Token).filter(|&t| model.is_end(t)).collect();
        let background = pair.placement() == Placement::Together;
        self.greet(&pair);
        let runner = if background { Runner::new(pair)? } else { Runner::without_thread(pair) };
        Ok(Arc::new(Running { runner, background, ends }))
    }

    fn greet(&self, pair: &Pair) {
        let [tuned, untuned] = [0, 1].map(|i| self.proxies[i].path().display());
        let common = pair.maps().iter().map(|m| m.common()).min().unwrap_or(0);
        say(format_args!(
            "shifting by {} * ({tuned} - {untuned}), {common} of {} tokens in common",
            self.alpha(),
            pair.host_vocab()
        ));
    }

    /// Takes note of a failure; the first one of its kind is told.
    pub(super) fn fail(&self, error: &Error) {
        self.failures.fetch_add(1, Relaxed);
        let kind = std::mem::discriminant(error);
        let mut told = lock(&self.told);
        if !told.contains(&kind) {
            told.push(kind);
            let then = match self.on_error() {
                OnError::Host => "requests go on unshifted",
                OnError::Stop => "requests end",
            };
            say(format_args!("{error}; {then} where this happens (said once)"));
        }
    }

    /// Failures so far.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

fn vocabulary_only(path: &Path) -> Result<LlamaModel> {
    LlamaModel::load(path, LoadOptions { vocab_only: true, ..LoadOptions::default() })
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
