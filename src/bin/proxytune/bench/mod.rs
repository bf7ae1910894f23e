//! `proxytune bench`: the ways to decode, side by side with the bare forward passes, in one run.

mod bare;
#[cfg(feature = "mistralrs")]
mod mistral;
mod plot;
mod table;

use crate::args::{Bench, Format};
use crate::progress::{Progress, load};
use bare::BarePasses;
use proxytune::backend::llama::SamplerOptions;
use proxytune::config::{Config, Speculate};
use proxytune::decode::{Decoder, Event, Finish, Job, Models, RunOptions};
use proxytune::pair::{History, Placement};
use proxytune::{Error, Result};
use serde_json::json;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use table::{Row, print_table};

/// Tokens of a made-up prompt: enough that attention costs something.
const PROMPT: usize = 32;

pub fn run(args: &Bench) -> Result<ExitCode> {
    let config = args.shared.config()?;
    args.shared.refuse_api()?;
    args.shared.refuse_auto()?;
    let sampler = args.sampling.options()?;
    let rule = config.proxy_tuning.combine.rule()?;
    if !rule.is_offset() {
        let expected = "proxy-tuning: the floor is that of three models";
        return Err(Error::invalid("--combine", rule, expected));
    }
    for (name, value) in [("--tokens", args.tokens), ("--rounds", args.rounds)] {
        if value < 2 {
            return Err(Error::invalid(name, value, "at least 2"));
        }
    }
    if let Some(&wrong) = args.sequences.iter().find(|s| !(1..=256).contains(*s)) {
        return Err(Error::invalid("--sequences", wrong, "1 to 256"));
    }
    if let Some(share) = args.force_accept.filter(|share| !(0.0..=1.0).contains(share)) {
        return Err(Error::invalid("--force-accept", share, "a probability from 0 to 1"));
    }
    let models = load(&config, false)?;
    let prompts = prompts(args, &models)?;
    let mut rows = Vec::new();
    let work = Work { args, sampler: &sampler, prompts: &prompts, alpha: config.proxy_tuning.alpha };
    match args.shared.engine()? {
        #[cfg(feature = "mistralrs")]
        crate::args::Engine::Mistralrs => rows.extend(mistral::run(&work, &config, &models)?),
        _ => {
            for &sequences in &args.sequences {
                rows.extend(Bout::new(&work, &config, &models, sequences)?.run()?);
            }
        }
    }
    if let Some(path) = &args.svg {
        plot::write(&rows, path)?;
    }
    match args.shared.format {
        Format::Json => {
            crate::say::outln!("{}", json!({ "rows": rows.iter().map(Row::json).collect::<Vec<_>>() }))
        }
        Format::Text => print_table(&rows),
    }
    Ok(ExitCode::SUCCESS)
}

/// The prompts to go round; made up where no file was given.
fn prompts(args: &Bench, models: &Models) -> Result<Vec<Vec<u32>>> {
    let Some(path) = &args.prompt_file else {
        let vocab = models.host.vocab_len() as u32;
        // Any tokens will do; these differ between sequences, so that no cache is shared.
        let prompt = |s: u32| (0..PROMPT as u32).map(|i| (i * 7919 + s * 104_729 + 11) % vocab).collect();
        return Ok((0..256).map(prompt).collect());
    };
    let name = format!("--prompt-file {}", path.display());
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::invalid(&name, e, "a text file with a prompt on each line"))?;
    let lines = text.lines().map(|l| l.replace("\\n", "\n")).filter(|l| !l.is_empty());
    let prompts: Vec<Vec<u32>> = lines.map(|l| models.host.tokenize(&l, true)).collect();
    if prompts.is_empty() {
        return Err(Error::invalid(&name, "no text", "a prompt on each line"));
    }
    Ok(prompts)
}

/// One way to decode, and how long a step of one token for each sequence took in each round.
struct Way {
    mode: &'static str,
    decoder: Decoder,
    /// Sequences decoded at once; the naive way takes one after the other.
    at_once: usize,
    rounds: Vec<Duration>,
    drafted: usize,
    accepted: usize,
}

/// What is decoded, whichever way.
struct Work<'a> {
    args: &'a Bench,
    sampler: &'a SamplerOptions,
    prompts: &'a [Vec<u32>],
    alpha: f32,
}

impl Work<'_> {
    /// Tokens that a history may reach.
    fn longest(&self) -> usize {
        self.prompts.iter().map(Vec::len).max().unwrap_or(0) + self.args.tokens
    }

    fn prompt(&self, number: usize) -> &[u32] {
        &self.prompts[number % self.prompts.len()]
    }

    fn job(&self, number: usize) -> Job {
        Job {
            history: History::new(self.prompt(number).to_vec(), None),
            alpha: self.alpha,
            sampler: SamplerOptions { seed: None, ..self.sampler.clone() },
            max_tokens: self.args.tokens,
            stops: vec![],
            control: false,
            ignore_end: true,
        }
    }
}

/// All ways at one number of sequences. They take turns in each round, so that a machine that drifts drifts for all.
struct Bout<'a> {
    work: &'a Work<'a>,
    sequences: usize,
    ways: Vec<Way>,
    bare: BarePasses,
}

impl<'a> Bout<'a> {
    fn new(work: &'a Work<'a>, config: &Config, models: &Models, sequences: usize) -> Result<Self> {
        let longest = work.longest();
        let way = |mode, at_once, models: &Models, placement, speculate| {
            let mut config = config.clone();
            config.proxy_tuning.speculate = speculate;
            let run = RunOptions {
                sequences: at_once,
                longest,
                placement,
                force_accept: work.args.force_accept,
                ..RunOptions::default()
            };
            let decoder = models.decoder(&config, run)?;
            Ok::<_, Error>(Way { mode, decoder, at_once, rounds: vec![], drafted: 0, accepted: 0 })
        };
        let alone = Models { host: models.host.clone(), proxies: None };
        let mut ways = vec![
            way("host", sequences, &alone, None, Speculate::Off)?,
            way("naive", 1, models, Some(Placement::InTurn), Speculate::Off)?,
            way("lockstep", sequences, models, None, Speculate::Off)?,
        ];
        let speculate = config.proxy_tuning.speculate;
        if speculate != Speculate::Off {
            ways.push(way("speculative", sequences, models, None, speculate)?);
        }
        let prompts = (0..sequences).map(|sequence| work.prompt(sequence).to_vec()).collect();
        let bare = BarePasses::new(config, models, prompts, longest)?;
        Ok(Self { work, sequences, ways, bare })
    }

    fn run(mut self) -> Result<Vec<Row>> {
        let mut progress = Progress::new("{msg} {bar:30} {pos}/{len} rounds");
        // The first round warms up: caches, threads, and what is chosen by measurement.
        for round in 0..=self.work.args.rounds {
            progress.set(
                round as u64,
                self.work.args.rounds as u64,
                &format!("{} sequences", self.sequences),
            );
            for turn in 0..self.ways.len() {
                // Who comes first in one round comes later in the next.
                self.time((turn + round) % self.ways.len(), round)?;
            }
            self.bare.time(self.work.args.tokens - 1)?;
        }
        let bare_ms = self.bare.medians_ms();
        let row = |way: &Way| Row {
            engine: "llama",
            mode: way.mode,
            sequences: self.sequences,
            step_ms: median_ms(&way.rounds[1..]),
            bare_ms,
            drafted: way.drafted,
            accepted: way.accepted,
        };
        Ok(self.ways.iter().map(row).collect())
    }

    fn time(&mut self, way: usize, round: usize) -> Result<()> {
        let first = round * self.sequences;
        let jobs = (0..self.ways[way].at_once).map(|sequence| self.work.job(first + sequence)).collect();
        let way = &mut self.ways[way];
        let step = time_steps(way, jobs)?;
        // One sequence after the other: a step for all of them is as many steps for one.
        way.rounds.push(step * (self.sequences / way.at_once) as u32);
        Ok(())
    }
}

/// Decodes the jobs and returns how long a token for each of them took, those that came with the prompt left out.
fn time_steps(way: &mut Way, jobs: Vec<Job>) -> Result<Duration> {
    let (count, mut first, mut last) = (jobs.len(), None, None);
    let outcomes = way.decoder.generate(jobs, false, &mut |event| {
        if let Event::Token { job, .. } = event {
            let now = Instant::now();
            last = Some(now);
            // The clock starts when the last sequence has the token that came with its prompt.
            if first.is_none() && job == count - 1 {
                first = Some(now);
            }
        }
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut tokens = 0;
    for outcome in &outcomes {
        match &outcome.finish {
            Finish::Error(error) => return Err(error.clone()),
            Finish::Interrupted => return Err(Error::Interrupted),
            Finish::Stop | Finish::Length => {}
        }
        way.drafted += outcome.stats.drafted;
        way.accepted += outcome.stats.accepted;
        tokens = tokens.max(outcome.tokens.len());
    }
    if let Some(stats) = outcomes.first().map(|o| &o.stats) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3 / stats.steps.max(1) as f64;
        let (host, tuned, untuned) = (ms(stats.host), ms(stats.tuned), ms(stats.untuned));
        let (step, drafted) = (ms(stats.decode), stats.drafted);
        tracing::debug!(mode = way.mode, step, host, tuned, untuned, drafted, "mean ms of a step");
    }
    let [first, last] = [first, last].map(|time| time.ok_or(Error::Interrupted));
    Ok((last? - first?) / tokens.saturating_sub(1).max(1) as u32)
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::INFINITY, |t| t.as_secs_f64() * 1e3)
}
