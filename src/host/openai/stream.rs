//! Answers on their way.

use super::http::Http;
use super::sse::Events;
use super::wire;
use crate::error::{Error, Result};
use crate::host::blackbox::{Seen, Writing};
use async_trait::async_trait;
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use std::collections::VecDeque;

/// An answer in server-sent events. Dropping it closes the connection, at which servers stop.
pub struct Streaming {
    response: Response,
    http: Http,
    events: Events,
    seen: VecDeque<Seen>,
    /// Most positions, and most tokens shown at each.
    most: usize,
    top: usize,
    given: usize,
    /// Tokens charged, as far as the answer has said it.
    usage: (u64, u64),
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The host has said why it ended: whether its text is over.
    Ended {
        is_over: bool,
    },
    /// Nothing more will come.
    Closed {
        is_over: bool,
    },
}

impl Streaming {
    pub fn new(response: Response, http: Http, prompt_tokens: u64, most: usize, top: usize) -> Self {
        let (events, seen, usage) = (Events::default(), VecDeque::new(), (prompt_tokens, 0));
        Self { response, http, events, seen, most, top, given: 0, usage, state: State::Running }
    }

    async fn more(&mut self) -> Result<()> {
        let is_stream = self.response.headers().get(CONTENT_TYPE);
        let is_stream = is_stream.is_none_or(|t| t.as_bytes().starts_with(b"text/event-stream"));
        match self.http.chunk(&mut self.response).await? {
            Some(chunk) => {
                if !self.events.push(&chunk) {
                    return Err(self
                        .http
                        .nonsense("an event of its stream has no end", "see what is behind this URL"));
                }
                while let Some(data) = self.events.next() {
                    self.event(&data)?;
                }
                Ok(())
            }
            None if self.state == State::Running && !is_stream => {
                let help = "use a server that streams, as OpenAI's does";
                Err(self.http.nonsense("its answer is no stream of events", help))
            }
            None => match self.state {
                State::Running => {
                    Err(self.http.broken("the connection was closed in the middle of an answer"))
                }
                _ => {
                    self.close();
                    Ok(())
                }
            },
        }
    }

    fn event(&mut self, data: &[u8]) -> Result<()> {
        if data == b"[DONE]" {
            if self.state == State::Running {
                self.state = State::Ended { is_over: false };
            }
            self.close();
            return Ok(());
        }
        let value: Value = serde_json::from_slice(data)
            .map_err(|e| self.http.broken(format!("an event of its stream is not JSON ({e})")))?;
        if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
            let said = error["message"].as_str().map_or_else(|| error.to_string(), String::from);
            return Err(self.http.broken(format!("it ended its answer with an error: {said}")));
        }
        let usage = |key: &str, otherwise: u64| value["usage"][key].as_u64().unwrap_or(otherwise);
        self.usage = (usage("prompt_tokens", self.usage.0), usage("completion_tokens", self.usage.1));
        let choice = &value["choices"][0];
        self.seen.extend(wire::positions(choice, self.top));
        if let Some(reason) = choice["finish_reason"].as_str() {
            let is_over = reason != "length";
            self.state = State::Ended { is_over };
            if !self.http.wants_usage() {
                self.close();
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        if let State::Ended { is_over } = self.state {
            self.state = State::Closed { is_over };
        }
    }
}

#[async_trait]
impl Writing for Streaming {
    async fn next(&mut self) -> Result<Option<Seen>> {
        loop {
            if self.given >= self.most {
                return Ok(None);
            }
            if let Some(seen) = self.seen.pop_front() {
                self.given += 1;
                return Ok(Some(seen));
            }
            if matches!(self.state, State::Closed { .. }) {
                return Ok(None);
            }
            self.more().await?;
        }
    }

    fn is_over(&self) -> bool {
        self.seen.is_empty()
            && matches!(self.state, State::Closed { is_over: true } | State::Ended { is_over: true })
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let written = self.usage.1.max((self.given + self.seen.len()) as u64);
        self.http.count(self.usage.0, written);
    }
}

/// An answer that is there as a whole.
pub struct Reading(std::vec::IntoIter<Seen>);

impl Reading {
    pub fn new(seen: Vec<Seen>) -> Self {
        Self(seen.into_iter())
    }
}

#[async_trait]
impl Writing for Reading {
    async fn next(&mut self) -> std::result::Result<Option<Seen>, Error> {
        Ok(self.0.next())
    }

    fn is_over(&self) -> bool {
        false
    }
}
