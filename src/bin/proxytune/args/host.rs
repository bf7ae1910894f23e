//! Flags for a host behind an API.

use clap::{Args, ValueEnum};
use proxytune::config::Config;
use proxytune::host::blackbox::{Advisers, Ids, Way};
use proxytune::host::openai::{Form, Key, Limits, OpenAi, Options};
use proxytune::host::vocabulary;
use proxytune::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Where the host is and what it may cost; for --engine openai.
#[derive(Args)]
#[command(next_help_heading = "Host behind an API (--engine openai)")]
pub struct Api {
    /// URL of the OpenAI-compatible API, with or without /v1
    #[arg(long, value_name = "URL")]
    host_url: Option<String>,
    /// The model's name there
    #[arg(long, value_name = "NAME")]
    host_model: Option<String>,
    /// Environment variable with the key
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    host_key_env: String,
    /// Plain completions or chat [default: auto, completions where there are any]
    #[arg(long, value_enum, value_name = "FORM", default_value_t = FormFlag::Auto)]
    host_api: FormFlag,
    /// The host's vocabulary (GGUF, or tokenizer.json in builds with `tokenizers`), for the numbers that a bias needs
    #[arg(long, value_name = "F")]
    host_vocab: Option<PathBuf>,
    /// Seconds that the API may be silent
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    host_timeout: f64,
    /// How often a request that failed is sent again
    #[arg(long, value_name = "N", default_value_t = 5)]
    host_retries: u32,
    /// How the host is shifted: its visible tokens weighed anew, or by logit_bias
    /// [default: auto, reweigh where it shows log-probabilities]
    #[arg(long, value_enum, value_name = "WAY", default_value_t = WayFlag::Auto)]
    way: WayFlag,
    /// Likeliest tokens to ask for at each position
    #[arg(long, value_name = "K", default_value_t = 20)]
    top_logprobs: usize,
    /// Most tokens biased in one call
    #[arg(long, value_name = "N", default_value_t = 300)]
    max_bias: usize,
    /// Most requests, repeated ones and those that look at the API included
    #[arg(long, value_name = "N")]
    max_requests: Option<u64>,
    /// Most that may be spent; needs --price
    #[arg(long, value_name = "X")]
    max_cost: Option<f64>,
    /// Price of a million tokens, read and written
    #[arg(long, value_name = "IN,OUT", value_delimiter = ',', num_args = 1)]
    price: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormFlag {
    Auto,
    Completions,
    Chat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WayFlag {
    Auto,
    Reweigh,
    Bias,
}

impl Api {
    /// How texts are shifted.
    pub fn way(&self) -> Way {
        match self.way {
            WayFlag::Auto => Way::Auto,
            WayFlag::Reweigh => Way::Reweigh,
            WayFlag::Bias => Way::Bias,
        }
    }

    /// As the client takes it, checked.
    pub fn options(&self) -> Result<Options> {
        let needed = |value: &Option<String>, flag: &str, what: &str| {
            value
                .clone()
                .filter(|v| !v.trim().is_empty())
                .ok_or_else(|| Error::invalid(flag, "nothing", what))
        };
        if !(self.host_timeout > 0.0 && self.host_timeout <= 86_400.0) {
            return Err(Error::invalid(
                "--host-timeout",
                self.host_timeout,
                "seconds, more than 0, at most a day",
            ));
        }
        let price = match self.price[..] {
            [] => None,
            [read, written] => Some([read, written]),
            _ => return Err(Error::invalid("--price", format!("{:?}", self.price), "two numbers: IN,OUT")),
        };
        let limits = Limits { requests: self.max_requests, cost: self.max_cost, price };
        limits.check()?;
        Ok(Options {
            url: needed(&self.host_url, "--host-url", "the URL of an OpenAI-compatible API")?,
            model: needed(&self.host_model, "--host-model", "the model's name there")?,
            key: Key::from_env(&self.host_key_env)?,
            form: match self.host_api {
                FormFlag::Auto => Form::Auto,
                FormFlag::Completions => Form::Completions,
                FormFlag::Chat => Form::Chat,
            },
            top: self.top_logprobs,
            bias: (self.max_bias, 100.0),
            timeout: Duration::from_secs_f64(self.host_timeout),
            retries: self.host_retries,
            limits,
        })
    }

    /// Connects, and finds out where the proxies' tokens stand in the host's vocabulary.
    pub async fn connect(&self, advisers: Option<&Advisers>) -> Result<(OpenAi, Ids)> {
        let vocabulary = self.host_vocab.as_deref().map(vocabulary::read).transpose()?;
        let mut host = OpenAi::connect(self.options()?).await?;
        let Some(advisers) = advisers else { return Ok((host, Ids::Unknown)) };
        let seen = host.match_ids(advisers);
        let ids = vocabulary.map_or(seen, |vocabulary| Ids::of(advisers, &vocabulary));
        if self.way == WayFlag::Bias {
            host.check_bias(&ids, advisers).await?;
        }
        Ok((host, ids))
    }

    /// The configuration, where the host's own file is not asked for.
    pub fn refuse_file(config: &Config) -> Result<()> {
        match &config.host.model {
            Some(path) => {
                let expected = "--host-url and --host-model alone, or --host-vocab for its vocabulary";
                Err(Error::invalid("--host", format!("{} beside --engine openai", path.display()), expected))
            }
            None => Ok(()),
        }
    }
}
