//! Multiple choice in one call: the options are single tokens, and the visible ones among them are weighed (Liu et al. 2024,
//! section 6).

use super::outcome::hidden;
use super::{Advisers, Ask, BlackBox, Choosing, Prompt, Spelling, Weight, Written, weigh};
use crate::combine::log_sum_exp_of_numbers;
use crate::error::{Error, Result};
use std::sync::Arc;

/// The answer to one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The option that the host finds likeliest; `None` where it shows none.
    pub host: Option<usize>,
    /// The one that each proxy finds likeliest by itself; `None` where it has no token for any.
    pub tuned: Option<usize>,
    /// See `tuned`.
    pub untuned: Option<usize>,
    /// The likeliest one after the shift, for each weight.
    pub shifted: Vec<Option<usize>>,
    /// Options among the visible tokens.
    pub visible: usize,
    /// Visible tokens in all.
    pub shown: usize,
    /// The host's probability of the visible options.
    pub mass: f64,
    /// Logarithms of the shifted scores of each option, for each weight; -inf where it is hidden.
    pub scores: Vec<Vec<f32>>,
}

/// Puts a question whose answer is one of `options`, each a token by itself, with or without a space before it. One call
/// serves every weight.
///
/// # Errors
/// As [`generate`](super::generate); [`Error::Upstream`] where the host shows no log-probabilities.
pub async fn choose(
    host: &dyn BlackBox,
    advisers: &Arc<Advisers>,
    prompt: &Prompt,
    tuned_system: Option<&str>,
    options: &[String],
    weights: &[Weight],
) -> Result<Answered> {
    let session = advisers.session(prompt, tuned_system)?;
    let written = Written::default();
    let ask = Ask { prompt, written: &written, tokens: 1, bias: &[], choosing: Choosing::default() };
    let (call, advice) = tokio::join!(host.write(ask), session.advise());
    let (mut call, advice) = (call?, advice?);
    let help = "use a server that gives logprobs: without them its answer cannot be shifted";
    let seen = match call.next().await? {
        Some(seen) if seen.top.is_empty() => return Err(hidden("it showed no log-probabilities", help)),
        None if !call.is_over() => return Err(hidden("it gave no token", help)),
        seen => seen,
    };
    let same_ids = host.offers().same_ids;
    let own = |row: &[f32]| {
        let forms = |option: &String| [option.clone(), format!(" {option}")];
        let score = |option: &String| {
            let tokens = forms(option).into_iter().filter_map(|form| advisers.token(form.as_bytes()));
            log_sum_exp_of_numbers(&tokens.map(|token| row[token as usize]).collect::<Vec<_>>()) as f32
        };
        best(&options.iter().map(score).collect::<Vec<_>>())
    };
    let mut answered = Answered {
        host: None,
        tuned: own(&advice.tuned),
        untuned: own(&advice.untuned),
        shifted: Vec::new(),
        visible: 0,
        shown: 0,
        mass: 0.0,
        scores: Vec::new(),
    };
    // It ended its text, and does not show what else there was.
    let Some(seen) = seen else {
        answered.shifted = vec![None; weights.len()];
        answered.scores = vec![vec![f32::NEG_INFINITY; options.len()]; weights.len()];
        return Ok(answered);
    };
    let option_of = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok()?.trim();
        options.iter().position(|option| option == text)
    };
    for &weight in [0.0.into()].iter().chain(weights) {
        let weighed = weigh(seen.clone(), Some((&session, &advice)), weight, same_ids).await?;
        let places: Vec<Option<usize>> = weighed.candidates.iter().map(|c| option_of(&c.bytes)).collect();
        let score = |option: usize| {
            let of = places.iter().zip(&weighed.scores).filter(|(place, _)| **place == Some(option));
            log_sum_exp_of_numbers(&of.map(|(_, &score)| score).collect::<Vec<_>>()) as f32
        };
        let scores: Vec<f32> = (0..options.len()).map(score).collect();
        let best = best(&scores);
        if answered.shown == 0 {
            answered.host = best;
            answered.shown = weighed.candidates.len();
            answered.visible = scores.iter().filter(|s| s.is_finite()).count();
            answered.mass = scores.iter().map(|&s| f64::from(s).exp()).sum();
            if answered.visible > 0 && weighed.spellings.iter().all(|s| *s == Spelling::None) {
                return Err(Error::engine("proxies", "could spell none of the tokens that the host showed"));
            }
        } else {
            answered.shifted.push(best);
            answered.scores.push(scores);
        }
    }
    Ok(answered)
}

/// The largest that is finite; of equals the first.
fn best(scores: &[f32]) -> Option<usize> {
    let finite = (0..scores.len()).filter(|&i| scores[i] > f32::NEG_INFINITY);
    finite.reduce(|best, i| if scores[i] > scores[best] { i } else { best })
}
