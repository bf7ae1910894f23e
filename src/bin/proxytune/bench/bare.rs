//! The forward passes with nothing around them.

use super::median_ms;
use proxytune::backend::llama::{ContextOptions, LlamaContext, LlamaModel, ThreadPool};
use proxytune::backend::{Backend, Span};
use proxytune::config::Config;
use proxytune::decode::Models;
use proxytune::{Error, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bare passes of host, tuned and untuned proxy.
pub struct BarePasses {
    /// By model: one repeated, on one thread and on all.
    alone: [Vec<(LlamaContext, Vec<Duration>)>; 3],
    /// The three after one another, as a step needs them: none finds its weights in the caches.
    in_turn: [(LlamaContext, Vec<Duration>); 3],
    /// One a sequence: attention costs more after longer ones.
    prompts: Vec<Vec<u32>>,
}

/// Medians in milliseconds.
#[derive(Clone, Copy)]
pub struct BareMs {
    /// Host, tuned, untuned, each repeated alone on its best number of threads.
    pub alone: [f64; 3],
    /// Host, tuned, untuned after one another on all threads.
    pub in_turn: [f64; 3],
}

impl BarePasses {
    pub fn new(config: &Config, models: &Models, prompts: Vec<Vec<u32>>, context: usize) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let all = if config.proxy_tuning.threads == 0 { cores } else { config.proxy_tuning.threads };
        let Some([(tuned, _), (untuned, _)]) = &models.proxies else { return Err(Error::Interrupted) };
        let make = |model: &Arc<LlamaModel>, pool: Arc<ThreadPool>| {
            let name = "bare pass".into();
            let slots = prompts.len();
            let options = ContextOptions { name, slots, context, batch: 512, pool, pool_alone: None };
            Ok::<_, Error>((LlamaContext::new(model.clone(), &options)?, Vec::new()))
        };
        let pool = |threads| ThreadPool::new(threads, 50).map(Arc::new);
        let alone = |model: &Arc<LlamaModel>| {
            let mut threads = vec![1, all];
            threads.dedup();
            threads.into_iter().map(|threads| make(model, pool(threads)?)).collect::<Result<Vec<_>>>()
        };
        let shared = pool(all)?;
        let in_turn = |model| make(model, shared.clone());
        Ok(Self {
            alone: [alone(&models.host)?, alone(tuned)?, alone(untuned)?],
            in_turn: [in_turn(&models.host)?, in_turn(tuned)?, in_turn(untuned)?],
            prompts,
        })
    }

    /// Times `steps` passes of each.
    pub fn time(&mut self, steps: usize) -> Result<()> {
        for (context, times) in self.alone.iter_mut().flatten() {
            times.push(time_round(&mut [context], &self.prompts, steps)?[0]);
        }
        let [(host, h), (tuned, t), (untuned, u)] = &mut self.in_turn;
        let round = time_round(&mut [host, tuned, untuned], &self.prompts, steps)?;
        [h, t, u].into_iter().zip(round).for_each(|(times, time)| times.push(time));
        Ok(())
    }

    /// Medians of the rounds but the first, which warms up.
    pub fn medians_ms(&self) -> BareMs {
        let median = |(_, times): &(LlamaContext, Vec<Duration>)| median_ms(&times[1..]);
        BareMs {
            alone: self.alone.each_ref().map(|ways| ways.iter().map(median).fold(f64::INFINITY, f64::min)),
            in_turn: self.in_turn.each_ref().map(median),
        }
    }
}

/// The mean time of a pass of each context, which take turns.
fn time_round(
    contexts: &mut [&mut LlamaContext],
    prompts: &[Vec<u32>],
    steps: usize,
) -> Result<Vec<Duration>> {
    for context in contexts.iter_mut() {
        for (slot, prompt) in prompts.iter().enumerate() {
            // A proxy may know fewer tokens.
            let vocab = context.capabilities().vocab as u32;
            let tokens: Vec<u32> = prompt.iter().map(|token| token % vocab).collect();
            context.clear(slot);
            context.forward(&[Span { slot, start: 0, tokens: &tokens, rows: 0 }])?;
        }
    }
    let mut times = vec![Duration::ZERO; contexts.len()];
    for step in 0..steps {
        let token = [0];
        let span = |(slot, prompt): (usize, &Vec<u32>)| Span {
            slot,
            start: prompt.len() + step,
            tokens: &token,
            rows: 1,
        };
        let spans: Vec<Span<'_>> = prompts.iter().enumerate().map(span).collect();
        for (context, time) in contexts.iter_mut().zip(&mut times) {
            let begin = Instant::now();
            context.forward(&spans)?;
            std::hint::black_box(context.logits(0));
            *time += begin.elapsed();
        }
        if crate::interrupted() {
            return Err(Error::Interrupted);
        }
    }
    // Their threads must not spin into what is timed next.
    contexts.iter_mut().for_each(|context| context.rest());
    Ok(times.into_iter().map(|time| time / steps as u32).collect())
}
