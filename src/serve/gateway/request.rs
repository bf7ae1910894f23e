//! A request of OpenAI's interface as a job.

use super::App;
use crate::backend::llama::SamplerOptions;
use crate::host::blackbox::{Job, Prompt};
use crate::host::openai::Form;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::request::Fields;
use serde::Deserialize;
use serde_json::{Value, json};

/// A request, read.
pub struct Request {
    pub form: Form,
    pub job: Job,
    pub stream: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Several(Vec<String>),
}

/// Most tokens where a request says nothing: OpenAI's own number for completions, and enough for an answer.
const MOST: [usize; 2] = [16, 1024];
const MOST_STOPS: usize = 16;

impl Request {
    pub fn read(app: &App, form: Form, body: &[u8]) -> ApiResult<Self> {
        let mut fields = Fields::parse(body)?;
        let overrides = fields.overrides()?;
        if overrides.explain() > 0 {
            let expected = "nothing: of a host behind an API only a few probabilities are seen, too few to tell this from";
            return Err(ApiError::invalid("proxy_tuning.explain", overrides.explain(), expected));
        }
        let seed = fields.seed()?;
        refuse_what_is_not_done(&mut fields)?;
        if let Some(model) = fields.take::<String>("model")?.filter(|m| m != app.model()) {
            let expected = format!("{}, the one behind this gateway", app.model());
            return Err(ApiError::invalid("model", model, &expected));
        }
        let is_chat = form == Form::Chat;
        let prompt = if is_chat { Prompt::Chat(fields.messages()?) } else { text(&mut fields)? };
        let given = fields.take::<usize>("max_completion_tokens")?;
        let max_tokens = fields.take("max_tokens")?.or(given).unwrap_or(MOST[usize::from(is_chat)]);
        if max_tokens == 0 {
            return Err(ApiError::invalid("max_tokens", 0, "at least 1"));
        }
        let sampler = SamplerOptions {
            temperature: fields.take("temperature")?.unwrap_or(1.0),
            top_k: fields.take("top_k")?.unwrap_or(0),
            top_p: fields.take("top_p")?.unwrap_or(1.0),
            min_p: fields.take("min_p")?.unwrap_or(0.0),
            repeat_penalty: 1.0,
            seed,
        };
        sampler.check()?;
        let stops = match fields.take("stop")? {
            None => Vec::new(),
            Some(Stops::One(stop)) => vec![stop],
            Some(Stops::Several(stops)) => stops,
        };
        if stops.len() > MOST_STOPS {
            return Err(ApiError::invalid("stop", stops.len(), "at most 16 texts"));
        }
        let stream = fields.take("stream")?.unwrap_or(false);
        let defaults = &app.defaults;
        let job = Job {
            prompt,
            alpha: overrides.alpha().unwrap_or(defaults.alpha),
            control: overrides.control(defaults.control)?,
            tuned_system: overrides.tuned_system.or_else(|| defaults.tuned_system.clone()),
            sampler,
            max_tokens,
            stops,
            way: defaults.way,
            speculate: defaults.speculate,
            on_error: defaults.on_error,
        };
        Ok(Self { form, job, stream })
    }
}

fn text(fields: &mut Fields) -> ApiResult<Prompt> {
    let prompt = match fields.take::<Value>("prompt")? {
        Some(Value::Array(mut prompts)) if prompts.len() == 1 => prompts.pop(),
        other => other,
    };
    match prompt {
        Some(Value::String(text)) if !text.is_empty() => Ok(Prompt::Text(text)),
        other => {
            let given = other.unwrap_or(Value::Null);
            Err(ApiError::invalid("prompt", given, "one text of at least one character"))
        }
    }
}

/// What would change the text, and is not done here.
fn refuse_what_is_not_done(fields: &mut Fields) -> ApiResult<()> {
    let (one, zero, no, none, empty) = (json!(1), json!(0), json!(false), json!([]), json!({}));
    let real = [json!(0.0), json!(1.0)];
    let cases: [(&str, Vec<Value>); 14] = [
        ("n", vec![one.clone()]),
        ("best_of", vec![one.clone()]),
        ("echo", vec![no.clone()]),
        ("suffix", vec![json!("")]),
        ("logprobs", vec![no.clone()]),
        ("top_logprobs", vec![zero.clone()]),
        ("logit_bias", vec![empty]),
        ("frequency_penalty", vec![zero.clone(), real[0].clone()]),
        ("presence_penalty", vec![zero, real[0].clone()]),
        ("repetition_penalty", vec![one, real[1].clone()]),
        ("response_format", vec![json!({ "type": "text" })]),
        ("tools", vec![none.clone()]),
        ("functions", vec![none]),
        ("grammar", vec![json!("")]),
    ];
    for (name, harmless) in cases {
        fields.refuse(name, &harmless, "nothing: it is not done by this gateway")?;
    }
    Ok(())
}
