//! Texts by a host that mistral.rs runs.

use super::Engine;
use crate::session::{Session, processor};
use proxytune::Result;
use proxytune::backend::llama::LlamaModel;
use proxytune::config::{Config, OnError};
use proxytune::decode::{Event, Finish, Job, Outcome, Pieces, Position, Stats, TextStream};
use proxytune::host::mistralrs::{Chosen, EarlyStart, LoadOptions, ProxyTuning};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// A host in mistral.rs, with its proxies.
pub struct Trio {
    session: Session,
    tuning: Option<ProxyTuning>,
}

impl Trio {
    pub fn load(config: &Config, alone: bool) -> Result<Self> {
        let session = Session::load(config, &LoadOptions::default())?;
        let tuning = if alone { None } else { Some(ProxyTuning::new(config.clone(), session.host())?) };
        Ok(Self { session, tuning })
    }

    fn stops_on_error(&self) -> bool {
        self.tuning.as_ref().is_some_and(|t| t.config().proxy_tuning.on_error == OnError::Stop)
    }
}

impl Engine for Trio {
    fn host(&self) -> &LlamaModel {
        self.session.vocabulary()
    }

    fn tuned(&self) -> Option<&Arc<LlamaModel>> {
        self.tuning.as_ref().map(|tuning| &tuning.proxies().models()[0])
    }

    fn generate(
        &self,
        job: Job,
        alone: bool,
        _explain: bool,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let shift = |tuning| processor(tuning, &job, EarlyStart::Sample);
        let processor = self.tuning.as_ref().filter(|_| !alone).map(shift).transpose()?;
        let stats = || self.tuning.as_ref().map(ProxyTuning::stats).unwrap_or_default();
        let before = stats();
        let mut text = Text::new(self.session.vocabulary(), &job);
        let tokens = self.session.start(&job, processor.clone());
        for chosen in &tokens {
            if text.take(chosen?, listen).is_break() {
                break;
            }
        }
        let after = stats();
        let mut outcome = text.finish();
        let stats = &mut outcome.stats;
        stats.tuned = after.tuned - before.tuned;
        stats.untuned = after.untuned - before.untuned;
        // What is not the proxies' is the host's and its engine's.
        stats.host = stats.decode.saturating_sub(after.wait - before.wait);
        if let Some(report) = processor.map(|p| p.report()) {
            stats.unshifted = report.unshifted as usize;
            outcome.finish = match report.error {
                Some(error) if self.stops_on_error() => Finish::Error(error),
                _ => outcome.finish,
            };
        }
        Ok(outcome)
    }
}

/// A text as its tokens come.
struct Text<'a> {
    vocabulary: &'a LlamaModel,
    job: &'a Job,
    stream: TextStream,
    positions: Vec<Position>,
    finish: Finish,
    begin: Instant,
    first: Option<Instant>,
    last: Instant,
}

impl<'a> Text<'a> {
    fn new(vocabulary: &'a LlamaModel, job: &'a Job) -> Self {
        let (begin, stream) = (Instant::now(), TextStream::new(&job.stops));
        let (positions, finish) = (Vec::new(), Finish::Length);
        Self { vocabulary, job, stream, positions, finish, begin, first: None, last: begin }
    }

    fn take(
        &mut self,
        chosen: Chosen,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.last = chosen.at;
        self.first.get_or_insert(self.last);
        let Chosen { token, host_top, top, .. } = chosen;
        self.positions.push(Position { token, host_top, top, probabilities: None, candidates: Vec::new() });
        let ends = !self.job.ignore_end && Pieces::is_end(self.vocabulary, token);
        let piece = if ends { Vec::new() } else { self.vocabulary.piece(token, self.job.control) };
        let stops = self.stream.push(&piece) || ends;
        let last = stops || self.positions.len() == self.job.max_tokens;
        let text = if last { self.stream.finish() } else { self.stream.take() };
        if stops {
            self.finish = Finish::Stop;
        }
        let position = &self.positions[self.positions.len() - 1];
        if listen(Event::Token { job: 0, text: &text, position }).is_break() {
            self.finish = Finish::Interrupted;
            return ControlFlow::Break(());
        }
        if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(self) -> Outcome {
        let first = self.first.unwrap_or(self.last);
        let stats = Stats {
            prompt_tokens: self.job.history.prompt().len(),
            tokens: self.positions.len(),
            prefill: first - self.begin,
            decode: self.last - first,
            steps: self.positions.len().saturating_sub(1),
            shifted: self.positions.iter().filter(|p| p.is_shifted()).count(),
            ..Stats::default()
        };
        Outcome {
            prompt_tokens: self.job.history.prompt().to_vec(),
            text: self.stream.text(),
            tokens: self.positions.iter().map(|p| p.token).collect(),
            positions: self.positions,
            finish: self.finish,
            stats,
        }
    }
}
