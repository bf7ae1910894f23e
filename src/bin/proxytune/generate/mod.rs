//! `proxytune generate`.

mod calibrate;
mod explained;
#[cfg(feature = "mistralrs")]
mod mistral;
pub mod openai;
mod output;
mod prompt;

use crate::args::{Format, Generate};
use crate::progress::load;
use output::{Screen, Show, figures, to_json};
use prompt::{history, read_prompt};
use proxytune::backend::llama::LlamaModel;
use proxytune::config::Config;
use proxytune::decode::{Event, Finish, Job, MOST_CANDIDATES, Models, Outcome, RunOptions};
use proxytune::{Error, Result};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;

/// Candidates of each position in JSON, where nothing else is said.
const CANDIDATES: usize = 5;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let config = args.shared.config()?;
    let sampler = args.sampling.options()?;
    if args.max_tokens == 0 {
        return Err(Error::invalid("--max-tokens", 0, "at least 1"));
    }
    if let Some(count) = args.explain_top.filter(|count| *count > MOST_CANDIDATES) {
        return Err(Error::invalid("--explain-top", count, format!("at most {MOST_CANDIDATES}")));
    }
    if args.shared.is_auto() && args.no_proxy {
        return Err(Error::invalid("--alpha", "auto beside --no-proxy", "one of the two"));
    }
    if args.shared.engine()? == crate::args::Engine::Openai {
        args.shared.refuse_auto()?;
        return openai::run(args, &config);
    }
    let calibration = calibration(args)?;
    let text = read_prompt(&args.prompt)?;
    let engine = load_engine(args, &config)?;
    let history = history(args, &config, engine.host(), engine.tuned(), text.as_deref())?;
    let alpha = match &calibration {
        Some(text) => engine.calibrate(text)?,
        None => config.proxy_tuning.alpha,
    };
    let job = Job {
        history,
        alpha,
        sampler,
        max_tokens: args.max_tokens,
        stops: args.stop.clone(),
        control: false,
        ignore_end: false,
    };
    if args.compare {
        return compare(&how(&config, alpha)?, &*engine, job, text.as_deref());
    }
    let show = match args.shared.format {
        Format::Json => Show::Nothing,
        Format::Text if args.explain => Show::Coloured,
        Format::Text => Show::Plain,
    };
    let json = args.shared.format == Format::Json;
    let outcome = decode(&*engine, job, show, args.explain, args.no_proxy)?;
    if json {
        let mut object = to_json(&outcome, args.explain.then(|| engine.host()));
        // As it was written: 0.7 and not 0.699999988.
        object["alpha"] = alpha.to_string().parse::<f64>().unwrap_or_default().into();
        crate::say::outln!("{object}");
    } else {
        if args.explain_top.is_some() {
            crate::say::out!("{}", explained::table(&outcome, engine.host()));
        }
        if args.explain && outcome.positions.iter().any(|p| p.probabilities.is_some()) {
            crate::say::note!("{}", explained::legend());
        }
        crate::say::note!("{}", figures(&outcome.stats));
    }
    Ok(ExitCode::SUCCESS)
}

/// The text to choose alpha on.
fn calibration(args: &Generate) -> Result<Option<String>> {
    match (args.shared.is_auto(), &args.calibrate) {
        (true, Some(path)) => proxytune::eval::read_text(path).map(Some),
        (true, None) => {
            let expected = "--calibrate with a text to choose alpha on";
            Err(Error::invalid("--alpha", "auto without --calibrate", expected))
        }
        (false, Some(path)) => Err(Error::invalid("--calibrate", path.display(), "--alpha auto beside it")),
        (false, None) => Ok(None),
    }
}

/// Whoever runs the models.
trait Engine {
    /// The host, as far as its vocabulary.
    fn host(&self) -> &LlamaModel;

    /// The tuned proxy, where there is one.
    fn tuned(&self) -> Option<&Arc<LlamaModel>>;

    /// The weight under which the shifted host predicts a text best.
    fn calibrate(&self, _text: &str) -> Result<f32> {
        Err(Error::invalid("--alpha", "auto", "a number, or --engine llama, where one can be chosen"))
    }

    /// Generates a text; `alone`: by the host without proxies; `explain`: with probabilities.
    fn generate(
        &self,
        job: Job,
        alone: bool,
        explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome>;
}

/// All models in llama.cpp.
struct Llama<'a> {
    config: &'a Config,
    models: Models,
    /// Candidates of each position where positions are explained.
    candidates: usize,
}

impl Engine for Llama<'_> {
    fn host(&self) -> &LlamaModel {
        &self.models.host
    }

    fn calibrate(&self, text: &str) -> Result<f32> {
        calibrate::calibrate(self.config, &self.models, text)
    }

    fn tuned(&self) -> Option<&Arc<LlamaModel>> {
        self.models.proxies.as_ref().map(|[(tuned, _), _]| tuned)
    }

    fn generate(
        &self,
        job: Job,
        alone: bool,
        explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let host_alone = Models { host: self.models.host.clone(), proxies: None };
        let models = if alone { &host_alone } else { &self.models };
        let longest = job.history.longest_prompt() + job.max_tokens;
        let candidates = self.candidates;
        let run = RunOptions { sequences: 1, longest, candidates, ..RunOptions::default() };
        let outcomes = models.decoder(self.config, run)?.generate(vec![job], explain, listen)?;
        outcomes.into_iter().next().ok_or(Error::Interrupted)
    }
}

fn load_engine<'a>(args: &Generate, config: &'a Config) -> Result<Box<dyn Engine + 'a>> {
    match args.shared.engine()? {
        #[cfg(feature = "mistralrs")]
        crate::args::Engine::Mistralrs => {
            if args.explain && args.shared.format == Format::Json {
                let expected = "--engine llama, or --format text, where changed tokens are coloured";
                return Err(Error::invalid("--explain", "JSON from mistral.rs", expected));
            }
            Ok(Box::new(mistral::Trio::load(config, args.no_proxy)?))
        }
        _ => {
            let by_default = if args.shared.format == Format::Json { CANDIDATES } else { 0 };
            let candidates = args.explain_top.unwrap_or(by_default);
            Ok(Box::new(Llama { config, models: load(config, args.no_proxy)?, candidates }))
        }
    }
}

/// Generates a text and shows it.
fn decode(engine: &dyn Engine, job: Job, show: Show, explain: bool, alone: bool) -> Result<Outcome> {
    let mut screen = Screen::new(show);
    let outcome = engine.generate(job, alone, explain, &mut |event| screen.event(&event))?;
    screen.finish();
    match outcome.finish {
        Finish::Error(error) => Err(error),
        Finish::Interrupted if crate::interrupted() => Err(Error::Interrupted),
        _ => Ok(outcome),
    }
}

/// What is done to the host, in words.
fn how(config: &Config, alpha: f32) -> Result<String> {
    let rule = config.proxy_tuning.combine.rule()?;
    Ok(if rule.is_offset() {
        format!("The host, proxy-tuned with alpha {alpha}")
    } else {
        format!("The host, combined by {rule}, alpha {alpha}")
    })
}

fn compare(how: &str, engine: &dyn Engine, job: Job, prompt: Option<&str>) -> Result<ExitCode> {
    let (bold, dim) = (anstyle::Style::new().bold(), anstyle::Style::new().dimmed());
    let title = |text: &str| {
        crate::say::outln!("{bold}{text}{bold:#}");
        crate::say::out!("{dim}{}{dim:#}", prompt.unwrap_or_default());
    };
    title("The host alone");
    let host = decode(engine, job.clone(), Show::Plain, false, true)?;
    crate::say::outln!();
    title(&format!("{how} (coloured: tokens that the shift changed)"));
    let shifted = decode(engine, job, Show::Coloured, false, false)?;
    crate::say::outln!("\n{bold}host alone {bold:#} {}", figures(&host.stats));
    crate::say::outln!("{bold}proxy-tuned{bold:#} {}", figures(&shifted.stats));
    Ok(ExitCode::SUCCESS)
}
