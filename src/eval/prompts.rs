//! A prompt as each model reads it.

use super::setup::Setup;
use crate::backend::llama::LlamaModel;
use crate::decode::TunedPrompts;
use crate::error::{Error, Result};
use crate::pair::History;
use crate::prompt::{Message, render};
use crate::vocab::Token;
use std::sync::Arc;

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
    tuned: Option<TunedPrompts>,
    cut: usize,
}

impl<'a> Prompts<'a> {
    /// # Errors
    /// When a chat is wanted of models without a template, or a template's file cannot be read.
    pub fn new(setup: &'a Setup, options: &'a PromptOptions) -> Result<Self> {
        let host = &setup.models.host;
        let template = host.chat_template();
        let own = &setup.config.proxy_tuning;
        let for_tuned = |tuned: &Arc<LlamaModel>| TunedPrompts::new(tuned.clone(), template.as_deref(), own);
        let tuned = setup.models.proxies.as_ref().map(|[(tuned, _), _]| for_tuned(tuned)).transpose()?;
        let host_template = match options.chat {
            true => Some(template.ok_or_else(|| no_template(host))?),
            false => None,
        };
        Ok(Self { setup, options, host_template, tuned, cut: 0 })
    }

    /// Whether prompts are rendered by chat templates.
    pub fn is_chat(&self) -> bool {
        self.options.chat
    }

    /// What all models of the trio read, `text` in `framed` form where there is no chat.
    pub fn history(&self, text: &str, framed: &str) -> Result<History> {
        let own = self.own_tokens(text, framed)?;
        Ok(History::new(self.plain_tokens(&self.setup.models.host, text, framed)?, own))
    }

    /// As a model alone reads it that has no prompt of its own.
    pub fn plain_tokens(&self, model: &LlamaModel, text: &str, framed: &str) -> Result<Vec<Token>> {
        self.tokens(model, self.host_template.as_deref(), text, framed)
    }

    /// As the directly tuned model reads it: a chat by its own template, or by the host's where it has none.
    pub fn direct_tokens(&self, direct: &LlamaModel, text: &str, framed: &str) -> Result<Vec<Token>> {
        let own = direct.chat_template().filter(|_| self.options.chat);
        self.tokens(direct, own.as_deref().or(self.host_template.as_deref()), text, framed)
    }

    fn tokens(
        &self,
        model: &LlamaModel,
        template: Option<&str>,
        text: &str,
        framed: &str,
    ) -> Result<Vec<Token>> {
        let preamble = &self.options.preamble;
        match template {
            Some(template) => {
                let message = Message::new("user", &format!("{preamble}{text}"));
                Ok(model.tokenize(&render(template, &[message], &model.bos_eos_text())?, true))
            }
            None => Ok(model.tokenize(&format!("{preamble}{framed}"), false)),
        }
    }

    /// As the tuned proxy reads it.
    pub fn tuned_tokens(&self, tuned: &LlamaModel, text: &str, framed: &str) -> Result<Vec<Token>> {
        match self.own_tokens(text, framed)? {
            Some(own) => Ok(own),
            None => self.plain_tokens(tuned, text, framed),
        }
    }

    /// As the tuned proxy reads it, where that is not what the host reads.
    fn own_tokens(&self, text: &str, framed: &str) -> Result<Option<Vec<Token>>> {
        let PromptOptions { chat, tuned_system, preamble } = self.options;
        let Some(tuned) = &self.tuned else { return Ok(None) };
        if *chat {
            let message = Message::new("user", &format!("{preamble}{text}"));
            return tuned.chat(vec![message], tuned_system.as_deref());
        }
        let text = if tuned.has_template() { text } else { framed };
        tuned.text(&format!("{preamble}{text}"), tuned_system.as_deref(), false)
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

fn no_template(host: &LlamaModel) -> Error {
    let given = format!("the host {}, which carries no chat template", host.path().display());
    Error::invalid("--chat", given, "chat models; or leave --chat out")
}
