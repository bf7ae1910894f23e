//! Flags of `proxytune eval`.

use super::control::{Alpha, Control};
use super::{Format, Sampling, Trio};
use clap::Args;
use proxytune::eval::{self, GenerationOptions, Kind, PromptOptions, Window};
use proxytune::{Error, Result};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  proxytune eval --config proxytune.toml --text held-out.txt --alpha 0.25,0.5,1 --direct tuned-host.gguf
  proxytune eval --config proxytune.toml --text held-out.txt --alpha auto --calibrate other.txt
  proxytune eval --config proxytune.toml --task gsm8k-test.jsonl --preamble shots.txt --report gsm8k.html
  proxytune eval --config proxytune.toml --task HumanEval.jsonl.gz --samples 20 --temperature 0.8 --k 1,10";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    #[command(flatten)]
    pub trio: Trio,
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub api: super::host::Api,
    /// What the task file is [default: seen from its fields]
    #[arg(long = "as", value_name = "FORMAT", value_parser = kind, conflicts_with = "text")]
    pub kind: Option<Kind>,
    /// The host tuned directly (GGUF), the yardstick of the gap closed
    #[arg(long, value_name = "GGUF")]
    pub direct: Option<PathBuf>,
    /// Weights of the shift, or auto: the best on the text of --calibrate
    /// [default: 0.25 to 2 where a sweep costs next to nothing, else 1]
    #[arg(long, value_name = "A,B,…|auto", value_delimiter = ',', allow_hyphen_values = true)]
    pub alpha: Vec<Alpha>,
    #[command(flatten)]
    pub control: Control,
    /// Text to choose alpha on; not the one that is scored
    #[arg(long, value_name = "F")]
    pub calibrate: Option<PathBuf>,
    /// Tokens of the windows that a text is cut into
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub window: usize,
    /// Tokens from the beginning of one window to that of the next; fewer than a window has make it slide, so that each
    /// token is predicted from more of the text [default: as many, side by side]
    #[arg(long, value_name = "N", conflicts_with = "task")]
    pub stride: Option<usize>,
    /// Only the first N items of a task
    #[arg(long, value_name = "N", conflicts_with = "text")]
    pub limit: Option<usize>,
    /// Text to put before each prompt of a task, such as solved examples
    #[arg(long, value_name = "F", conflicts_with = "text")]
    pub preamble: Option<PathBuf>,
    /// When an answer is right: exact, number, or a regular expression whose first group is compared
    #[arg(long = "match", value_name = "exact|number|REGEX", conflicts_with = "text")]
    pub rule: Option<String>,
    /// Most tokens to generate for an item [default: 64 for exact, 256 for numbers, 512 for code]
    #[arg(long, value_name = "N", conflicts_with = "text")]
    pub max_tokens: Option<usize>,
    /// End an answer before this string; may be given several times [default: as the task needs]
    #[arg(long, value_name = "TEXT", conflicts_with = "text")]
    pub stop: Vec<String>,
    /// System prompt for the tuned proxy alone
    #[arg(long, value_name = "TEXT", conflicts_with = "text")]
    pub tuned_system: Option<String>,
    /// Render prompts as a user's message by each model's chat template
    #[arg(long, conflicts_with = "text")]
    pub chat: bool,
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub code: Code,
    /// One self-contained HTML page with plots
    #[arg(long, value_name = "F.html")]
    pub report: Option<PathBuf>,
    /// Where finished items are kept, so that the same command goes on after a kill [default: in the cache folder, until
    /// the evaluation is over]
    #[arg(long, value_name = "F.jsonl")]
    pub journal: Option<PathBuf>,
    /// Forget what a journal holds of an earlier run
    #[arg(long)]
    pub fresh: bool,
    /// How results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// A text, scored in bits per byte
    #[arg(long, value_name = "F")]
    pub text: Option<PathBuf>,
    /// A task file as published by TruthfulQA, GSM8K, TriviaQA, HumanEval or RealTime QA; may be gzipped
    #[arg(long, value_name = "F")]
    pub task: Option<PathBuf>,
}

/// How generated code is run.
#[derive(Args)]
pub struct Code {
    /// Texts generated for each problem; more than one needs a temperature
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "text")]
    pub samples: usize,
    /// Report pass@k for these k, each at most --samples
    #[arg(long, value_name = "K,…", value_delimiter = ',', default_values_t = [1], conflicts_with = "text")]
    pub k: Vec<usize>,
    /// Seconds that a generated program may run
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub time_limit: u64,
    /// Memory that a generated program may take, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub memory_limit: u64,
    /// The Python that runs it
    #[arg(long, value_name = "F", default_value = "/usr/bin/python3")]
    pub python: PathBuf,
}

fn kind(text: &str) -> std::result::Result<Kind, String> {
    let find = |kind: &Kind| kind.name() == text;
    Kind::TASKS.into_iter().find(find).ok_or_else(|| {
        let known: Vec<_> = Kind::TASKS.iter().map(|k| k.name()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

/// Whether models write texts in a task of this kind.
fn writes(kind: Kind) -> bool {
    matches!(kind, Kind::Gsm8k | Kind::TriviaQa | Kind::HumanEval)
}

impl Eval {
    /// The file that is scored.
    pub fn source(&self) -> &std::path::Path {
        self.source.text.as_deref().or(self.source.task.as_deref()).unwrap_or(std::path::Path::new(""))
    }

    /// How a text is cut up.
    pub fn windows(&self) -> Window {
        Window { tokens: self.window, stride: self.stride.unwrap_or(self.window) }
    }

    /// How prompts are put.
    pub fn prompts(&self) -> Result<PromptOptions> {
        let preamble = self.preamble.as_deref().map_or(Ok(String::new()), eval::read_text)?;
        Ok(PromptOptions { chat: self.chat, tuned_system: self.tuned_system.clone(), preamble })
    }

    /// How texts are generated, with what a kind of task needs where nothing is said.
    pub fn generation(&self, kind: Kind) -> Result<GenerationOptions> {
        self.refuse_idle(kind)?;
        if self.max_tokens == Some(0) {
            return Err(Error::invalid("--max-tokens", 0, "at least 1"));
        }
        // A chat model ends its answer itself.
        let stops = if self.chat { &[] } else { kind.stops() };
        let stops = match self.stop.is_empty() {
            true => stops.iter().map(|s| s.to_string()).collect(),
            false => self.stop.clone(),
        };
        Ok(GenerationOptions {
            prompts: self.prompts()?,
            sampler: self.sampling.options()?,
            max_tokens: self.max_tokens.unwrap_or(kind.max_tokens()),
            stops,
            samples: if kind == Kind::HumanEval { self.code.samples } else { 1 },
        })
    }

    /// Flags that would do nothing for this kind of task: whoever gives one expects something else.
    fn refuse_idle(&self, kind: Kind) -> Result<()> {
        let (is_code, is_given) = (kind == Kind::HumanEval, !writes(kind));
        for (flag, is_idle, what) in [
            ("--match", self.rule.is_some() && (is_code || is_given), "answers in words"),
            ("--max-tokens", self.max_tokens.is_some() && is_given, "texts that models write"),
            ("--stop", !self.stop.is_empty() && is_given, "texts that models write"),
            ("--samples", self.code.samples != 1 && !is_code, "code"),
            ("--k", self.code.k != [1] && !is_code, "code"),
        ] {
            if is_idle {
                let given = format!("a value for {}", kind.name());
                return Err(Error::invalid(flag, given, format!("none here: it is for {what}")));
            }
        }
        Ok(())
    }

    /// What of it belongs into a report.
    pub fn settings_of(&self, kind: Kind) -> Vec<(&'static str, String)> {
        let mut settings = Vec::new();
        if kind == Kind::Text {
            let Window { tokens, stride } = self.windows();
            let windows = if stride < tokens {
                format!("{tokens} tokens, one every {stride}; each token is scored once")
            } else {
                format!("{tokens} tokens, side by side; the first of each is not scored")
            };
            settings.push(("windows", windows));
        }
        if let (true, Ok(of)) = (writes(kind), self.generation(kind)) {
            settings.push(("temperature", of.sampler.temperature.to_string()));
            settings.push(("seed", of.sampler.seed.unwrap_or(0).to_string()));
            settings.push(("most tokens", of.max_tokens.to_string()));
        }
        if self.chat {
            settings.push(("prompts", "by each model's chat template".into()));
        }
        settings.extend(self.preamble.as_ref().map(|path| ("preamble", path.display().to_string())));
        settings.extend(self.rule.clone().map(|rule| ("match", rule)));
        settings.extend(self.tuned_system.clone().map(|system| ("the tuned proxy's system prompt", system)));
        settings
    }

    /// Flags that results depend on, for a journal to know them by.
    pub fn settings(&self) -> Result<String> {
        let Self { rule, limit: _, max_tokens, stop, chat, sampling, code, .. } = self;
        let Window { tokens, stride } = self.windows();
        let (sampling, prompts) = (sampling.options()?, self.prompts()?);
        let Code { samples, time_limit, memory_limit, python, .. } = code;
        Ok(format!(
            "{tokens} {stride} {prompts:?} {rule:?} {max_tokens:?} {stop:?} {chat} {sampling:?} {samples} {time_limit} \
             {memory_limit} {python:?}"
        ))
    }
}
