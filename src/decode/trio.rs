//! From a configuration to models in memory, and from those to a decoder.

use super::{DecodeOptions, Decoder, Pieces};
use crate::backend::absent::Absent;
use crate::backend::llama::{ContextOptions, LlamaContext, LlamaModel, LoadOptions, ThreadPool};
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::pair::{CachedModel, Pair, Placement, Proxy};
use crate::vocab::{Token, TokenMap, Vocabulary};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Weights and vocabularies of a host and, unless it runs alone, its proxies.
pub struct Models {
    /// The host.
    pub host: Arc<LlamaModel>,
    /// Tuned and untuned proxy, with their maps.
    pub proxies: Option<MappedProxies>,
}

/// Tuned and untuned proxy, each with where the host's tokens stand in its vocabulary.
pub type MappedProxies = [(Arc<LlamaModel>, TokenMap); 2];

/// How many sequences a decoder is for, and how they run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Sequences decoded at once.
    pub sequences: usize,
    /// Tokens that the longest history may reach, of host and tuned proxy; contexts that the configuration leaves open
    /// are made just large enough.
    pub longest: usize,
    /// Where the proxies run; `None`: as configured.
    pub placement: Option<Placement>,
    /// Whether the host, in an engine of its own, keeps its threads awake for the proxies' passes in turn.
    pub lends_threads: bool,
    /// See [`HostShape::starts_early`](crate::host::HostShape::starts_early).
    pub starts_early: bool,
    /// As [`DecodeOptions::candidates`].
    pub candidates: usize,
    /// As [`DecodeOptions::force_accept`].
    pub force_accept: Option<f64>,
}

/// What a model is called in errors and progress.
pub const NAMES: [&str; 3] = ["host", "tuned proxy", "untuned proxy"];

impl Pieces for LlamaModel {
    fn is_end(&self, token: Token) -> bool {
        LlamaModel::is_end(self, token)
    }

    fn piece(&self, token: Token, control: bool) -> Vec<u8> {
        LlamaModel::piece(self, token, control)
    }
}

impl Models {
    /// Loads the models that a configuration names. `progress` hears which of [`NAMES`] is being read and how much of
    /// it, 0 to 1; loading stops when it returns false.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a model that is not named, [`Error::Model`] for one that cannot be loaded,
    /// [`Error::Vocabulary`] for proxies that do not fit the host.
    pub fn load(config: &Config, alone: bool, progress: &mut dyn FnMut(usize, f32) -> bool) -> Result<Self> {
        config.check()?;
        let options = LoadOptions {
            gpu_layers: config.host.gpu_layers,
            device: config.host.device.clone(),
            progress: Some(&mut |share| progress(0, share)),
            ..LoadOptions::default()
        };
        let host = Arc::new(LlamaModel::load(model_path(&config.host.model, "--host")?, options)?);
        if alone {
            return Ok(Self { host, proxies: None });
        }
        let [tuned, untuned] = load_proxies(config, ["--tuned", "--untuned"], false, progress)?;
        let vocabulary = host.vocabulary();
        let tuned_map = token_map(&vocabulary, &tuned, NAMES[1])?;
        let untuned_map = token_map(&vocabulary, &untuned, NAMES[2])?;
        Ok(Self { host, proxies: Some([(tuned, tuned_map), (untuned, untuned_map)]) })
    }

    /// Makes the host's and the proxies' contexts and threads.
    ///
    /// # Errors
    /// When memory or threads are short.
    pub fn decoder(&self, config: &Config, run: RunOptions) -> Result<Decoder> {
        let layout = Layout::new(config, run);
        // The host's threads stay awake for the next pass, its own or a proxy's in turn; the decoder sends them to rest
        // where the proxies want their cores. Beside proxies that work at the same time they must never spin.
        let spin = if layout.placement == Placement::Together { 0 } else { SPIN };
        let pool = Arc::new(ThreadPool::new(layout.threads, spin)?);
        let own = config.host.ctx;
        let host =
            context(&self.host, NAMES[0], own, run, run.sequences, layout.batch, (pool.clone(), None))?;
        let pair = self.proxies.as_ref().map(|proxies| pair(proxies, config, run, Some(pool))).transpose()?;
        let options = DecodeOptions {
            on_error: config.proxy_tuning.on_error,
            speculate: config.proxy_tuning.speculate,
            control: config.proxy_tuning.control(),
            candidates: run.candidates,
            force_accept: run.force_accept,
            skip_above: config.proxy_tuning.gate(),
        };
        Ok(Decoder::new(self.host.clone(), host, pair, options))
    }

    /// Makes the proxies' contexts and threads; `None` for a host that runs alone.
    ///
    /// # Errors
    /// When memory or threads are short.
    pub fn pair(&self, config: &Config, run: RunOptions) -> Result<Option<Pair>> {
        self.proxies.as_ref().map(|proxies| pair(proxies, config, run, None)).transpose()
    }
}

/// Loads the tuned and the untuned proxy that a configuration names: two models, or one and an adapter over it. In the place
/// of one that the rule does not read, unless it is named, stands the other once more, with its memory shared. `keys`: what
/// they are called where they are named; `in_memory` as in [`LoadOptions`]; `progress` as for [`Models::load`].
///
/// # Errors
/// [`Error::Invalid`] for a model that is not named and for a weight or prompt that means nothing under the rule,
/// [`Error::Model`] for a model that cannot be loaded.
pub fn load_proxies(
    config: &Config,
    keys: [&str; 2],
    in_memory: bool,
    progress: &mut dyn FnMut(usize, f32) -> bool,
) -> Result<[Arc<LlamaModel>; 2]> {
    let tuning = &config.proxy_tuning;
    let rule = tuning.combine.rule()?;
    rule.check_alpha(tuning.alpha)?;
    rule.check_cap(tuning.control().cap)?;
    let [read_tuned, read_untuned] = rule.reads();
    if !read_tuned && tuning.tuned_prompt.system.is_some() {
        let expected = "none: the tuned proxy is not read by the rule";
        return Err(Error::invalid("tuned_prompt.system", format!("a text beside {rule}"), expected));
    }
    let paths = [&tuning.tuned, &tuning.untuned];
    let mut load = |which: usize| {
        let mut report = |share| progress(which + 1, share);
        let options = LoadOptions {
            gpu_layers: tuning.gpu_layers,
            device: tuning.device.clone(),
            in_memory,
            progress: Some(&mut report),
            ..LoadOptions::default()
        };
        LlamaModel::load(model_path(paths[which], keys[which])?, options)
    };
    if let Some(adapter) = &tuning.tuned_lora {
        return Ok(load(1)?.with_lora(adapter)?.map(Arc::new));
    }
    if !read_tuned && tuning.tuned.is_none() {
        let untuned = Arc::new(load(1)?);
        return Ok([untuned.clone(), untuned]);
    }
    let tuned = Arc::new(load(0)?);
    let untuned = if read_untuned || tuning.untuned.is_some() { Arc::new(load(1)?) } else { tuned.clone() };
    Ok([tuned, untuned])
}

/// Makes contexts and threads for the tuned and the untuned proxy. `host_pool`: threads that they may use for passes in
/// turn with the host's, on the same thread.
///
/// # Errors
/// When memory or threads are short.
pub fn pair(
    [tuned, untuned]: &MappedProxies,
    config: &Config,
    run: RunOptions,
    host_pool: Option<Arc<ThreadPool>>,
) -> Result<Pair> {
    let layout = Layout::new(config, run);
    let tuning = &config.proxy_tuning;
    let slots = run.sequences.min(tuning.slots);
    let limit = tuning.time_limit();
    let all_threads = || ThreadPool::new(layout.threads, 0).map(Arc::new);
    let pool_alone = match host_pool {
        // A proxy that is stuck must not hold the host's threads.
        Some(_) if limit.is_some() => Some(all_threads()?),
        None if run.lends_threads && layout.placement == Placement::Auto => Some(all_threads()?),
        pool => pool,
    };
    let proxy = |(model, map): &(Arc<LlamaModel>, TokenMap), name| {
        let pool = Arc::new(ThreadPool::new(layout.proxy_threads, 0)?);
        let pools = (pool, pool_alone.clone());
        let model = context(model, name, tuning.ctx, run, slots, layout.batch, pools)?;
        Ok::<_, Error>(Proxy { model, map: map.clone() })
    };
    let absent = |name: &str, beside: &Proxy| {
        let model = CachedModel::new(format!("the {name}"), Absent(beside.model.capabilities().clone()));
        Proxy { model, map: beside.map.clone() }
    };
    let rule = tuning.combine.rule()?;
    let (tuned, untuned) = match rule.reads() {
        [false, _] => {
            let untuned = proxy(untuned, NAMES[2])?;
            (absent(NAMES[1], &untuned), untuned)
        }
        [_, false] => {
            let tuned = proxy(tuned, NAMES[1])?;
            let untuned = absent(NAMES[2], &tuned);
            (tuned, untuned)
        }
        [true, true] => (proxy(tuned, NAMES[1])?, proxy(untuned, NAMES[2])?),
    };
    Ok(Pair::with_limit(tuned, untuned, layout.placement, limit)?.with_rule(rule))
}

/// How eagerly threads wait that have their cores to themselves.
const SPIN: u32 = 50;

/// Who runs where, on how many threads.
struct Layout {
    placement: Placement,
    threads: usize,
    proxy_threads: usize,
    /// Most tokens of a pass, for which llama.cpp keeps work space.
    batch: usize,
}

impl Layout {
    fn new(config: &Config, run: RunOptions) -> Self {
        let tuning = &config.proxy_tuning;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if tuning.threads == 0 { cores } else { tuning.threads };
        let on_device = tuning.gpu_layers != 0 || config.host.gpu_layers != 0;
        let configured = match tuning.placement {
            config::Placement::Auto if on_device => Placement::Together,
            config::Placement::Auto if threads == 1 => Placement::InTurn,
            config::Placement::Auto if run.starts_early => Placement::AutoEarly,
            config::Placement::Auto => Placement::Auto,
            config::Placement::InTurn => Placement::InTurn,
            config::Placement::SideBySide => Placement::SideBySide,
            config::Placement::Together => Placement::Together,
        };
        let placement = run.placement.unwrap_or(configured);
        let (threads, proxy_threads) = match placement {
            Placement::InTurn => (threads, threads),
            Placement::Auto | Placement::SideBySide => (threads, (threads / 2).max(1)),
            // Beside the host's own pass, which wants all of them.
            Placement::AutoEarly => (threads, (threads / 4).max(1)),
            // On a device the threads hardly matter; without one, the proxies get an eighth each.
            Placement::Together if on_device => (threads, (threads / 2).max(1)),
            Placement::Together => {
                let each = (threads / 8).max(1);
                (threads.saturating_sub(2 * each).max(1), each)
            }
        };
        // A CPU is as fast with the smaller, in half the work space.
        let batch = if on_device { 512 } else { 256 };
        Self { placement, threads, proxy_threads, batch }
    }
}

fn context(
    model: &Arc<LlamaModel>,
    name: &str,
    configured: usize,
    run: RunOptions,
    slots: usize,
    batch: usize,
    (pool, pool_alone): (Arc<ThreadPool>, Option<Arc<ThreadPool>>),
) -> Result<CachedModel> {
    let context = if configured == 0 { model.trained_context().min(run.longest) } else { configured };
    let options = ContextOptions { name: format!("the {name}"), slots, context, batch, pool, pool_alone };
    let context = LlamaContext::new(model.clone(), &options)?;
    #[cfg(feature = "fault-injection")]
    if let Some(path) = std::env::var_os("PROXYTUNE_FAULT").filter(|_| name == NAMES[1]) {
        use crate::backend::faulty::{Faulty, Switch};
        return Ok(CachedModel::new(options.name, Faulty::new(context, Switch::of_file(path.into()))));
    }
    Ok(CachedModel::new(options.name, context))
}

/// The path of a model that a configuration must name; `flag` is how to name it.
///
/// # Errors
/// [`Error::Invalid`] when it is not named.
pub fn model_path<'a>(path: &'a Option<PathBuf>, flag: &str) -> Result<&'a Path> {
    let missing = || Error::invalid(flag, "nothing", "the path of a GGUF file, here or in the configuration");
    path.as_deref().ok_or_else(missing)
}

/// Matches a host's vocabulary with that of the proxy called `name`.
///
/// # Errors
/// [`Error::Vocabulary`] that names the proxy and its file.
pub fn token_map(host: &Vocabulary, proxy: &LlamaModel, name: &str) -> Result<TokenMap> {
    let tokenize = |bytes: &[u8]| proxy.tokenize_bytes(bytes, false, false);
    TokenMap::between(host, &proxy.vocabulary(), tokenize).map_err(|error| match error {
        Error::Vocabulary { what, help } => {
            Error::Vocabulary { what: format!("{name} {}: {what}", proxy.path().display()), help }
        }
        other => other,
    })
}
