//! Requests to an API: key, budget, time-outs, repetition.

use super::budget::Budget;
use super::failure::{Failure, Failures};
use super::retry::{Backoff, is_transient, retry_after};
use super::{Key, Options, base};
use crate::error::{Error, Result};
use crate::host::blackbox::Spent;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Largest answer that is read in one piece.
const MOST_BYTES: usize = 64 << 20;
/// Characters of an API's own words in a message.
const MOST_WORDS: usize = 400;

/// Tokens that a request is thought to read and to write.
pub type Estimate = (u64, u64);

/// The way to one API; clones share connections and budget.
#[derive(Debug, Clone)]
pub struct Http(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    base: Url,
    key: Option<Key>,
    budget: Budget,
    failures: Failures,
    timeout: Duration,
    retries: u32,
    wants_usage: bool,
}

impl Http {
    pub fn new(options: &Options) -> Result<Self> {
        options.limits.check()?;
        let mut headers = HeaderMap::new();
        if let Some(key) = &options.key
            && let Ok(mut value) = HeaderValue::try_from(key.bearer())
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // No redirects: the key would go elsewhere.
        let client = Client::builder()
            .default_headers(headers)
            .connect_timeout(options.timeout.min(Duration::from_secs(15)))
            .redirect(redirect::Policy::none())
            .user_agent(concat!("proxytune/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::engine("HTTP client", e.to_string()))?;
        Ok(Self(Arc::new(Shared {
            client,
            base: base(&options.url)?,
            key: options.key.clone(),
            budget: Budget::new(options.limits),
            failures: Failures::default(),
            timeout: options.timeout,
            retries: options.retries,
            wants_usage: options.limits.price.is_some(),
        })))
    }

    pub fn spent(&self) -> Spent {
        self.0.budget.spent()
    }

    /// What went wrong so far, those that were tried again included.
    pub fn failures(&self) -> Vec<(Failure, u64)> {
        self.0.failures.counts()
    }

    /// Whether streams are to say how many tokens were charged.
    pub fn wants_usage(&self) -> bool {
        self.0.wants_usage
    }

    /// Counts the tokens of an answer.
    pub fn count(&self, prompt: u64, completion: u64) {
        self.0.budget.tokens(prompt, completion);
    }

    /// About how many tokens a request's prompt has: where the API does not say, four bytes each.
    pub fn estimate(&self, body: &Value) -> u64 {
        let text = |value: &Value| match value {
            Value::String(text) => text.len() as u64 / 4 + 1,
            Value::Array(parts) => parts
                .iter()
                .map(|p| p["content"].as_str().or(p.as_str()).map_or(1, |t| t.len() as u64 / 4 + 1))
                .sum(),
            _ => 0,
        };
        text(&body["prompt"]) + text(&body["messages"])
    }

    fn url(&self, path: &str) -> Url {
        // The base ends with a slash, and paths are ours.
        self.0.base.join(path).unwrap_or_else(|_| self.0.base.clone())
    }

    /// Gets a JSON document; free of charge, so that no budget counts it.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let mut backoff = Backoff::new(self.0.retries);
        let url = self.url(path);
        let response = self.send(&url, &|| self.0.client.get(url.clone()), &mut backoff, None).await?;
        self.json(response).await
    }

    /// Posts a request and reads the answer in one piece.
    pub async fn post(&self, path: &str, body: &Value, estimate: Estimate) -> Result<Value> {
        let mut backoff = Backoff::new(self.0.retries);
        loop {
            let response = self.open_with(path, body, estimate, &mut backoff).await?;
            match self.json(response).await {
                Ok(answer) => {
                    let usage = |key: &str| answer["usage"][key].as_u64();
                    self.count(
                        usage("prompt_tokens").unwrap_or(estimate.0),
                        usage("completion_tokens").unwrap_or(estimate.1),
                    );
                    return Ok(answer);
                }
                // It was cut off, and is paid all the same.
                Err(error @ Error::Upstream { transient: true, .. }) => {
                    self.count(estimate.0, estimate.1);
                    self.wait(&mut backoff, None, error).await?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Posts a request whose answer is read bit by bit.
    pub async fn open(&self, path: &str, body: &Value, estimate: Estimate) -> Result<Response> {
        self.open_with(path, body, estimate, &mut Backoff::new(self.0.retries)).await
    }

    async fn open_with(
        &self,
        path: &str,
        body: &Value,
        estimate: Estimate,
        backoff: &mut Backoff,
    ) -> Result<Response> {
        let url = self.url(path);
        let text = body.to_string();
        let request = || {
            let json = HeaderValue::from_static("application/json");
            self.0.client.post(url.clone()).header(reqwest::header::CONTENT_TYPE, json).body(text.clone())
        };
        self.send(&url, &request, backoff, Some(estimate)).await
    }

    async fn send(
        &self,
        url: &Url,
        request: &(dyn Fn() -> RequestBuilder + Send + Sync),
        backoff: &mut Backoff,
        charge: Option<Estimate>,
    ) -> Result<Response> {
        let mut is_retry = false;
        loop {
            if let Some(estimate) = charge {
                self.0.budget.request(estimate, is_retry)?;
            }
            is_retry = true;
            let sent = tokio::time::timeout(self.0.timeout, request().send()).await;
            // What was sent and never answered may have been charged.
            let is_lost = match &sent {
                Ok(Ok(_)) => false,
                Ok(Err(error)) => !error.is_connect(),
                Err(_) => true,
            };
            if let Some((prompt, completion)) = charge.filter(|_| is_lost) {
                self.count(prompt, completion);
            }
            let (error, after) = match sent {
                Ok(Ok(response)) if response.status().is_success() => return Ok(response),
                Ok(Ok(response)) => {
                    let after =
                        response.headers().get(RETRY_AFTER).and_then(|v| retry_after(v.to_str().ok()?));
                    (self.refused(url, response).await, after)
                }
                Ok(Err(error)) => (self.unreachable(url, &error), None),
                Err(_) => {
                    let what = format!("no answer within {} s", self.0.timeout.as_secs_f64());
                    let help = "see whether it hangs, or raise --host-timeout";
                    (self.upstream(url, Failure::Silent, what, help, true), None)
                }
            };
            self.wait(backoff, after, error).await?;
        }
    }

    /// Waits before another try.
    ///
    /// # Errors
    /// The one that is handed in, where there is no other try; it is final then.
    async fn wait(&self, backoff: &mut Backoff, after: Option<Duration>, error: Error) -> Result<()> {
        if !matches!(error, Error::Upstream { transient: true, .. }) {
            return Err(error);
        }
        let Some(wait) = backoff.next(after) else { return Err(last(error)) };
        tracing::warn!(%error, "trying again in {:.1} s", wait.as_secs_f64());
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// The next bytes of an answer; `None` at its end.
    pub async fn chunk(&self, response: &mut Response) -> Result<Option<Vec<u8>>> {
        match tokio::time::timeout(self.0.timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|bytes| bytes.to_vec())),
            Ok(Err(error)) => Err(self.unreachable(response.url(), &error)),
            Err(_) => {
                let what =
                    format!("silent for {} s in the middle of an answer", self.0.timeout.as_secs_f64());
                let help = "raise --host-timeout where it is only slow";
                Err(self.upstream(response.url(), Failure::Silent, what, help, true))
            }
        }
    }

    /// All of an answer, as JSON.
    pub async fn json(&self, mut response: Response) -> Result<Value> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST_BYTES {
                return Err(self.nonsense("its answer is larger than 64 MiB", "see what is behind this URL"));
            }
        }
        serde_json::from_slice(&bytes).map_err(|e| {
            let what = format!("its answer is not JSON ({e}): {}", words(&String::from_utf8_lossy(&bytes)));
            let help = "see whether an OpenAI-compatible API is behind this URL";
            self.upstream(response.url(), Failure::Nonsense, what, help, false)
        })
    }

    /// What an API says of a request that it refuses.
    async fn refused(&self, url: &Url, mut response: Response) -> Error {
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = self.chunk(&mut response).await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > 1 << 16 {
                break;
            }
        }
        let said = said(&bytes);
        let is_spent = said.contains("insufficient_quota");
        let help = match status {
            401 | 403 => "set the key: --host-key-env names the environment variable that holds it",
            404 => "look at --host-url and --host-model: no such path or model",
            429 if is_spent => "the account has nothing left",
            429 => "it limits the rate: try again later",
            300..=399 => "give the URL that it points to as --host-url",
            500.. => "see the server's log, or try again later",
            _ => "see what it says; it may not know a field that is needed here",
        };
        let what =
            if said.is_empty() { format!("status {status}") } else { format!("status {status}: {said}") };
        self.upstream(url, Failure::Status(status), what, help, is_transient(status) && !is_spent)
    }

    fn unreachable(&self, url: &Url, error: &reqwest::Error) -> Error {
        // The outermost says only that sending failed.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let cause = cause.to_string();
        let (kind, what, help) = match error.is_connect() {
            true => (
                Failure::Unreachable,
                format!("cannot be reached ({cause})"),
                "see whether it runs, and whether --host-url is right",
            ),
            false => (
                Failure::Lost,
                format!("the connection was lost ({cause})"),
                "see whether the server ended, or what stands between",
            ),
        };
        self.upstream(url, kind, what, help, true)
    }

    /// An answer that makes no sense.
    pub fn nonsense(&self, what: impl Into<String>, help: &str) -> Error {
        self.upstream(&self.0.base, Failure::Nonsense, what.into(), help, false)
    }

    /// An answer that broke off, or is damaged.
    pub fn broken(&self, what: impl Into<String>) -> Error {
        let help = "see the server's log, or what stands between";
        self.upstream(&self.0.base, Failure::Lost, what.into(), help, true)
    }

    fn upstream(&self, url: &Url, kind: Failure, what: String, help: &str, transient: bool) -> Error {
        self.0.failures.count(kind);
        let what = self.0.key.as_ref().map_or(what.clone(), |key| key.blot_out(&what));
        let mut url = url.clone();
        // Some gateways have keys there.
        url.set_query(None);
        Error::Upstream { url: url.into(), status: kind.status(), what, help: help.into(), transient }
    }
}

/// A failure that was repeated as often as was asked for: nobody else is to repeat it.
fn last(mut error: Error) -> Error {
    if let Error::Upstream { transient, .. } = &mut error {
        *transient = false;
    }
    error
}

/// An API's own words, from whatever it wraps them in.
fn said(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return words(&String::from_utf8_lossy(body));
    };
    let error = &value["error"];
    let text =
        [&error["message"], error, &value["message"], &value["detail"]].into_iter().find_map(Value::as_str);
    let code = error["code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
    words(&(text.map_or_else(|| value.to_string(), String::from) + &code))
}

/// A text for one line of a terminal: no control characters, not too long.
fn words(text: &str) -> String {
    let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = clean.take(MOST_WORDS).collect();
    if text.trim().chars().count() > MOST_WORDS {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apis_own_words_are_found_and_made_harmless() {
        let cases: [(&[u8], &str); 5] = [
            (
                br#"{"error":{"message":"no such model","code":"model_not_found"}}"#,
                "no such model (model_not_found)",
            ),
            (br#"{"error":"busy"}"#, "busy"),
            (br#"{"detail":"Not Found"}"#, "Not Found"),
            (b"<html>\x1b[31mred</html>", "<html> [31mred</html>"),
            (b"", ""),
        ];
        for (body, expected) in cases {
            assert_eq!(said(body), expected);
        }
        assert_eq!(words(&"x".repeat(1000)).chars().count(), MOST_WORDS + 1);
    }
}
