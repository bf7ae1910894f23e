//! Flags of `proxytune serve`.

use super::Trio;
use clap::Args;
use proxytune::Result;
use proxytune::serve::ServeConfig;
use std::path::PathBuf;

/// Host and proxies as for the other commands; --config takes a file of `mistralrs from-config` as well, with a section
/// [proxy_tuning] added.
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    pub trio: Trio,
    #[command(flatten)]
    pub api: super::host::Api,
    /// Weight of the shift [default: 1]; requests may carry another
    #[arg(long, allow_negative_numbers = true)]
    alpha: Option<f32>,
    #[command(flatten)]
    control: super::control::Control,
    /// System prompt for the tuned proxy alone; requests may carry another
    #[arg(long, value_name = "TEXT")]
    tuned_system: Option<String>,
    /// Address to listen on [default: 127.0.0.1, this machine alone]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Port to listen on; 0: a free one [default: 8080]
    #[arg(long)]
    port: Option<u16>,
    /// File with the keys that clients must show one of, one a line
    #[arg(long, value_name = "F")]
    api_key_file: Option<PathBuf>,
    /// Environment variable with the key that clients must show
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// Sequences that run at once [default: 16]
    #[arg(long, value_name = "N")]
    max_seqs: Option<usize>,
    /// Requests that may wait for their turn; more get 429 [default: 256]
    #[arg(long, value_name = "N")]
    max_waiting: Option<usize>,
    /// Largest body of a request; more gets 413 [default: 4]
    #[arg(long, value_name = "MIB")]
    max_body: Option<usize>,
    /// Connections at once; who comes then waits until one is closed [default: 512]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// Seconds that a client has to send a request, or to read on [default: 60]
    #[arg(long, value_name = "S")]
    client_timeout: Option<u64>,
    /// Seconds that running requests have to finish after SIGTERM or Ctrl-C [default: 30]
    #[arg(long, value_name = "S")]
    shutdown_timeout: Option<u64>,
}

impl Serve {
    /// The configuration file with the flags laid over it, checked.
    pub fn config(&self) -> Result<ServeConfig> {
        let file = self.trio.config.as_deref().map(ServeConfig::read).transpose()?;
        let mut all = file.unwrap_or_default();
        let tuning = &mut all.config.proxy_tuning;
        set(&mut tuning.alpha, self.alpha);
        self.control.lay_over(tuning);
        if self.tuned_system.is_some() {
            tuning.tuned_prompt.system.clone_from(&self.tuned_system);
        }
        let server = &mut all.config.server;
        set(&mut server.host, self.bind.clone());
        set(&mut server.port, self.port);
        set(&mut server.max_seqs, self.max_seqs);
        set(&mut server.max_waiting, self.max_waiting);
        set(&mut server.max_body, self.max_body);
        set(&mut server.max_connections, self.max_connections);
        set(&mut server.client_timeout, self.client_timeout);
        set(&mut server.shutdown_timeout, self.shutdown_timeout);
        if self.api_key_file.is_some() || self.api_key_env.is_some() {
            server.api_key_file.clone_from(&self.api_key_file);
            server.api_key_env.clone_from(&self.api_key_env);
        }
        if self.trio.host.is_some() {
            all.model_id = None;
        }
        all.config = self.trio.laid_over(all.config)?;
        Ok(all)
    }
}

fn set<T>(place: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *place = value;
    }
}
