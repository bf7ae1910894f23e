//! One pass of all models over given texts, from which every alpha is scored.
//!
//! The logits of host and proxies do not depend on alpha as long as the text is given, so each position is computed once
//! by each model; an alpha costs one more softmax.

use super::column::Column;
use super::passage::Passage;
use super::reading::Reading;
use super::table::{Active, Measure, Scores, Segment, Side, Table};
use crate::backend::llama::{ContextOptions, LlamaContext, LlamaModel, ThreadPool};
use crate::combine::{Control, ProxyTuning, Rule};
use crate::config::Config;
use crate::decode::{Models, NAMES};
use crate::error::{Error, Result};
use crate::pair::CachedModel;
use crate::vocab::TokenMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Most bytes that the rows of one model may take between two passes.
const ROW_BYTES: usize = 128 << 20;
/// Tokens of a forward pass.
const BATCH: usize = 512;

/// The host tuned directly: the yardstick of how much proxy-tuning brings.
pub struct Direct {
    /// Its weights.
    pub model: Arc<LlamaModel>,
    /// From host tokens to its own.
    pub map: TokenMap,
}

/// What the directly tuned model is called.
pub(super) const DIRECT: &str = "directly tuned model";
/// Where it stands among the models, if there is one.
const DIRECT_PLACE: usize = 3;

/// A model to make a context for.
pub(super) struct Seat<'a> {
    pub name: &'static str,
    pub model: &'a Arc<LlamaModel>,
    /// From host tokens to its own.
    pub map: TokenMap,
    /// Tokens of context; 0: what is needed.
    pub ctx: usize,
}

impl<'a> Seat<'a> {
    pub fn host(config: &Config, models: &'a Models) -> Self {
        let map = TokenMap::identity(models.host.vocab_len());
        Self { name: NAMES[0], model: &models.host, map, ctx: config.host.ctx }
    }
}

/// All models with their caches, and the alphas asked for.
pub struct Scorer {
    /// Host, tuned, untuned and, where there is one, the directly tuned model.
    models: Vec<CachedModel>,
    /// What is known of each of them, in the same order.
    sides: Vec<Side>,
    alphas: Vec<f32>,
    rule: Arc<dyn Rule>,
    control: Control,
    threads: usize,
    /// Most rows in memory at once, for each model.
    rows: usize,
    slots: usize,
}

impl Scorer {
    /// Makes contexts for passages of at most `longest` tokens, prompt included.
    ///
    /// # Errors
    /// [`Error::Invalid`] without proxies; when memory or threads are short.
    pub fn new(
        config: &Config,
        models: &Models,
        direct: Option<&Direct>,
        alphas: &[f32],
        longest: usize,
    ) -> Result<Self> {
        let Some([tuned, untuned]) = &models.proxies else {
            return Err(Error::invalid("eval", "a host alone", "the three models of a trio"));
        };
        let tuning = &config.proxy_tuning;
        let mut seats = vec![
            Seat::host(config, models),
            Seat { name: NAMES[1], model: &tuned.0, map: tuned.1.clone(), ctx: tuning.ctx },
            Seat { name: NAMES[2], model: &untuned.0, map: untuned.1.clone(), ctx: tuning.ctx },
        ];
        if let Some(Direct { model, map }) = direct {
            seats.push(Seat { name: DIRECT, model, map: map.clone(), ctx: config.host.ctx });
        }
        let rule = tuning.combine.rule()?;
        alphas.iter().try_for_each(|&alpha| rule.check_alpha(alpha))?;
        let control = tuning.control();
        Ok(Self { alphas: alphas.to_vec(), rule, control, ..Self::over(config, seats, longest)? })
    }

    /// The same for any models, host first, with no alphas.
    ///
    /// # Errors
    /// When memory or threads are short.
    pub(super) fn over(config: &Config, seats: Vec<Seat<'_>>, longest: usize) -> Result<Self> {
        let tuning = &config.proxy_tuning;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if tuning.threads == 0 { cores() } else { tuning.threads };
        let pool = Arc::new(ThreadPool::new(threads, 0)?);
        let slots = (BATCH / longest.max(1)).clamp(1, tuning.slots);
        let make = |Seat { name, model, map, ctx }: Seat<'_>| {
            // A proxy that spells a token in several of its own needs some more.
            let room = longest + longest / 8 * usize::from(!map.is_identity());
            let context = if ctx == 0 { model.trained_context().min(room) } else { ctx };
            let (name_in_errors, pool) = (format!("the {name}"), pool.clone());
            let options = ContextOptions {
                name: name_in_errors.clone(),
                slots,
                context,
                batch: BATCH,
                pool,
                pool_alone: None,
            };
            let context = LlamaContext::new(model.clone(), &options)?;
            Ok::<_, Error>((CachedModel::new(name_in_errors, context), Side::new(name, map)))
        };
        let all: Vec<_> = seats.into_iter().map(make).collect::<Result<_>>()?;
        let (models, sides): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let vocab = sides.iter().map(|side| side.map.proxy_len()).max().unwrap_or(1);
        let rows = (ROW_BYTES / 4 / vocab.max(1)).clamp(16, 4 * BATCH);
        let (rule, control) = (Arc::new(ProxyTuning), Control::default());
        Ok(Self { models, sides, alphas: Vec::new(), rule, control, threads, rows, slots })
    }

    /// Lowers the number of rows of one model that are in memory at once, where memory is tight. A longer passage is
    /// scored piece by piece, to the same end.
    pub fn limit_rows(&mut self, rows: usize) {
        self.rows = self.rows.min(rows.max(1));
    }

    /// What is scored, in the order of the scores.
    pub fn columns(&self) -> Vec<Column> {
        Column::all(self.sides.len() > DIRECT_PLACE, &self.alphas)
    }

    /// Scores the passages. `done` is handed, for each passage once it is complete, its index and for each column the
    /// negative log-likelihood of its tokens in nats; `listen` hears how many tokens have been scored so far.
    ///
    /// # Errors
    /// When a model fails, a passage does not fit a context, `done` fails, or `listen` says stop
    /// ([`Error::Interrupted`]).
    pub fn score(
        &mut self,
        passages: &[Passage],
        done: &mut dyn FnMut(usize, Vec<f64>) -> Result<()>,
        listen: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<()> {
        let (alphas, rule, control) = (self.alphas.clone(), self.rule.clone(), self.control);
        let scores = Scores { models: self.sides.len(), alphas: &alphas, rule: &*rule, control };
        self.run(passages, &scores, &mut |_, _| {}, done, listen)
    }

    /// Measures the tokens of the passages. `each` is handed a passage's index with the values of one of its tokens,
    /// `done` the sums over all of them once it is complete; the rest as [`score`](Self::score).
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub(super) fn run(
        &mut self,
        passages: &[Passage],
        measure: &dyn Measure,
        each: &mut dyn FnMut(usize, &[f64]),
        done: &mut dyn FnMut(usize, Vec<f64>) -> Result<()>,
        listen: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<()> {
        let width = measure.width();
        let mut active: Vec<Active> = Vec::new();
        let mut waiting = passages.iter().enumerate();
        let mut scored = 0;
        loop {
            while active.len() < self.slots {
                let Some((index, passage)) = waiting.next() else { break };
                if passage.generated().is_empty() {
                    done(index, vec![0.0; width])?;
                } else {
                    active.push(self.read(index, passage, width)?);
                }
            }
            if active.is_empty() {
                return Ok(());
            }
            let segments = self.segments(&active);
            self.forward(measure, &active, &segments, &mut || listen(scored))?;
            self.add_up(measure, &mut active, &segments, each)?;
            for segment in &segments {
                active[segment.passage].scored = segment.tokens.end;
                scored += segment.tokens.len();
            }
            for a in active.extract_if(.., |a| a.scored == a.passage.generated().len()) {
                self.models.iter_mut().for_each(|model| model.remove(a.index as u64));
                done(a.index, a.nats)?;
            }
        }
    }

    fn read<'a>(&self, index: usize, passage: &'a Passage, width: usize) -> Result<Active<'a>> {
        let history = passage.history();
        let reading = |(which, side): (usize, &Side)| match which {
            0 => Reading::plain(history),
            1 => Reading::new(history, &side.map, history.tuned_prompt()),
            DIRECT_PLACE => Reading::new(history, &side.map, passage.direct_prompt()),
            _ => Reading::new(history, &side.map, None),
        };
        let readings: Vec<Reading> = self.sides.iter().enumerate().map(reading).collect();
        if let Some((side, _)) = self.sides.iter().zip(&readings).find(|(_, r)| r.has_no_prompt()) {
            return Err(Error::engine(side.name, "nothing of the prompt can be spelt in its vocabulary"));
        }
        Ok(Active { index, passage, readings, scored: 0, nats: vec![0.0; width] })
    }

    /// What the next passes will compute: as much of each passage as there is room for rows.
    fn segments(&self, active: &[Active]) -> Vec<Segment> {
        let mut room = self.rows;
        let mut segments = Vec::new();
        for (passage, a) in active.iter().enumerate() {
            let tokens = a.scored..a.passage.generated().len().min(a.scored + room);
            room -= tokens.len();
            if !tokens.is_empty() {
                segments.push(Segment { passage, tokens });
            }
        }
        segments
    }

    /// Runs all models that are needed, one after the other.
    fn forward(
        &mut self,
        measure: &dyn Measure,
        active: &[Active],
        segments: &[Segment],
        listen: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<()> {
        for (which, (model, side)) in self.models.iter_mut().zip(&mut self.sides).enumerate() {
            side.work.clear();
            if !measure.reads(which) {
                continue;
            }
            for segment in segments {
                let a = &active[segment.passage];
                let positions = a.readings[which].positions(&segment.tokens);
                let fed = &a.readings[which].tokens()[..positions.end];
                side.work.push(a.index as u64, positions.len(), |tokens| tokens.extend_from_slice(fed));
            }
            while !side.work.all_done() {
                model.advance(&mut side.work);
                if listen().is_break() {
                    return Err(Error::Interrupted);
                }
            }
            model.copy_rows(&mut side.work);
            model.rest();
        }
        Ok(())
    }

    /// Measures all tokens of the segments and adds up their values.
    fn add_up(
        &self,
        measure: &dyn Measure,
        active: &mut [Active],
        segments: &[Segment],
        each: &mut dyn FnMut(usize, &[f64]),
    ) -> Result<()> {
        let table = Table { sides: &self.sides, active, segments };
        let (units, values) = table.measure(measure, self.threads)?;
        for (&(segment, _), values) in units.iter().zip(values.chunks(measure.width())) {
            let a = &mut active[segments[segment].passage];
            each(a.index, values);
            a.nats.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }
}
