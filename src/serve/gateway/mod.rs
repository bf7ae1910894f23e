//! A gateway in front of a host that is reached over an API: clients change their base URL, and get its proxy-tuned text.
//!
//! *Architecture invariant: nothing outlives its client.* A request's calls to the host hang on the future that answers it; when the
//! client leaves, that is dropped, and with it the connection to the host.

mod answer;
mod metrics;
mod request;
mod routes;

use super::admission::Admission;
use super::auth::Keys;
use super::connections::{Limits, whole_body};
use super::{listen, stop};
use crate::config::{Control, OnError, Server, Speculate};
use crate::error::{Error, Result};
use crate::host::blackbox::{Advisers, Ids, Way};
use crate::host::openai::{Form, OpenAi};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use metrics::Metrics;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A host in the forms that it has, and its proxies.
pub struct Backing {
    /// `/v1/completions`, where the host has them.
    pub completions: Option<OpenAi>,
    /// `/v1/chat/completions`, where the host has them.
    pub chat: Option<OpenAi>,
    /// The proxies.
    pub advisers: Arc<Advisers>,
    /// Where their tokens stand in the host's vocabulary.
    pub ids: Ids,
}

impl Backing {
    fn any(&self) -> Option<&OpenAi> {
        self.completions.as_ref().or(self.chat.as_ref())
    }
}

/// What requests do not say themselves.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// Weight of the shift.
    pub alpha: f32,
    /// Schedule and guards.
    pub control: Control,
    /// System prompt for the tuned proxy alone.
    pub tuned_system: Option<String>,
    /// How texts are shifted.
    pub way: Way,
    /// Whether one call looks at several tokens.
    pub speculate: Speculate,
    /// What happens where a proxy fails.
    pub on_error: OnError,
}

/// What all requests share.
struct App {
    backing: Backing,
    defaults: Defaults,
    admission: Admission,
    keys: Option<Keys>,
    metrics: Metrics,
}

impl App {
    fn host(&self, form: Form) -> Option<&OpenAi> {
        if form == Form::Chat { self.backing.chat.as_ref() } else { self.backing.completions.as_ref() }
    }

    /// Both forms share what is spent.
    fn any_host(&self) -> Option<&OpenAi> {
        self.backing.any()
    }

    fn model(&self) -> &str {
        self.any_host().map_or("", OpenAi::model)
    }
}

/// A gateway with its address taken.
pub struct Gateway {
    keys: Option<Keys>,
    server: Server,
    listener: tokio::net::TcpListener,
    address: SocketAddr,
}

impl Gateway {
    /// Takes the address, and reads the keys that clients must show: before models are read, since it may fail.
    ///
    /// # Errors
    /// When a key or the address cannot be used.
    pub async fn bind(server: &Server) -> Result<Self> {
        if !server.allowed_origins.is_empty() {
            let expected = "none: the gateway is not for web pages";
            return Err(Error::invalid(
                "server.allowed_origins",
                server.allowed_origins.join(", "),
                expected,
            ));
        }
        let keys = Keys::read(server)?;
        let (listener, address) = listen(server, keys.is_none()).await?;
        Ok(Self { keys, server: server.clone(), listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` comes; then lets running requests finish, for as long as the configuration says.
    ///
    /// # Errors
    /// When the host has none of the two forms, or the listener fails.
    pub async fn serve(
        self,
        backing: Backing,
        defaults: Defaults,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let Self { keys, server, listener, .. } = self;
        if backing.completions.is_none() && backing.chat.is_none() {
            return Err(Error::invalid(
                "--host-api",
                "a host without completions and chat",
                "one of the two",
            ));
        }
        let admission = Admission::new(server.max_seqs, server.max_waiting);
        let metrics = Metrics::new(backing.any());
        let app = Arc::new(App { backing, defaults, admission, keys, metrics });
        let limits = Limits::from(&server);
        let router = Router::new()
            .route("/v1/completions", post(routes::completion))
            .route("/v1/chat/completions", post(routes::chat))
            .route("/v1/models", get(routes::models))
            .route("/health", get(|| async { "ok" }))
            .route("/metrics", get(routes::metrics))
            .fallback(routes::unknown)
            .layer(DefaultBodyLimit::disable())
            .layer(from_fn_with_state(limits, whole_body))
            .layer(from_fn_with_state(app.clone(), routes::with_key))
            .with_state(app.clone());
        let grace = Duration::from_secs(server.shutdown_timeout);
        let close = move || {
            tracing::info!(running = app.admission.running(), waiting = app.admission.waiting(), "stopping");
            app.admission.close();
        };
        stop::serve(listener, router, limits, close, stop, grace).await
    }
}
