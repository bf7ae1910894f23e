//! Proxy-tuning in an unmodified mistral.rs, as one of its custom logits processors.
//!
//! ```no_run
//! # fn main() -> proxytune::Result<()> {
//! use proxytune::host::mistralrs::{ProxyTuning, RequestOptions};
//!
//! let tuning = ProxyTuning::from_file("proxytune.toml".as_ref())?; // once a model
//! let request = mistralrs::RequestBuilder::new()
//!     .add_message(mistralrs::TextMessageRole::User, "What is proxy-tuning?")
//!     .add_logits_processor(tuning.processor(RequestOptions::default())?); // once a request
//! # Ok(()) }
//! ```
//!
//! mistral.rs calls a processor for one sequence after the other, or for several at once on the threads of its pool, and
//! says neither which sequence it is nor when a step begins. So a processor finds its sequences by their histories
//! ([`Group`](super::Group)), and announces each sequence's next step as soon as it knows or guesses the next token: whoever
//! comes first in the next step then runs the proxies for all ([`Runner`]).

mod complete;
mod load;
mod positions;
mod processor;
mod sampling;
mod stats;

pub use complete::{Chosen, Completion, Completions};
pub use load::{LoadOptions, load};
pub use processor::{Processor, Report};
pub use sampling::SamplingOptions;
pub use stats::Stats;

use super::{HostShape, Proxies, vocabulary};
use crate::config::{Config, Control, OnError, check_alpha};
use crate::decode::{MOST_CANDIDATES, NAMES, model_path};
use crate::error::{Error, Result};
use crate::pair::Runner;
use crate::vocab::{Token, Vocabulary};
use stats::Counters;
use std::path::Path;
use std::sync::Arc;

/// What is known of the model that mistral.rs runs.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Its vocabulary, context and number of sequences.
    pub shape: HostShape,
    /// Tokens that end a text.
    pub ends: Vec<Token>,
    /// Its chat template, in Jinja.
    pub chat_template: Option<String>,
}

impl Host {
    /// The host that a configuration names: a GGUF file, a `tokenizer.json`, or a folder with one. `sequences`: as many
    /// as mistral.rs runs at once.
    ///
    /// # Errors
    /// When it is not named or cannot be read.
    pub fn of_config(config: &Config, sequences: usize) -> Result<Self> {
        let path = model_path(&config.host.model, "host.model")?;
        let mut host = Self::default();
        host.shape.sequences = sequences;
        host.shape.context = config.host.ctx;
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            let model = vocabulary::of_gguf(path)?;
            host.shape.vocabulary = model.vocabulary();
            host.chat_template = model.chat_template();
            host.ends = (0..model.vocab_len() as Token).filter(|&t| model.is_end(t)).collect();
        } else {
            host.shape.vocabulary = vocabulary::read(path)?;
        }
        Ok(host)
    }
}

/// When the proxies' next step is known before mistral.rs says which token it sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStart {
    /// The most likely token is taken for the next one. Right at temperature 0, a guess above: a wrong one costs a round
    /// of the proxies for one sequence.
    #[default]
    Guess,
    /// The processor draws the token itself and leaves mistral.rs no other: exact, and the only way to per-request seeds.
    /// Log-probabilities that mistral.rs reports are then those of a certain token, and processors after this one have
    /// nothing to choose from.
    Sample,
    /// It is waited for.
    Off,
}

/// One request's wishes.
#[derive(Debug, Clone, Default)]
pub struct RequestOptions {
    /// Weight of the shift; `None`: as configured.
    pub alpha: Option<f32>,
    /// Schedule and guards; `None`: as configured.
    pub control: Option<Control>,
    /// The prompt as the tuned proxy reads it, in its own tokens, where it is another one than the host's.
    pub tuned_prompt: Option<Vec<Token>>,
    /// Texts that are generated at once for the prompt (`n`); 0 counts as 1.
    pub choices: usize,
    /// How the next token is known early.
    pub early_start: EarlyStart,
    /// How mistral.rs samples this request: needed for [`EarlyStart::Sample`], which without it is a guess.
    pub sampling: Option<SamplingOptions>,
    /// So many of the likeliest tokens before and after the shift are kept of each position, at most [`MOST_CANDIDATES`], until
    /// [`Processor::take_positions`]; 0: no positions are kept. For one text, and [`EarlyStart::Sample`].
    pub explain: usize,
}

/// The proxies beside one model of mistral.rs. Cheap to clone; made once a model.
#[derive(Clone)]
pub struct ProxyTuning(Arc<Shared>);

struct Shared {
    proxies: Proxies,
    runner: Runner,
    ends: Vec<Token>,
    vocabulary: Vocabulary,
    counters: Counters,
}

impl ProxyTuning {
    /// Sequences that mistral.rs runs at once where nobody says otherwise.
    pub const SEQUENCES: usize = 32;

    /// Loads the proxies that a configuration file names, for the host that it names.
    ///
    /// # Errors
    /// When the file, the host's vocabulary or the proxies cannot be used.
    pub fn from_file(path: &Path) -> Result<Self> {
        let config = Config::read(path)?;
        let host = Host::of_config(&config, Self::SEQUENCES)?;
        Self::new(config, &host)
    }

    /// Loads the proxies that a configuration names, for this host.
    ///
    /// # Errors
    /// When the configuration or a model cannot be used, vocabularies do not fit, or memory or threads are short.
    pub fn new(config: Config, host: &Host) -> Result<Self> {
        let proxies = Proxies::load(config)?;
        let runner = proxies.runner(&HostShape { starts_early: true, ..host.shape.clone() })?;
        let (ends, vocabulary) = (host.ends.clone(), host.shape.vocabulary.clone());
        let counters = Counters::default();
        Ok(Self(Arc::new(Shared { proxies, runner, ends, vocabulary, counters })))
    }

    /// A processor for one request, all its choices included. Dropping the last handle frees its place in the proxies'
    /// caches.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn processor(&self, options: RequestOptions) -> Result<Arc<Processor>> {
        let alpha = options.alpha.unwrap_or(self.config().proxy_tuning.alpha);
        check_alpha(alpha)?;
        self.0.runner.rule().check_alpha(alpha)?;
        let control = options.control.unwrap_or_else(|| self.config().proxy_tuning.control());
        control.check()?;
        let (tokens, context) = (options.tuned_prompt.as_ref().map_or(0, Vec::len), self.context()[0]);
        if tokens >= context {
            return Err(Error::Length { model: format!("the {}", NAMES[1]), tokens, context });
        }
        if let Some(sampling) = &options.sampling {
            sampling.check()?;
        }
        if options.explain > MOST_CANDIDATES {
            return Err(Error::invalid("explain", options.explain, format!("at most {MOST_CANDIDATES}")));
        }
        let tells = options.early_start == EarlyStart::Sample && options.sampling.is_some();
        if options.explain > 0 && (!tells || options.choices > 1) {
            let given = "beside several choices, or without EarlyStart::Sample and the request's sampling";
            return Err(Error::invalid(
                "explain",
                given,
                "a processor for each text, which draws its tokens",
            ));
        }
        Ok(Arc::new(Processor::new(self.clone(), alpha, control, options)))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.0.proxies.config()
    }

    /// The proxies, for their tokenizers and templates.
    pub fn proxies(&self) -> &Proxies {
        &self.0.proxies
    }

    /// What a token of the host spells; a control token's name. Bytes that are no whole character are replaced.
    pub fn text(&self, token: Token) -> String {
        let entry = self.0.vocabulary.entries().get(token as usize);
        entry.map_or_else(String::new, |entry| String::from_utf8_lossy(&entry.bytes).into_owned())
    }

    /// Tokens that a slot of the tuned and of the untuned proxy holds.
    pub fn context(&self) -> [usize; 2] {
        self.0.runner.context()
    }

    /// What has been done so far.
    pub fn stats(&self) -> Stats {
        self.0.counters.read(self.0.runner.stats())
    }

    fn on_error(&self) -> OnError {
        self.config().proxy_tuning.on_error
    }
}
