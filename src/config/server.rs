//! `[server]`: what `proxytune serve` listens to.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;

/// `[server]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address; the loopback interface unless told otherwise.
    pub host: String,
    /// Port; 0: a free one.
    pub port: u16,
    /// A file with the keys that clients may show, one a line.
    pub api_key_file: Option<PathBuf>,
    /// The environment variable with the key that clients must show.
    pub api_key_env: Option<String>,
    /// Web pages from elsewhere that may call this server; `*`: any.
    pub allowed_origins: Vec<String>,
    /// Sequences that the host runs at once, as mistral.rs's `max_seqs`.
    pub max_seqs: usize,
    /// Requests that may wait for their turn; more are turned away.
    pub max_waiting: usize,
    /// Largest body of a request, in MiB.
    pub max_body: usize,
    /// Connections at once; who comes then waits until one is closed.
    pub max_connections: usize,
    /// Seconds that a client has to send a request's head, the same again for its body, and to read on while an answer waits for it. A
    /// connection without a request is closed after as long.
    pub client_timeout: u64,
    /// Seconds that running requests have to finish when the server is told to stop.
    pub shutdown_timeout: u64,
    /// mistral.rs's web interface, which is not served here.
    pub ui: bool,
    /// mistral.rs's port for the Model Context Protocol, which is not served here.
    pub mcp_port: Option<u16>,
    /// mistral.rs's file of servers of the Model Context Protocol, which is not used here.
    pub mcp_config: Option<PathBuf>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            api_key_file: None,
            api_key_env: None,
            allowed_origins: Vec::new(),
            max_seqs: 16,
            max_waiting: 256,
            max_body: 4,
            max_connections: 512,
            client_timeout: 60,
            shutdown_timeout: 30,
            ui: false,
            mcp_port: None,
            mcp_config: None,
        }
    }
}

impl Server {
    /// Checks values that no type can.
    pub(super) fn check(&self) -> Result<()> {
        let within = |name: &str, value: usize, most: usize| {
            let expected = format!("1 to {most}");
            if (1..=most).contains(&value) { Ok(()) } else { Err(Error::invalid(name, value, expected)) }
        };
        within("server.max_seqs", self.max_seqs, 1024)?;
        within("server.max_body", self.max_body, 1024)?;
        within("server.max_connections", self.max_connections, 1 << 20)?;
        within("server.client_timeout", self.client_timeout as usize, 24 * 3600)
    }
}
