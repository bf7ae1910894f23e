//! Which request goes where: ours, or mistral.rs's routes as they are.

use super::connections::{Limits, whole_body};
use super::error::{ApiError, stopped};
use super::{App, metrics, routes};
use crate::config::Server;
use crate::error::{Error, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{FutureExt, StreamExt};
use mistralrs_server_core::mistralrs_server_router_builder::MistralRsServerRouterBuilder;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tower::ServiceExt;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// All routes, with the limits around them.
///
/// # Errors
/// When an origin in the configuration is none.
pub async fn router(app: Arc<App>, server: &Server) -> Result<Router> {
    let stock = MistralRsServerRouterBuilder::new()
        .with_mistralrs(app.engine.mistralrs().clone())
        .with_allowed_origins(server.allowed_origins.clone())
        .with_max_body_limit(server.max_body << 20)
        .build()
        .await
        .map_err(|e| Error::engine("mistral.rs", format!("its routes cannot be made: {e:#}")))?;
    let stock = move |State(app): State<Arc<App>>, request: Request| detached(app, stock.clone(), request);
    Ok(Router::new()
        .route("/v1/chat/completions", post(routes::chat))
        .route("/v1/completions", post(routes::completion))
        .route("/metrics", get(|State(app): State<Arc<App>>| async move { metrics::respond(&app) }))
        .fallback(stock)
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Limits::from(server), whole_body))
        .layer(from_fn_with_state(app.clone(), with_key))
        .layer(from_fn(without_panic))
        .layer(cors(&server.allowed_origins)?)
        .with_state(app))
}

/// Runs one of mistral.rs's routes in a task of its own: a client that leaves must not take the engine's receiver with it.
async fn detached(app: Arc<App>, stock: Router, request: Request) -> Response {
    let generates = request.method() == Method::POST && request.uri().path() == "/v1/responses";
    let place = match generates {
        true => match app.admission.enter().await {
            Ok(place) => Some(place),
            Err(error) => return error.into_response(),
        },
        false => None,
    };
    let response = tokio::spawn(async move {
        let response = stock.oneshot(request).await.into_response();
        // Its place is taken until the last byte is sent.
        response.map(|body| {
            Body::from_stream(body.into_data_stream().inspect(move |_| {
                let _held = &place;
            }))
        })
    });
    response.await.unwrap_or_else(|_| stopped().into_response())
}

/// Asks for a key, but for the question whether the server is there.
async fn with_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let open = request.method() == Method::GET && ["/", "/health"].contains(&request.uri().path());
    match &app.keys {
        Some(keys) if !open => match keys.check(request.headers()) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        },
        _ => next.run(request).await,
    }
}

/// Answers also where a route panics.
async fn without_panic(request: Request, next: Next) -> Response {
    let panicked =
        |_| ApiError::internal("an error in the server itself; its log says where").into_response();
    AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(panicked)
}

fn cors(origins: &[String]) -> Result<CorsLayer> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(AllowOrigin::any()));
    }
    let parse = |origin: &String| {
        let expected = "origins such as https://example.org, or *";
        origin.parse::<HeaderValue>().map_err(|_| Error::invalid("server.allowed_origins", origin, expected))
    };
    let origins: Vec<HeaderValue> = origins.iter().map(parse).collect::<Result<_>>()?;
    Ok(layer.allow_origin(AllowOrigin::list(origins)))
}
