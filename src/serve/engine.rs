//! mistral.rs's engine, as far as requests for text need it.

use super::error::{ApiError, ApiResult, stopped};
use crate::vocab::Token;
use either::Either;
use mistralrs::core::TokenizationRequest;
use mistralrs::{MistralRs, NormalRequest, Request, RequestMessage};
use mistralrs_server_core::handler_core::send_request_with_model;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The engine, and what its model can take.
pub struct Engine {
    mistralrs: Arc<MistralRs>,
    /// Tokens that a sequence may have.
    pub context: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Whether the model has a chat template.
    pub chats: bool,
}

impl Engine {
    pub fn new(mistralrs: Arc<MistralRs>, context: usize, vocabulary: usize, chats: bool) -> Self {
        Self { mistralrs, context, vocabulary, chats }
    }

    /// mistral.rs itself.
    pub fn mistralrs(&self) -> &Arc<MistralRs> {
        &self.mistralrs
    }

    /// Looks whether there is a model of this name.
    pub fn check_model(&self, name: &str) -> ApiResult<()> {
        if name == "default" || self.mistralrs.model_exists(name).unwrap_or(false) {
            return Ok(());
        }
        let models = self.mistralrs.list_models().unwrap_or_default().join(", ");
        let expected = format!("one of: default, {models}");
        let mut error = ApiError::invalid("model", name, &expected).code("model_not_found");
        error.status = axum::http::StatusCode::NOT_FOUND;
        Err(error)
    }

    /// Hands over a request. Its receiver must be read until it is closed: the engine panics where it cannot answer.
    pub async fn send(&self, request: Request) -> ApiResult<()> {
        let sent = send_request_with_model(&self.mistralrs, request, None).await;
        sent.map_err(|e| ApiError::internal(format!("the engine takes no requests: {e}")))
    }

    /// The prompt's tokens, as the engine makes them of this request. To be called where nobody interrupts it: see
    /// [`send`](Self::send).
    pub async fn tokens(&self, request: &NormalRequest) -> ApiResult<Vec<Token>> {
        let (text, enable_thinking, reasoning_effort) = match &request.messages {
            RequestMessage::CompletionTokens(tokens) => return Ok(tokens.clone()),
            RequestMessage::Completion { text, .. } => (Either::Right(text.clone()), None, None),
            RequestMessage::Chat { messages, enable_thinking, reasoning_effort } => {
                (Either::Left(messages.clone()), *enable_thinking, *reasoning_effort)
            }
            _ => return Err(ApiError::field("messages", "messages: this model reads text only")),
        };
        let (response, mut answer) = mpsc::channel(1);
        self.send(Request::Tokenize(TokenizationRequest {
            text,
            tools: request.tools.clone(),
            add_generation_prompt: true,
            add_special_tokens: true,
            enable_thinking,
            reasoning_effort,
            response,
        }))
        .await?;
        match answer.recv().await {
            Some(Ok(tokens)) => Ok(tokens),
            // Most often the host's chat template, which does not like the conversation.
            Some(Err(error)) => {
                Err(ApiError::field("messages", format!("the prompt cannot be read: {error:#}")))
            }
            None => Err(stopped()),
        }
    }
}
