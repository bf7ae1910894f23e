//! The proxies of one configuration, for a host that runs in an engine of its own.

use crate::backend::llama::LlamaModel;
use crate::config::Config;
use crate::decode::{NAMES, RunOptions, load_proxies, pair, token_map};
use crate::error::Result;
use crate::pair::{Pair, Placement, Runner};
use crate::vocab::{TokenMap, Vocabulary};
use std::sync::Arc;

const KEYS: [&str; 2] = ["proxy_tuning.tuned", "proxy_tuning.untuned"];

/// What the proxies must know of the host, whoever runs it.
#[derive(Debug, Clone, Default)]
pub struct HostShape {
    /// One entry for each value of its rows of logits.
    pub vocabulary: Vocabulary,
    /// Tokens that one of its sequences may have; 0: not known.
    pub context: usize,
    /// Sequences that it runs at once; 0: not known.
    pub sequences: usize,
    /// Threads that it computes on; 0: not known.
    pub threads: usize,
    /// Whether passes in turn find the host's own threads awake, as OpenMP's are for all of llama.cpp in a process.
    /// Elsewhere waking them costs a small proxy more than they bring, and slows down the host.
    pub lends_threads: bool,
    /// Whether it is said when its steps begin ([`Runner::start`]), so that the proxies can begin with them where that is faster.
    pub starts_early: bool,
}

/// Both proxies of a configuration, their weights in memory.
pub struct Proxies {
    config: Config,
    models: [Arc<LlamaModel>; 2],
}

impl Proxies {
    /// Loads the proxies that a configuration names.
    ///
    /// # Errors
    /// When the configuration or a model cannot be used.
    pub fn load(config: Config) -> Result<Self> {
        config.check()?;
        if config.proxy_tuning.gate().is_some() {
            tracing::warn!(
                "skip_above has no effect in this host: its proxies run before its logits are known"
            );
        }
        // A file that is cut short must not end somebody else's process.
        let models = load_proxies(&config, KEYS, true, &mut |_, _| true)?;
        Ok(Self { config, models })
    }

    /// The configuration that they were loaded by.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tuned and untuned proxy. Of one that is not named, because the rule does not read it, the other takes the place.
    pub fn models(&self) -> &[Arc<LlamaModel>; 2] {
        &self.models
    }

    /// Matches a host's vocabulary with that of the tuned and of the untuned proxy.
    ///
    /// # Errors
    /// [`Error::Vocabulary`](crate::Error::Vocabulary) for a proxy that does not fit.
    pub fn maps(&self, host: &Vocabulary) -> Result<[TokenMap; 2]> {
        let [tuned, untuned] = &self.models;
        Ok([token_map(host, tuned, NAMES[1])?, token_map(host, untuned, NAMES[2])?])
    }

    /// Contexts and threads for the proxies beside this host.
    ///
    /// # Errors
    /// When the vocabularies do not fit, or memory or threads are short.
    pub fn pair(&self, host: &HostShape) -> Result<Pair> {
        let known = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
        let mut config = self.config.clone();
        config.proxy_tuning.threads = known(config.proxy_tuning.threads, host.threads);
        let run = RunOptions {
            sequences: known(host.sequences, config.proxy_tuning.slots),
            longest: known(host.context, usize::MAX),
            lends_threads: host.lends_threads,
            starts_early: host.starts_early,
            ..RunOptions::default()
        };
        let [tuned, untuned] = self.models.clone();
        let [tuned_map, untuned_map] = self.maps(&host.vocabulary)?;
        pair(&[(tuned, tuned_map), (untuned, untuned_map)], &config, run, None)
    }

    /// [`pair`](Self::pair) behind a runner, which has a thread of its own where the proxies can work while the host
    /// does.
    ///
    /// # Errors
    /// As [`pair`](Self::pair).
    pub fn runner(&self, host: &HostShape) -> Result<Runner> {
        let pair = self.pair(host)?;
        let background = pair.placement() == Placement::Together;
        if background { Runner::new(pair) } else { Ok(Runner::without_thread(pair)) }
    }
}
