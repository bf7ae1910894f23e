//! mistral.rs's server with its models: what all requests share, from loading to the end.

use super::admission::Admission;
use super::auth::Keys;
use super::config::ServeConfig;
use super::connections::Limits;
use super::engine::Engine;
use super::metrics::Metrics;
use super::{listen, router, stop};
use crate::decode::TunedPrompts;
use crate::error::{Error, Result};
use crate::host::mistralrs::{LoadOptions, ProxyTuning, load};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What all requests share.
pub struct App {
    pub engine: Engine,
    pub tuning: ProxyTuning,
    pub prompts: TunedPrompts,
    pub admission: Admission,
    pub keys: Option<Keys>,
    pub metrics: Metrics,
}

/// Loads the models, listens, and serves until `stop` comes; then lets running requests finish, for as long as the
/// configuration says. `ready` is told the address once requests are taken.
///
/// # Errors
/// When a model, a key or the address cannot be used.
pub fn serve(
    config: ServeConfig,
    stop: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let failed = |e: std::io::Error| Error::engine("server", format!("cannot start its threads: {e}"));
    // Few: models have threads of their own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    let served = runtime.block_on(run(config, stop, ready));
    // The engine's threads may be in a step for clients that were given up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served
}

async fn run(
    config: ServeConfig,
    stop: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let mut stop = Box::pin(stop);
    let server = config.config.server.clone();
    // Before the models are read: it takes them long, and this may fail.
    let keys = Keys::read(&server)?;
    let (listener, address) = listen(&server, keys.is_none()).await?;
    let app = tokio::select! {
        app = App::load(config, keys) => Arc::new(app?),
        () = &mut stop => return Err(Error::Interrupted),
    };
    let router = router::router(app.clone(), &server).await?;
    ready(address);
    let (grace, told) = (Duration::from_secs(server.shutdown_timeout), app.clone());
    let close = move || {
        tracing::info!(running = told.admission.running(), "stopping");
        told.admission.close();
    };
    stop::serve(listener, router, Limits::from(&server), close, stop, grace).await
}

impl App {
    async fn load(config: ServeConfig, keys: Option<Keys>) -> Result<Self> {
        let ServeConfig { config, model_id, chat_template, log } = config;
        let server = &config.server;
        let most_waiting = server.max_waiting;
        let options = LoadOptions { model_id, sequences: server.max_seqs, chat_template, log };
        let (mistralrs, host) = load(&config, &options).await?;
        let sequences = host.shape.sequences.max(1);
        if sequences == 1 && server.max_seqs > 1 {
            tracing::warn!(
                "one sequence runs at a time and others wait: on a CPU, mistral.rs computes batches wrongly"
            );
        }
        let admission = Admission::new(sequences, most_waiting);
        let template = host.chat_template.clone();
        let most = mistralrs.max_sequence_length(None).ok().flatten().unwrap_or(usize::MAX);
        let context = if config.host.ctx == 0 { most } else { most.min(config.host.ctx) };
        let vocabulary = host.shape.vocabulary.len();
        let proxies = tokio::task::spawn_blocking(move || ProxyTuning::new(config, &host)).await;
        let tuning = proxies.map_err(|e| Error::engine("proxytune", e.to_string()))??;
        let own = &tuning.config().proxy_tuning;
        let tuned = tuning.proxies().models()[0].clone();
        let prompts = TunedPrompts::new(tuned, template.as_deref(), own)?;
        let engine = Engine::new(mistralrs, context, vocabulary, template.is_some());
        let metrics = Metrics::new(&tuning);
        Ok(Self { engine, tuning, prompts, admission, keys, metrics })
    }
}
