//! `generate` with a host behind an API.

use super::prompt::read_prompt;
use crate::args::host::Api;
use crate::args::{Format, Generate};
use crate::progress::Progress;
use anstyle::AnsiColor;
use proxytune::config::Config;
use proxytune::host::blackbox::{Advisers, Event, Finish, Job, Outcome, Prompt, Spent, Stats, Way, generate};
use proxytune::prompt::Message;
use proxytune::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub fn run(args: &Generate, config: &Config) -> Result<ExitCode> {
    let job = job(args, config)?;
    let json = args.shared.format == Format::Json;
    if args.compare || (json && args.explain) {
        let expected = "--engine llama; here, one run with --no-proxy and one without, or --explain in text";
        return Err(Error::invalid("--compare, or --explain in JSON", "--engine openai", expected));
    }
    args.api.options()?;
    let advisers = match args.no_proxy {
        true => None,
        false => Some(load(config, &job)?),
    };
    let runtime = crate::runtime()?;
    let outcome = runtime.block_on(until_interrupted(async {
        let (host, ids) = args.api.connect(advisers.as_deref()).await?;
        let mut screen = Screen::new(!json, args.explain);
        let outcome = generate(&host, advisers.as_ref(), &ids, job, &mut |event| screen.event(&event)).await;
        screen.finish();
        if outcome.is_err() && json && !screen.hidden.is_empty() {
            // It is paid.
            crate::say::note!("the text up to here: {:?}", screen.hidden);
        }
        outcome
    }))?;
    if outcome.finish == Finish::Interrupted && crate::interrupted() {
        return Err(Error::Interrupted);
    }
    match json {
        true => crate::say::outln!("{}", to_json(&outcome, args.no_proxy)),
        false => crate::say::note!("{}", figures(&outcome, args.no_proxy)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads both proxies under a bar.
fn load(config: &Config, job: &Job) -> Result<Arc<Advisers>> {
    let mut bar = Progress::new("loading the proxies");
    bar.set(0, 1, "");
    // A token is a byte at least.
    let prompt = match &job.prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Chat(messages) => messages.iter().map(|m| m.content.len() + 256).sum(),
    };
    let system = job.tuned_system.as_deref().or(config.proxy_tuning.tuned_prompt.system.as_deref());
    let longest = prompt + system.map_or(0, str::len) + 256 + 4 * job.max_tokens;
    Advisers::load(config.clone(), 1, longest).map(Arc::new)
}

fn job(args: &Generate, config: &Config) -> Result<Job> {
    Api::refuse_file(config)?;
    let text = read_prompt(&args.prompt)?.ok_or_else(|| {
        Error::invalid("--tokens", "token numbers for a host that is sent text", "--prompt or --prompt-file")
    })?;
    if text.is_empty() {
        return Err(Error::invalid("prompt", "an empty text", "at least one character"));
    }
    let prompt =
        if args.prompt.chat { Prompt::Chat(vec![Message::new("user", &text)]) } else { Prompt::Text(text) };
    Ok(Job {
        prompt,
        tuned_system: args.prompt.tuned_system.clone(),
        alpha: config.proxy_tuning.alpha,
        control: config.proxy_tuning.control(),
        sampler: args.sampling.options()?,
        max_tokens: args.max_tokens,
        stops: args.stop.clone(),
        way: args.api.way(),
        speculate: config.proxy_tuning.speculate,
        on_error: config.proxy_tuning.on_error,
    })
}

/// Ends the work when the user says so, whatever it waits for.
pub async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let interrupted = async {
        while !crate::interrupted() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        outcome = work => outcome,
        () = interrupted => Err(Error::Interrupted),
    }
}

/// The text on stdout, requests and cost on stderr where that is a terminal.
struct Screen {
    shows: bool,
    colours: bool,
    progress: Progress,
    /// What was not shown.
    hidden: String,
}

impl Screen {
    fn new(shows: bool, colours: bool) -> Self {
        // A line of its own would tear the text apart: it stands there while no text does.
        Self { shows, colours, progress: Progress::new("{msg}"), hidden: String::new() }
    }

    fn event(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        if self.shows {
            let green = AnsiColor::Green.on_default().bold();
            let mut out = anstream::stdout().lock();
            let written = match self.colours && event.is_shifted {
                true => write!(out, "{green}{}{green:#}", event.text),
                false => write!(out, "{}", event.text),
            };
            crate::say::must_be_out(written.and_then(|()| out.flush()));
        }
        if !self.shows {
            self.hidden += event.text;
            self.progress.set(0, 1, &spent(&event.spent));
        }
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(&mut self) {
        self.progress.clear();
        if self.shows {
            crate::say::outln!();
        }
    }
}

/// Requests and cost in words.
pub fn spent(spent: &Spent) -> String {
    let mut line = format!("{} requests", spent.requests);
    if spent.retries > 0 {
        line += &format!(" ({} of them repeated)", spent.retries);
    }
    line += &format!(", {} tokens read, {} written", spent.prompt_tokens, spent.completion_tokens);
    if spent.cost > 0.0 {
        line += &format!(", cost {:.6}", spent.cost);
    }
    line
}

/// One line: the way, calls, what the shift did and what it could not see.
fn figures(outcome: &Outcome, alone: bool) -> String {
    let Stats { way, draft, tokens, calls, shifted, certain, unshifted, .. } = outcome.stats;
    let stats = &outcome.stats;
    let per_token = calls as f64 / tokens.max(1) as f64;
    let mut line = format!(
        "{tokens} tokens by {}, {calls} calls ({per_token:.2} a token, drafts: {}); {}",
        way.name(),
        draft.name(),
        spent(&outcome.spent)
    );
    if outcome.finish == Finish::Budget {
        line += "; ended because the budget is used up";
    }
    if alone {
        return line;
    }
    match way {
        Way::Bias => {
            line += &format!(
                "; shifts left out: {:.2} % of the proxies' probability",
                100.0 * stats.mean(stats.left_out)
            );
        }
        _ => {
            line += &format!(
                "; the shift changed {shifted} of {tokens} positions; visible: at least {} tokens, {:.1} % of the host's \
                 probability, {:.1} % of that known to the proxies; certain: {certain}",
                stats.fewest_visible,
                100.0 * stats.mean(stats.visible),
                100.0 * stats.coverage()
            );
        }
    }
    let counts = [
        (unshifted, "unshifted"),
        (stats.spelt, "read by the proxies as several tokens"),
        (stats.unreadable, "not readable for the proxies"),
        (stats.unseen_ends, "ended by the host without alternatives"),
        (stats.resumed, "gone on from after a fault"),
        (stats.cut, "biases cut to the limit"),
    ];
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        line += &format!("; {count} {what}");
    }
    line
}

/// The object that `--format json` prints.
fn to_json(outcome: &Outcome, alone: bool) -> Value {
    let (stats, spent) = (&outcome.stats, &outcome.spent);
    let reweighs = stats.way != Way::Bias;
    let share = |value: f64| (value * 1e6).round() / 1e6;
    json!({
        "text": outcome.text,
        "tokens": outcome.tokens.iter().map(|t| String::from_utf8_lossy(t)).collect::<Vec<_>>(),
        "finish_reason": if outcome.finish == Finish::Budget { "budget" } else { outcome.finish.name() },
        "way": if alone { "host" } else { stats.way.name() },
        "stats": {
            "tokens": stats.tokens, "calls": stats.calls, "drafts": stats.draft.name(), "reads": stats.reads, "drafted": stats.drafted,
            "requests": spent.requests, "retries": spent.retries, "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens, "cost": spent.cost,
            "shifted": reweighs.then_some(stats.shifted), "certain": reweighs.then_some(stats.certain),
            "unshifted": stats.unshifted, "spelt": stats.spelt, "unreadable": stats.unreadable,
            "unseen_ends": stats.unseen_ends, "resumed": stats.resumed, "fewest_visible": stats.fewest_visible,
            "visible_mass": reweighs.then(|| share(stats.mean(stats.visible))),
            "coverage": reweighs.then(|| share(stats.coverage())),
            "left_out_mass": (!reweighs).then(|| share(stats.mean(stats.left_out))),
            "cut": (!reweighs).then_some(stats.cut),
        },
    })
}
