//! `proxytune generate`.

use crate::args::{Format, Generate, Prompt};
use crate::progress::{Progress, load};
use anstyle::AnsiColor;
use proxytune::backend::llama::LlamaModel;
use proxytune::config::Config;
use proxytune::decode::{Event, Finish, Job, Models, Outcome, RunOptions, Stats};
use proxytune::pair::History;
use proxytune::prompt::{Message, render};
use proxytune::{Error, Result};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let config = args.shared.config()?;
    let sampler = args.sampling.options()?;
    if args.max_tokens == 0 {
        return Err(Error::invalid("--max-tokens", 0, "at least 1"));
    }
    let text = read_prompt(&args.prompt)?;
    let models = load(&config, args.no_proxy)?;
    let history = history(args, &config, &models, text.as_deref())?;
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
        return compare(&config, models, job, text.as_deref());
    }
    let show = match args.shared.format {
        Format::Json => Show::Nothing,
        Format::Text if args.explain => Show::Coloured,
        Format::Text => Show::Plain,
    };
    let json = args.shared.format == Format::Json;
    let outcome = decode(&config, &models, job, show, json && args.explain)?;
    if json {
        anstream::println!("{}", to_json(&outcome, args.explain));
    } else {
        anstream::eprintln!("{}", figures(&outcome.stats));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy, PartialEq)]
enum Show {
    Nothing,
    Plain,
    Coloured,
}

fn decode(config: &Config, models: &Models, job: Job, show: Show, explain: bool) -> Result<Outcome> {
    let tokens = job.history.longest_prompt() + job.max_tokens;
    let mut decoder =
        models.decoder(config, RunOptions { sequences: 1, longest: tokens, ..RunOptions::default() })?;
    let mut progress = Progress::new("reading the prompt {bar:30} {pos}/{len} tokens");
    let green = AnsiColor::Green.on_default().bold();
    let mut out = anstream::stdout().lock();
    let mut listen = |event: Event<'_>| {
        match event {
            Event::Prefill { done, total } => progress.set(done as u64, total as u64, ""),
            Event::Token { text, position, .. } => {
                progress.clear();
                let written = match show {
                    Show::Nothing => Ok(()),
                    Show::Coloured if position.is_shifted() => write!(out, "{green}{text}{green:#}"),
                    Show::Plain | Show::Coloured => write!(out, "{text}"),
                };
                // A reader that has gone away wants no more tokens.
                if written.and_then(|()| out.flush()).is_err() {
                    return ControlFlow::Break(());
                }
            }
        }
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let outcomes = decoder.generate(vec![job], explain, &mut listen)?;
    progress.clear();
    if show != Show::Nothing {
        let _ = writeln!(out);
    }
    let outcome = outcomes.into_iter().next().ok_or(Error::Interrupted)?;
    match outcome.finish {
        Finish::Error(error) => Err(error),
        Finish::Interrupted if crate::interrupted() => Err(Error::Interrupted),
        _ => Ok(outcome),
    }
}

fn compare(config: &Config, models: Models, job: Job, prompt: Option<&str>) -> Result<ExitCode> {
    let (bold, dim) = (anstyle::Style::new().bold(), anstyle::Style::new().dimmed());
    let title = |text: &str| {
        anstream::println!("{bold}{text}{bold:#}");
        anstream::print!("{dim}{}{dim:#}", prompt.unwrap_or_default());
    };
    let alpha = config.proxy_tuning.alpha;
    title("The host alone");
    let alone = Models { host: models.host.clone(), proxies: None };
    let host = decode(config, &alone, job.clone(), Show::Plain, false)?;
    anstream::println!();
    title(&format!("The host, proxy-tuned with alpha {alpha} (coloured: tokens that the shift changed)"));
    let shifted = decode(config, &models, job, Show::Coloured, false)?;
    anstream::println!("\n{bold}host alone {bold:#} {}", figures(&host.stats));
    anstream::println!("{bold}proxy-tuned{bold:#} {}", figures(&shifted.stats));
    Ok(ExitCode::SUCCESS)
}

/// One line: speed, what each model costs, the floor, what the shift did.
fn figures(stats: &Stats) -> String {
    let tokens = stats.tokens.saturating_sub(1).max(1) as f64;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3 / tokens;
    let mut line = format!("{} tokens, {:.0} tokens/s", stats.tokens, stats.tokens_per_s());
    if stats.tuned.is_zero() {
        return line + &format!(" (host {:.2} ms a token)", ms(stats.host));
    }
    line += &format!(
        " (a token: host {:.2} ms, tuned {:.2} ms, untuned {:.2} ms; one after the other {:.0} tokens/s); \
         the shift changed {} of {} positions",
        ms(stats.host),
        ms(stats.tuned),
        ms(stats.untuned),
        stats.floor_tokens_per_s(),
        stats.shifted,
        stats.tokens
    );
    if stats.drafted > 0 {
        line += &format!("; {} of {} drafted tokens were kept", stats.accepted, stats.drafted);
    }
    if stats.unshifted > 0 {
        line += &format!("; {} positions went unshifted because a proxy failed", stats.unshifted);
    }
    line
}

fn read_prompt(prompt: &Prompt) -> Result<Option<String>> {
    let Some(path) = &prompt.source.prompt_file else { return Ok(prompt.source.prompt.clone()) };
    let name = format!("--prompt-file {}", path.display());
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes = bytes.map_err(|e| Error::invalid(&name, e, "a file that can be read"))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::invalid(&name, format!("a byte that is not UTF-8 at offset {at}"), "text in UTF-8")
    })?;
    Ok(Some(text))
}

/// Each model's own form of the prompt.
fn history(args: &Generate, config: &Config, models: &Models, text: Option<&str>) -> Result<History> {
    let host = &models.host;
    let Some(text) = text else {
        let tokens = args.prompt.source.tokens.clone().unwrap_or_default();
        return Ok(History::new(tokens, None));
    };
    if text.is_empty() {
        return Err(Error::invalid("prompt", "an empty text", "at least one character"));
    }
    let prompt = if args.prompt.chat {
        let template = host.chat_template().ok_or_else(|| no_template("host", host))?;
        host.tokenize(&render(&template, &[Message::new("user", text)], &host.bos_eos_text())?, true)
    } else {
        host.tokenize(text, true)
    };
    let Some([(tuned, _), _]) = &models.proxies else { return Ok(History::new(prompt, None)) };
    let own = &config.proxy_tuning.tuned_prompt;
    let system = args.prompt.tuned_system.as_deref().or(own.system.as_deref());
    if system.is_none() && !args.prompt.chat {
        return Ok(History::new(prompt, None));
    }
    let template = match own.template.as_str() {
        "none" => None,
        "host" => host.chat_template(),
        "own" if args.prompt.chat => {
            Some(tuned.chat_template().ok_or_else(|| no_template("tuned proxy", tuned))?)
        }
        "own" => tuned.chat_template(),
        file => Some(std::fs::read_to_string(file).map_err(|e| {
            Error::invalid("tuned_prompt.template", format!("{file} ({e})"), "own, host, none or a file")
        })?),
    };
    let tuned_text = match template {
        Some(template) => {
            let system = system.map(|s| Message::new("system", s));
            let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
            render(&template, &messages, &tuned.bos_eos_text())?
        }
        // No template: the system prompt is text before the prompt.
        None => format!("{}{text}", system.map(|s| format!("{s}\n\n")).unwrap_or_default()),
    };
    Ok(History::new(prompt, Some(tuned.tokenize(&tuned_text, true))))
}

fn no_template(name: &str, model: &LlamaModel) -> Error {
    let given = format!("the {name} {}, which carries no chat template", model.path().display());
    Error::invalid("--chat", given, "chat models; or leave --chat out")
}

fn to_json(outcome: &Outcome, explain: bool) -> Value {
    let stats = &outcome.stats;
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let mut object = json!({
        "text": outcome.text,
        "prompt_tokens": outcome.prompt_tokens,
        "tokens": outcome.tokens,
        "finish_reason": if matches!(outcome.finish, Finish::Stop) { "stop" } else { "length" },
        "stats": {
            "prompt_tokens": stats.prompt_tokens,
            "tokens": stats.tokens,
            "prefill_ms": ms(stats.prefill),
            "decode_ms": ms(stats.decode),
            "tokens_per_s": stats.tokens_per_s(),
            "host_ms": ms(stats.host),
            "tuned_ms": ms(stats.tuned),
            "untuned_ms": ms(stats.untuned),
            "combine_ms": ms(stats.combine),
            "steps": stats.steps,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "shifted": stats.shifted,
            "unshifted": stats.unshifted,
        },
    });
    if explain {
        let position = |p: &proxytune::decode::Position| {
            let mut object = json!({ "token": p.token, "host_top": p.host_top, "top": p.top });
            if let Some(of) = &p.probabilities {
                object["p_host"] = json!(of.host);
                object["p"] = json!(of.shifted);
                object["p_tuned"] = json!(of.proxies.map(|p| p[0]));
                object["p_untuned"] = json!(of.proxies.map(|p| p[1]));
            }
            object
        };
        object["positions"] = outcome.positions.iter().map(position).collect();
    }
    object
}
