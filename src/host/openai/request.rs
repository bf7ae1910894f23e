//! What is sent.

use super::{Form, OpenAi, Server};
use crate::error::{Error, Result};
use crate::host::blackbox::{Ask, Prompt};
use serde_json::{Map, Value, json};

impl OpenAi {
    /// The body of a request to write on.
    pub(super) fn body(&self, ask: &Ask<'_>, stream: bool) -> Result<Value> {
        // By bias nobody asks what else there was, and a text alone comes in whole characters.
        let is_text = !ask.bias.is_empty() && !self.offers.by_ids;
        self.body_with(ask, stream, if is_text { 0 } else { self.top })
    }

    /// The same with another number of visible tokens.
    pub(super) fn body_with(&self, ask: &Ask<'_>, stream: bool, top: usize) -> Result<Value> {
        // At 0 mistral.rs shows logarithms of logits; what it draws is only the beginning of a draft.
        let draws = self.server == Server::MistralRs && top > 0;
        let temperature = if draws { 1.0 } else { ask.choosing.temperature };
        let mut body = json!({
            "model": self.model, "max_tokens": ask.tokens, "stream": stream,
            "temperature": temperature, "top_p": ask.choosing.top_p,
        });
        let object = body.as_object_mut().ok_or_else(|| Error::engine("openai", "no body"))?;
        match (self.form, ask.prompt) {
            (Form::Chat, prompt) => self.chat(object, prompt, ask, top)?,
            (_, Prompt::Text(text)) => self.completion(object, text, ask, top)?,
            (_, Prompt::Chat(_)) => {
                let expected = "--host-api chat, or a prompt that is a text";
                return Err(Error::invalid("prompt", "a conversation for plain completions", expected));
            }
        }
        if let Some(seed) = ask.choosing.seed {
            // Theirs are signed.
            object.insert("seed".into(), (seed >> 1).into());
        }
        if !ask.bias.is_empty() {
            let bias = ask.bias.iter().map(|(token, bias)| (token.to_string(), json!(bias)));
            object.insert("logit_bias".into(), Value::Object(bias.collect()));
        }
        if stream && self.http.wants_usage() {
            object.insert("stream_options".into(), json!({ "include_usage": true }));
        }
        if self.server == Server::LlamaCpp {
            // Its own defaults cut the distribution.
            object.extend([("top_k".into(), json!(0)), ("min_p".into(), json!(0.0))]);
        }
        Ok(body)
    }

    fn completion(&self, body: &mut Map<String, Value>, text: &str, ask: &Ask<'_>, top: usize) -> Result<()> {
        let prompt = match &ask.written.ids {
            Some(ids) if self.offers.by_ids && !ids.is_empty() => {
                json!([json!(text)].into_iter().chain(ids.iter().map(|id| json!(id))).collect::<Vec<_>>())
            }
            _ => json!(format!("{text}{}", written(ask)?)),
        };
        body.insert("prompt".into(), prompt);
        if top > 0 {
            body.insert("logprobs".into(), json!(top));
        }
        Ok(())
    }

    fn chat(&self, body: &mut Map<String, Value>, prompt: &Prompt, ask: &Ask<'_>, top: usize) -> Result<()> {
        let message = |role: &str, content: &str| json!({ "role": role, "content": content });
        let mut messages = match prompt {
            Prompt::Text(text) => vec![message("user", text)],
            Prompt::Chat(messages) => messages.iter().map(|m| message(&m.role, &m.content)).collect(),
        };
        if !ask.written.bytes.is_empty() {
            messages.push(message("assistant", written(ask)?));
            if self.server == Server::Vllm {
                let goes_on = [("continue_final_message", true), ("add_generation_prompt", false)];
                body.extend(goes_on.map(|(key, value)| (key.into(), json!(value))));
            }
        }
        body.insert("messages".into(), messages.into());
        if top > 0 {
            body.extend([("logprobs".into(), json!(true)), ("top_logprobs".into(), json!(top))]);
        }
        Ok(())
    }

    /// The body of a request to read a draft and to write one token more, and the bytes of the echoed text at which the draft
    /// begins and ends.
    pub(super) fn echo_body(&self, ask: &Ask<'_>, draft: &[u8]) -> Result<(Value, [usize; 2])> {
        let Prompt::Text(text) = ask.prompt else {
            return Err(Error::invalid("prompt", "a conversation for plain completions", "a text"));
        };
        let before = format!("{text}{}", written(ask)?);
        let draft =
            std::str::from_utf8(draft).map_err(|_| Error::engine("openai", "a draft cuts a character"))?;
        let one = Ask { tokens: 1, ..*ask };
        let mut body = self.body(&one, false)?;
        body["prompt"] = format!("{before}{draft}").into();
        body["echo"] = true.into();
        Ok((body, [before.len(), before.len() + draft.len()]))
    }
}

/// What was written, as text.
fn written<'a>(ask: &Ask<'a>) -> Result<&'a str> {
    std::str::from_utf8(&ask.written.bytes).map_err(|_| {
        let expected = "whole characters: this API is sent text, and cannot be sent part of one";
        Error::invalid("the text so far", "one that ends in the middle of a character", expected)
    })
}
