//! What a request says, before mistral.rs reads it.

use super::error::{ApiError, ApiResult};
use crate::config::Control;
use crate::decode::MOST_CANDIDATES;
use crate::error::Error;
use crate::prompt::Message;
#[cfg(any(test, feature = "serve"))]
use crate::vocab::Token;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A request's `proxy_tuning`: what is left out is as configured.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    alpha: Option<f64>,
    enabled: Option<bool>,
    alpha_schedule: Option<String>,
    shift_cap: Option<f64>,
    repetition_guard: Option<u32>,
    explain: Option<usize>,
    /// The tuned proxy's system prompt.
    pub tuned_system: Option<String>,
}

impl Overrides {
    /// The weight of the shift; `None`: as configured.
    pub fn alpha(&self) -> Option<f32> {
        if self.enabled == Some(false) { Some(0.0) } else { self.alpha.map(|alpha| alpha as f32) }
    }

    /// Schedule and guards: what is left out is as `configured`.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn control(&self, configured: Control) -> ApiResult<Control> {
        let mut control = configured;
        if let Some(schedule) = &self.alpha_schedule {
            control.schedule = schedule.parse().map_err(|e| invalid("alpha_schedule", &e))?;
        }
        if let Some(cap) = self.shift_cap {
            control.cap = (cap != 0.0).then_some(cap as f32);
            control.check().map_err(|e| invalid("shift_cap", &e))?;
        }
        if let Some(times) = self.repetition_guard {
            control.repetition_guard = times;
            control.check().map_err(|e| invalid("repetition_guard", &e))?;
        }
        Ok(control)
    }

    /// So many of the likeliest tokens before and after the shift are told of each generated one; 0: none, and nothing.
    pub fn explain(&self) -> usize {
        self.explain.unwrap_or_default()
    }

    fn check(&self) -> ApiResult<()> {
        if self.explain() > MOST_CANDIDATES {
            let expected = format!("a whole number from 1 to {MOST_CANDIDATES}, or 0: nothing is explained");
            return Err(ApiError::invalid("proxy_tuning.explain", self.explain(), &expected));
        }
        self.control(Control::default())?;
        let Some(alpha) = self.alpha else { return Ok(()) };
        let expected = "a finite number: 1 as in the paper, 0 for none, negative to turn the shift round";
        let finite = (alpha as f32).is_finite();
        if finite { Ok(()) } else { Err(ApiError::invalid("proxy_tuning.alpha", alpha, expected)) }
    }
}

/// A value that the configuration would refuse too, by its name here.
fn invalid(field: &str, error: &Error) -> ApiError {
    let name = format!("proxy_tuning.{field}");
    match error {
        Error::Invalid { given, expected, .. } => ApiError::invalid(&name, given, expected),
        other => ApiError::field(&name, other.to_string()),
    }
}

/// The fields of a request's body.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    /// 400 where the body is no JSON object.
    pub fn parse(body: &[u8]) -> ApiResult<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::field("body", "body: got JSON that is no object, expected {…}")),
            Err(error) => Err(ApiError::field("body", format!("body: malformed JSON: {error}"))),
        }
    }

    /// Takes a field out and reads it; `None` where it is missing or null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> ApiResult<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value, name).map(Some),
        }
    }

    /// Refuses a field that is set to anything but `harmless` values, where it cannot be honoured.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn refuse(&mut self, name: &str, harmless: &[Value], why: &str) -> ApiResult<()> {
        match self.0.remove(name) {
            Some(value) if !value.is_null() && !harmless.contains(&value) => {
                Err(ApiError::invalid(name, value, why))
            }
            _ => Ok(()),
        }
    }

    /// Takes out what is for proxytune alone.
    pub fn overrides(&mut self) -> ApiResult<Overrides> {
        if let Some(given) = self.0.get("proxy_tuning").filter(|given| !given.is_object() && !given.is_null())
        {
            return Err(ApiError::invalid("proxy_tuning", given, "an object such as {\"alpha\": 0.7}"));
        }
        let overrides: Overrides = self.take("proxy_tuning")?.unwrap_or_default();
        overrides.check()?;
        Ok(overrides)
    }

    /// Takes out the seed, which mistral.rs does not know.
    pub fn seed(&mut self) -> ApiResult<Option<u64>> {
        // OpenAI's may be negative.
        Ok(self.take::<i64>("seed")?.map(|seed| seed as u64))
    }

    /// A completion's prompt where it is given as token numbers, with a text put in its place.
    #[cfg(any(test, feature = "serve"))]
    pub fn prompt_tokens(&mut self) -> ApiResult<Option<Vec<Token>>> {
        let Some(prompt) = self.0.get_mut("prompt") else { return Ok(None) };
        let Value::Array(items) = prompt else { return Ok(None) };
        match items.as_mut_slice() {
            // One prompt, in the form for several.
            [one @ (Value::String(_) | Value::Array(_))] => {
                *prompt = one.take();
                self.prompt_tokens()
            }
            [] | [Value::String(_) | Value::Array(_), ..] => {
                let given = format!("{} of them", items.len());
                Err(ApiError::invalid("prompt", given, "one prompt in each request"))
            }
            _ => read(std::mem::replace(prompt, Value::String(String::new())), "prompt").map(Some),
        }
    }

    /// A chat's messages, as a template reads them.
    pub fn messages(&self) -> ApiResult<Vec<Message>> {
        match self.0.get("messages") {
            Some(Value::String(text)) => Ok(vec![Message::new("user", text)]),
            Some(Value::Array(messages)) if !messages.is_empty() => {
                messages.iter().enumerate().map(message).collect()
            }
            _ => Err(ApiError::invalid("messages", "nothing", "a list of messages")),
        }
    }

    /// What mistral.rs reads.
    #[cfg(any(test, feature = "serve"))]
    pub fn into<T: DeserializeOwned>(self) -> ApiResult<T> {
        read(Value::Object(self.0), "")
    }
}

/// Reads a value; an error names the field within it.
fn read<T: DeserializeOwned>(value: Value, name: &str) -> ApiResult<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let param = match (name, path.as_str()) {
            ("", ".") => "body".into(),
            ("", path) => path.into(),
            (name, ".") => name.into(),
            (name, path) => format!("{name}.{path}"),
        };
        ApiError::field(param.clone(), format!("{param}: {}", error.inner()))
    })
}

fn message((index, message): (usize, &Value)) -> ApiResult<Message> {
    let role = message["role"].as_str().ok_or_else(|| {
        ApiError::invalid(&format!("messages.{index}.role"), &message["role"], "system, user or assistant")
    })?;
    let part = |part: &Value| match part["type"].as_str() {
        Some("text") | None => part["text"].as_str().map(String::from),
        Some(_) => None,
    };
    let content = match &message["content"] {
        Value::String(text) => Some(text.clone()),
        // A message that only calls tools.
        Value::Null => Some(String::new()),
        Value::Array(parts) => {
            parts.iter().map(part).collect::<Option<Vec<_>>>().map(|parts| parts.join("\n"))
        }
        _ => None,
    };
    let param = format!("messages.{index}.content");
    let content =
        content.ok_or_else(|| ApiError::field(&param, format!("{param}: this model reads text only")))?;
    Ok(Message { role: role.into(), content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    /// The field that is to blame, and what is said.
    fn blamed<T>(result: ApiResult<T>) -> (String, String) {
        let body = result.err().expect("an error").body();
        let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_string();
        (text("param"), text("message"))
    }

    #[test]
    fn overrides_are_taken_out_and_checked() {
        let mut some = fields(json!({ "proxy_tuning": { "alpha": 0.5, "tuned_system": "s" }, "n": 2 }));
        let overrides = some.overrides().unwrap();
        assert_eq!((overrides.alpha(), overrides.tuned_system.as_deref()), (Some(0.5), Some("s")));
        assert_eq!(some.into::<Value>().unwrap(), json!({ "n": 2 }));
        let mut off = fields(json!({ "proxy_tuning": { "alpha": 0.5, "enabled": false } }));
        assert_eq!(off.overrides().unwrap().alpha(), Some(0.0));
        assert_eq!(fields(json!({ "proxy_tuning": null })).overrides().unwrap(), Overrides::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({ "alpha": "much" }), "proxy_tuning.alpha"),
            (json!({ "alpha": 1e39 }), "proxy_tuning.alpha"),
            (json!({ "alpha_schedule": "cosine:3" }), "proxy_tuning.alpha_schedule"),
            (json!({ "alpha_schedule": 3 }), "proxy_tuning.alpha_schedule"),
            (json!({ "shift_cap": -1 }), "proxy_tuning.shift_cap"),
            (json!({ "repetition_guard": 1 }), "proxy_tuning.repetition_guard"),
            (json!({ "explain": 21 }), "proxy_tuning.explain"),
            (json!({ "explain": -1 }), "proxy_tuning.explain"),
            (json!({ "explain": true }), "proxy_tuning.explain"),
            (json!({ "enabled": 1 }), "proxy_tuning.enabled"),
            (json!({ "tuned_system": ["s"] }), "proxy_tuning.tuned_system"),
            (json!({ "alfa": 1 }), "proxy_tuning.alfa"),
            (json!(1), "proxy_tuning"),
            (json!([]), "proxy_tuning"),
        ];
        for (given, param) in cases {
            let (blamed, message) = blamed(fields(json!({ "proxy_tuning": given })).overrides());
            assert_eq!(blamed, param, "{message}");
        }
        assert_eq!(blamed(Fields::parse(b"[1]")).0, "body");
        assert!(blamed(Fields::parse(b"{\"alpha\": NaN}")).1.contains("malformed JSON"));
    }

    #[test]
    fn prompts_come_as_text_or_as_tokens() {
        let tokens = |prompt: Value| fields(json!({ "prompt": prompt })).prompt_tokens();
        assert_eq!(tokens(json!("text")).unwrap(), None);
        assert_eq!(tokens(json!(["text"])).unwrap(), None);
        assert_eq!(tokens(json!([1, 2])).unwrap(), Some(vec![1, 2]));
        assert_eq!(tokens(json!([[3]])).unwrap(), Some(vec![3]));
        assert!(
            tokens(json!(["a", "b"])).is_err() && tokens(json!([])).is_err() && tokens(json!([-1])).is_err()
        );
    }

    #[test]
    fn messages_are_text() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let some = fields(json!({ "messages": [{ "role": "user", "content": parts }] }));
        assert_eq!(some.messages().unwrap(), [Message::new("user", "a\nb")]);
        let image = json!([{ "type": "image_url", "image_url": { "url": "file:///etc/passwd" } }]);
        let some = fields(json!({ "messages": [{ "role": "user", "content": image }] }));
        assert_eq!(blamed(some.messages()).0, "messages.0.content");
    }
}
