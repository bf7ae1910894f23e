//! Answers: in one piece, or token by token as server-sent events.

use super::App;
use super::request::Request;
use crate::error::Error;
use crate::host::blackbox::{Event, Outcome, Way, generate};
use crate::host::openai::Form;
use crate::serve::admission::Place;
use crate::serve::counts::{Counts, Lost};
use crate::serve::error::{ApiError, ApiResult};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::poll_fn;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Events that a client may be behind before its text is given up.
const MOST_BEHIND: usize = 1024;

/// What all parts of an answer have in common.
struct Frame {
    id: String,
    created: u64,
    model: String,
    form: Form,
}

impl Frame {
    fn new(app: &App, form: Form) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: format!("{prefix}-{:x}", now.as_nanos()),
            created: now.as_secs(),
            model: app.model().into(),
            form,
        }
    }

    fn object(&self, kind: &str, choice: Value) -> Value {
        json!({ "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": [choice] })
    }

    fn chunk(&self, text: &str, is_first: bool, finish: Option<&str>) -> Value {
        match self.form {
            Form::Chat => {
                let mut delta = json!({});
                if is_first {
                    delta["role"] = "assistant".into();
                }
                if !text.is_empty() || is_first {
                    delta["content"] = text.into();
                }
                self.object(
                    "chat.completion.chunk",
                    json!({ "index": 0, "delta": delta, "finish_reason": finish }),
                )
            }
            _ => self.object(
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }),
            ),
        }
    }

    fn whole(&self, outcome: &Outcome) -> Value {
        let finish = outcome.finish.name();
        let mut object = match self.form {
            Form::Chat => {
                let message = json!({ "role": "assistant", "content": outcome.text });
                self.object(
                    "chat.completion",
                    json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": finish }),
                )
            }
            _ => self.object(
                "text_completion",
                json!({ "index": 0, "text": outcome.text, "logprobs": null, "finish_reason": finish }),
            ),
        };
        let (prompt, completion) = (outcome.stats.prompt_tokens, outcome.stats.tokens);
        object["usage"] = json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion });
        object
    }
}

/// What a response says about proxy-tuning.
fn report(outcome: &Outcome, alpha: f32) -> Value {
    let stats = &outcome.stats;
    let reweighs = stats.way != Way::Bias;
    // As it was written: 0.7 and not 0.699999988.
    let alpha: f64 = alpha.to_string().parse().unwrap_or_default();
    json!({
        "alpha": alpha, "way": if alpha == 0.0 { "host" } else { stats.way.name() }, "calls": stats.calls,
        "shifted": reweighs.then_some(stats.shifted), "unshifted": stats.unshifted,
        "visible_mass": reweighs.then(|| stats.mean(stats.visible)), "coverage": reweighs.then(|| stats.coverage()),
        "left_out_mass": (!reweighs).then(|| stats.mean(stats.left_out)), "resumed": stats.resumed,
    })
}

async fn write(
    app: &App,
    request: &Request,
    listen: &mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
) -> Result<Outcome, Error> {
    let host = app.host(request.form).ok_or_else(|| {
        let expected = "the other one of /v1/completions and /v1/chat/completions";
        Error::invalid("path", "a form that the host behind this gateway has not", expected)
    })?;
    let listen = &mut |event: Event<'_>| {
        app.metrics.token(&event);
        listen(event)
    };
    generate(host, Some(&app.backing.advisers), &app.backing.ids, request.job.clone(), listen).await
}

/// Counts a client that leaves before its answer is there: whatever waits for it is dropped then.
struct Waiting<'a>(Option<&'a Counts>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(counts) = self.0 {
            counts.lost(Lost::Gone);
        }
    }
}

/// All in one piece. The future is dropped when the client leaves.
pub async fn whole(app: Arc<App>, request: Request, _place: Place) -> ApiResult<Value> {
    let mut waiting = Waiting(Some(&app.metrics.counts));
    let outcome = write(&app, &request, &mut |_| ControlFlow::Continue(())).await;
    waiting.0 = None;
    let outcome = outcome?;
    let mut object = Frame::new(&app, request.form).whole(&outcome);
    object["proxy_tuning"] = report(&outcome, request.job.alpha);
    Ok(object)
}

/// Token by token. An error before the first token is the response's status, a later one an event.
pub async fn stream(app: Arc<App>, request: Request, place: Place, since: Instant) -> ApiResult<Response> {
    let (events, mut receiver) = mpsc::channel(MOST_BEHIND);
    tokio::spawn(async move {
        let client = events.clone();
        tokio::select! {
            // Dropping the other branch closes the connection to the host.
            () = client.closed() => app.metrics.counts.lost(Lost::Gone),
            () = run(&app, &request, events, since) => {}
        }
        drop(place);
    });
    let gone = || ApiError::internal("the text ended before it began");
    let first = receiver.recv().await.ok_or_else(gone)??;
    let mut first = Some(first);
    let events = poll_fn(move |cx| match first.take() {
        Some(value) => std::task::Poll::Ready(Some(Ok::<_, Infallible>(event(&Ok(value))))),
        None => receiver.poll_recv(cx).map(|next| next.map(|part| Ok(event(&part)))),
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

fn event(part: &ApiResult<Value>) -> sse::Event {
    let data = match part {
        Ok(Value::String(text)) => text.clone(),
        Ok(value) => value.to_string(),
        Err(error) => error.body().to_string(),
    };
    sse::Event::default().data(data)
}

async fn run(app: &App, request: &Request, events: mpsc::Sender<ApiResult<Value>>, since: Instant) {
    let frame = Frame::new(app, request.form);
    let mut is_first = true;
    let counts = &app.metrics.counts;
    let mut is_slow = false;
    let listen = &mut |event: Event<'_>| {
        if is_first {
            counts.first_token(since.elapsed());
        }
        let part = frame.chunk(event.text, std::mem::take(&mut is_first), None);
        // A client that does not read is given up: the host is paid by the token.
        match events.try_send(Ok(part)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                is_slow = matches!(error, mpsc::error::TrySendError::Full(_));
                ControlFlow::Break(())
            }
        }
    };
    let written = write(app, request, listen).await;
    if is_slow {
        // Nor would it read the end.
        return counts.lost(Lost::Slow);
    }
    let parts = match written {
        Ok(outcome) => {
            let mut last = frame.chunk("", is_first, Some(outcome.finish.name()));
            last["proxy_tuning"] = report(&outcome, request.job.alpha);
            vec![Ok(last), Ok("[DONE]".into())]
        }
        Err(error) => vec![Err(error.into())],
    };
    for part in parts {
        if events.send(part).await.is_err() {
            return;
        }
    }
}
