//! A host behind an OpenAI-compatible API: plain completions or chat, as a [`BlackBox`].
//!
//! *Architecture invariant:* what an API really does is looked at when connecting (`probe`), and every answer is checked again;
//! what is missing is an error or a counted loss, never a guess.

mod budget;
mod failure;
mod http;
mod key;
mod probe;
mod request;
mod retry;
mod sse;
mod stream;
mod wire;

pub use budget::Limits;
pub use failure::Failure;
pub use key::Key;

use crate::error::{Error, Result};
use crate::host::blackbox::{Advisers, Ask, BlackBox, Ids, Offers, Spent, Writing};
use async_trait::async_trait;
use http::Http;
use std::time::Duration;
use stream::{Reading, Streaming};

/// Which of the API's two forms is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// Plain completions where there are any, else chat.
    #[default]
    Auto,
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// How a host is reached.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the API is, with or without `/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The key, where one is needed.
    pub key: Option<Key>,
    /// Which form is spoken.
    pub form: Form,
    /// Likeliest tokens to ask for at each position; fewer where the API gives no more.
    pub top: usize,
    /// Most tokens biased in one call, and the largest bias either way.
    pub bias: (usize, f32),
    /// How long the API may be silent.
    pub timeout: Duration,
    /// How often a failed request is repeated.
    pub retries: u32,
    /// What may be spent.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            key: None,
            form: Form::Auto,
            top: 20,
            // What OpenAI's own takes.
            bias: (300, 100.0),
            timeout: Duration::from_secs(60),
            retries: 5,
            limits: Limits::default(),
        }
    }
}

/// What kind of server it is, as far as that changes what can be asked of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Server {
    /// llama-server: takes tokens' numbers, continues answers of a chat, shows bytes.
    LlamaCpp,
    /// vLLM: continues answers of a chat where it is told to.
    Vllm,
    /// mistral.rs: has probabilities only where it draws at a temperature above 0.
    MistralRs,
    #[default]
    Other,
}

/// A host behind an API.
#[derive(Debug)]
pub struct OpenAi {
    http: Http,
    model: String,
    form: Form,
    server: Server,
    offers: Offers,
    /// Visible tokens to ask for; it may show fewer.
    top: usize,
    /// Where the probabilities of a prompt's token stand in what is echoed: at its place, or one before.
    echo_lag: usize,
    /// Tokens with their numbers that the host has shown while it was looked at.
    shown: Vec<(Option<u32>, Vec<u8>)>,
}

impl OpenAi {
    /// Connects: looks what the API offers, in a few requests of one token each.
    ///
    /// # Errors
    /// [`Error::Upstream`] with what to do where it cannot be reached, takes no such key or has no such model.
    pub async fn connect(options: Options) -> Result<Self> {
        let http = Http::new(&options)?;
        let mut host = Self {
            http,
            model: options.model.clone(),
            form: options.form,
            server: Server::Other,
            offers: Offers::default(),
            top: 0,
            echo_lag: 0,
            shown: Vec::new(),
        };
        host.probe(&options).await?;
        tracing::debug!(offers = ?host.offers, server = ?host.server, form = ?host.form, "what the host offers");
        Ok(host)
    }

    /// The same host in another form; both share what may be spent.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn in_form(&self, form: Form, options: &Options) -> Result<Self> {
        let (offers, shown) = Default::default();
        let mut host = Self {
            http: self.http.clone(),
            model: self.model.clone(),
            form,
            server: self.server,
            offers,
            top: 0,
            echo_lag: 0,
            shown,
        };
        let options = Options { form, ..options.clone() };
        host.probe(&options).await?;
        Ok(host)
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Looks whether the host numbers its tokens as the tuned proxy does, so far as it has shown any with their numbers.
    pub fn match_ids(&mut self, advisers: &Advisers) -> Ids {
        let (mut named, mut equal, mut shown) = (0, 0, 0);
        for (id, bytes) in self.shown.iter().filter_map(|(id, bytes)| Some(((*id)?, bytes))) {
            shown += 1;
            named += usize::from(advisers.token(bytes).is_some());
            equal += usize::from(advisers.piece(id) == *bytes);
        }
        self.offers.same_ids = named >= 4 && equal == shown;
        tracing::debug!(named, equal, shown, "tokens that host and tuned proxy number alike");
        if self.offers.same_ids { Ids::Same } else { Ids::Unknown }
    }

    /// Looks whether a bias changes what the host writes, with one of the tokens that it has shown; without that it offers none.
    ///
    /// # Errors
    /// As [`BlackBox::write`].
    pub async fn check_bias(&mut self, ids: &Ids, advisers: &Advisers) -> Result<()> {
        let known = |(_, bytes): &(Option<u32>, Vec<u8>)| ids.get(advisers.token(bytes)?);
        // The least likely one of those.
        match self.shown.iter().rev().find_map(known) {
            Some(token) => self.probe_bias(token).await,
            None => Ok(()),
        }
    }

    /// What went wrong so far, by kind; what was tried again is counted too.
    pub fn failures(&self) -> Vec<(Failure, u64)> {
        self.http.failures()
    }

    /// Which form is spoken.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The models that the API lists, as it says it.
    ///
    /// # Errors
    /// As [`BlackBox::write`].
    pub async fn models(&self) -> Result<serde_json::Value> {
        self.http.get("models").await
    }
}

#[async_trait]
impl BlackBox for OpenAi {
    fn offers(&self) -> &Offers {
        &self.offers
    }

    async fn write(&self, ask: Ask<'_>) -> Result<Box<dyn Writing>> {
        let body = self.body(&ask, true)?;
        let estimate = (self.http.estimate(&body), ask.tokens as u64);
        let response = self.http.open(self.path(), &body, estimate).await?;
        Ok(Box::new(Streaming::new(response, self.http.clone(), estimate.0, ask.tokens, self.top)))
    }

    async fn read(&self, ask: Ask<'_>, draft: &[u8]) -> Result<Box<dyn Writing>> {
        let (body, start) = self.echo_body(&ask, draft)?;
        let answer = self.http.post(self.path(), &body, (self.http.estimate(&body), 1)).await?;
        match wire::echoed(&answer, start, self.echo_lag, self.top) {
            Some(seen) => Ok(Box::new(Reading::new(seen))),
            // It splits the text otherwise where the draft begins.
            None => self.write(ask).await,
        }
    }

    fn spent(&self) -> Spent {
        self.http.spent()
    }
}

impl OpenAi {
    fn path(&self) -> &'static str {
        if self.form == Form::Chat { "chat/completions" } else { "completions" }
    }
}

/// Checks that a URL is one of HTTP, and brings it into the form that paths are appended to.
fn base(url: &str) -> Result<reqwest::Url> {
    let expected = "the URL of an OpenAI-compatible API, such as http://127.0.0.1:8080/v1";
    let wrong = |_| Error::invalid("--host-url", url, expected);
    let mut parsed = reqwest::Url::parse(url.trim()).map_err(|e| wrong(e.to_string()))?;
    if !["http", "https"].contains(&parsed.scheme()) || parsed.host().is_none() {
        return Err(wrong(String::new()));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // It would show in messages.
        return Err(Error::invalid(
            "--host-url",
            "a URL with a password in it",
            "the key in an environment variable",
        ));
    }
    let path = parsed.path().trim_end_matches('/').to_owned();
    let path = if path.ends_with("/v1") || path.contains("/v1/") { path } else { format!("{path}/v1") };
    parsed.set_path(&format!("{path}/"));
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_may_end_before_or_after_v1_and_must_be_http_without_a_password() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(base(url).unwrap().as_str(), "http://h:1/v1/");
        }
        assert_eq!(base("https://h/openai").unwrap().as_str(), "https://h/openai/v1/");
        for url in ["", "h:1", "ftp://h/v1", "/v1", "http://user:secret@h/v1"] {
            let error = base(url).unwrap_err().to_string();
            assert!(error.starts_with("--host-url") && !error.contains("secret"), "{error}");
        }
    }
}
