//! Multiple choice by letter, with a host behind an API or in this process.

use super::settings_without_setup;
use crate::args::Engine;
use crate::args::eval::Eval;
use crate::args::host::Api;
use crate::generate::openai::{spent, until_interrupted};
use crate::progress::Progress;
use proxytune::backend::llama::{LlamaModel, LoadOptions};
use proxytune::config::Config;
use proxytune::decode::model_path;
use proxytune::eval::{self, Journal, Pick, PickOptions, PromptOptions, Report};
use proxytune::host::blackbox::{Advisers, BlackBox, Local};
use proxytune::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// What tells a host behind an API from others, in the place of a file's name.
pub fn host_name(args: &Eval, config: &Config) -> Result<Option<PathBuf>> {
    if args.trio.engine() != Engine::Openai {
        return Ok(config.host.model.clone());
    }
    Api::refuse_file(config)?;
    let options = args.api.options()?;
    Ok(Some(format!("{} at {}", options.model, options.url).into()))
}

pub fn run(
    args: &Eval,
    config: &Config,
    questions: &[Pick],
    alphas: &[f32],
    journal: &mut Journal,
    bar: &mut Progress,
) -> Result<Report> {
    let prompts = args.prompts()?;
    let control = config.proxy_tuning.control();
    let PromptOptions { chat, tuned_system, preamble } = prompts;
    let options = PickOptions { preamble, tuned_system, chat, control };
    let longest = questions.iter().map(|q| q.prompt().len()).max().unwrap_or(0) + options.preamble.len();
    let longest = longest + options.tuned_system.as_ref().map_or(0, String::len) + 256;
    let advisers = Arc::new(Advisers::load(config.clone(), 1, longest)?);
    let mut listen = super::listen(bar, "asking");
    crate::runtime()?.block_on(until_interrupted(async {
        let (host, source): (Box<dyn BlackBox>, _) = match args.trio.engine() {
            Engine::Openai => (Box::new(args.api.connect(Some(&advisers)).await?.0), true),
            _ => (Box::new(local(config, longest)?), false),
        };
        let report = eval::picks(&*host, &advisers, questions, alphas, &options, journal, &mut listen).await;
        let mut report = report?;
        if source {
            report.notes.push(spent(&host.spent()));
        }
        if !control.schedule.is_constant() {
            report.notes.push("the schedule of alpha counts a letter as the first token of an answer".into());
        }
        report.settings = settings_without_setup(args, config);
        Ok(report)
    }))
}

/// A host in this process, all of whose tokens are visible.
fn local(config: &Config, longest: usize) -> Result<Local> {
    let path = model_path(&config.host.model, "--host")?;
    let options = LoadOptions {
        gpu_layers: config.host.gpu_layers,
        device: config.host.device.clone(),
        ..LoadOptions::default()
    };
    let model = Arc::new(LlamaModel::load(path, options)?);
    let context = if config.host.ctx == 0 { model.trained_context().min(longest) } else { config.host.ctx };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.proxy_tuning.threads == 0 { cores } else { config.proxy_tuning.threads };
    let all = model.vocab_len();
    Local::new(model, context, threads, all)
}

/// Says which tasks a host behind an API can be put to.
pub fn refuse_others(args: &Eval) -> Result<()> {
    if args.trio.engine() != Engine::Openai {
        return Ok(());
    }
    let expected = "a task with choices named by letters (realtimeqa), or --engine llama: an API shows too little for the rest";
    Err(Error::invalid("--engine", "openai for this task", expected))
}
