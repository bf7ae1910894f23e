//! Texts that the models write themselves, each column by itself, judged one by one.
//!
//! Sequences are decoded in chunks whose make-up depends on the task alone, so the same command gives the same texts
//! whether or not it was interrupted in between: a chunk that was not finished is decoded anew as a whole.

use super::Journal;
use super::column::Column;
use super::prompts::{PromptOptions, Prompts};
use super::setup::{Listen, Progress, Setup};
use super::sweep::DIRECT;
use crate::backend::llama::{LlamaModel, SamplerOptions};
use crate::config::{Placement, Speculate};
use crate::decode::{Decoder, Finish, Job, Models, RunOptions};
use crate::error::{Error, Result};
use crate::pair::History;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;

/// How texts are generated.
#[derive(Debug, Clone)]
pub struct GenerationOptions {
    /// How prompts are put.
    pub prompts: PromptOptions,
    /// How tokens are chosen; the seed is varied by item and sample.
    pub sampler: SamplerOptions,
    /// Most tokens of a text.
    pub max_tokens: usize,
    /// What ends a text.
    pub stops: Vec<String>,
    /// Texts for each item.
    pub samples: usize,
}

/// A prompt: as a user would put it, and as a text to go on with.
pub(super) struct Prompt {
    pub text: String,
    pub framed: String,
}

/// A generated text and what is thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The text.
    pub text: String,
    /// Whether it is right.
    pub right: bool,
    /// Why, in a few words; may be empty.
    pub why: String,
}

/// Judges texts of items, all of a chunk at once.
pub(super) type Judge<'a> = dyn Fn(&[(usize, String)]) -> Result<Vec<Verdict>> + 'a;

/// Verdicts by column, item and sample.
pub(super) type Verdicts = Vec<Vec<Vec<Verdict>>>;

/// One text to generate.
#[derive(Clone, Copy)]
struct Order {
    column: usize,
    item: usize,
    sample: usize,
}

/// Columns that share a decoder, because they share a host.
struct Group<'a> {
    model: &'a Arc<LlamaModel>,
    name: &'static str,
    columns: Vec<usize>,
}

/// Generates and judges all texts. Also says what a reader ought to know of the prompts.
pub(super) fn generate(
    setup: &Setup,
    items: &[Prompt],
    options: &GenerationOptions,
    judge: &Judge<'_>,
    journal: &mut Journal,
    listen: &mut Listen<'_>,
) -> Result<(Verdicts, Vec<String>)> {
    let columns = setup.columns();
    let mut notes: Vec<String> = Vec::new();
    let mut verdicts: Verdicts = vec![vec![Vec::new(); items.len()]; columns.len()];
    let chunk = setup.config.proxy_tuning.slots;
    let total = (columns.len() * items.len() * options.samples) as u64;
    let mut finished = 0;
    for group in groups(setup, &columns)? {
        let orders = orders(&group, items.len(), options.samples);
        let mut prompts = Prompts::new(setup, &options.prompts)?;
        let history = |prompt: &Prompt| history(setup, &group, prompt, options, &mut prompts);
        let histories: Vec<History> = items.iter().map(history).collect::<Result<_>>()?;
        notes.extend(prompts.notes().into_iter().filter(|note| !notes.contains(note)).collect::<Vec<_>>());
        let mut decoder = None;
        for chunk in orders.chunks(chunk) {
            let key = |o: &Order| format!("{} item {} sample {}", columns[o.column].key(), o.item, o.sample);
            let known: Option<Vec<Verdict>> = chunk.iter().map(|o| recorded(journal.get(&key(o))?)).collect();
            let found = match known {
                Some(found) => found,
                None => {
                    let decoder = match &mut decoder {
                        Some(decoder) => decoder,
                        empty => empty.insert(make_decoder(setup, &group, &histories, options)?),
                    };
                    let jobs = jobs(chunk, &columns, &histories, options);
                    let mut heard = || listen(Progress { done: finished, total, unit: "texts" });
                    let texts = decode(decoder, jobs, &mut heard)?;
                    let texts: Vec<_> = chunk.iter().map(|o| o.item).zip(texts).collect();
                    let found = judge(&texts)?;
                    for (order, verdict) in chunk.iter().zip(&found) {
                        journal.put(key(order), record(verdict))?;
                    }
                    found
                }
            };
            finished += found.len() as u64;
            for (order, verdict) in chunk.iter().zip(found) {
                verdicts[order.column][order.item].push(verdict);
            }
            if listen(Progress { done: finished, total, unit: "texts" }).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok((verdicts, notes))
}

fn record(verdict: &Verdict) -> Value {
    json!({ "text": verdict.text, "right": verdict.right, "why": verdict.why })
}

fn recorded(value: &Value) -> Option<Verdict> {
    let text = |field: &str| Some(value.get(field)?.as_str()?.to_owned());
    Some(Verdict { text: text("text")?, right: value.get("right")?.as_bool()?, why: text("why")? })
}

/// The shifted columns run beside the host alone; each other model by itself.
fn groups<'a>(setup: &'a Setup, columns: &[Column]) -> Result<Vec<Group<'a>>> {
    let Some([(tuned, _), (untuned, _)]) = &setup.models.proxies else {
        return Err(Error::invalid("eval", "a host alone", "the three models of a trio"));
    };
    let of = |wanted: fn(Column) -> bool| (0..columns.len()).filter(|&i| wanted(columns[i])).collect();
    let group = |model, name, wanted| Group { model, name, columns: of(wanted) };
    let mut groups = vec![
        group(&setup.models.host, "host", |c| matches!(c, Column::Host | Column::Shifted(_))),
        group(untuned, "untuned proxy", |c| c == Column::Untuned),
        group(tuned, "tuned proxy", |c| c == Column::Tuned),
    ];
    if let Some(direct) = &setup.direct {
        groups.push(group(&direct.model, DIRECT, |c| c == Column::Direct));
    }
    Ok(groups)
}

/// Item by item, so that texts from one prompt share its cache.
fn orders(group: &Group, items: usize, samples: usize) -> Vec<Order> {
    let of_item = |item| {
        let of_sample = move |sample| group.columns.iter().map(move |&column| Order { column, item, sample });
        (0..samples).flat_map(of_sample)
    };
    (0..items).flat_map(of_item).collect()
}

fn history(
    setup: &Setup,
    group: &Group,
    prompt: &Prompt,
    options: &GenerationOptions,
    prompts: &mut Prompts,
) -> Result<History> {
    let Prompt { text, framed } = prompt;
    // As much of the context as the texts may need, but never all of it.
    let room = options.max_tokens.min(setup.context().0 / 2);
    match group.name {
        "host" => {
            let history = prompts.history(text, framed)?;
            let own = history.tuned_prompt().map(<[_]>::to_vec);
            prompts.fit(history.prompt().to_vec(), own, room)
        }
        "tuned proxy" => prompts.fit(prompts.tuned_tokens(group.model, text, framed)?, None, room),
        DIRECT => prompts.fit(prompts.direct_tokens(group.model, text, framed)?, None, room),
        _ => prompts.fit(prompts.plain_tokens(group.model, text, framed)?, None, room),
    }
}

fn make_decoder(
    setup: &Setup,
    group: &Group,
    histories: &[History],
    options: &GenerationOptions,
) -> Result<Decoder> {
    let mut config = setup.config.clone();
    // Drafts would make the passes depend on how fast the machine happens to be, and with them rounding.
    config.proxy_tuning.speculate = Speculate::Off;
    // So would a placement chosen by measurement.
    if config.proxy_tuning.placement == Placement::Auto && config.host.gpu_layers == 0 {
        config.proxy_tuning.placement = Placement::InTurn;
    }
    let proxies = match group.name {
        "host" => setup.models.proxies.clone(),
        name => {
            if name != DIRECT {
                config.host.ctx = config.proxy_tuning.ctx;
            }
            None
        }
    };
    let models = Models { host: group.model.clone(), proxies };
    let longest = histories.iter().map(History::longest_prompt).max().unwrap_or(1);
    let sequences = config.proxy_tuning.slots;
    models.decoder(
        &config,
        RunOptions { sequences, longest: longest + options.max_tokens, ..RunOptions::default() },
    )
}

fn jobs(chunk: &[Order], columns: &[Column], histories: &[History], options: &GenerationOptions) -> Vec<Job> {
    let job = |order: &Order| {
        let mut sampler = options.sampler.clone();
        // The same for all columns: they draw alike, so that their difference is not one of luck.
        let place = (order.item * options.samples + order.sample) as u64;
        let seed = sampler.seed.unwrap_or(0);
        sampler.seed = Some(seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        Job {
            history: histories[order.item].clone(),
            alpha: if let Column::Shifted(alpha) = columns[order.column] { alpha } else { 0.0 },
            sampler,
            max_tokens: options.max_tokens,
            stops: options.stops.clone(),
            control: false,
            ignore_end: false,
        }
    };
    chunk.iter().map(job).collect()
}

fn decode(
    decoder: &mut Decoder,
    jobs: Vec<Job>,
    listen: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<String>> {
    let outcomes = decoder.generate(jobs, false, &mut |_| listen())?;
    let text = |outcome: crate::decode::Outcome| match outcome.finish {
        Finish::Error(error) => Err(error),
        Finish::Interrupted => Err(Error::Interrupted),
        Finish::Stop | Finish::Length => Ok(outcome.text),
    };
    outcomes.into_iter().map(text).collect()
}
