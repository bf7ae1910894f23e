//! `proxytune generate`.

#[cfg(feature = "mistralrs")]
mod mistral;
mod output;
mod prompt;

use crate::args::{self, Format, Generate};
use crate::progress::load;
use output::{Screen, Show, figures, to_json};
use prompt::{history, read_prompt};
use proxytune::backend::llama::LlamaModel;
use proxytune::config::Config;
use proxytune::decode::{Finish, Job, Models, Outcome, RunOptions};
use proxytune::{Error, Result};
use std::process::ExitCode;
use std::sync::Arc;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let config = args.shared.config()?;
    let sampler = args.sampling.options()?;
    if args.max_tokens == 0 {
        return Err(Error::invalid("--max-tokens", 0, "at least 1"));
    }
    let text = read_prompt(&args.prompt)?;
    let engine = Engine::load(args, &config)?;
    let history = history(args, &config, engine.host(), engine.tuned(), text.as_deref())?;
    let job = Job {
        history,
        alpha: config.proxy_tuning.alpha,
        sampler,
        max_tokens: args.max_tokens,
        stops: args.stop.clone(),
        control: false,
        ignore_end: false,
    };
    if args.compare {
        return compare(&config, &engine, job, text.as_deref());
    }
    let show = match args.shared.format {
        Format::Json => Show::Nothing,
        Format::Text if args.explain => Show::Coloured,
        Format::Text => Show::Plain,
    };
    let json = args.shared.format == Format::Json;
    let outcome = engine.decode(&config, job, show, json && args.explain, args.no_proxy)?;
    if json {
        anstream::println!("{}", to_json(&outcome, args.explain));
    } else {
        anstream::eprintln!("{}", figures(&outcome.stats));
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever runs the models.
enum Engine {
    Llama(Models),
    #[cfg(feature = "mistralrs")]
    Mistral(Box<mistral::Trio>),
}

impl Engine {
    fn load(args: &Generate, config: &Config) -> Result<Self> {
        match args.shared.engine()? {
            #[cfg(feature = "mistralrs")]
            args::Engine::Mistralrs => {
                if args.explain && args.shared.format == Format::Json {
                    let expected = "--engine llama, or --format text, where changed tokens are coloured";
                    return Err(Error::invalid("--explain", "JSON from mistral.rs", expected));
                }
                mistral::Trio::load(config, args.no_proxy).map(Box::new).map(Self::Mistral)
            }
            _ => load(config, args.no_proxy).map(Self::Llama),
        }
    }

    fn host(&self) -> &LlamaModel {
        match self {
            Self::Llama(models) => &models.host,
            #[cfg(feature = "mistralrs")]
            Self::Mistral(trio) => trio.vocabulary(),
        }
    }

    fn tuned(&self) -> Option<&Arc<LlamaModel>> {
        match self {
            Self::Llama(models) => models.proxies.as_ref().map(|[(tuned, _), _]| tuned),
            #[cfg(feature = "mistralrs")]
            Self::Mistral(trio) => trio.tuning().map(|tuning| &tuning.proxies().models()[0]),
        }
    }

    /// Generates a text; `alone`: by the host without proxies.
    fn decode(&self, config: &Config, job: Job, show: Show, explain: bool, alone: bool) -> Result<Outcome> {
        let mut screen = Screen::new(show);
        let outcome = match self {
            Self::Llama(models) => decode(config, models, job, explain, alone, &mut screen)?,
            #[cfg(feature = "mistralrs")]
            Self::Mistral(trio) => trio.generate(job, alone, &mut |event| screen.event(&event))?,
        };
        screen.finish();
        match outcome.finish {
            Finish::Error(error) => Err(error),
            Finish::Interrupted if crate::interrupted() => Err(Error::Interrupted),
            _ => Ok(outcome),
        }
    }
}

fn decode(
    config: &Config,
    models: &Models,
    job: Job,
    explain: bool,
    alone: bool,
    screen: &mut Screen,
) -> Result<Outcome> {
    let host_alone = Models { host: models.host.clone(), proxies: None };
    let longest = job.history.longest_prompt() + job.max_tokens;
    let run = RunOptions { sequences: 1, longest, ..RunOptions::default() };
    let mut decoder = if alone { &host_alone } else { models }.decoder(config, run)?;
    let outcomes = decoder.generate(vec![job], explain, &mut |event| screen.event(&event))?;
    outcomes.into_iter().next().ok_or(Error::Interrupted)
}

fn compare(config: &Config, engine: &Engine, job: Job, prompt: Option<&str>) -> Result<ExitCode> {
    let (bold, dim) = (anstyle::Style::new().bold(), anstyle::Style::new().dimmed());
    let title = |text: &str| {
        anstream::println!("{bold}{text}{bold:#}");
        anstream::print!("{dim}{}{dim:#}", prompt.unwrap_or_default());
    };
    let alpha = config.proxy_tuning.alpha;
    title("The host alone");
    let host = engine.decode(config, job.clone(), Show::Plain, false, true)?;
    anstream::println!();
    title(&format!("The host, proxy-tuned with alpha {alpha} (coloured: tokens that the shift changed)"));
    let shifted = engine.decode(config, job, Show::Coloured, false, false)?;
    anstream::println!("\n{bold}host alone {bold:#} {}", figures(&host.stats));
    anstream::println!("{bold}proxy-tuned{bold:#} {}", figures(&shifted.stats));
    Ok(ExitCode::SUCCESS)
}
