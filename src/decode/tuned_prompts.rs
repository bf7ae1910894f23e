//! The prompt as the tuned proxy reads it.

use crate::backend::llama::LlamaModel;
use crate::config::ProxyTuning;
use crate::error::{Error, Result};
use crate::prompt::{Message, render};
use crate::vocab::Token;
use std::sync::Arc;

/// Renders prompts for the tuned proxy, which may be a chat model beside a host that is none, or have a system prompt that
/// the others do not see (Liu et al. 2024, section 3).
pub struct TunedPrompts {
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
    /// Not at all: the rule does not read it.
    Unread,
}

impl TunedPrompts {
    /// `host`: the host's template.
    ///
    /// # Errors
    /// When a template's file, or the rule's, cannot be read, or the host's is wanted and there is none.
    pub fn new(tuned: Arc<LlamaModel>, host: Option<&str>, tuning: &ProxyTuning) -> Result<Self> {
        let options = &tuning.tuned_prompt;
        let [is_read, _] = tuning.combine.rule()?.reads();
        let wrong = |given: String| {
            Error::invalid("tuned_prompt.template", given, "own, host (where it has one), none or a file")
        };
        let template = match options.template.as_str() {
            _ if !is_read => Template::Unread,
            "none" => Template::None,
            "own" => tuned.chat_template().map_or(Template::Missing, Template::Text),
            "host" => Template::Text(host.ok_or_else(|| wrong("host, which has none".into()))?.into()),
            file => {
                Template::Text(std::fs::read_to_string(file).map_err(|e| wrong(format!("{file} ({e})")))?)
            }
        };
        Ok(Self { tuned, template, shared: options.template == "host", system: options.system.clone() })
    }

    /// Whether plain texts are rendered by a template, as a user's message.
    pub fn has_template(&self) -> bool {
        matches!(self.template, Template::Text(_))
    }

    /// A conversation; `None` where the tuned proxy reads what the host reads. Its own system prompt, `system` or else the
    /// configured one, stands before the conversation's.
    ///
    /// # Errors
    /// When there is no template, or it refuses the conversation.
    pub fn chat(&self, messages: Vec<Message>, system: Option<&str>) -> Result<Option<Vec<Token>>> {
        self.refuse_unread(system)?;
        if matches!(self.template, Template::Unread) || self.shared && self.system(system).is_none() {
            return Ok(None);
        }
        let messages = self.with_system(messages, system);
        let text = match &self.template {
            Template::Text(template) => render(template, &messages, &self.tuned.bos_eos_text())?,
            Template::None | Template::Unread => {
                messages.into_iter().map(|m| m.content).collect::<Vec<_>>().join("\n\n")
            }
            Template::Missing => {
                let given = format!(
                    "the tuned proxy {}, which carries no chat template",
                    self.tuned.path().display()
                );
                let expected =
                    "a chat model; or no chat; or in the configuration host, none or a file for its template";
                return Err(Error::invalid("tuned_prompt.template", given, expected));
            }
        };
        Ok(Some(self.tuned.tokenize(&text, true)))
    }

    /// A plain text; `None` where the tuned proxy reads what the host reads, which is where it has no system prompt. `control`
    /// as in [`LlamaModel::tokenize`].
    ///
    /// # Errors
    /// When the template refuses it.
    pub fn text(&self, prompt: &str, system: Option<&str>, control: bool) -> Result<Option<Vec<Token>>> {
        self.refuse_unread(system)?;
        let Some(system) = self.system(system) else { return Ok(None) };
        if let Template::Text(template) = &self.template {
            let messages = [Message::new("system", system), Message::new("user", prompt)];
            let text = render(template, &messages, &self.tuned.bos_eos_text())?;
            return Ok(Some(self.tuned.tokenize(&text, true)));
        }
        // No template: the system prompt is text before the prompt.
        Ok(Some(self.tuned.tokenize(&format!("{system}\n\n{prompt}"), control)))
    }

    fn refuse_unread(&self, system: Option<&str>) -> Result<()> {
        match (&self.template, self.system(system)) {
            (Template::Unread, Some(_)) => {
                let expected =
                    "none: how host and proxies are combined (--combine) leaves the tuned proxy out";
                Err(Error::invalid("--tuned-system", "a text", expected))
            }
            _ => Ok(()),
        }
    }

    fn system<'a>(&'a self, given: Option<&'a str>) -> Option<&'a str> {
        given.or(self.system.as_deref()).filter(|system| !system.is_empty())
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
