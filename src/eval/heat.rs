//! Texts of the shifted host in which each token shows how much the shift changed the choice.

use super::prompts::{PromptOptions, Prompts};
use super::setup::{Listen, Progress, Setup};
use super::task::{Items, Kind};
use crate::backend::llama::SamplerOptions;
use crate::config::{Placement, Speculate};
use crate::decode::{Candidate, Finish, Job, Outcome, RunOptions};
use crate::error::{Error, Result};

/// A text, token by token.
#[derive(Debug, Clone, PartialEq)]
pub struct Heat {
    /// What it goes on from.
    pub prompt: String,
    /// Its tokens.
    pub tokens: Vec<HeatToken>,
}

/// A token of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatToken {
    /// What it spells.
    pub text: String,
    /// How much the shift changed the choice, 0 to 1: [`Probabilities::change`](crate::decode::Probabilities::change).
    pub change: f32,
    /// Whether the most likely token became another one.
    pub is_shifted: bool,
    /// The likeliest tokens after the shift and before it, with what they spell.
    pub candidates: Vec<(String, Candidate)>,
}

/// Texts that are shown, their tokens, and the candidates of each: enough to look at, and few enough for a page.
const TEXTS: usize = 3;
const TOKENS: usize = 96;
const CANDIDATES: usize = 4;
/// Characters of a text that it is gone on with from.
const BEGINNING: usize = 160;

/// What texts are to go on from: as a user would put it, and as a text to go on with.
pub type Starts = Vec<(String, String)>;

/// The beginning of a text that is scored.
pub fn starts_of_text(text: &str) -> Starts {
    let cut: String = text.chars().take(BEGINNING).collect();
    // Not in the middle of a word.
    let whole = if cut.len() < text.len() { cut.rsplit_once(char::is_whitespace) } else { None };
    let beginning = whole.map_or(cut.as_str(), |(whole, _)| whole).to_owned();
    vec![(beginning.clone(), beginning)]
}

/// The first items of a task.
pub fn starts_of_items(kind: Kind, items: &Items) -> Starts {
    let framed = |question: &String| (question.clone(), kind.frame(question));
    match items {
        Items::Questions(all) => all.iter().take(TEXTS).map(|q| framed(&q.text)).collect(),
        Items::Asks(all) => all.iter().take(TEXTS).map(|a| framed(&a.question)).collect(),
        Items::Problems(all) => {
            all.iter().take(TEXTS).map(|p| (p.prompt.clone(), p.prompt.clone())).collect()
        }
        Items::Picks(_) => Starts::new(),
    }
}

/// Has the shifted host go on from each start, always with the most likely token.
///
/// # Errors
/// When a prompt cannot be made or a model fails; [`Error::Interrupted`].
pub fn heat(
    setup: &Setup,
    starts: &Starts,
    options: &PromptOptions,
    alpha: f32,
    listen: &mut Listen<'_>,
) -> Result<Vec<Heat>> {
    let mut config = setup.config.clone();
    // So that the page is the same each time, to the last digit.
    config.proxy_tuning.speculate = Speculate::Off;
    if config.proxy_tuning.placement == Placement::Auto && config.host.gpu_layers == 0 {
        config.proxy_tuning.placement = Placement::InTurn;
    }
    let mut prompts = Prompts::new(setup, options)?;
    let max_tokens = TOKENS.min(setup.context().0 / 2);
    let mut jobs = Vec::new();
    for (text, framed) in starts {
        let history = prompts.history(text, framed)?;
        let own = history.tuned_prompt().map(<[_]>::to_vec);
        jobs.push(Job {
            history: prompts.fit(history.prompt().to_vec(), own, max_tokens)?,
            alpha,
            sampler: SamplerOptions::default(),
            max_tokens,
            stops: Vec::new(),
            control: false,
            ignore_end: false,
        });
    }
    let longest = jobs.iter().map(|j| j.history.longest_prompt()).max().unwrap_or(1) + max_tokens;
    let run =
        RunOptions { sequences: jobs.len().max(1), longest, candidates: CANDIDATES, ..RunOptions::default() };
    let (mut done, total) = (0, (jobs.len() * max_tokens) as u64);
    let outcomes = setup.models.decoder(&config, run)?.generate(jobs, true, &mut |_| {
        done += 1;
        listen(Progress { done: total.min(done), total, unit: "tokens" })
    })?;
    let of = |(outcome, (_, framed)): (Outcome, &(String, String))| match outcome.finish {
        Finish::Error(error) => Err(error),
        Finish::Interrupted => Err(Error::Interrupted),
        Finish::Stop | Finish::Length => Ok(Heat { prompt: framed.clone(), tokens: tokens(setup, &outcome) }),
    };
    outcomes.into_iter().zip(starts).map(of).collect()
}

fn tokens(setup: &Setup, outcome: &Outcome) -> Vec<HeatToken> {
    let host = &setup.models.host;
    let spell = |token, control| String::from_utf8_lossy(&host.piece(token, control)).into_owned();
    let token = |p: &crate::decode::Position| HeatToken {
        text: spell(p.token, false),
        change: p.probabilities.map_or(0.0, |of| of.change),
        is_shifted: p.is_shifted(),
        candidates: p.candidates.iter().map(|c| (spell(c.token, true), *c)).collect(),
    };
    outcome.positions.iter().map(token).collect()
}
