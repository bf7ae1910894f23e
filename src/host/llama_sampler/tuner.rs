//! The proxies of one configuration, once in a process.

use super::say;
use crate::backend::llama::LlamaModel;
use crate::combine::Rule;
use crate::config::{Config, Control, OnError};
use crate::error::{Error, Result};
use crate::host::vocabulary;
use crate::host::{HostShape, Proxies};
use crate::pair::Runner;
use crate::vocab::{Token, TokenMap};
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

/// Brings the proxies to work for a host; `None`: for one of which nothing is known.
type Start = dyn Fn(Option<&Host>) -> Result<Running> + Send + Sync;

/// The proxies of one configuration, shared by all chains of a process. Weights are loaded at once, contexts when the
/// host's vocabulary is known.
pub struct Tuner {
    alpha: f32,
    control: Control,
    on_error: OnError,
    start: Box<Start>,
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
    /// When the file or the proxies cannot be read.
    pub fn of(path: &Path) -> Result<Arc<Self>> {
        static TUNERS: Mutex<Option<HashMap<PathBuf, Arc<Tuner>>>> = Mutex::new(None);
        let mut tuners = lock(&TUNERS);
        let tuners = tuners.get_or_insert_default();
        let key = path.canonicalize().unwrap_or_else(|_| path.into());
        if let Some(tuner) = tuners.get(&key) {
            return Ok(tuner.clone());
        }
        refuse_writable(path)?;
        let tuner = Arc::new(Self::new(Config::read(path)?)?);
        tuners.insert(key, tuner.clone());
        Ok(tuner)
    }

    /// Loads the proxies that a configuration names.
    ///
    /// # Errors
    /// When the configuration or a model cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let proxies = Proxies::load(config)?;
        let config = proxies.config();
        // Where the host is named, misfits show now instead of at the first request.
        if let Some(path) = &config.host.model {
            proxies.maps(&vocabulary::of_gguf(path)?.vocabulary())?;
        }
        if config.proxy_tuning.tuned_prompt.system.is_some() {
            say("tuned_prompt is not used here: all three models read the host's prompt");
        }
        let (alpha, on_error) = (config.proxy_tuning.alpha, config.proxy_tuning.on_error);
        let control = config.proxy_tuning.control();
        Ok(Self::with(alpha, control, on_error, Box::new(move |host| start(&proxies, host))))
    }

    /// Of proxies from anywhere.
    pub(super) fn with(alpha: f32, control: Control, on_error: OnError, start: Box<Start>) -> Self {
        let (stage, failures, told) = (Mutex::new(Stage::Waiting), AtomicU64::new(0), Mutex::default());
        Self { alpha, control, on_error, start, stage, failures, told }
    }

    /// Schedule and guards.
    pub fn control(&self) -> Control {
        self.control
    }

    /// The weight of the shift.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// What happens to a request whose proxies fail.
    pub fn on_error(&self) -> OnError {
        self.on_error
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
        match (self.start)(row.map(|row| (row.host)()).as_ref()) {
            Ok(running) => {
                let running = Arc::new(running);
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

fn start(proxies: &Proxies, host: Option<&Host>) -> Result<Running> {
    let named;
    let model = match (host, &proxies.config().host.model) {
        (Some(host), _) => &host.model,
        (None, Some(path)) => {
            named = Arc::new(vocabulary::of_gguf(path)?);
            &named
        }
        // Nothing says otherwise; rows of another length are refused.
        (None, None) => &proxies.models()[1],
    };
    let (context, sequences, threads) = host.map_or((0, 0, 0), |h| (h.context, h.sequences, h.threads));
    let vocabulary = model.vocabulary();
    let shape =
        HostShape { vocabulary, context, sequences, threads, lends_threads: true, starts_early: false };
    let runner = proxies.runner(&shape)?;
    let shortest = runner.context()[0].min(runner.context()[1]);
    if context > shortest {
        let stops = proxies.config().proxy_tuning.on_error == OnError::Stop;
        say(format_args!(
            "the host's context is {context} tokens, the proxies' {shortest}: what is longer goes on {}",
            if stops { "to its end at once" } else { "unshifted" }
        ));
    }
    let ends = (0..shape.vocabulary.len() as Token).filter(|&t| model.is_end(t)).collect();
    greet(proxies, runner.rule(), &proxies.maps(&shape.vocabulary)?);
    Ok(Running { background: runner.has_thread(), runner, ends })
}

fn greet(proxies: &Proxies, rule: &dyn Rule, maps: &[TokenMap; 2]) {
    let [tuned, untuned] = proxies.models().each_ref().map(|m| m.path().display());
    let common = maps.iter().map(TokenMap::common).min().unwrap_or(0);
    let (alpha, tokens) = (proxies.config().proxy_tuning.alpha, maps[0].host_len());
    match rule.is_offset() {
        true => say(format_args!(
            "shifting by {alpha} * ({tuned} - {untuned}), {common} of {tokens} tokens in common"
        )),
        false => {
            let proxy = if rule.reads()[0] { tuned } else { untuned };
            say(format_args!("{rule}; alpha {alpha}, with {proxy}, {common} of {tokens} tokens in common"));
        }
    }
}

/// Refuses a configuration that others than its owner and their group can change: it says which files the host's process
/// reads, and whoever writes it decides what that process answers.
fn refuse_writable(path: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Ok(metadata) = path.metadata()
        && std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o002 != 0
    {
        return Err(Error::Config {
            path: path.into(),
            what: "every user of this machine may write it".into(),
            help: format!("take that right away: chmod o-w {}", path.display()),
        });
    }
    Ok(())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
