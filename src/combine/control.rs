//! How much the shift counts at one token: a schedule over the text, and guards. All of it is off by default.
//!
//! What a [`Control`] says of a token depends on the tokens before it and on nothing else. So drafts that are judged
//! several at a time, and texts that go back and on another way, get at each position what they would get one by one.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// Longest run of tokens whose repetition the guard sees, and the fewest tokens that it calls one: rules, blanks and
/// dots repeat in good texts too.
const LONGEST_RUN: usize = 64;
const FEWEST_REPEATED: usize = 16;

/// Schedule and guards of one text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Control {
    /// How the weight of the shift goes with the number of tokens generated.
    pub schedule: Schedule,
    /// The most that any token may gain or lose against the host's most likely one by the shift, in nats, see
    /// [`shift_by_within`](super::shift_by_within).
    pub cap: Option<f32>,
    /// The shift is left out while the text ends in a run of tokens that stands there so many times; 0: never.
    pub repetition_guard: u32,
}

impl Control {
    /// Checks values that no type can.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the flag.
    pub fn check(&self) -> Result<()> {
        if let Some(cap) = self.cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            let expected = "nats above 0 that a token may gain or lose by the shift, or 0 for no cap";
            return Err(Error::invalid("--shift-cap", cap, expected));
        }
        if self.repetition_guard == 1 || self.repetition_guard > 100 {
            let expected = "2 to 100 times that a run of tokens may repeat, or 0 for no guard";
            return Err(Error::invalid("--repetition-guard", self.repetition_guard, expected));
        }
        Ok(())
    }

    /// The weight of the shift for the token that follows `generated`, the text without its prompt, where it is `alpha`
    /// by itself. With 0 no proxy need run.
    pub fn weight<T: PartialEq>(&self, alpha: f32, generated: &[T]) -> f32 {
        let guard = self.repetition_guard as usize;
        if guard > 1 && alpha != 0.0 && is_repeating(generated, guard) {
            return 0.0;
        }
        alpha * self.schedule.factor(generated.len())
    }
}

/// Whether a text ends in a run of tokens that stands there so many times in a row.
fn is_repeating<T: PartialEq>(text: &[T], times: usize) -> bool {
    (1..=LONGEST_RUN).any(|run| {
        let tail = text.len().checked_sub((run * times).max(FEWEST_REPEATED)).map(|from| &text[from..]);
        tail.is_some_and(|tail| tail[run..] == tail[..tail.len() - run])
    })
}

/// How the weight of the shift goes with the number of tokens generated. Where several parts are given their factors are
/// multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Schedule {
    warm_up: u32,
    decay: u32,
    stop: u32,
}

impl Schedule {
    /// The share of alpha that counts for the token after so many generated ones.
    ///
    /// `warm-up:N`: 1/N for the first token, 2/N for the second, all of it from the N-th on. `decay:N`: all of it for the
    /// first, (N-1)/N for the second, 1/N for the N-th, then none. `stop:N`: all of it for N tokens, then none.
    pub fn factor(&self, generated: usize) -> f32 {
        let Self { warm_up, decay, stop } = *self;
        let share = |tokens: usize, of: u32| (tokens as f32 / of as f32).min(1.0);
        let rising = if warm_up == 0 { 1.0 } else { share(generated.saturating_add(1), warm_up) };
        let falling = if decay == 0 { 1.0 } else { share((decay as usize).saturating_sub(generated), decay) };
        let stopped = stop != 0 && generated >= stop as usize;
        if stopped { 0.0 } else { rising * falling }
    }

    /// Whether alpha is the same for every token.
    pub fn is_constant(&self) -> bool {
        *self == Self::default()
    }
}

/// `constant`, or parts such as `warm-up:8,stop:64`.
impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let expected = "constant, or warm-up:N, decay:N, stop:N with a number of tokens from 1 to 1000000, \
                            each at most once, several with commas between";
            Error::invalid("--alpha-schedule", text, expected)
        };
        let mut schedule = Self::default();
        if text == "constant" {
            return Ok(schedule);
        }
        for part in text.split(',') {
            let (name, tokens) = part.trim().split_once(':').ok_or_else(wrong)?;
            let place = match name {
                "warm-up" => &mut schedule.warm_up,
                "decay" => &mut schedule.decay,
                "stop" => &mut schedule.stop,
                _ => return Err(wrong()),
            };
            let tokens = tokens.parse().ok().filter(|tokens| (1..=1_000_000).contains(tokens));
            if std::mem::replace(place, tokens.ok_or_else(wrong)?) != 0 {
                return Err(wrong());
            }
        }
        Ok(schedule)
    }
}

impl TryFrom<String> for Schedule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("warm-up", self.warm_up), ("decay", self.decay), ("stop", self.stop)];
        let parts = parts.iter().filter(|(_, tokens)| *tokens != 0);
        let parts: Vec<String> = parts.map(|(name, tokens)| format!("{name}:{tokens}")).collect();
        f.write_str(if parts.is_empty() { "constant" } else { "" })?;
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(schedule: &str, tokens: usize) -> Vec<f32> {
        let control = Control { schedule: schedule.parse().unwrap(), ..Control::default() };
        (0..tokens).map(|n| control.weight(2.0, &vec![0; n])).collect()
    }

    #[test]
    fn schedules_are_what_they_are_said_to_be() {
        assert_eq!(weights("constant", 3), [2.0; 3]);
        assert_eq!(weights("warm-up:4", 6), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(weights("decay:4", 6), [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]);
        assert_eq!(weights("stop:2", 4), [2.0, 2.0, 0.0, 0.0]);
        assert_eq!(weights("warm-up:2, stop:3", 4), [1.0, 2.0, 2.0, 0.0]);
        assert_eq!(weights("warm-up:2,decay:4", 5), [1.0, 1.5, 1.0, 0.5, 0.0]);
        assert_eq!("stop:3,warm-up:2".parse::<Schedule>().unwrap().to_string(), "warm-up:2,stop:3");
        assert_eq!(Schedule::default().to_string(), "constant");
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_what_is_one() {
        for text in [
            "",
            "warm-up",
            "warm-up:",
            "warm-up:0",
            "warm-up:-1",
            "decay:1.5",
            "stop:1000001",
            "stop:1,stop:2",
            "constant,stop:2",
            "cosine:5",
            "stop:2,",
        ] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains("warm-up:N, decay:N, stop:N"), "{text}: {error}");
        }
    }

    #[test]
    fn a_text_that_repeats_itself_is_left_to_the_host_until_it_goes_on() {
        let control = Control { repetition_guard: 3, ..Control::default() };
        let weight = |text: &[u8]| control.weight(1.0, text);
        let sentence = b"and so on, for ever. ";
        assert_eq!(weight(&sentence.repeat(2)), 1.0);
        assert_eq!(weight(&sentence.repeat(3)), 0.0);
        assert_eq!(weight(&[b"begin ", &sentence.repeat(3)[..], b"and so"].concat()), 0.0);
        assert_eq!(weight(&[&sentence.repeat(3)[..], b"But"].concat()), 1.0);
        // Short runs have to be longer than what good texts have.
        assert_eq!((weight(b"a ........"), weight(&[b'.'; 15]), weight(&[b'.'; 16])), (1.0, 1.0, 0.0));
        // Beyond the longest run nothing is looked for.
        let long: Vec<u16> = (0..65).collect();
        assert_eq!(control.weight(1.0, &long.repeat(3)), 1.0);
        assert_eq!(control.weight(1.0, &long[..64].repeat(3)), 0.0);
        assert_eq!(Control::default().weight(1.0, &[0; 500]), 1.0);
    }

    #[test]
    fn guards_have_bounds() {
        let cap = |cap| Control { cap: Some(cap), ..Control::default() }.check();
        let guard = |repetition_guard| Control { repetition_guard, ..Control::default() }.check();
        assert!(cap(0.5).is_ok() && guard(0).is_ok() && guard(2).is_ok());
        for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(cap(value).unwrap_err().to_string().contains("--shift-cap"), "{value}");
        }
        assert!(guard(1).is_err() && guard(101).unwrap_err().to_string().contains("0 for no guard"));
    }
}
