//! Answers in one piece.

use super::App;
use super::admission::Place;
use super::counts::Lost;
use super::error::{ApiResult, stopped};
use super::job::Job;
use super::parts::Parts;
use super::work::{Answer, Work};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// Runs a request by itself, so that a client who leaves takes nothing with it, and waits for its answer.
pub async fn answer(app: Arc<App>, job: Job, place: Place, since: Instant) -> ApiResult<Value> {
    let (reply, answer) = oneshot::channel();
    tokio::spawn(run(app, job, place, since, reply));
    answer.await.unwrap_or_else(|_| Err(stopped()))
}

async fn run(
    app: Arc<App>,
    job: Job,
    place: Place,
    since: Instant,
    mut reply: oneshot::Sender<ApiResult<Value>>,
) {
    let mut work = match job.prepare(&app).await {
        Ok(prepared) => Work::begin(prepared, place, &app, since),
        Err(error) => return drop(reply.send(Err(error))),
    };
    tokio::select! {
        answer = all(&mut work) => {
            if let Ok(value) = &answer {
                let generated = value["usage"]["completion_tokens"].as_u64().unwrap_or_default();
                app.metrics.tokens(work.prompt_tokens, generated);
            }
            let _ = reply.send(answer);
        }
        () = reply.closed() => app.metrics.counts.lost(Lost::Gone),
    }
    work.leave().await;
}

/// The choices of all parts in one answer.
async fn all(work: &mut Work) -> ApiResult<Value> {
    let mut parts = Parts::default();
    let mut choices = Vec::new();
    loop {
        let (part, mut value) = match work.next().await {
            Some((part, Answer::Whole(value))) => (part, value),
            Some((_, Answer::Failed(error))) => return Err(error),
            Some((_, Answer::Chunk { .. })) | None => return Err(stopped()),
        };
        parts.join(part, &mut value, true, work.parts);
        if let Value::Array(some) = value["choices"].take() {
            choices.extend(some);
        }
        if parts.finished == work.parts {
            choices.sort_by_key(|choice| choice["index"].as_u64());
            value["choices"] = choices.into();
            value["proxy_tuning"] = work.proxy_tuning()?;
            return Ok(value);
        }
    }
}
