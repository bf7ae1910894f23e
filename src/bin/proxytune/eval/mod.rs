//! `proxytune eval`: does proxy-tuning help these models, and at which alpha?

mod output;
mod picks;
mod table;

use crate::args::Format;
use crate::args::control::Alpha;
use crate::args::eval::Eval;
use crate::progress::{Progress, load};
use output::{ReportFile, open_journal};
use proxytune::config::{Config, Control};
use proxytune::decode::model_path;
use proxytune::eval::{
    self, GenerationOptions, Items, Journal, Kind, Listen, Metric, Problem, Report, Rule, Setup,
};
use proxytune::{Error, Result};
use std::ops::ControlFlow;
use std::process::ExitCode;

/// Weights of a sweep that shares its forward passes.
const SWEEP: [f32; 6] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0];

/// What is scored.
enum Task {
    Text(String),
    Items(Kind, Items),
}

impl Task {
    fn read(args: &Eval) -> Result<Self> {
        match (&args.source.text, &args.source.task) {
            (Some(path), _) => eval::read_text(path).map(Self::Text),
            (None, Some(path)) => {
                let (kind, items) = eval::read(path, args.kind, args.limit)?;
                Ok(Self::Items(kind, items))
            }
            (None, None) => Err(Error::invalid("eval", "nothing to score", "--text or --task")),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Items(kind, _) => *kind,
        }
    }

    /// A hash of all that is scored.
    fn hash(&self) -> u64 {
        match self {
            Self::Text(text) => output::hash(text),
            Self::Items(_, items) => output::hash(items),
        }
    }

    /// Whether every alpha comes from the same forward passes.
    fn shares_passes(&self) -> bool {
        matches!(self.kind(), Kind::Text | Kind::TruthfulQa | Kind::RealtimeQa)
    }
}

pub fn run(args: &Eval) -> Result<ExitCode> {
    let mut config = args.trio.config()?;
    args.control.lay_over(&mut config.proxy_tuning);
    config.check()?;
    let task = Task::read(args)?;
    let calibration = calibration(args)?;
    let alphas = alphas(args, &config, &task)?;
    // All that can be wrong with the flags, before hours of work.
    args.rule.as_deref().map(Rule::parse).transpose()?;
    args.generation(task.kind())?;
    let report_file = args.report.as_deref().map(ReportFile::open).transpose()?;
    let mut named = config.clone();
    named.host.model = picks::host_name(args, &config)?;
    let mut journal = open_journal(args, &named, &task)?;
    let mut bar = Progress::new("{msg} {bar:30} {pos}/{len}  {left}");
    let (outcome, calibration) = match &task {
        Task::Items(_, Items::Picks(questions)) => {
            if calibration.is_some() || args.direct.is_some() {
                let expected = "neither, for a task with choices named by letters";
                return Err(Error::invalid("--direct or --alpha auto", "a value", expected));
            }
            (picks::run(args, &config, questions, &alphas, &mut journal.journal, &mut bar), None)
        }
        _ => {
            picks::refuse_others(args)?;
            let mut setup = setup(args, config, alphas)?;
            let calibration = match &calibration {
                Some(text) => Some(calibrate(&mut setup, text, args.window, &mut bar)?),
                None => None,
            };
            (evaluate(args, &setup, &task, &mut journal.journal, &mut bar), calibration)
        }
    };
    let outcome = outcome.map(|mut report| {
        report.source = args.source().display().to_string();
        report
    });
    bar.clear();
    if let (Err(Error::Interrupted), Some(path)) = (&outcome, journal.path()) {
        crate::say::note!(
            "what is finished is kept in {}: the same command goes on from there",
            path.display()
        );
    }
    let mut report = outcome?;
    report.calibration = calibration;
    // The results are told even if their page cannot be written.
    let written = report_file.map_or(Ok(()), |file| file.write(&report));
    match args.format {
        Format::Json => crate::say::outln!("{}", report.json()),
        Format::Text => table::print(&report),
    }
    written?;
    journal.finish();
    Ok(ExitCode::SUCCESS)
}

fn calibration(args: &Eval) -> Result<Option<String>> {
    match (args.alpha.contains(&Alpha::Auto), &args.calibrate) {
        (true, Some(path)) => eval::read_text(path).map(Some),
        (true, None) => Err(Error::invalid(
            "--alpha",
            "auto without --calibrate",
            "--calibrate with a text to choose alpha on",
        )),
        (false, Some(path)) => Err(Error::invalid("--calibrate", path.display(), "--alpha auto beside it")),
        (false, None) => Ok(None),
    }
}

/// The weights given; those that cost next to nothing where none are.
fn alphas(args: &Eval, config: &Config, task: &Task) -> Result<Vec<f32>> {
    let given: Vec<f32> = args
        .alpha
        .iter()
        .filter_map(|a| match a {
            Alpha::Weight(alpha) => Some(*alpha),
            Alpha::Auto => None,
        })
        .collect();
    let alphas = match (args.alpha.is_empty(), task.shares_passes()) {
        (true, true) => SWEEP.to_vec(),
        (true, false) => vec![config.proxy_tuning.alpha],
        (false, _) => given,
    };
    // Empty with `auto` alone: calibration adds one.
    if !args.alpha.contains(&Alpha::Auto) || !alphas.is_empty() {
        eval::check_alphas(&alphas)?;
    }
    Ok(alphas)
}

fn setup(args: &Eval, config: Config, alphas: Vec<f32>) -> Result<Setup> {
    // Each proxy is scored by itself, whichever of them the rule reads.
    if config.proxy_tuning.tuned_lora.is_none() {
        model_path(&config.proxy_tuning.tuned, "--tuned")?;
    }
    model_path(&config.proxy_tuning.untuned, "--untuned")?;
    let models = load(&config, false)?;
    let mut progress = Progress::new("loading directly tuned model {bar:30} {percent:>3} %");
    let direct = match &args.direct {
        Some(path) => Some(Setup::load_direct(path, &config, &models.host, &mut |share| {
            progress.set((share * 1000.0) as u64, 1000, "");
            !crate::interrupted()
        })?),
        None => None,
    };
    Ok(Setup { config, models, direct, alphas })
}

/// Chooses alpha and adds it to the sweep.
fn calibrate(setup: &mut Setup, text: &str, window: usize, bar: &mut Progress) -> Result<Metric> {
    let metric = eval::calibrate(setup, text, window, &mut listen(bar, "calibrating"))?;
    let best = metric.best().ok_or(Error::Interrupted)?.alpha;
    if !setup.alphas.contains(&best) {
        setup.alphas.insert(0, best);
    }
    Ok(metric)
}

fn evaluate(
    args: &Eval,
    setup: &Setup,
    task: &Task,
    journal: &mut Journal,
    bar: &mut Progress,
) -> Result<Report> {
    let mut listen = listen(bar, if task.shares_passes() { "scoring" } else { "generating" });
    let mut report = match task {
        Task::Text(text) => eval::text(setup, text, args.windows(), journal, &mut listen)?,
        Task::Items(_, Items::Questions(questions)) => {
            eval::choices(setup, questions, &args.prompts()?, journal, &mut listen)?
        }
        Task::Items(kind, Items::Asks(asks)) => {
            let rule = args.rule.as_deref().map_or(Ok(Rule::of(*kind)), Rule::parse)?;
            eval::answers(setup, *kind, asks, &rule, &args.generation(*kind)?, journal, &mut listen)?
        }
        Task::Items(kind, Items::Problems(problems)) => {
            code(args, setup, problems, &args.generation(*kind)?, journal, &mut listen)?
        }
        Task::Items(_, Items::Picks(_)) => {
            return Err(Error::invalid("--task", "choices by letter", "picks"));
        }
    };
    if let Some(best) = report.metrics.first().and_then(Metric::best).filter(|_| args.report.is_some()) {
        let starts = match task {
            Task::Text(text) => eval::starts_of_text(text),
            Task::Items(kind, items) => eval::starts_of_items(*kind, items),
        };
        report.heat = eval::heat(setup, &starts, &args.prompts()?, best.alpha, &mut listen)?;
    }
    if !setup.config.proxy_tuning.control().schedule.is_constant() {
        let whose = match task {
            Task::Text(_) => "of each window from its first scored token",
            _ => "of each answer from its first token",
        };
        report.notes.push(format!("the schedule of alpha counts the tokens {whose}"));
    }
    report.settings = settings(args, setup, task.kind());
    let rule = setup.config.proxy_tuning.combine.rule()?;
    if !rule.is_offset() {
        report.settings.push(("combined by".into(), rule.to_string()));
        report.notes.push(format!("shifted by {rule}"));
    }
    Ok(report)
}

#[cfg(target_os = "linux")]
fn code(
    args: &Eval,
    setup: &Setup,
    problems: &[Problem],
    options: &GenerationOptions,
    journal: &mut Journal,
    listen: &mut Listen<'_>,
) -> Result<Report> {
    use proxytune::eval::contain::{Cell, Limits};
    let launcher = std::env::current_exe()
        .map_err(|e| Error::invalid("this program", e, "a path that it can be started from again"))?;
    let time = std::time::Duration::from_secs(args.code.time_limit);
    let limits = Limits { time, memory: args.code.memory_limit << 20, ..Limits::default() };
    let cell = Cell { launcher, python: args.code.python.clone(), limits };
    eval::code(setup, problems, &cell, &args.code.k, options, journal, listen)
}

#[cfg(not(target_os = "linux"))]
fn code(
    _: &Eval,
    _: &Setup,
    _: &[Problem],
    _: &GenerationOptions,
    _: &mut Journal,
    _: &mut Listen<'_>,
) -> Result<Report> {
    Err(Error::invalid("--task", "generated code", "Linux: nothing else contains it here"))
}

/// The part of this program that runs generated code; `None` where it was called for something else.
#[cfg(target_os = "linux")]
pub fn contained() -> Option<ExitCode> {
    use proxytune::eval::contain;
    let mut arguments = std::env::args().skip(1);
    let (which, orders) = (arguments.next()?, arguments.next().unwrap_or_default());
    match which.as_str() {
        contain::KEEPER => Some(contain::keeper(&orders).into()),
        contain::INMATE => Some(contain::inmate(&orders).into()),
        _ => None,
    }
}

/// The same of an evaluation by letters.
fn settings_without_setup(args: &Eval, config: &Config) -> Vec<(String, String)> {
    let tuning = &config.proxy_tuning;
    let host = picks::host_name(args, config).ok().flatten();
    let [tuned, untuned] = [tuning.tuned_file(), tuning.untuned.as_deref()];
    let models = [("host", host.as_deref()), ("tuned proxy", tuned), ("untuned proxy", untuned)];
    let named =
        models.into_iter().filter_map(|(name, path)| Some((name.into(), path?.display().to_string())));
    named.chain(settings_of_control(&tuning.control())).collect()
}

/// Schedule and guards that are on.
fn settings_of_control(control: &Control) -> Vec<(String, String)> {
    let schedule = (!control.schedule.is_constant()).then(|| control.schedule.to_string());
    let cap = control.cap.map(|cap| format!("{cap} nats"));
    let guard = (control.repetition_guard > 0).then(|| format!("{} times", control.repetition_guard));
    let all = [("schedule of alpha", schedule), ("cap of the shift", cap), ("repetition guard", guard)];
    all.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
}

/// What a reader of the report wants to know of how it was measured.
fn settings(args: &Eval, setup: &Setup, kind: Kind) -> Vec<(String, String)> {
    let mut settings = vec![("host".into(), setup.models.host.path().display().to_string())];
    let mut add = |name: &str, value: String| settings.push((name.into(), value));
    if let Some([(tuned, _), (untuned, _)]) = &setup.models.proxies {
        add("tuned proxy", tuned.path().display().to_string());
        add("untuned proxy", untuned.path().display().to_string());
    }
    if let Some(direct) = &setup.direct {
        add("directly tuned", direct.model.path().display().to_string());
    }
    args.settings_of(kind).into_iter().for_each(|(name, value)| add(name, value));
    settings.extend(settings_of_control(&setup.config.proxy_tuning.control()));
    if let Some(path) = &args.calibrate {
        settings.push(("calibrated on".into(), path.display().to_string()));
    }
    settings
}

pub fn listen<'a>(
    bar: &'a mut Progress,
    message: &'static str,
) -> impl FnMut(eval::Progress) -> ControlFlow<()> + 'a {
    move |progress| {
        bar.set(progress.done, progress.total, &format!("{message} {}", progress.unit));
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
