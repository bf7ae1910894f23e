//! What the shift did at a position, for programs.

use super::{Candidate, Mover, Position};
use crate::vocab::Token;
use serde_json::{Value, json};

impl Position {
    /// One entry of `positions`: tokens and, where they were asked for, probabilities and candidates. `text`: what a token
    /// spells.
    pub fn to_json(&self, text: impl Fn(Token) -> String) -> Value {
        let Self { token, host_top, top, .. } = *self;
        let mut object = json!({ "token": token, "text": text(token), "host_top": host_top, "top": top });
        if let Some(of) = &self.probabilities {
            object["p_host"] = json!(of.host);
            object["p"] = json!(of.shifted);
            object["p_tuned"] = json!(of.proxies.map(|p| p[0]));
            object["p_untuned"] = json!(of.proxies.map(|p| p[1]));
            object["change"] = json!(of.change);
            object["candidates"] = self.candidates.iter().map(|c| candidate(c, &text)).collect();
        }
        object
    }
}

fn candidate(c: &Candidate, text: impl Fn(Token) -> String) -> Value {
    json!({
        "token": c.token, "text": text(c.token), "p_host": c.host, "p": c.shifted,
        "p_tuned": c.proxies.map(|p| p[0]), "p_untuned": c.proxies.map(|p| p[1]),
        "moved_by": c.moved_by.map(Mover::name),
    })
}
