//! OpenAI-compatible servers: mistral.rs's own, unmodified, with proxy-tuning in it (feature `serve`), and a [`gateway`] in front
//! of a host that is reached over an API (feature `openai`).
//!
//! ```text
//! client ─► limits, key ─► /v1/chat/completions  ─► what is ours taken out ─► mistral.rs's parser ─┐
//!                    │     /v1/completions                                                        ▼
//!                    │     /metrics, /health           Processor ◄── attached ◄── prompt counted, tuned prompt rendered
//!                    │                                     │                                      │
//!                    └────► all other routes: mistral.rs   └─► engine ─► answers + "proxy_tuning" ◄┘
//! ```
//!
//! *Architecture invariant: the engine waits for no client.* Each request runs in a task of its own, which reads the
//! engine's answers to their end, whatever becomes of the client; mistral.rs panics when it cannot answer.

mod admission;
#[cfg(feature = "serve")]
mod app;
mod auth;
mod config;
mod connections;
mod counts;
#[cfg(feature = "serve")]
mod engine;
mod error;
#[cfg(feature = "openai")]
pub mod gateway;
#[cfg(feature = "serve")]
mod job;
#[cfg(feature = "serve")]
mod metrics;
#[cfg(feature = "serve")]
mod parts;
mod request;
#[cfg(feature = "serve")]
mod router;
#[cfg(feature = "serve")]
mod routes;
#[cfg(feature = "serve")]
mod sampling;
mod stop;
#[cfg(feature = "serve")]
mod stream;
#[cfg(feature = "serve")]
mod whole;
#[cfg(feature = "serve")]
mod work;

pub use config::ServeConfig;
pub use stop::signal;

#[cfg(feature = "serve")]
use app::App;
#[cfg(feature = "serve")]
pub use app::serve;

use crate::config::Server;
use crate::error::{Error, Result};
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Takes the address that a configuration names. `is_open`: nobody is asked for a key.
async fn listen(server: &Server, is_open: bool) -> Result<(TcpListener, SocketAddr)> {
    let address = (server.host.as_str(), server.port);
    let expected = "an address and a free port of this machine";
    let refused = |e: std::io::Error| {
        Error::invalid("server.host and port", format!("{}:{} ({e})", address.0, address.1), expected)
    };
    let listener = connections::listen(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    if is_open && !address.ip().is_loopback() {
        tracing::warn!("{address} is open to other machines, and no key is asked for");
    }
    Ok((listener, address))
}
