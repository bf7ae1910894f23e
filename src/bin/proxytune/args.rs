//! What can be said on the command line. Flags win over the configuration file.

pub mod control;
pub mod eval;
pub mod fit;
pub mod host;
pub mod serve;

use clap::{Args, Parser, Subcommand, ValueEnum};
use control::{Alpha, Control};
use proxytune::backend::llama::SamplerOptions;
use proxytune::config::{Combine, Config, Placement, Speculate};
use proxytune::{Error, Result};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  proxytune generate --host big.gguf --tuned small-chat.gguf --untuned small.gguf --prompt 'Once upon a time'
  proxytune generate --config proxytune.toml --compare --prompt-file question.txt
  proxytune check --config proxytune.toml

Exit codes: 0 done, 1 the models do not fit each other (check), 2 bad input, 130 interrupted.";

/// Customise a large model by the difference of two small ones: softmax(host + alpha * (tuned - untuned)).
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Cli {
    /// Say more on stderr: -v what proxytune does, -vv what the engine says
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What of the logs is shown; `PROXYTUNE_LOG` wins.
    pub fn log_filter(&self) -> String {
        let by_flag = match self.verbose {
            0 => "warn,llama=off,mistralrs_core=error",
            1 => "warn,proxytune=debug,llama=debug",
            _ => "debug,llama=trace",
        };
        std::env::var("PROXYTUNE_LOG").unwrap_or_else(|_| by_flag.into())
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Continue a prompt with the proxy-tuned host
    Generate(Box<Generate>),
    /// Look whether three models can work together, and what they need
    Check(Check),
    /// Time host, naive and lockstep proxy-tuning against the bare forward passes, in one run
    Bench(Bench),
    /// Score host, proxies and shifted host on a text or a task, over a sweep of alpha
    Eval(Box<eval::Eval>),
    /// Fit a mixture of host and tuned proxy on a text, for --combine
    Fit(fit::Fit),
    /// Serve the proxy-tuned host over HTTP, as OpenAI's interface: in mistral.rs, or as a gateway with --engine openai
    Serve(Box<serve::Serve>),
}

/// Models, the weight of the shift, and the form of the output.
#[derive(Args)]
pub struct Shared {
    #[command(flatten)]
    trio: Trio,
    /// Weight of the shift [default: 1]; negative turns it round; auto (generate): the best on the text of --calibrate
    #[arg(long, value_name = "A|auto", allow_negative_numbers = true)]
    alpha: Option<Alpha>,
    #[command(flatten)]
    control: Control,
    /// How results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Which models, from where, and how they run.
#[derive(Args)]
pub struct Trio {
    /// Configuration file (TOML)
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,
    /// Host model (GGUF)
    #[arg(long, value_name = "GGUF")]
    host: Option<PathBuf>,
    /// Tuned proxy (GGUF)
    #[arg(long, value_name = "GGUF")]
    tuned: Option<PathBuf>,
    /// LoRA adapter (GGUF) over the untuned proxy, in place of --tuned: one copy of the weights for both proxies
    #[arg(long, value_name = "GGUF", conflicts_with = "tuned")]
    tuned_lora: Option<PathBuf>,
    /// Untuned proxy (GGUF)
    #[arg(long, value_name = "GGUF")]
    untuned: Option<PathBuf>,
    /// How host and proxies are combined: proxy-tuning, contrastive, mean, or a TOML file such as `proxytune fit` writes
    /// [default: proxy-tuning]
    #[arg(long, value_name = "RULE|F.toml")]
    combine: Option<Combine>,
    /// Engine that runs the host
    #[arg(long, value_enum, default_value_t = Engine::Llama)]
    engine: Engine,
    /// Threads for all models together [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Where the proxies run beside the host [default: auto]
    #[arg(long, value_enum)]
    placement: Option<PlacementFlag>,
    /// Tokens of context of each model [default: what is needed]
    #[arg(long)]
    ctx: Option<usize>,
    /// Seconds that a round of the proxies may take; what is late falls under on_error [default: 0, no limit]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    proxy_timeout: Option<f64>,
    /// Let the tuned proxy draft K tokens for the host, or as many as pay [default: auto]
    #[arg(long, value_name = "off|auto|K")]
    speculate: Option<Speculate>,
    /// Leave out the proxies' pass where the host's most likely token has a probability above P [default: 1, never]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    skip_above: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// llama.cpp, compiled in
    Llama,
    /// mistral.rs for the host, llama.cpp for the proxies; in builds with the feature `mistralrs`
    Mistralrs,
    /// A host behind an OpenAI-compatible API (--host-url), llama.cpp for the proxies
    Openai,
}

#[derive(Clone, Copy, ValueEnum)]
enum PlacementFlag {
    /// Whichever measures faster
    Auto,
    /// Host, tuned, untuned one after the other, each on all threads
    InTurn,
    /// After the host both proxies at once, each on half of the threads
    SideBySide,
    /// All three at once
    Together,
}

impl From<PlacementFlag> for Placement {
    fn from(flag: PlacementFlag) -> Self {
        match flag {
            PlacementFlag::Auto => Self::Auto,
            PlacementFlag::InTurn => Self::InTurn,
            PlacementFlag::SideBySide => Self::SideBySide,
            PlacementFlag::Together => Self::Together,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl Shared {
    /// Who runs the host.
    ///
    /// # Errors
    /// For an engine that this build has not.
    pub fn engine(&self) -> Result<Engine> {
        let engine = self.trio.engine();
        if engine == Engine::Mistralrs && cfg!(not(feature = "mistralrs")) {
            let expected = "llama, or a build with mistral.rs in it: make build FEATURES=serve";
            return Err(Error::invalid("--engine", "mistralrs, which this build has not", expected));
        }
        Ok(engine)
    }

    /// Whether alpha is to be chosen.
    pub fn is_auto(&self) -> bool {
        self.alpha == Some(Alpha::Auto)
    }

    /// For commands without a text to choose alpha on.
    ///
    /// # Errors
    /// For `--alpha auto`.
    pub fn refuse_auto(&self) -> Result<()> {
        match self.is_auto() {
            true => Err(Error::invalid("--alpha", "auto", "a number; generate and eval choose one")),
            false => Ok(()),
        }
    }

    /// For commands that need the host's weights.
    ///
    /// # Errors
    /// For a host behind an API.
    pub fn refuse_api(&self) -> Result<()> {
        match self.trio.engine {
            Engine::Openai => {
                Err(Error::invalid("--engine", "openai", "llama: this command needs the host's file"))
            }
            _ => Ok(()),
        }
    }

    /// The configuration file with the flags laid over it, checked.
    pub fn config(&self) -> Result<Config> {
        let mut config = self.trio.config()?;
        if let Some(Alpha::Weight(alpha)) = self.alpha {
            config.proxy_tuning.alpha = alpha;
        }
        self.control.lay_over(&mut config.proxy_tuning);
        config.check()?;
        Ok(config)
    }
}

impl Trio {
    /// Who runs the host.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The configuration file with the flags laid over it, checked.
    pub fn config(&self) -> Result<Config> {
        let config = self.config.as_deref().map(Config::read).transpose()?;
        self.laid_over(config.unwrap_or_default())
    }

    /// A configuration with the flags laid over it, checked.
    fn laid_over(&self, mut config: Config) -> Result<Config> {
        let tuning = &mut config.proxy_tuning;
        // Of a model and an adapter, the one given here holds.
        if self.tuned.is_some() || self.tuned_lora.is_some() {
            (tuning.tuned, tuning.tuned_lora) = (None, None);
        }
        let paths = [
            (&self.host, &mut config.host.model),
            (&self.tuned, &mut tuning.tuned),
            (&self.tuned_lora, &mut tuning.tuned_lora),
            (&self.untuned, &mut tuning.untuned),
        ];
        for (flag, place) in paths {
            if flag.is_some() {
                place.clone_from(flag);
            }
        }
        if let Some(combine) = &self.combine {
            tuning.combine = combine.clone();
        }
        tuning.threads = self.threads.unwrap_or(tuning.threads);
        tuning.placement = self.placement.map_or(tuning.placement, Into::into);
        if tuning.threads > 1024 {
            return Err(Error::invalid("--threads", tuning.threads, "at most 1024"));
        }
        tuning.proxy_timeout = self.proxy_timeout.unwrap_or(tuning.proxy_timeout);
        tuning.skip_above = self.skip_above.unwrap_or(tuning.skip_above);
        tuning.speculate = self.speculate.unwrap_or(tuning.speculate);
        if let Some(ctx) = self.ctx {
            (tuning.ctx, config.host.ctx) = (ctx, ctx);
        }
        config.check()?;
        Ok(config)
    }
}

#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    pub shared: Shared,
    #[command(flatten)]
    pub prompt: Prompt,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Most tokens to generate
    #[arg(long, default_value_t = 128)]
    pub max_tokens: usize,
    /// End the text before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    #[command(flatten)]
    pub api: host::Api,
    /// Text to choose alpha on, with --alpha auto
    #[arg(long, value_name = "F")]
    pub calibrate: Option<PathBuf>,
    /// Run the host alone, through the same path
    #[arg(long)]
    pub no_proxy: bool,
    /// Colour tokens by how much the shift changed the choice; in JSON, what it did at every position
    #[arg(long)]
    pub explain: bool,
    /// With --explain: so many of the likeliest tokens before and after the shift, with who moved them; at most 20
    #[arg(long, value_name = "K", requires = "explain")]
    pub explain_top: Option<usize>,
    /// First the host alone, then the proxy-tuned host, then figures of both
    #[arg(long, conflicts_with_all = ["no_proxy", "format"])]
    pub compare: bool,
}

#[derive(Args)]
pub struct Prompt {
    #[command(flatten)]
    pub source: PromptSource,
    /// Render the prompt as a user's message by each model's chat template
    #[arg(long, conflicts_with = "tokens")]
    pub chat: bool,
    /// System prompt for the tuned proxy alone
    #[arg(long, value_name = "TEXT", conflicts_with = "tokens")]
    pub tuned_system: Option<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct PromptSource {
    /// The prompt
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A file with the prompt; - for standard input
    #[arg(long, value_name = "F")]
    pub prompt_file: Option<PathBuf>,
    /// The prompt as the host's token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub tokens: Option<Vec<u32>>,
}

#[derive(Args)]
pub struct Sampling {
    /// 0 takes the most likely token always
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Sample from the K most likely tokens; 0: from all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Sample from tokens with at least this share of the most likely one's probability
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Divide the logits of recent tokens by this
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Seed of the sampling: the same text each time; drafting is then left out unless --speculate says how many tokens
    #[arg(long)]
    seed: Option<u64>,
}

impl Sampling {
    /// As the sampler takes it, checked.
    pub fn options(&self) -> Result<SamplerOptions> {
        let &Self { temperature, top_k, top_p, min_p, repeat_penalty, seed } = self;
        let options = SamplerOptions { temperature, top_k, top_p, min_p, repeat_penalty, seed };
        options.check()?;
        Ok(options)
    }
}

#[derive(Args)]
pub struct Check {
    #[command(flatten)]
    pub shared: Shared,
    /// Also run the host over this text, and say what share of its probability the proxies' vocabularies cover
    #[arg(long, value_name = "F")]
    pub text: Option<PathBuf>,
}

#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    pub shared: Shared,
    /// Numbers of sequences to decode at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    pub sequences: Vec<usize>,
    /// Tokens generated for each sequence and round
    #[arg(long, default_value_t = 48)]
    pub tokens: usize,
    /// Rounds; the ways take turns in each, medians are over all of them
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Prompts, one a line, \n for a line break [default: 32 made-up tokens]
    #[arg(long, value_name = "F")]
    pub prompt_file: Option<PathBuf>,
    /// Also draw the figures, as SVG
    #[arg(long, value_name = "F.svg")]
    pub svg: Option<PathBuf>,
    /// Accept each drafted token with this probability, whatever the models say: for timing random weights
    #[arg(long, value_name = "P")]
    pub force_accept: Option<f64>,
    #[command(flatten)]
    pub sampling: Sampling,
}
