//! The shift over visible tokens alone: `log p_host + alpha * (log p_tuned - log p_untuned)`.
//!
//! With probabilities in place of logits each difference lacks one constant, which is the same for all tokens of a position; so
//! among the visible tokens the result is that of whole rows.

use super::{Advice, Candidate, Seen, Session, Spelling};
use crate::error::Result;
use crate::vocab::Token;

/// The visible tokens of one position, shifted.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// The visible tokens; that which the host chose is among them.
    pub candidates: Vec<Candidate>,
    /// How each is spelt in the tuned proxy's tokens; empty without proxies.
    pub spellings: Vec<Spelling>,
    /// Logarithms of the shifted weights, not normalised.
    pub scores: Vec<f32>,
    /// Which one the host chose.
    pub chosen: usize,
    /// The host's most likely token.
    pub host_top: usize,
    /// The most likely one after the shift.
    pub top: usize,
    /// Whether no hidden token can be more likely than that after the shift.
    pub certain: bool,
    /// The host's probability of all visible tokens.
    pub visible: f64,
    /// That of the ones that the proxies can spell.
    pub mapped: f64,
}

/// How much the shift counts at a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight {
    /// Its weight.
    pub alpha: f32,
    /// The most that a token may gain or lose against the host's most likely one, in nats.
    pub cap: Option<f32>,
}

impl Weight {
    /// Holds the shifts of tokens within the cap around that of the token at `top`; around 0 where that has none.
    fn limit(self, shifts: &mut [(usize, f32)], top: usize) {
        let Some(cap) = self.cap else { return };
        let centre = shifts.iter().find(|(place, _)| *place == top).map_or(0.0, |(_, shift)| *shift);
        let centre = if centre.is_finite() { centre } else { 0.0 };
        shifts.iter_mut().for_each(|(_, shift)| *shift = shift.clamp(centre - cap, centre + cap));
    }
}

impl From<f32> for Weight {
    fn from(alpha: f32) -> Self {
        Self { alpha, cap: None }
    }
}

/// Shifts one position. Without advice it stays as the host has it.
///
/// # Errors
/// When a proxy fails on a token that it spells in several of its own.
pub async fn weigh(
    seen: Seen,
    advice: Option<(&Session, &Advice)>,
    weight: Weight,
    same_ids: bool,
) -> Result<Weighed> {
    let Seen { mut chosen, top: mut candidates, .. } = seen;
    let least = candidates.iter().map(|c| c.logprob).fold(f32::INFINITY, f32::min);
    let place = candidates.iter().position(|c| is_same(c, &chosen));
    let place = place.unwrap_or_else(|| {
        // It is no likelier than those.
        chosen.logprob = if chosen.logprob.is_nan() { f32::NEG_INFINITY } else { chosen.logprob };
        candidates.push(chosen);
        candidates.len() - 1
    });
    let probability = |c: &Candidate| f64::from(c.logprob).exp();
    let visible = candidates.iter().map(probability).sum::<f64>().min(1.0);
    let mut scores: Vec<f32> = candidates.iter().map(|c| c.logprob).collect();
    let host_top = best(&scores);
    let mut weighed = Weighed {
        spellings: Vec::new(),
        scores: Vec::new(),
        chosen: place,
        host_top,
        top: host_top,
        certain: true,
        visible,
        mapped: visible,
        candidates,
    };
    if let Some((session, advice)) = advice {
        let advisers = session.advisers();
        weighed.spellings = weighed.candidates.iter().map(|c| advisers.spell(c, same_ids)).collect();
        let several = weighed.spellings.iter().filter_map(|s| match s {
            Spelling::Several(tokens) => Some(tokens.clone()),
            _ => None,
        });
        let several: Vec<Vec<Token>> = several.collect();
        let mut sums = session.spelt(advice, &several).await?.into_iter();
        let (mut mapped, mut shifts) = (0.0, Vec::with_capacity(scores.len()));
        for (place, (spelling, candidate)) in weighed.spellings.iter().zip(&weighed.candidates).enumerate() {
            let delta = match spelling {
                Spelling::One(token) => advice.delta.get(*token as usize).copied().unwrap_or(0.0),
                Spelling::Several(_) => sums.next().unwrap_or(0.0),
                Spelling::None => continue,
            };
            mapped += probability(candidate);
            shifts.push((place, weight.alpha * delta));
        }
        weight.limit(&mut shifts, host_top);
        shifts.iter().for_each(|&(place, shift)| scores[place] += shift);
        weighed.mapped = mapped.min(visible);
        weighed.top = best(&scores);
        weighed.certain = is_certain(&weighed, scores[weighed.top], least, advice, weight.alpha);
    }
    weighed.scores = scores;
    Ok(weighed)
}

/// Whether two tokens are one: by number where both have one.
fn is_same(a: &Candidate, b: &Candidate) -> bool {
    match (a.id, b.id) {
        (Some(a), Some(b)) => a == b,
        _ => a.bytes == b.bytes && a.control == b.control,
    }
}

/// The largest; of equals the first, which the host finds more likely.
fn best(scores: &[f32]) -> usize {
    let larger =
        |best: usize, i: usize| if scores[i] > scores[best] || scores[best].is_nan() { i } else { best };
    (1..scores.len()).fold(0, larger)
}

/// A hidden token is to the host no more likely than the least visible one, nor than all that is hidden together.
fn is_certain(weighed: &Weighed, top: f32, least: f32, advice: &Advice, alpha: f32) -> bool {
    let hidden = least.min((1.0 - weighed.visible).max(1e-9).ln() as f32);
    let is_visible = |token: Token| weighed.spellings.contains(&Spelling::One(token));
    // Tokens that the proxies lack are not shifted.
    let mut most = 0.0;
    for (token, delta) in advice.delta.iter().enumerate() {
        if alpha * delta > most && !is_visible(token as Token) {
            most = alpha * delta;
        }
    }
    top >= hidden + most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, p: f32) -> Candidate {
        Candidate { bytes: text.into(), id: None, logprob: p.ln(), control: false }
    }

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn without_proxies_the_host_chooses_and_its_token_is_among_the_visible_ones() {
        let seen =
            Seen { chosen: token("c", 0.1), top: vec![token("a", 0.6), token("b", 0.2)], is_merged: false };
        let weighed = block(weigh(seen, None, 1.0.into(), false)).unwrap();
        assert_eq!((weighed.chosen, weighed.host_top, weighed.top), (2, 0, 0));
        assert!((weighed.visible - 0.9).abs() < 1e-6, "{}", weighed.visible);
    }

    #[test]
    fn a_cap_counts_from_the_hosts_most_likely_token() {
        let capped = |cap| {
            let mut shifts = vec![(0, 2.0), (1, 5.0), (3, -4.0)];
            Weight { alpha: 1.0, cap }.limit(&mut shifts, 0);
            shifts
        };
        assert_eq!(capped(None), [(0, 2.0), (1, 5.0), (3, -4.0)]);
        assert_eq!(capped(Some(1.5)), [(0, 2.0), (1, 3.5), (3, 0.5)]);
    }

    #[test]
    fn a_hidden_token_that_the_shift_could_lift_is_told_from_one_that_it_cannot() {
        let weighed = |delta: f32| {
            let advice = Advice { delta: vec![0.0, 0.0, delta], ..Advice::default() };
            let candidates = vec![token("a", 0.6), token("b", 0.3)];
            let weighed = Weighed {
                spellings: vec![Spelling::One(0), Spelling::One(1)],
                scores: Vec::new(),
                chosen: 0,
                host_top: 0,
                top: 0,
                certain: false,
                visible: 0.9,
                mapped: 0.9,
                candidates,
            };
            is_certain(&weighed, 0.6f32.ln(), 0.3f32.ln(), &advice, 1.0)
        };
        // 0.1 is left: it takes a factor of six.
        assert!(weighed(5.9f32.ln()));
        assert!(!weighed(6.1f32.ln()));
    }
}
