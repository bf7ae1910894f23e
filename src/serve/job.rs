//! From a parsed request to what the engine runs: tokens counted, limits checked, a processor attached.

use super::App;
use super::error::{ApiError, ApiResult};
use crate::config::Control;
use crate::decode::NAMES;
use crate::error::Error;
use crate::host::mistralrs::{EarlyStart, Processor, RequestOptions, SamplingOptions};
use crate::prompt::Message;
use crate::vocab::Token;
use mistralrs::{NormalRequest, RequestMessage};
use std::sync::Arc;

/// A request that mistral.rs has parsed.
pub struct Job {
    /// What the engine gets.
    pub request: NormalRequest,
    /// What the tuned proxy is to read.
    pub prompt: TunedPrompt,
    /// Its system prompt, where the request has one.
    pub tuned_system: Option<String>,
    /// Weight of the shift; `None`: as configured.
    pub alpha: Option<f32>,
    /// Schedule and guards.
    pub control: Control,
    /// Candidates that are told of each position; 0: positions are not.
    pub explain: usize,
    /// Seed of the sampling.
    pub seed: Option<u64>,
}

/// What a request's prompt is made of.
pub enum TunedPrompt {
    Chat(Vec<Message>),
    Text(String),
    /// The same tokens for all models.
    Tokens,
}

/// A job whose prompt has been read.
pub struct Prepared {
    pub request: NormalRequest,
    /// One for each choice.
    pub processors: Vec<Arc<Processor>>,
    /// Whether what it does is to be told.
    pub explains: bool,
    /// Tokens of the host's prompt.
    pub prompt_tokens: usize,
}

impl Job {
    /// # Errors
    /// 400 for a prompt that a model cannot read or that is too long, and for values out of range.
    pub async fn prepare(self, app: &App) -> ApiResult<Prepared> {
        let Self { mut request, prompt, tuned_system, alpha, control, explain, seed } = self;
        check_explain(explain, &request)?;
        let tokens = app.engine.tokens(&request).await?;
        check_tokens(&tokens, app)?;
        let most = room(&request, tokens.len(), app)?;
        let sampling = &mut request.sampling_params;
        sampling.max_len = Some(sampling.max_len.map_or(most, |wanted| wanted.min(most)));
        // Once more would be for nothing.
        if let RequestMessage::Completion { echo_prompt: false, .. } = request.messages
            && !request.truncate_sequence
        {
            request.messages = RequestMessage::CompletionTokens(tokens.clone());
        }
        let tuned_prompt = match alpha {
            Some(0.0) => None,
            _ => prompt.tokens(app, tuned_system.as_deref())?,
        };
        let options = RequestOptions {
            alpha,
            control: Some(control),
            tuned_prompt,
            choices: 1,
            early_start: early_start(&request),
            sampling: None,
            explain,
        };
        let choice = |number: usize| {
            let seed = seed.map(|seed| seed.wrapping_add(number as u64));
            let sampling = Some(sampling_options(&request, seed));
            app.tuning.processor(RequestOptions { sampling, ..options.clone() })
        };
        let processors = (0..request.sampling_params.n_choices).map(choice).collect::<Result<Vec<_>, _>>();
        let processors = processors.map_err(|error| match error {
            Error::Invalid { name, given, expected } if name == "--alpha" => {
                Error::invalid("proxy_tuning.alpha", given, expected)
            }
            other => other,
        })?;
        Ok(Prepared { request, processors, explains: explain > 0, prompt_tokens: tokens.len() })
    }
}

impl TunedPrompt {
    fn tokens(self, app: &App, system: Option<&str>) -> ApiResult<Option<Vec<Token>>> {
        let tokens = match self {
            Self::Chat(messages) => app.prompts.chat(messages, system)?,
            Self::Text(text) => app.prompts.text(&text, system, true)?,
            Self::Tokens if system.is_some() => {
                let given = "a system prompt beside a prompt of token numbers";
                return Err(ApiError::invalid("proxy_tuning.tuned_system", given, "a prompt of text"));
            }
            Self::Tokens => None,
        };
        let context = app.tuning.context()[0];
        match tokens {
            Some(tokens) if tokens.len() >= context => Err(too_long(NAMES[1], tokens.len(), context)),
            tokens => Ok(tokens),
        }
    }
}

fn check_tokens(tokens: &[Token], app: &App) -> ApiResult<()> {
    if tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "an empty text", "at least one token"));
    }
    let vocabulary = app.engine.vocabulary;
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(token) => {
            Err(ApiError::invalid("prompt", token, &format!("tokens from 0 to {}", vocabulary - 1)))
        }
        None => Ok(()),
    }
}

/// Tokens that the context has room for after the prompt. mistral.rs would go on until its model fails, and with it all
/// others in the batch.
fn room(request: &NormalRequest, prompt: usize, app: &App) -> ApiResult<usize> {
    let context = app.engine.context;
    if prompt < context {
        return Ok(context - prompt);
    }
    match request.sampling_params.max_len {
        // mistral.rs then cuts the prompt so that just so many fit.
        Some(wanted) if request.truncate_sequence && wanted < context => Ok(wanted),
        _ if request.truncate_sequence => {
            let expected = format!("a number below {context} beside truncate_sequence");
            Err(ApiError::invalid("max_tokens", "none, or too many", &expected))
        }
        _ => Err(too_long(NAMES[0], prompt, context)),
    }
}

fn too_long(model: &str, tokens: usize, context: usize) -> ApiError {
    ApiError::too_long(format!(
        "the prompt has {tokens} tokens for the {model}, whose context holds {context} with the answer; shorten it"
    ))
}

/// What is told of a token beside its log-probability in mistral.rs would contradict that: see [`early_start`].
fn check_explain(explain: usize, request: &NormalRequest) -> ApiResult<()> {
    if explain > 0 && request.return_logprobs {
        let given = format!("{explain} beside logprobs");
        return Err(ApiError::invalid(
            "proxy_tuning.explain",
            given,
            "one of the two: it has probabilities as well",
        ));
    }
    Ok(())
}

/// Drawing the token in the processor leaves mistral.rs a single one, of whose probability it could say nothing.
fn early_start(request: &NormalRequest) -> EarlyStart {
    if request.return_logprobs { EarlyStart::Guess } else { EarlyStart::Sample }
}

/// Checked by the route before.
fn sampling_options(request: &NormalRequest, seed: Option<u64>) -> SamplingOptions {
    let params = &request.sampling_params;
    SamplingOptions {
        temperature: params.temperature.unwrap_or(1.0),
        top_k: params.top_k.unwrap_or(0),
        top_p: params.top_p.unwrap_or(1.0) as f32,
        min_p: params.min_p.unwrap_or(0.0) as f32,
        seed,
    }
}
