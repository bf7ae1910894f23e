//! The prompt as the tuned proxy reads it.

use crate::backend::llama::LlamaModel;
use crate::config::TunedPrompt;
use crate::error::{Error, Result};
use crate::prompt::{Message, render};
use crate::vocab::Token;
use std::sync::Arc;

/// Renders prompts for the tuned proxy. Host and untuned proxy read what mistral.rs makes of a request.
pub struct Prompts {
    tuned: Arc<LlamaModel>,
    template: Template,
    /// The template is the host's.
    shared: bool,
    system: Option<String>,
}

/// How the tuned proxy reads a conversation.
enum Template {
    /// By this template.
    Text(String),
    /// As text without any marks.
    None,
    /// By its own, which its file lacks.
    Missing,
}

impl Prompts {
    /// `host`: the host's template.
    ///
    /// # Errors
    /// When a template's file cannot be read, or the host's is wanted and there is none.
    pub fn new(tuned: Arc<LlamaModel>, host: Option<&str>, options: &TunedPrompt) -> Result<Self> {
        let template = match options.template.as_str() {
            "none" => Template::None,
            "own" => tuned.chat_template().map_or(Template::Missing, Template::Text),
            "host" => Template::Text(host.map(String::from).ok_or_else(|| {
                Error::invalid("tuned_prompt.template", "host, which has none", "own, none or a file")
            })?),
            file => Template::Text(std::fs::read_to_string(file).map_err(|e| {
                Error::invalid("tuned_prompt.template", format!("{file} ({e})"), "own, host, none or a file")
            })?),
        };
        Ok(Self { tuned, template, shared: options.template == "host", system: options.system.clone() })
    }

    /// A conversation; `None` where the tuned proxy reads what the host reads. Its own system prompt stands before the
    /// conversation's.
    ///
    /// # Errors
    /// When there is no template, or it refuses the conversation.
    pub fn chat(&self, messages: Vec<Message>, system: Option<&str>) -> Result<Option<Vec<Token>>> {
        if self.shared && self.system(system).is_none() {
            return Ok(None);
        }
        let messages = self.with_system(messages, system);
        let text = match &self.template {
            Template::Text(template) => render(template, &messages, &self.tuned.bos_eos_text())?,
            Template::None => messages.into_iter().map(|m| m.content).collect::<Vec<_>>().join("\n\n"),
            Template::Missing => {
                let given = format!("a chat with {}, which carries no template", self.tuned.path().display());
                return Err(Error::invalid(
                    "tuned_prompt.template",
                    given,
                    "host, none or a file in the configuration",
                ));
            }
        };
        Ok(Some(self.tuned.tokenize(&text, true)))
    }

    /// A plain text; `None` where the tuned proxy reads what the host reads.
    ///
    /// # Errors
    /// When the template refuses it.
    pub fn text(&self, prompt: &str, system: Option<&str>) -> Result<Option<Vec<Token>>> {
        let Some(system) = self.system(system) else { return Ok(None) };
        let text = match &self.template {
            Template::Text(template) => {
                let messages = [Message::new("system", system), Message::new("user", prompt)];
                render(template, &messages, &self.tuned.bos_eos_text())?
            }
            Template::None | Template::Missing => format!("{system}\n\n{prompt}"),
        };
        Ok(Some(self.tuned.tokenize(&text, true)))
    }

    fn system<'a>(&'a self, request: Option<&'a str>) -> Option<&'a str> {
        request.or(self.system.as_deref()).filter(|system| !system.is_empty())
    }

    fn with_system(&self, mut messages: Vec<Message>, system: Option<&str>) -> Vec<Message> {
        let Some(system) = self.system(system) else { return messages };
        match messages.first_mut() {
            Some(first) if first.role == "system" => first.content = format!("{system}\n\n{}", first.content),
            _ => messages.insert(0, Message::new("system", system)),
        }
        messages
    }
}
