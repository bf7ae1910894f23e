//! What the models are asked to score.

use crate::pair::History;
use crate::vocab::Token;

/// A prompt, and the tokens after it, which are scored.
#[derive(Debug, Clone)]
pub struct Passage {
    history: History,
    direct_prompt: Option<Vec<Token>>,
}

impl Passage {
    /// Begins with `prompt`; `tuned_prompt`, in the tuned proxy's tokens, where that proxy reads another one.
    pub fn new(prompt: Vec<Token>, tuned_prompt: Option<Vec<Token>>) -> Self {
        History::new(prompt, tuned_prompt).into()
    }

    /// The same, with another prompt for the directly tuned model, in its own tokens.
    #[must_use]
    pub fn with_direct_prompt(self, prompt: Vec<Token>) -> Self {
        Self { direct_prompt: Some(prompt), ..self }
    }

    /// Appends tokens to score.
    pub fn extend(&mut self, tokens: &[Token]) {
        self.history.extend(tokens);
    }

    /// Prompt and tokens, as host and proxies read them.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The tokens to score.
    pub fn generated(&self) -> &[Token] {
        self.history.generated()
    }

    /// The prompt of the directly tuned model, in its own tokens, where it is another one.
    pub fn direct_prompt(&self) -> Option<&[Token]> {
        self.direct_prompt.as_deref()
    }

    /// Tokens of the longest of the prompts.
    pub fn longest_prompt(&self) -> usize {
        self.direct_prompt.as_ref().map_or(0, Vec::len).max(self.history.longest_prompt())
    }
}

impl From<History> for Passage {
    fn from(history: History) -> Self {
        Self { history, direct_prompt: None }
    }
}
