//! What each model of a trio has read of one sequence.

use crate::error::{Error, Result};
use crate::vocab::{Token, TokenMap};

/// One sequence: a prompt that each model may have in its own form, and the generated tokens that all share.
///
/// Tokens are the host's; proxies get them through their token maps. The tuned proxy may have a prompt of its own
/// (its chat template, a system prompt), given in its own tokens (Liu et al. 2024, section 3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Prompt, then generated tokens.
    host: Vec<Token>,
    prompt: usize,
    tuned_prompt: Option<Vec<Token>>,
}

impl History {
    /// A sequence at its prompt; `tuned_prompt`, in the tuned proxy's tokens, where that proxy reads another one.
    pub fn new(prompt: Vec<Token>, tuned_prompt: Option<Vec<Token>>) -> Self {
        Self { prompt: prompt.len(), host: prompt, tuned_prompt }
    }

    /// All tokens as the host reads them.
    pub fn tokens(&self) -> &[Token] {
        &self.host
    }

    /// The prompt as the host reads it.
    pub fn prompt(&self) -> &[Token] {
        &self.host[..self.prompt]
    }

    /// The prompt as the tuned proxy reads it, in its own tokens, where it is another one.
    pub fn tuned_prompt(&self) -> Option<&[Token]> {
        self.tuned_prompt.as_deref()
    }

    /// Tokens of the longer of the two prompts.
    pub fn longest_prompt(&self) -> usize {
        self.tuned_prompt.as_ref().map_or(0, Vec::len).max(self.prompt)
    }

    /// The tokens after the prompt.
    pub fn generated(&self) -> &[Token] {
        &self.host[self.prompt..]
    }

    /// Appends generated tokens.
    pub fn extend(&mut self, tokens: &[Token]) {
        self.host.extend_from_slice(tokens);
    }

    /// Drops the last `count` generated tokens; never any of the prompt.
    pub fn rollback(&mut self, count: usize) {
        let len = self.host.len().saturating_sub(count).max(self.prompt);
        self.host.truncate(len);
    }

    /// Takes over a full history, prompt included, as an engine hands it in. Returns whether anything changed.
    ///
    /// # Errors
    /// When it is shorter than the prompt: what the tuned proxy should read then is unknown.
    pub fn sync(&mut self, history: &[Token]) -> Result<bool> {
        if history.len() < self.prompt {
            let expected = format!("the prompt's {} tokens and what was generated", self.prompt);
            return Err(Error::invalid("history", format!("{} tokens", history.len()), expected));
        }
        let changed = self.host != history;
        if changed {
            let same = super::plan::common_prefix(&self.host, history);
            self.host.truncate(same);
            self.host.extend_from_slice(&history[same..]);
        }
        Ok(changed)
    }

    /// Appends what the tuned proxy reads.
    pub fn write_tuned(&self, map: &TokenMap, tokens: &mut Vec<Token>) {
        match &self.tuned_prompt {
            Some(prompt) => tokens.extend_from_slice(prompt),
            None => map.translate(self.prompt(), tokens),
        }
        map.translate(self.generated(), tokens);
    }

    /// Appends what the untuned proxy reads.
    pub fn write_untuned(&self, map: &TokenMap, tokens: &mut Vec<Token>) {
        map.translate(&self.host, tokens);
    }
}
