//! Completions that mistral.rs runs for this very process: token by token, with the tokens' numbers.
//!
//! A token counts as chosen when a processor has left no other, or when it is the most likely one at temperature 0. A grammar
//! may refuse it; then another one is told for the same position.

use super::Host;
use super::processor::Processor;
use super::sampling::{SamplingOptions, Scratch};
use crate::combine::argmax;
use crate::decode::accept::Dice;
use crate::error::{Error, Result};
use crate::vocab::Token;
use mistralrs::core::MistralRs;
use mistralrs::{
    Constraint, CustomLogitsProcessor, NormalRequest, Request, RequestMessage, Response, SamplingParams,
    Tensor,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One text to generate.
#[derive(Clone)]
pub struct Completion {
    /// The prompt, in the host's tokens.
    pub prompt: Vec<Token>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: SamplingOptions,
    /// Divides the logits of tokens that stand in the text already, before the shift as mistral.rs has it; 1: none.
    pub repeat_penalty: f32,
    /// What the text must look like.
    pub constraint: Constraint,
    /// The shift; it must draw tokens itself ([`EarlyStart::Sample`](super::EarlyStart::Sample)) unless the most likely one
    /// is always taken. `None`: the host alone.
    pub processor: Option<Arc<Processor>>,
}

/// A token of a text, as soon as it is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The token.
    pub token: Token,
    /// Tokens before it, those of the prompt included.
    pub position: usize,
    /// The host's most likely token before the shift.
    pub host_top: Token,
    /// The most likely token after it.
    pub top: Token,
    /// When it was chosen.
    pub at: Instant,
}

/// Runs completions, at most as many at once as the host can.
pub struct Completions {
    engine: Arc<MistralRs>,
    places: Arc<Semaphore>,
}

impl Completions {
    /// Over an engine and what [`load`](super::load()) said of it.
    pub fn new(engine: Arc<MistralRs>, host: &Host) -> Self {
        Self { engine, places: Arc::new(Semaphore::new(host.shape.sequences.max(1))) }
    }

    /// Hands the text to mistral.rs, once there is a place for it. Its tokens come through the channel, which closes at
    /// the end of the text; an error comes last. Dropping the receiver ends the text early.
    ///
    /// # Errors
    /// [`Error::Engine`] when mistral.rs has stopped.
    pub fn start(&self, text: Completion) -> Receiver<Result<Chosen>> {
        let (sender, tokens) = channel();
        let (engine, places) = (self.engine.clone(), self.places.clone());
        tokio::spawn(async move {
            let Ok(place) = places.acquire_owned().await else { return };
            if let Err(error) = text.run(&engine, &sender, place).await {
                let _ = sender.send(Err(error));
            }
        });
        tokens
    }
}

impl Completion {
    /// `place` is given back when mistral.rs has dropped the sequence.
    async fn run(
        self,
        engine: &MistralRs,
        sender: &Sender<Result<Chosen>>,
        place: OwnedSemaphorePermit,
    ) -> Result<()> {
        let (response, mut responses) = tokio::sync::mpsc::channel(16);
        let sampling_params = SamplingParams {
            // One that is missing counts as 1.
            temperature: Some(self.sampling.temperature),
            max_len: Some(self.max_tokens),
            repetition_penalty: (self.repeat_penalty != 1.0).then_some(self.repeat_penalty),
            ..SamplingParams::neutral()
        };
        let message = RequestMessage::CompletionTokens(self.prompt);
        let id = engine.next_request_id();
        let mut request = NormalRequest::new_simple(message, sampling_params, response, id, None, None);
        request.constraint = self.constraint;
        let witness = Witness {
            processor: self.processor,
            sampling: self.sampling,
            state: Mutex::new((Dice::new(self.sampling.seed), Scratch::default())),
            sender: Mutex::new(sender.clone()),
            _place: place,
        };
        request.logits_processors = Some(vec![Arc::new(witness)]);
        let inbox = engine.get_sender(None).map_err(|e| Error::engine("mistral.rs", e.to_string()))?;
        let gone = |_| Error::engine("mistral.rs", "its engine has stopped");
        inbox.send(Request::Normal(Box::new(request))).await.map_err(gone)?;
        // mistral.rs must always find somebody who takes its response.
        while let Some(response) = responses.recv().await {
            failure(response).map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}

fn failure(response: Response) -> Option<Error> {
    let words = match response {
        Response::ValidationError(e) | Response::InternalError(e) => e.to_string(),
        Response::ModelError(e, _) | Response::CompletionModelError(e, _) => e,
        _ => return None,
    };
    Some(Error::engine("mistral.rs", words))
}

/// Applies the shift and tells which token follows from it.
struct Witness {
    processor: Option<Arc<Processor>>,
    sampling: SamplingOptions,
    state: Mutex<(Dice, Scratch)>,
    sender: Mutex<Sender<Result<Chosen>>>,
    _place: OwnedSemaphorePermit,
}

impl CustomLogitsProcessor for Witness {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> mistralrs::Result<Tensor> {
        let position = context.len();
        let Some(processor) = &self.processor else { return self.alone(logits, position) };
        let before = processor.report().positions;
        let row = processor.apply(logits, context)?;
        let token = argmax(&row.to_vec1::<f32>()?) as Token;
        let report = processor.report();
        let shifted = report.tops.filter(|_| report.positions > before);
        let [host_top, top] = shifted.unwrap_or([argmax(&logits.to_vec1::<f32>()?) as Token; 2]);
        if !self.tell(Chosen { token, position, host_top, top, at: Instant::now() }) {
            processor.cancel();
        }
        Ok(row)
    }
}

impl Witness {
    /// The host without a shift: what is drawn must be known here as well.
    fn alone(&self, logits: &Tensor, position: usize) -> mistralrs::Result<Tensor> {
        let mut row = logits.to_vec1::<f32>()?;
        let top = argmax(&row) as Token;
        let mut token = top;
        if !self.sampling.is_greedy() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let (dice, scratch) = &mut *state;
            token = self.sampling.draw(&row, dice, scratch).unwrap_or(token);
            row.fill(f32::NEG_INFINITY);
            row[token as usize] = 0.0;
        }
        self.tell(Chosen { token, position, host_top: top, top, at: Instant::now() });
        let len = row.len();
        Tensor::from_vec(row, len, logits.device())
    }

    /// Whether somebody still listens.
    fn tell(&self, chosen: Chosen) -> bool {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).send(Ok(chosen)).is_ok()
    }
}
