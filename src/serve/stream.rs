//! Answers token by token, as server-sent events.

use super::App;
use super::admission::Place;
use super::counts::Lost;
use super::error::{ApiError, ApiResult, stopped};
use super::job::Job;
use super::parts::Parts;
use super::work::{Answer, Work};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::poll_fn;
use mistralrs_server_core::streaming::get_keep_alive_interval;
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Events that a client may be behind before it is given up. The engine never waits for a client.
const MOST_BEHIND: usize = 1024;

/// How long the head of the response waits for a first event, to carry the status of an error.
const HEAD: Duration = Duration::from_secs(1);

/// Runs a request by itself and returns the stream of its events.
///
/// # Errors
/// What shows before the first token.
pub async fn answer(app: Arc<App>, job: Job, place: Place, since: Instant) -> ApiResult<Response> {
    let (events, mut receiver) = mpsc::channel(MOST_BEHIND);
    let (begun, first) = oneshot::channel();
    tokio::spawn(run(app, job, place, since, Output { events, begun: Some(begun) }));
    match tokio::time::timeout(HEAD, first).await {
        Ok(Ok(Err(error))) => return Err(error),
        Ok(Err(_)) => return Err(stopped()),
        Ok(Ok(Ok(()))) | Err(_) => {}
    }
    let events = poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(Duration::from_millis(get_keep_alive_interval()));
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

async fn run(app: Arc<App>, job: Job, place: Place, since: Instant, mut output: Output) {
    let mut work = match job.prepare(&app).await {
        Ok(prepared) => Work::begin(prepared, place, &app, since),
        Err(error) => {
            let _ = output.fail(&error);
            return;
        }
    };
    let mut parts = Parts::default();
    if let Err(lost) = pass_on(&mut work, &mut parts, &mut output, &app).await {
        app.metrics.counts.lost(lost);
    }
    app.metrics.tokens(work.prompt_tokens, parts.count);
    drop(output);
    work.leave().await;
}

/// Passes all chunks on, until the last one or as long as there is someone to read them.
async fn pass_on(work: &mut Work, parts: &mut Parts, output: &mut Output, app: &App) -> Result<(), Lost> {
    loop {
        let next = tokio::select! {
            next = work.next() => next,
            () = output.events.closed() => return Err(Lost::Gone),
        };
        let (part, mut value, last) = match next {
            Some((part, Answer::Chunk { value, last })) => (part, value, last),
            Some((_, Answer::Failed(error))) => return output.fail(&error),
            Some((_, Answer::Whole(_))) | None => return output.fail(&stopped()),
        };
        if parts.count == 0 {
            app.metrics.counts.first_token(work.since.elapsed());
        }
        parts.join(part, &mut value, last, work.parts);
        if parts.finished < work.parts {
            output.send(&value)?;
            continue;
        }
        match work.proxy_tuning() {
            Ok(report) => value["proxy_tuning"] = report,
            Err(error) => return output.fail(&error),
        }
        output.send(&value)?;
        return output.event(Event::default().data("[DONE]"));
    }
}

/// The way to the client.
struct Output {
    events: mpsc::Sender<Event>,
    /// Told once that there is a stream, or why there is none.
    begun: Option<oneshot::Sender<ApiResult<()>>>,
}

impl Output {
    fn event(&mut self, event: Event) -> Result<(), Lost> {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Ok(()));
        }
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Lost::Slow,
            mpsc::error::TrySendError::Closed(_) => Lost::Gone,
        })
    }

    fn send(&mut self, value: &Value) -> Result<(), Lost> {
        self.event(Event::default().data(value.to_string()))
    }

    /// The status of the response as long as there is none, an event after that.
    fn fail(&mut self, error: &ApiError) -> Result<(), Lost> {
        match self.begun.take() {
            Some(begun) => begun.send(Err(error.clone())).map_err(|_| Lost::Gone),
            None => self.send(&error.body()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up_and_the_engine_never_waits() {
        let (events, receiver) = mpsc::channel(2);
        let mut output = Output { events, begun: None };
        assert!(output.send(&json!(1)).is_ok() && output.send(&json!(2)).is_ok());
        assert_eq!(output.send(&json!(3)), Err(Lost::Slow));
        drop(receiver);
        assert_eq!(output.send(&json!(4)), Err(Lost::Gone));
    }
}
