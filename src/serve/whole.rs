//! Answers in one piece.

use super::App;
use super::admission::Ticket;
use super::error::{ApiError, ApiResult, stopped};
use super::job::Job;
use super::metrics::Lost;
use super::work::{Answer, Work};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// Runs a request by itself, so that a client who leaves takes nothing with it, and waits for its answer.
pub async fn answer(app: Arc<App>, job: Job, ticket: Ticket, since: Instant) -> ApiResult<Value> {
    let (reply, answer) = oneshot::channel();
    tokio::spawn(run(app, job, ticket, since, reply));
    answer.await.unwrap_or_else(|_| Err(stopped()))
}

async fn run(app: Arc<App>, job: Job, ticket: Ticket, since: Instant, mut reply: oneshot::Sender<ApiResult<Value>>) {
    let begun = match job.prepare(&app).await {
        Ok(prepared) => Work::begin(prepared, ticket, &app, since).await,
        Err(error) => Err(error),
    };
    let mut work = match begun {
        Ok(work) => work,
        Err(error) => return drop(reply.send(Err(error))),
    };
    tokio::select! {
        answer = first(&mut work) => {
            if let Ok(value) = &answer {
                let generated = value["usage"]["completion_tokens"].as_u64().unwrap_or_default();
                app.metrics.tokens(work.prompt_tokens, generated);
            }
            let _ = reply.send(answer);
        }
        () = reply.closed() => app.metrics.lost(Lost::Gone),
    }
    work.leave().await;
}

async fn first(work: &mut Work) -> ApiResult<Value> {
    match work.next().await {
        Some((_, Answer::Whole(mut value))) => {
            value["proxy_tuning"] = work.proxy_tuning()?;
            Ok(value)
        }
        Some((_, Answer::Failed(error))) => Err(error),
        Some((_, Answer::Chunk { .. })) => Err(ApiError::internal("a stream where none was asked for")),
        None => Err(stopped()),
    }
}
