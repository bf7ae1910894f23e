//! The two routes that proxy-tune.

use super::error::{ApiError, ApiResult};
use super::job::{Job, TunedPrompt};
use super::request::Fields;
use super::{App, sampling, stream, whole};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mistralrs::{NormalRequest, Request, RequestMessage};
use mistralrs_server_core::handler_core::create_response_channel;
use mistralrs_server_core::openai::{ChatCompletionRequest, CompletionRequest};
use mistralrs_server_core::{chat_completion, completions};
use std::sync::Arc;
use std::time::Instant;

/// `POST /v1/chat/completions`
pub async fn chat(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let since = Instant::now();
    let answer = match read_chat(&app, body).await {
        Ok(job) => run(app.clone(), job, since).await,
        Err(error) => Err(error),
    };
    respond(&app, "chat", since, answer)
}

/// `POST /v1/completions`
pub async fn completion(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let since = Instant::now();
    let answer = match read_completion(&app, body) {
        Ok(job) => run(app.clone(), job, since).await,
        Err(error) => Err(error),
    };
    respond(&app, "completions", since, answer)
}

fn respond(app: &App, route: &'static str, since: Instant, answer: ApiResult<Response>) -> Response {
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    app.metrics.counts.answered(route, response.status(), since.elapsed());
    response
}

async fn run(app: Arc<App>, job: Job, since: Instant) -> ApiResult<Response> {
    let place = app.admission.enter().await?;
    if job.request.is_streaming {
        return stream::answer(app, job, place, since).await;
    }
    whole::answer(app, job, place, since).await.map(|value| Json(value).into_response())
}

async fn read_chat(app: &App, body: Bytes) -> ApiResult<Job> {
    let mut fields = Fields::parse(&body)?;
    let (overrides, seed) = (fields.overrides()?, fields.seed()?);
    let messages = fields.messages()?;
    let parsed: ChatCompletionRequest = fields.into()?;
    app.engine.check_model(&parsed.model)?;
    if !app.engine.chats {
        let given = "a chat with a model that has no chat template";
        return Err(ApiError::invalid(
            "messages",
            given,
            "a request to /v1/completions, or a template in the configuration",
        ));
    }
    let (sender, _) = create_response_channel(Some(1));
    let request = chat_completion::parse_request(parsed, app.engine.mistralrs().clone(), sender).await;
    let request = checked(request)?;
    let control = overrides.control(app.tuning.config().proxy_tuning.control())?;
    let (alpha, explain, tuned_system) = (overrides.alpha(), overrides.explain(), overrides.tuned_system);
    Ok(Job { request, prompt: TunedPrompt::Chat(messages), tuned_system, alpha, control, explain, seed })
}

fn read_completion(app: &App, body: Bytes) -> ApiResult<Job> {
    let mut fields = Fields::parse(&body)?;
    let (overrides, seed) = (fields.overrides()?, fields.seed()?);
    let tokens = fields.prompt_tokens()?;
    let parsed: CompletionRequest = fields.into()?;
    app.engine.check_model(&parsed.model)?;
    let prompt =
        if tokens.is_some() { TunedPrompt::Tokens } else { TunedPrompt::Text(parsed.prompt.clone()) };
    let (sender, _) = create_response_channel(Some(1));
    let mut request = checked(completions::parse_request(parsed, app.engine.mistralrs().clone(), sender))?;
    if let Some(tokens) = tokens {
        request.messages = RequestMessage::CompletionTokens(tokens);
    }
    let control = overrides.control(app.tuning.config().proxy_tuning.control())?;
    let (alpha, explain, tuned_system) = (overrides.alpha(), overrides.explain(), overrides.tuned_system);
    Ok(Job { request, prompt, tuned_system, alpha, control, explain, seed })
}

/// What mistral.rs has read, with values that its sampler can take.
fn checked<E: std::fmt::Display>(parsed: Result<(Request, bool), E>) -> ApiResult<NormalRequest> {
    match parsed {
        Ok((Request::Normal(request), _)) => sampling::check(&request).map(|()| *request),
        Ok(_) => Err(ApiError::internal("mistral.rs reads this as another kind of request")),
        Err(error) => Err(ApiError::field("body", error.to_string())),
    }
}
