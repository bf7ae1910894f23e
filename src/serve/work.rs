//! A request in the engine, and what comes back of it.

use super::App;
use super::admission::Place;
use super::error::{ApiError, ApiResult, stopped};
use super::job::Prepared;
use crate::config::OnError;
use crate::host::mistralrs::{Processor, Report};
use futures_util::stream::{BoxStream, SelectAll, once, poll_fn};
use futures_util::{Stream, StreamExt};
use mistralrs::{Constraint, MistralRs, NormalRequest, Request, Response};
use mistralrs_server_core::handler_core::create_response_channel;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// A request in the engine.
///
/// It is read to its end, also where nobody listens any more: mistral.rs panics when it cannot answer. Whoever no longer
/// listens [`leaves`](Self::leave), and the text ends at its next token.
pub struct Work {
    answers: SelectAll<BoxStream<'static, (usize, Answer)>>,
    /// One for each part.
    processors: Vec<Arc<Processor>>,
    explains: bool,
    /// Whether a token may be refused and drawn anew.
    has_grammar: bool,
    app: Arc<App>,
    left: Arc<AtomicBool>,
    on_error: OnError,
    /// The choices of the request; each is one for the engine.
    pub parts: usize,
    /// Tokens of the host's prompt.
    pub prompt_tokens: usize,
    pub since: Instant,
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
    /// Hands a request to the engine, each choice by itself: mistral.rs sends the choices of a stream only as long as all
    /// of them go on, and on a CPU it must not run two sequences at once. `place` is for the first.
    pub fn begin(prepared: Prepared, place: Place, app: &Arc<App>, since: Instant) -> Self {
        let Prepared { mut request, processors, explains, prompt_tokens } = prepared;
        let has_grammar = !matches!(request.constraint, Constraint::None);
        let parts = std::mem::replace(&mut request.sampling_params.n_choices, 1);
        let left = Arc::new(AtomicBool::new(false));
        let mut place = Some(place);
        let part = |part: usize| {
            let mut request = request.clone();
            request.logits_processors = Some(vec![processors[part].clone()]);
            let sequence = run(app.clone(), request, place.take(), left.clone());
            once(sequence).flatten().map(move |answer| (part, answer)).boxed()
        };
        let answers = (0..parts).map(part).collect();
        let (on_error, app) = (app.tuning.config().proxy_tuning.on_error, app.clone());
        Self { answers, processors, explains, has_grammar, app, left, on_error, parts, prompt_tokens, since }
    }

    /// The next answer, and the part that it belongs to; `None` at the end.
    pub async fn next(&mut self) -> Option<(usize, Answer)> {
        let (part, mut answer) = self.answers.next().await?;
        match &mut answer {
            Answer::Chunk { value, last } => self.explain(part, value, *last || !self.has_grammar),
            Answer::Whole(value) => self.explain(part, value, true),
            Answer::Failed(_) => {}
        }
        Some((part, answer))
    }

    /// Adds to a choice what the shift did at the tokens of it that are new, where that was asked for.
    fn explain(&self, part: usize, value: &mut Value, all: bool) {
        if self.explains {
            let positions = self.processors[part].take_positions(all);
            let text = |token| self.app.tuning.text(token);
            let positions: Vec<Value> = positions.iter().map(|p| p.to_json(text)).collect();
            for choice in value["choices"].as_array_mut().into_iter().flatten() {
                choice["proxy_tuning"] = json!({ "positions": positions });
            }
        }
    }

    /// Reads on, for nobody, until the engine has done with it.
    pub async fn leave(mut self) {
        self.left.store(true, Relaxed);
        self.processors.iter().for_each(|processor| processor.cancel());
        while self.answers.next().await.is_some() {}
    }

    /// What the response says about proxy-tuning.
    ///
    /// # Errors
    /// Where a proxy has failed and the request is to end with that.
    pub fn proxy_tuning(&self) -> ApiResult<Value> {
        let report = |mut all: Report, one: Report| {
            (all.shifted, all.unshifted) = (all.shifted + one.shifted, all.unshifted + one.unshifted);
            Report { alpha: one.alpha, error: all.error.take().or(one.error), ..all }
        };
        let Report { alpha, shifted, unshifted, error, .. } =
            self.processors.iter().map(|processor| processor.report()).fold(Report::default(), report);
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
}

/// One sequence, from its place in the engine to its last answer.
async fn run(
    app: Arc<App>,
    mut request: NormalRequest,
    place: Option<Place>,
    left: Arc<AtomicBool>,
) -> impl Stream<Item = Answer> + Send {
    let place = match place {
        Some(place) => Ok(place),
        None => app.admission.another().await,
    };
    let (sender, mut receiver) = create_response_channel(None);
    request.id = app.engine.mistralrs().next_request_id();
    request.response = sender;
    let sent = match &place {
        // Nobody would read it, so it need not begin.
        _ if left.load(Relaxed) => Ok(()),
        Ok(_) => app.engine.send(Request::Normal(Box::new(request))).await,
        Err(error) => Err(error.clone()),
    };
    let failed = futures_util::stream::iter(sent.err().map(Answer::Failed));
    let mistralrs = app.engine.mistralrs().clone();
    failed.chain(poll_fn(move |cx| {
        // Taken as long as the engine has the sequence.
        let _held = &place;
        receiver.poll_recv(cx).map(|response| response.map(|response| Answer::of(response, &mistralrs)))
    }))
}

impl Answer {
    fn of(response: Response, mistralrs: &Arc<MistralRs>) -> Self {
        match response {
            Response::Chunk(chunk) => {
                let last = chunk.choices.iter().all(|choice| choice.finish_reason.is_some());
                Self::Chunk { value: json(&chunk, mistralrs), last }
            }
            Response::CompletionChunk(chunk) => {
                let last = chunk.choices.iter().all(|choice| choice.finish_reason.is_some());
                Self::Chunk { value: json(&chunk, mistralrs), last }
            }
            Response::Done(whole) => Self::Whole(json(&whole, mistralrs)),
            Response::CompletionDone(whole) => Self::Whole(json(&whole, mistralrs)),
            Response::ValidationError(error) => Self::Failed(ApiError::field("body", error.to_string())),
            Response::InternalError(error) => Self::Failed(ApiError::engine(&error.to_string())),
            Response::ModelError(error, _) | Response::CompletionModelError(error, _) => {
                Self::Failed(ApiError::engine(&error))
            }
            _ => Self::Failed(stopped()),
        }
    }
}

fn json<T: Serialize>(answer: &T, mistralrs: &Arc<MistralRs>) -> Value {
    MistralRs::maybe_log_response(mistralrs.clone(), answer);
    let mut value =
        serde_json::to_value(answer).unwrap_or_else(|error| ApiError::internal(error.to_string()).body());
    // By the name that requests use; mistral.rs has the file's folder there.
    value["model"] = mistralrs.get_id().into();
    value
}
