//! A request in the engine, and what comes back of it.

use super::App;
use super::admission::Ticket;
use super::error::{ApiError, ApiResult, stopped};
use super::job::Prepared;
use crate::config::OnError;
use crate::host::mistralrs::{Processor, Report};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, poll_fn};
use mistralrs::{MistralRs, Request, Response};
use mistralrs_server_core::handler_core::create_response_channel;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// A request in the engine.
///
/// It is read to its end, also where nobody listens any more: mistral.rs panics when it cannot answer. Whoever no longer
/// listens [`leaves`](Self::leave), and the text ends at its next token.
pub struct Work {
    answers: SelectAll<BoxStream<'static, (usize, Response)>>,
    processor: Arc<Processor>,
    mistralrs: Arc<MistralRs>,
    on_error: OnError,
    /// Requests that the engine was given for it.
    pub parts: usize,
    /// Tokens of the host's prompt.
    pub prompt_tokens: usize,
    pub since: Instant,
    _ticket: Ticket,
}

/// One answer of the engine.
pub enum Answer {
    /// A part of a stream; `last`: of this part of the work.
    Chunk { value: Value, last: bool },
    /// All of it.
    Whole(Value),
    /// There will be none.
    Failed(ApiError),
}

impl Work {
    /// Hands a request to the engine: a stream of several choices as several requests, since mistral.rs sends the choices
    /// of one only as long as all of them go on.
    pub async fn begin(prepared: Prepared, ticket: Ticket, app: &App, since: Instant) -> ApiResult<Self> {
        let Prepared { mut request, processor, prompt_tokens } = prepared;
        let choices = if request.is_streaming { request.sampling_params.n_choices } else { 1 };
        if choices > 1 {
            request.sampling_params.n_choices = 1;
        }
        let mut answers = SelectAll::new();
        for part in 0..choices {
            let (sender, mut receiver) = create_response_channel(None);
            let mut request = request.clone();
            request.id = app.engine.mistralrs().next_request_id();
            request.response = sender;
            app.engine.send(Request::Normal(Box::new(request))).await?;
            answers.push(poll_fn(move |cx| receiver.poll_recv(cx)).map(move |r| (part, r)).boxed());
        }
        let mistralrs = app.engine.mistralrs().clone();
        let on_error = app.tuning.config().proxy_tuning.on_error;
        Ok(Self { answers, processor, mistralrs, on_error, parts: choices, prompt_tokens, since, _ticket: ticket })
    }

    /// The next answer, and the part that it belongs to; `None` at the end.
    pub async fn next(&mut self) -> Option<(usize, Answer)> {
        let (part, response) = self.answers.next().await?;
        Some((part, self.answer(response)))
    }

    /// Reads on, for nobody, until the engine has done with it.
    pub async fn leave(mut self) {
        self.processor.cancel();
        while self.answers.next().await.is_some() {}
    }

    /// What the response says about proxy-tuning.
    ///
    /// # Errors
    /// Where a proxy has failed and the request is to end with that.
    pub fn proxy_tuning(&self) -> ApiResult<Value> {
        let Report { alpha, shifted, unshifted, error, .. } = self.processor.report();
        // As it was written: 0.7 and not 0.699999988.
        let alpha: f64 = alpha.to_string().parse().unwrap_or_default();
        let policy = match (self.on_error, error) {
            (OnError::Stop, Some(error)) => return Err(error.into()),
            (OnError::Stop, None) => "stop",
            (OnError::Host, _) if unshifted == 0 => "host",
            (OnError::Host, error) => {
                let error = error.map(|e| e.to_string());
                return Ok(json!({ "alpha": alpha, "shifted": shifted, "on_error": "host",
                                  "unshifted": unshifted, "error": error }));
            }
        };
        Ok(json!({ "alpha": alpha, "shifted": shifted, "on_error": policy }))
    }

    fn answer(&self, response: Response) -> Answer {
        match response {
            Response::Chunk(chunk) => {
                let last = chunk.choices.iter().all(|choice| choice.finish_reason.is_some());
                Answer::Chunk { value: self.json(&chunk), last }
            }
            Response::CompletionChunk(chunk) => {
                let last = chunk.choices.iter().all(|choice| choice.finish_reason.is_some());
                Answer::Chunk { value: self.json(&chunk), last }
            }
            Response::Done(whole) => Answer::Whole(self.json(&whole)),
            Response::CompletionDone(whole) => Answer::Whole(self.json(&whole)),
            Response::ValidationError(error) => Answer::Failed(ApiError::field("body", error.to_string())),
            Response::InternalError(error) => Answer::Failed(ApiError::internal(error.to_string())),
            Response::ModelError(error, _) | Response::CompletionModelError(error, _) => {
                Answer::Failed(ApiError::internal(format!("the model failed: {error}")))
            }
            _ => Answer::Failed(stopped()),
        }
    }

    fn json<T: Serialize>(&self, answer: &T) -> Value {
        MistralRs::maybe_log_response(self.mistralrs.clone(), answer);
        serde_json::to_value(answer).unwrap_or_else(|error| ApiError::internal(error.to_string()).body())
    }
}
