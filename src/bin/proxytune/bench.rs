//! `proxytune bench`: the ways to decode, side by side with the bare forward passes, in one run.

use crate::args::{Bench, Format};
use crate::progress::{Progress, load};
use proxytune::backend::llama::{ContextOptions, LlamaContext, LlamaModel, SamplerOptions, ThreadPool};
use proxytune::backend::{Backend, Span};
use proxytune::config::Config;
use proxytune::decode::{Decoder, Event, Finish, Job, Models, RunOptions};
use proxytune::pair::{History, Placement};
use proxytune::{Error, Result};
use serde_json::json;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of each prompt: enough that attention costs something.
const PROMPT: usize = 32;

/// What is timed. Times are of one step: one token for each sequence.
#[derive(Default)]
struct Timings {
    host: Vec<Duration>,
    naive: Vec<Duration>,
    lockstep: Vec<Duration>,
    /// Bare passes of host, tuned, untuned, by threads tried.
    bare: [Vec<Vec<Duration>>; 3],
}

pub fn run(args: &Bench) -> Result<ExitCode> {
    let config = args.shared.config()?;
    for (name, value) in [("--tokens", args.tokens), ("--rounds", args.rounds)] {
        if value == 0 {
            return Err(Error::invalid(name, 0, "at least 1"));
        }
    }
    if let Some(&wrong) = args.sequences.iter().find(|s| !(1..=256).contains(*s)) {
        return Err(Error::invalid("--sequences", wrong, "1 to 256"));
    }
    let models = load(&config, false)?;
    let mut rows = Vec::new();
    for &sequences in &args.sequences {
        let timings = measure(args, &config, &models, sequences)?;
        rows.extend(report(&timings, sequences));
    }
    match args.shared.format {
        Format::Json => {
            anstream::println!("{}", json!({ "rows": rows.iter().map(Row::json).collect::<Vec<_>>() }))
        }
        Format::Text => print_table(&rows),
    }
    Ok(ExitCode::SUCCESS)
}

/// The ways take turns in each round, so that a machine that drifts drifts for all.
fn measure(args: &Bench, config: &Config, models: &Models, sequences: usize) -> Result<Timings> {
    let longest = PROMPT + args.tokens;
    let alone = Models { host: models.host.clone(), proxies: None };
    let decoder = |models: &Models, sequences, placement| {
        models.decoder(config, RunOptions { sequences, longest, placement, force_accept: None })
    };
    let mut host = decoder(&alone, sequences, None)?;
    let mut naive = decoder(models, 1, Some(Placement::InTurn))?;
    let mut lockstep = decoder(models, sequences, None)?;
    let mut bare = BarePasses::new(config, models, sequences, longest)?;
    let mut timings = Timings::default();
    let mut progress = Progress::new("{msg} {bar:30} {pos}/{len} rounds");
    for round in 0..args.rounds {
        progress.set(round as u64, args.rounds as u64, &format!("{sequences} sequences"));
        timings.host.extend(steps(&mut host, &jobs(models, sequences, args.tokens))?);
        bare.time(args.tokens, &mut timings.bare)?;
        timings.lockstep.extend(steps(&mut lockstep, &jobs(models, sequences, args.tokens))?);
        // One sequence after the other: a step for all of them is as many steps for one.
        let one = steps(&mut naive, &jobs(models, 1, args.tokens))?;
        timings.naive.extend(one.into_iter().map(|step| step * sequences as u32));
    }
    Ok(timings)
}

fn prompt(models: &Models, sequence: usize) -> Vec<u32> {
    let vocab = models.host.vocab_len() as u32;
    // Any tokens will do; these differ between sequences, so that no cache is shared.
    (0..PROMPT as u32).map(|i| (i * 7919 + sequence as u32 * 104_729 + 11) % vocab).collect()
}

fn jobs(models: &Models, sequences: usize, tokens: usize) -> Vec<Job> {
    let job = |sequence| Job {
        history: History::new(prompt(models, sequence), None),
        alpha: 1.0,
        sampler: SamplerOptions::default(),
        max_tokens: tokens,
        stops: vec![],
        control: false,
        ignore_end: true,
    };
    (0..sequences).map(job).collect()
}

/// Decodes the jobs and returns how long each step after the prompt took.
fn steps(decoder: &mut Decoder, jobs: &[Job]) -> Result<Vec<Duration>> {
    let last = jobs.len() - 1;
    let mut ends = Vec::new();
    let outcomes = decoder.generate(jobs.to_vec(), false, &mut |event| {
        if matches!(event, Event::Token { job, .. } if job == last) {
            ends.push(Instant::now());
        }
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(stats) = outcomes.first().map(|o| &o.stats) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3 / stats.steps.max(1) as f64;
        let (host, tuned, untuned) = (ms(stats.host), ms(stats.tuned), ms(stats.untuned));
        tracing::debug!(
            sequences = jobs.len(),
            step = ms(stats.decode),
            host,
            tuned,
            untuned,
            "mean ms of a step"
        );
    }
    for outcome in outcomes {
        match outcome.finish {
            Finish::Error(error) => return Err(error),
            Finish::Interrupted => return Err(Error::Interrupted),
            Finish::Stop | Finish::Length => {}
        }
    }
    Ok(ends.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

/// The forward passes with nothing around them, on one thread and on all: the floor takes the better.
struct BarePasses {
    /// By model, then by threads tried.
    contexts: [Vec<LlamaContext>; 3],
    sequences: usize,
}

impl BarePasses {
    fn new(config: &Config, models: &Models, sequences: usize, context: usize) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let all = if config.proxy_tuning.threads == 0 { cores } else { config.proxy_tuning.threads };
        let make = |model: &Arc<LlamaModel>| {
            let mut threads = vec![1, all];
            threads.dedup();
            let context = |threads| {
                let (name, pool) = ("bare pass".into(), Arc::new(ThreadPool::new(threads, 50)?));
                let options =
                    ContextOptions { name, slots: sequences, context, batch: 512, pool, pool_alone: None };
                LlamaContext::new(model.clone(), &options)
            };
            threads.into_iter().map(context).collect::<Result<Vec<_>>>()
        };
        let Some([(tuned, _), (untuned, _)]) = &models.proxies else { return Err(Error::Interrupted) };
        Ok(Self { contexts: [make(&models.host)?, make(tuned)?, make(untuned)?], sequences })
    }

    fn time(&mut self, tokens: usize, bare: &mut [Vec<Vec<Duration>>; 3]) -> Result<()> {
        for (contexts, times) in self.contexts.iter_mut().zip(bare) {
            times.resize(contexts.len(), Vec::new());
            for (context, times) in contexts.iter_mut().zip(times) {
                times.extend(passes(context, self.sequences, tokens)?);
            }
        }
        Ok(())
    }
}

fn passes(context: &mut LlamaContext, sequences: usize, tokens: usize) -> Result<Vec<Duration>> {
    let vocab = context.capabilities().vocab as u32;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 7919 + 11) % vocab).collect();
    for slot in 0..sequences {
        context.clear(slot);
        context.forward(&[Span { slot, start: 0, tokens: &prompt, rows: 0 }])?;
    }
    let mut times = Vec::with_capacity(tokens);
    for step in 0..tokens.saturating_sub(1) {
        let token = [step as u32 % vocab];
        let span = |slot| Span { slot, start: PROMPT + step, tokens: &token, rows: 1 };
        let spans: Vec<Span<'_>> = (0..sequences).map(span).collect();
        let begin = Instant::now();
        context.forward(&spans)?;
        std::hint::black_box(context.logits(0));
        times.push(begin.elapsed());
        if crate::interrupted() {
            return Err(Error::Interrupted);
        }
    }
    // Its threads must not spin into what is timed next.
    context.rest();
    Ok(times)
}

/// Medians of one way at one number of sequences.
struct Row {
    mode: &'static str,
    sequences: usize,
    step_ms: f64,
    /// Bare host, tuned, untuned.
    bare_ms: [f64; 3],
}

impl Row {
    fn floor_ms(&self) -> f64 {
        match self.mode {
            "host" => self.bare_ms[0],
            _ => self.bare_ms.iter().sum(),
        }
    }

    fn tokens_per_s(&self, ms: f64) -> f64 {
        self.sequences as f64 * 1e3 / ms
    }

    fn json(&self) -> serde_json::Value {
        let [host, tuned, untuned] = self.bare_ms;
        json!({
            "engine": "llama", "mode": self.mode, "sequences": self.sequences,
            "tokens_per_s": self.tokens_per_s(self.step_ms),
            "floor_tokens_per_s": self.tokens_per_s(self.floor_ms()),
            "host_ms": host, "tuned_ms": tuned, "untuned_ms": untuned,
            "overhead_ms": self.step_ms - self.floor_ms(),
        })
    }
}

fn report(timings: &Timings, sequences: usize) -> Vec<Row> {
    let best = |times: &Vec<Vec<Duration>>| times.iter().map(|t| median_ms(t)).fold(f64::INFINITY, f64::min);
    let bare_ms = timings.bare.each_ref().map(best);
    let row = |mode, times: &[Duration]| Row { mode, sequences, step_ms: median_ms(times), bare_ms };
    vec![row("host", &timings.host), row("naive", &timings.naive), row("lockstep", &timings.lockstep)]
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::INFINITY, |t| t.as_secs_f64() * 1e3)
}

fn print_table(rows: &[Row]) {
    anstream::println!(
        "{:>9}  {:<8}  {:>10}  {:>8}  {:>10}  {:>22}",
        "sequences",
        "mode",
        "tokens/s",
        "floor",
        "of floor",
        "bare ms: H, T, U"
    );
    for row in rows {
        let [host, tuned, untuned] = row.bare_ms;
        let (ours, floor) = (row.tokens_per_s(row.step_ms), row.tokens_per_s(row.floor_ms()));
        anstream::println!(
            "{:>9}  {:<8}  {ours:>10.0}  {floor:>8.0}  {:>8.0} %  {host:>8.3} {tuned:>6.3} {untuned:>6.3}",
            row.sequences,
            row.mode,
            100.0 * ours / floor
        );
    }
    anstream::println!(
        "\nMedians of steps. The floor is the sum of the bare passes, each on its best number of threads."
    );
}
