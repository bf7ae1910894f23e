//! What is shown of a text: tokens as they come, figures, JSON.

use super::explained;
use crate::progress::Progress;
use proxytune::backend::llama::LlamaModel;
use proxytune::decode::{Event, Finish, Outcome, Position, Stats};
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;

/// How a text is shown while it grows.
#[derive(Clone, Copy, PartialEq)]
pub enum Show {
    Nothing,
    Plain,
    /// By how much the shift changed the choice; tokens that it changed stand out.
    Coloured,
}

/// Shows a text on stdout, and the prompt's progress on stderr.
pub struct Screen {
    show: Show,
    progress: Progress,
}

impl Screen {
    pub fn new(show: Show) -> Self {
        Self { show, progress: Progress::new("reading the prompt {bar:30} {pos}/{len} tokens") }
    }

    /// Shows one event; says stop when the user has had enough.
    pub fn event(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Prefill { done, total } => self.progress.set(*done as u64, *total as u64, ""),
            Event::Token { text, position, .. } => return self.token(text, position),
        }
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn token(&mut self, text: &str, position: &Position) -> ControlFlow<()> {
        self.progress.clear();
        let style = explained::style(position);
        let mut out = anstream::stdout().lock();
        let written = match self.show {
            Show::Nothing => Ok(()),
            Show::Coloured => write!(out, "{style}{text}{style:#}"),
            Show::Plain => write!(out, "{text}"),
        };
        crate::say::must_be_out(written.and_then(|()| out.flush()));
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Ends the text.
    pub fn finish(mut self) {
        self.progress.clear();
        if self.show != Show::Nothing {
            crate::say::outln!();
        }
    }
}

/// One line: speed, what each model costs, the floor, what the shift did.
pub fn figures(stats: &Stats) -> String {
    let tokens = stats.tokens.saturating_sub(1).max(1) as f64;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3 / tokens;
    let mut line = format!("{} tokens, {:.0} tokens/s", stats.tokens, stats.tokens_per_s());
    if stats.tuned.is_zero() && stats.untuned.is_zero() {
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
    if stats.skipped > 0 {
        line += &format!("; the gate left {} positions as the host had them", stats.skipped);
    }
    if stats.missed > 0 {
        line += &format!(", {} of which the shift would have changed", stats.missed);
    }
    if stats.left_to_host > 0 {
        line += &format!("; schedule and guard left {} positions to the host", stats.left_to_host);
    }
    if stats.unshifted > 0 {
        line += &format!("; {} positions went unshifted because a proxy failed", stats.unshifted);
    }
    line
}

/// The object that `--format json` prints; with positions where somebody spells their tokens.
pub fn to_json(outcome: &Outcome, explained_by: Option<&LlamaModel>) -> Value {
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
            "skipped": stats.skipped,
            "left_to_host": stats.left_to_host,
        },
    });
    if let Some(host) = explained_by {
        object["stats"]["missed"] = json!(stats.missed);
        object["positions"] =
            outcome.positions.iter().map(|p| p.to_json(|t| explained::text(host, t))).collect();
    }
    object
}
