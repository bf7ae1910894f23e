//! Checks of how a request wants to be sampled. mistral.rs takes any number, and with some of them its sampler fails for a
//! whole batch.

use super::error::{ApiError, ApiResult};
use mistralrs::{NormalRequest, RequestMessage, SamplingParams, StopTokens};

/// Refuses what OpenAI's interface refuses, and what makes no distribution.
pub fn check(request: &NormalRequest) -> ApiResult<()> {
    let SamplingParams { temperature, top_p, min_p, dry_params, .. } = &request.sampling_params;
    let params = &request.sampling_params;
    let wide = |value: Option<f32>| value.map(f64::from);
    within("temperature", *temperature, 0.0, 1e3)?;
    within("top_p", *top_p, 0.0, 1.0)?;
    within("min_p", *min_p, 0.0, 1.0)?;
    within("presence_penalty", wide(params.presence_penalty), -2.0, 2.0)?;
    within("frequency_penalty", wide(params.frequency_penalty), -2.0, 2.0)?;
    within("repetition_penalty", wide(params.repetition_penalty), 1e-3, 1e3)?;
    within("top_logprobs", Some(params.top_n_logprobs as f64), 0.0, 20.0)?;
    within("max_tokens", params.max_len.map(|most| most as f64), 1.0, f64::MAX)?;
    within("n", Some(params.n_choices as f64), 1.0, 128.0)?;
    if let RequestMessage::Completion { best_of: Some(best_of), .. } = &request.messages {
        let n = params.n_choices as f64;
        within("best_of", Some(*best_of as f64), n, n)?;
    }
    if let Some(dry) = dry_params {
        within("dry_multiplier", Some(dry.multiplier.into()), 0.0, 1e3)?;
        within("dry_base", Some(dry.base.into()), 1.0, 1e3)?;
    }
    if let Some(StopTokens::Seqs(stops)) = &params.stop_toks
        && stops.iter().any(String::is_empty)
    {
        return Err(ApiError::invalid("stop", "an empty text", "texts of at least one character"));
    }
    if request.web_search_options.is_some() {
        return Err(ApiError::invalid(
            "web_search_options",
            "an object",
            "nothing: there is no web search here",
        ));
    }
    Ok(())
}

fn within(name: &str, value: Option<f64>, least: f64, most: f64) -> ApiResult<()> {
    let expected = || match most {
        f64::MAX => format!("{least} or more"),
        _ => format!("{least} to {most}"),
    };
    match value {
        Some(value) if !(least..=most).contains(&value) => Err(ApiError::invalid(name, value, &expected())),
        _ => Ok(()),
    }
}
