//! Which request goes where.

use super::request::Request;
use super::{App, answer};
use crate::host::openai::Form;
use crate::serve::error::{ApiError, ApiResult};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// `POST /v1/completions`
pub async fn completion(State(app): State<Arc<App>>, body: Bytes) -> Response {
    counted(app, Form::Completions, body).await
}

/// `POST /v1/chat/completions`
pub async fn chat(State(app): State<Arc<App>>, body: Bytes) -> Response {
    counted(app, Form::Chat, body).await
}

async fn counted(app: Arc<App>, form: Form, body: Bytes) -> Response {
    let since = Instant::now();
    let route = if form == Form::Chat { "chat" } else { "completions" };
    let response = run(app.clone(), form, body, since).await.unwrap_or_else(IntoResponse::into_response);
    app.metrics.counts.answered(route, response.status(), since.elapsed());
    response
}

async fn run(app: Arc<App>, form: Form, body: Bytes, since: Instant) -> ApiResult<Response> {
    let request = Request::read(&app, form, &body)?;
    let place = app.admission.enter().await?;
    if request.stream {
        return answer::stream(app, request, place, since).await;
    }
    answer::whole(app, request, place).await.map(|value| Json(value).into_response())
}

/// `GET /v1/models`: the host alone.
pub async fn models(State(app): State<Arc<App>>) -> Response {
    let model = json!({ "id": app.model(), "object": "model", "created": 0, "owned_by": "proxytune" });
    Json(json!({ "object": "list", "data": [model] })).into_response()
}

/// `GET /metrics`
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    super::metrics::respond(&app)
}

/// All else.
pub async fn unknown(request: HttpRequest) -> Response {
    let message = format!("no such path: {} {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, message).into_response()
}

/// Asks for a key, but for the question whether the server is there.
pub async fn with_key(State(app): State<Arc<App>>, request: HttpRequest, next: Next) -> Response {
    let open = request.method() == Method::GET && request.uri().path() == "/health";
    match &app.keys {
        Some(keys) if !open => match keys.check(request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        },
        _ => next.run(request).await,
    }
}
