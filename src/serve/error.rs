//! Errors as OpenAI's clients expect them.

use crate::error::Error;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request gets no text: an HTTP status, and a body `{"error": {message, type, param, code}}`.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub status: StatusCode,
    message: String,
    /// The field of the request that is to blame.
    param: Option<String>,
    code: Option<&'static str>,
}

/// What a handler returns.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A field with a value that cannot be used.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A field whose value is none of those `expected`.
    pub fn invalid(param: &str, given: impl ToString, expected: &str) -> Self {
        Self::field(param, Error::invalid(param, given, expected).to_string())
    }

    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The engine is gone, or did what it never should.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// What mistral.rs says of a request that it gave up. Its log has the whole; where functions lie is not for clients.
    #[cfg(feature = "serve")]
    pub fn engine(said: &str) -> Self {
        let is_frame =
            |line: &str| line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(": ");
        let message = said.lines().take_while(|line| !is_frame(line)).collect::<Vec<_>>().join("\n");
        tracing::error!("mistral.rs: {said}");
        // It finds out only on the way where a vocabulary cannot spell what the grammar asks for.
        match message.starts_with("Parser Error") {
            true => Self::field("grammar", message),
            false => Self::internal(message),
        }
    }

    /// A prompt that does not fit a context.
    pub fn too_long(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).code("context_length_exceeded")
    }

    /// The body, also of an event in a stream that has begun already.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

/// What a client gets when the engine has gone in the middle of its request. It is started again for the next one.
#[cfg(feature = "serve")]
pub fn stopped() -> ApiError {
    ApiError::internal("the engine stopped before the text was finished; try again")
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::Invalid { name, .. } => Self::field(name.clone(), error.to_string()),
            Error::Length { .. } => Self::too_long(error.to_string()),
            // With the status that it came with; what gave none is a bad gateway.
            Error::Upstream { status, .. } => {
                let status = status.and_then(|s| StatusCode::from_u16(s).ok()).filter(|s| s.as_u16() >= 400);
                Self::new(status.unwrap_or(StatusCode::BAD_GATEWAY), error.to_string()).code("upstream")
            }
            Error::Budget { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()).code("budget_exhausted")
            }
            _ => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let header = match self.status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some((header::RETRY_AFTER, "1"))
            }
            _ => None,
        };
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_failed_but_not_where_in_the_program() {
        let error = ApiError::engine(
            "shapes differ: [1] and [2]\n   0: candle_core::error::Error::bt\n  at ./a.rs:1\n",
        );
        assert_eq!(
            (error.status, error.message.as_str()),
            (StatusCode::INTERNAL_SERVER_ERROR, "shapes differ: [1] and [2]")
        );
        let error = ApiError::engine("Parser Error: token \"a\" doesn't satisfy the grammar");
        assert_eq!((error.status, error.param.as_deref()), (StatusCode::BAD_REQUEST, Some("grammar")));
    }
}
