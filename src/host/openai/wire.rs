//! What comes back: tokens and their likeliest alternatives, in the forms that servers have for them.

use crate::host::blackbox::{Candidate, Seen};
use serde_json::Value;
use std::f64::consts::LN_10;

/// The positions that a choice shows, at most `top` tokens each; a text without log-probabilities is one position without
/// alternatives.
pub fn positions(choice: &Value, top: usize) -> Vec<Seen> {
    let logprobs = &choice["logprobs"];
    // An end is shown by no more than an empty text in some servers.
    let is_end = |at: usize, all: usize, token: &Value| {
        at + 1 == all && choice["finish_reason"] == "stop" && token.as_str() == Some("")
    };
    if let Some(content) = logprobs["content"].as_array() {
        let seen = |(at, token): (usize, &Value)| match position(token, top) {
            Some(seen) if seen.chosen.is_lost() && is_end(at, content.len(), &token["token"]) => None,
            seen => seen,
        };
        return content.iter().enumerate().filter_map(seen).collect();
    }
    // mistral.rs streams each token's by itself.
    if logprobs["top_logprobs"].is_array() && logprobs["token"].is_string() {
        return position(logprobs, top).into_iter().collect();
    }
    if let Some(tokens) = logprobs["tokens"].as_array().filter(|tokens| !tokens.is_empty()) {
        let seen = |(at, token): (usize, &Value)| {
            let bytes = token.as_str().and_then(spelt).filter(|bytes| !bytes.is_empty());
            if bytes.is_none() && is_end(at, tokens.len(), token) {
                return None;
            }
            legacy(logprobs, bytes, at, 0, top)
        };
        return tokens.iter().enumerate().filter_map(seen).collect();
    }
    let text = [&choice["text"], &choice["delta"]["content"], &choice["message"]["content"]];
    let text = text.into_iter().find_map(Value::as_str).unwrap_or_default();
    if text.is_empty() {
        return Vec::new();
    }
    let chosen = Candidate { bytes: text.into(), id: None, logprob: f32::NAN, control: false };
    vec![Seen { chosen, top: Vec::new(), is_merged: false }]
}

/// Whether a choice has mistral.rs's form: alternatives by number, with their text as `bytes`, and logarithms to base 10.
pub fn is_mistralrs(choice: &Value) -> bool {
    let logprobs = &choice["logprobs"];
    let token = if logprobs["content"].is_array() { &logprobs["content"][0] } else { logprobs };
    has_numbers(token)
}

fn has_numbers(token: &Value) -> bool {
    token["top_logprobs"].as_array().into_iter().flatten().any(|t| t["token"].is_u64())
}

/// A position in mistral.rs's form. What is no whole character has lost its bytes there.
fn numbered(token: &Value, top: usize) -> Option<Seen> {
    let natural = |value: &Value| value.as_f64().map_or(f32::NAN, |x| (x.min(0.0) * LN_10) as f32);
    let alternative = |value: &Value| {
        let bytes = spelt(value["bytes"].as_str()?).filter(|bytes| !bytes.is_empty())?;
        let id = value["token"].as_u64().and_then(|id| u32::try_from(id).ok());
        Some(Candidate { bytes, id, logprob: natural(&value["logprob"]), control: false })
    };
    let alternatives = token["top_logprobs"].as_array().into_iter().flatten();
    let top = sorted(alternatives.filter_map(alternative).collect(), top);
    let bytes = token["bytes"].as_array()?.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok()));
    let bytes = spelt(std::str::from_utf8(&bytes.collect::<Option<Vec<u8>>>()?).ok()?);
    // Of a character in parts the text has all, once the last has come.
    let is_merged = bytes.is_none();
    let Some(bytes) = bytes.or_else(|| spelt(token["token"].as_str()?)) else {
        return Some(Seen { chosen: Candidate::lost(), top, is_merged: false });
    };
    let id = top.iter().find(|c| c.bytes == bytes).and_then(|c| c.id);
    let logprob = if is_merged { f32::NAN } else { natural(&token["logprob"]) };
    Some(Seen { chosen: Candidate { control: false, bytes, id, logprob }, top, is_merged })
}

/// A token of `logprobs.content`: its text, mostly its bytes, in some servers its number.
fn candidate(token: &Value) -> Option<Candidate> {
    let text = token["token"].as_str();
    let bytes = token["bytes"].as_array().and_then(|bytes| {
        bytes.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect::<Option<Vec<u8>>>()
    });
    let has_bytes = bytes.is_some();
    let bytes = bytes.or_else(|| spelt(text?))?;
    let logprob = logprob(&token["logprob"]);
    let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
    // Without bytes nobody can tell an end from part of a character.
    (has_bytes || !bytes.is_empty()).then_some(Candidate { control: bytes.is_empty(), bytes, id, logprob })
}

fn position(token: &Value, top: usize) -> Option<Seen> {
    if has_numbers(token) {
        return numbered(token, top);
    }
    let mut chosen = candidate(token).unwrap_or_else(Candidate::lost);
    let alternatives = token["top_logprobs"].as_array().into_iter().flatten();
    let top = sorted(alternatives.filter_map(candidate).collect(), top);
    // llama-server holds part of a character back, and shows its tokens as one, by the number of the last.
    let named = top.iter().find(|c| c.id.is_some() && c.id == chosen.id);
    let is_merged = named.is_some_and(|c| c.bytes != chosen.bytes);
    if is_merged {
        (chosen.id, chosen.logprob) = (None, f32::NAN);
    }
    Some(Seen { chosen, top, is_merged })
}

/// Position `at` of lists `tokens`, `token_logprobs` and `top_logprobs`. `bytes`: the token's, unless they are lost. `lag`: its
/// probabilities stand so many places before.
fn legacy(logprobs: &Value, bytes: Option<Vec<u8>>, at: usize, lag: usize, top: usize) -> Option<Seen> {
    let from = at.checked_sub(lag)?;
    let alternatives = logprobs["top_logprobs"][from].as_object().into_iter().flatten();
    let candidate = |(text, value): (&String, &Value)| {
        let bytes = spelt(text).filter(|bytes| !bytes.is_empty())?;
        Some(Candidate { bytes, id: None, logprob: logprob(value), control: false })
    };
    let top = sorted(alternatives.filter_map(candidate).collect(), top);
    let Some(bytes) = bytes else {
        return Some(Seen { chosen: Candidate::lost(), top, is_merged: false });
    };
    let own = if lag == 0 { logprob(&logprobs["token_logprobs"][at]) } else { f32::NAN };
    let known = top.iter().find(|c| c.bytes == bytes).map_or(own, |c| c.logprob);
    let chosen = Candidate { bytes, id: None, logprob: known, control: false };
    Some(Seen { chosen, top, is_merged: false })
}

/// The likeliest, best first: servers add the chosen token to them.
fn sorted(mut candidates: Vec<Candidate>, top: usize) -> Vec<Candidate> {
    candidates.retain(|c| !c.logprob.is_nan());
    candidates.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    candidates.truncate(top);
    candidates
}

fn logprob(value: &Value) -> f32 {
    // A probability is at most 1; what is more is rounding.
    value.as_f64().filter(|x| *x < 1e-3).map_or(f32::NAN, |x| (x as f32).min(0.0))
}

/// The bytes of a token that is given as text; `None` where the text has lost them. Bytes that are no text are spelt `bytes:\xe2\x82`
/// by OpenAI.
fn spelt(text: &str) -> Option<Vec<u8>> {
    if let Some(escaped) = text.strip_prefix("bytes:") {
        let hex = escaped.split("\\x").skip(1).map(|byte| u8::from_str_radix(byte, 16));
        if let Ok(bytes) = hex.collect::<Result<Vec<u8>, _>>()
            && !bytes.is_empty()
        {
            return Some(bytes);
        }
    }
    (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.as_bytes().to_vec())
}

/// The positions of an echoed text from byte `start` on, of which `sent` bytes were sent and one token was written; `None` where no
/// token begins at `start`, or nothing is shown.
pub fn echoed(answer: &Value, [start, sent]: [usize; 2], lag: usize, top: usize) -> Option<Vec<Seen>> {
    let choice = &answer["choices"][0];
    let (logprobs, text) = (&choice["logprobs"], choice["text"].as_str()?);
    let spell = |token: &Value| spelt(token.as_str()?);
    let mut tokens: Vec<Vec<u8>> = logprobs["tokens"].as_array()?.iter().map(spell).collect::<Option<_>>()?;
    // Where probabilities stand one place before, the list ends before the token that was written.
    let written = text.as_bytes().get(sent..).filter(|written| lag > 0 && !written.is_empty());
    tokens.extend(written.map(<[u8]>::to_vec));
    // From the end: a beginning-of-text token, which is no part of the text, may stand at the front.
    let mut left = text.len().checked_sub(start)?;
    let mut first = tokens.len();
    while left > 0 {
        first = first.checked_sub(1)?;
        left = left.checked_sub(tokens[first].len())?;
    }
    let shown = tokens.into_iter().enumerate().skip(first);
    let seen: Vec<Seen> =
        shown.map_while(|(at, bytes)| legacy(logprobs, Some(bytes), at, lag, top)).collect();
    (!seen.is_empty() && seen.iter().all(|s| !s.top.is_empty())).then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_of_log_probabilities_are_read() {
        let new = json!({ "logprobs": { "content": [{ "token": "€", "bytes": [226, 130, 172], "id": 7, "logprob": -0.5,
            "top_logprobs": [{ "token": "", "bytes": [], "id": 2, "logprob": -1.5 },
                             { "token": "€", "bytes": [226, 130, 172], "id": 7, "logprob": -0.5 },
                             { "token": "\u{fffd}", "logprob": -3.0 }] }] } });
        let seen = &positions(&new, 20)[0];
        assert_eq!((seen.chosen.bytes.as_slice(), seen.chosen.id), ("€".as_bytes(), Some(7)));
        assert_eq!(seen.top.len(), 2, "what has lost its bytes is hidden: {seen:?}");
        assert!(seen.top[1].control && seen.top[1].id == Some(2));

        let old = json!({ "text": "ab", "logprobs": { "tokens": ["a", "bytes:\\xe2\\x82"], "token_logprobs": [-0.1, null],
            "top_logprobs": [{ "a": -0.1, "b": -2.5, "": -9.0 }, { "c": 0.0000001, "d": -9999.0, "e": -8.0 }] } });
        let seen = positions(&old, 2);
        assert_eq!(seen[0].top.iter().map(|c| c.bytes.clone()).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(seen[1].chosen.bytes, [0xe2, 0x82]);
        assert_eq!((seen[1].top.len(), seen[1].top[0].logprob), (2, 0.0));
    }

    #[test]
    fn mistral_rs_has_numbers_text_and_base_10() {
        let alternative = |token: u32, text: &str, logprob: f32| json!({ "token": token, "bytes": text, "logprob": logprob });
        let top = json!([
            alternative(3, " a", -1.0),
            alternative(4, "\u{fffd}", -0.5),
            alternative(5, " b", -0.25)
        ]);
        // The space at the front of a text is left out of its token, not of its bytes.
        let token = json!({ "token": "a", "bytes": b" a", "logprob": -1.0, "top_logprobs": top });
        for choice in [json!({ "logprobs": token }), json!({ "logprobs": { "content": [token] } })] {
            assert!(is_mistralrs(&choice));
            let seen = &positions(&choice, 20)[0];
            assert_eq!(
                (seen.chosen.bytes.as_slice(), seen.chosen.id, seen.is_merged),
                (&b" a"[..], Some(3), false)
            );
            assert_eq!(seen.top.iter().map(|c| c.id).collect::<Vec<_>>(), [Some(5), Some(3)]);
            assert!((seen.chosen.logprob + std::f32::consts::LN_10).abs() < 1e-5, "{seen:?}");
        }
        let token =
            json!({ "token": "€", "bytes": "\u{fffd}".as_bytes(), "logprob": -1.0, "top_logprobs": top });
        let seen = &positions(&json!({ "logprobs": token }), 20)[0];
        assert_eq!(
            (seen.chosen.bytes.as_slice(), seen.chosen.id, seen.is_merged),
            ("€".as_bytes(), None, true)
        );
        assert!(!is_mistralrs(
            &json!({ "logprobs": { "content": [{ "top_logprobs": [{ "token": "a" }] }] } })
        ));
    }

    #[test]
    fn a_text_without_probabilities_has_no_alternatives() {
        for choice in [
            json!({ "text": "a" }),
            json!({ "delta": { "content": "a" } }),
            json!({ "message": { "content": "a" }, "logprobs": null }),
        ] {
            let seen = positions(&choice, 5);
            assert!(seen[0].chosen.bytes == b"a" && seen[0].top.is_empty(), "{choice}");
        }
        assert!(positions(&json!({ "delta": {} }), 5).is_empty());
    }

    #[test]
    fn a_token_that_has_lost_its_bytes_keeps_its_place_and_an_end_has_none() {
        let top = json!([{ "a": -0.5, "\u{fffd}": -0.1 }]);
        for (text, finish, positions_seen) in [("\u{fffd}", "length", 1), ("", "length", 1), ("", "stop", 0)]
        {
            let old = json!({ "finish_reason": finish,
                              "logprobs": { "tokens": [text], "token_logprobs": [-0.1], "top_logprobs": top } });
            let alternatives = json!([{ "token": "a", "logprob": -0.5 }]);
            let new = json!({ "finish_reason": finish, "logprobs": { "content": [
                { "token": text, "logprob": -0.1, "top_logprobs": alternatives }] } });
            for choice in [old, new] {
                let seen = positions(&choice, 5);
                assert_eq!(seen.len(), positions_seen, "{choice}");
                let visible = |s: &Seen| s.chosen.is_lost() && s.top.len() == 1 && s.top[0].bytes == b"a";
                assert!(seen.iter().all(visible), "{seen:?}");
            }
        }
    }

    #[test]
    fn tokens_that_a_server_shows_as_one_are_known_by_their_bytes() {
        let token = json!({ "token": "é", "bytes": [195, 169], "id": 9, "logprob": -0.1,
                            "top_logprobs": [{ "token": "", "bytes": [169], "id": 9, "logprob": -0.1 }] });
        let seen = &positions(&json!({ "logprobs": { "content": [token] } }), 5)[0];
        assert!(seen.is_merged && seen.chosen.id.is_none(), "{seen:?}");
    }

    #[test]
    fn an_echo_is_read_from_the_draft_on_at_either_lag() {
        let answer = |tokens: Value, top: Value| {
            let logprobs =
                json!({ "tokens": tokens, "token_logprobs": [null, -1.0, -2.0, -3.0], "top_logprobs": top });
            json!({ "choices": [{ "text": "ab cd e", "logprobs": logprobs }] })
        };
        let bytes = |seen: &[Seen]| seen.iter().map(|s| s.chosen.bytes.clone()).collect::<Vec<_>>();
        let at_place = answer(
            json!(["<s>", "ab", " cd", " e"]),
            json!([null, { "ab": -1.0 }, { " cd": -2.0, " x": -0.5 }, { " e": -3.0 }]),
        );
        let seen = echoed(&at_place, [2, 5], 0, 5).unwrap();
        assert_eq!(bytes(&seen), [b" cd".to_vec(), b" e".to_vec()]);
        assert_eq!((seen[0].top[0].bytes.as_slice(), seen[0].chosen.logprob), (&b" x"[..], -2.0));
        assert_eq!(echoed(&at_place, [3, 5], 0, 5), None, "no token begins there");
        // One place before, and without the token that was written.
        let before = answer(json!(["ab", " cd"]), json!([{ " cd": -2.0, " x": -0.5 }, { " e": -3.0 }]));
        let seen = echoed(&before, [2, 5], 1, 5).unwrap();
        assert_eq!(bytes(&seen), [b" cd".to_vec(), b" e".to_vec()]);
        assert_eq!((seen[0].top[0].bytes.as_slice(), seen[1].chosen.logprob), (&b" x"[..], -3.0));
        assert_eq!(echoed(&json!({ "choices": [] }), [0, 0], 0, 5), None);
    }
}
