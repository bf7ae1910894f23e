//! A prompt as each model reads it.

use super::setup::Setup;
use crate::backend::llama::LlamaModel;
use crate::error::{Error, Result};
use crate::pair::History;
use crate::prompt::{Message, render};
use crate::vocab::Token;

/// How a task's prompts are put to the models.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptOptions {
    /// Rendered as a user's message by each model's chat template.
    pub chat: bool,
    /// System prompt for the tuned proxy alone.
    pub tuned_system: Option<String>,
    /// Text before each prompt, such as solved examples.
    pub preamble: String,
}

/// Makes prompts, and keeps count of those that had to be cut.
pub(super) struct Prompts<'a> {
    setup: &'a Setup,
    options: &'a PromptOptions,
    host_template: Option<String>,
    tuned_template: Option<String>,
    cut: usize,
}

impl<'a> Prompts<'a> {
    /// # Errors
    /// When a chat is wanted of models without a template, or a template's file cannot be read.
    pub fn new(setup: &'a Setup, options: &'a PromptOptions) -> Result<Self> {
        let host = &setup.models.host;
        let host_template = match options.chat {
            true => Some(host.chat_template().ok_or_else(|| no_template("host", host))?),
            false => None,
        };
        let mut prompts = Self { setup, options, host_template, tuned_template: None, cut: 0 };
        prompts.tuned_template = prompts.template_of_tuned()?;
        Ok(prompts)
    }

    fn template_of_tuned(&self) -> Result<Option<String>> {
        let Some([(tuned, _), _]) = &self.setup.models.proxies else { return Ok(None) };
        if !self.has_own_prompt() {
            return Ok(None);
        }
        match self.setup.config.proxy_tuning.tuned_prompt.template.as_str() {
            "none" => Ok(None),
            "host" => Ok(self.setup.models.host.chat_template()),
            "own" if self.options.chat => {
                tuned.chat_template().map(Some).ok_or_else(|| no_template("tuned proxy", tuned))
            }
            "own" => Ok(tuned.chat_template()),
            file => std::fs::read_to_string(file).map(Some).map_err(|e| {
                let given = format!("{file} ({e})");
                Error::invalid("tuned_prompt.template", given, "own, host, none or a file")
            }),
        }
    }

    fn system(&self) -> Option<&str> {
        let configured = &self.setup.config.proxy_tuning.tuned_prompt.system;
        self.options.tuned_system.as_deref().or(configured.as_deref())
    }

    /// Whether prompts are rendered by chat templates.
    pub fn is_chat(&self) -> bool {
        self.options.chat
    }

    /// Whether the tuned proxy reads another prompt than the host.
    fn has_own_prompt(&self) -> bool {
        self.options.chat || self.system().is_some()
    }

    /// What all models of the trio read, `text` in `framed` form where there is no chat.
    pub fn history(&self, text: &str, framed: &str) -> Result<History> {
        let host = &self.setup.models.host;
        let own = match (&self.setup.models.proxies, self.has_own_prompt()) {
            (Some([(tuned, _), _]), true) => Some(self.tuned_tokens(tuned, text, framed)?),
            _ => None,
        };
        Ok(History::new(self.plain_tokens(host, text, framed)?, own))
    }

    /// As a model alone reads it that has no prompt of its own.
    pub fn plain_tokens(&self, model: &LlamaModel, text: &str, framed: &str) -> Result<Vec<Token>> {
        let Self { options: PromptOptions { preamble, .. }, host_template, .. } = self;
        match host_template {
            Some(template) => {
                let message = Message::new("user", &format!("{preamble}{text}"));
                Ok(model.tokenize(&render(template, &[message], &model.bos_eos_text())?, true))
            }
            None => Ok(model.tokenize(&format!("{preamble}{framed}"), false)),
        }
    }

    /// As the tuned proxy reads it.
    pub fn tuned_tokens(&self, tuned: &LlamaModel, text: &str, framed: &str) -> Result<Vec<Token>> {
        let preamble = &self.options.preamble;
        if !self.has_own_prompt() {
            return self.plain_tokens(tuned, text, framed);
        }
        let Some(template) = &self.tuned_template else {
            // No template: the system prompt is text before the prompt.
            let system = self.system().map(|s| format!("{s}\n\n")).unwrap_or_default();
            return Ok(tuned.tokenize(&format!("{system}{preamble}{framed}"), false));
        };
        let system = self.system().map(|s| Message::new("system", s));
        let user = Message::new("user", &format!("{preamble}{text}"));
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        Ok(tuned.tokenize(&render(template, &messages, &tuned.bos_eos_text())?, true))
    }

    /// The prompt with `rest` tokens to follow, cut at its beginning where the models' contexts hold no more.
    pub fn fit(&mut self, prompt: Vec<Token>, own: Option<Vec<Token>>, rest: usize) -> Result<History> {
        let (context, whose) = self.setup.context();
        let room = context.saturating_sub(rest);
        if room < 2 {
            return Err(Error::Length { model: format!("the {whose}"), tokens: rest + 2, context });
        }
        let mut was_cut = false;
        let begin = usize::from(self.setup.begin().is_some());
        let mut shorten = |tokens: Vec<Token>| {
            if tokens.len() <= room {
                return tokens;
            }
            was_cut = true;
            let kept = tokens.len() - (room - begin);
            [&tokens[..begin], &tokens[kept..]].concat()
        };
        let host = shorten(prompt);
        let own = own.map(&mut shorten);
        self.cut += usize::from(was_cut);
        Ok(History::new(host, own))
    }

    /// What a reader of the report ought to know.
    pub fn notes(&self) -> Vec<String> {
        if self.cut == 0 {
            return Vec::new();
        }
        let (context, whose) = self.setup.context();
        let them = if self.cut == 1 { "1 prompt was".into() } else { format!("{} prompts were", self.cut) };
        vec![format!("{them} longer than the {whose}'s context of {context} tokens and lost the beginning")]
    }
}

fn no_template(name: &str, model: &LlamaModel) -> Error {
    let given = format!("the {name} {}, which carries no chat template", model.path().display());
    Error::invalid("--chat", given, "chat models; or leave --chat out")
}
