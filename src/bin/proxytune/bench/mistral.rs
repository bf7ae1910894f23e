//! The ways to decode with a host that mistral.rs runs.

use super::bare::{BareMs, BarePasses};
use super::table::Row;
use super::{Work, median_ms};
use crate::progress::Progress;
use crate::session::{Session, processor};
use proxytune::config::{Config, Placement};
use proxytune::decode::Models;
use proxytune::host::mistralrs::{EarlyStart, LoadOptions, ProxyTuning};
use proxytune::{Error, Result};
use std::time::{Duration, Instant};

/// One way, and how long a step of one token for each sequence took in each round.
struct Way {
    mode: &'static str,
    tuning: Option<ProxyTuning>,
    early_start: EarlyStart,
    rounds: Vec<Duration>,
}

/// All ways at all numbers of sequences.
pub fn run(work: &Work<'_>, config: &Config, models: &Models) -> Result<Vec<Row>> {
    let most = work.args.sequences.iter().copied().max().unwrap_or(1);
    let session = Session::load(config, &LoadOptions { sequences: most, ..LoadOptions::default() })?;
    let tuning = |placement: Option<Placement>, slots: usize| {
        let mut config = config.clone();
        config.proxy_tuning.placement = placement.unwrap_or(config.proxy_tuning.placement);
        config.proxy_tuning.slots = slots;
        ProxyTuning::new(config, session.host())
    };
    let way = |mode, tuning, early_start| Way { mode, tuning, early_start, rounds: Vec::new() };
    let mut ways = [
        // The same processor, which has nothing to do.
        way("host", None, EarlyStart::Off),
        // Both proxies after one another where they are asked for, one sequence at a time.
        way("naive", Some(tuning(Some(Placement::InTurn), 1)?), EarlyStart::Off),
        way(
            "lockstep",
            Some(tuning(None, config.proxy_tuning.slots.max(most).min(256))?),
            EarlyStart::Sample,
        ),
    ];
    let mut rows = Vec::new();
    for &sequences in &work.args.sequences {
        rows.extend(bout(work, config, models, &session, &mut ways, sequences)?);
    }
    Ok(rows)
}

fn bout(
    work: &Work<'_>,
    config: &Config,
    models: &Models,
    session: &Session,
    ways: &mut [Way],
    sequences: usize,
) -> Result<Vec<Row>> {
    // Where mistral.rs takes one sequence after the other, the floor is made of passes for one as well.
    let at_once = sequences.min(session.host().shape.sequences);
    let prompts = (0..at_once).map(|sequence| work.prompt(sequence).to_vec()).collect();
    let mut bare = BarePasses::new(config, models, prompts, work.longest())?;
    let mut progress = Progress::new("{msg} {bar:30} {pos}/{len} rounds");
    ways.iter_mut().for_each(|way| way.rounds.clear());
    for round in 0..=work.args.rounds {
        progress.set(round as u64, work.args.rounds as u64, &format!("{sequences} sequences"));
        for turn in 0..ways.len() {
            // Who comes first in one round comes later in the next.
            let way = &mut ways[(turn + round) % 3];
            let step = time_steps(work, session, way, round * sequences, sequences)?;
            way.rounds.push(step);
        }
        bare.time(work.args.tokens - 1)?;
    }
    let steps: Vec<f64> = ways.iter().map(|way| median_ms(&way.rounds[1..])).collect();
    // A step for all sequences is so many passes after one another.
    let passes = sequences as f64 / at_once as f64;
    let with_host = |[_, tuned, untuned]: [f64; 3]| [steps[0], tuned * passes, untuned * passes];
    let BareMs { alone, in_turn } = bare.medians_ms();
    let bare_ms = BareMs { alone: with_host(alone), in_turn: with_host(in_turn) };
    let row = |(way, &step_ms): (&Way, &f64)| Row {
        engine: "mistralrs",
        mode: way.mode,
        sequences,
        step_ms,
        bare_ms,
        drafted: 0,
        accepted: 0,
    };
    Ok(ways.iter().zip(&steps).map(row).collect())
}

/// Generates texts and returns how long a token for each of them took, those that came with the prompt left out.
fn time_steps(
    work: &Work<'_>,
    session: &Session,
    way: &Way,
    first: usize,
    sequences: usize,
) -> Result<Duration> {
    let start = |number: usize| {
        let job = work.job(first + number);
        let shift = way.tuning.as_ref().map(|tuning| processor(tuning, &job, way.early_start));
        Ok(session.start(&job, shift.transpose()?))
    };
    let texts = (0..sequences).map(start).collect::<Result<Vec<_>>>()?;
    let mut spans = Vec::new();
    for text in texts {
        let times: Vec<Instant> =
            text.into_iter().map(|chosen| chosen.map(|c| c.at)).collect::<Result<_>>()?;
        // An end token would end the text; without one it has as many as asked for.
        if let [begin, .., end] = times[..] {
            spans.push((begin, end, times.len() - 1));
        }
        if crate::interrupted() {
            return Err(Error::Interrupted);
        }
    }
    let tokens: usize = spans.iter().map(|span| span.2).sum();
    let per_token = union(&mut spans).as_secs_f64() / tokens.max(1) as f64;
    Ok(Duration::from_secs_f64(per_token * sequences as f64))
}

/// Time in which at least one text was under way.
fn union(spans: &mut [(Instant, Instant, usize)]) -> Duration {
    spans.sort_unstable();
    let mut total = Duration::ZERO;
    let mut reached: Option<Instant> = None;
    for &(begin, end, _) in spans.iter() {
        let from = reached.map_or(begin, |reached| reached.max(begin));
        total += end.saturating_duration_since(from);
        reached = Some(reached.map_or(end, |reached| reached.max(end)));
    }
    total
}
