//! Drawing a token as mistral.rs does, so that it is known before mistral.rs says so.

use crate::combine::softmax;
use crate::decode::accept::Dice;
use crate::error::{Error, Result};
use crate::vocab::Token;

/// How mistral.rs samples a request, from shifted logits on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingOptions {
    /// Below 1e-7: the most likely token. mistral.rs takes a missing one for 1.
    pub temperature: f64,
    /// Only the K most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 0, 1 and more: all.
    pub top_p: f32,
    /// Only tokens with more than this share of the most likely one's probability; 0, 1 and more: all. mistral.rs itself
    /// heeds it only where `top_p` cuts as well.
    pub min_p: f32,
    /// Seed of the draws; `None`: others each time.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: None }
    }
}

impl SamplingOptions {
    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-7
    }

    pub(super) fn check(&self) -> Result<()> {
        let within = |name: &str, value: f64, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(Error::invalid(name, value, expected)) }
        };
        let t = self.temperature;
        within("temperature", t, t.is_finite() && t >= 0.0, "a number of 0 or more")?;
        within("top_p", self.top_p.into(), self.top_p.is_finite(), "a number from 0 to 1")?;
        within("min_p", self.min_p.into(), self.min_p.is_finite(), "a number from 0 to 1")
    }

    /// Draws a token from logits. `scratch` is used for probabilities. `None` when none has any.
    pub(super) fn draw(&self, logits: &[f32], dice: &mut Dice, scratch: &mut Scratch) -> Option<Token> {
        self.probabilities(logits, &mut scratch.probabilities);
        if self.top_k > 0 || self.cuts_by_top_p() || self.cuts_by_min_p() {
            self.filter(scratch);
        }
        dice.draw(scratch.probabilities.iter().copied())
    }

    fn cuts_by_top_p(&self) -> bool {
        self.top_p > 0.0 && self.top_p < 1.0
    }

    fn cuts_by_min_p(&self) -> bool {
        self.min_p > 0.0 && self.min_p < 1.0
    }

    fn probabilities(&self, logits: &[f32], probabilities: &mut Vec<f32>) {
        probabilities.clear();
        probabilities.extend_from_slice(logits);
        softmax(probabilities, (1.0 / self.temperature) as f32);
    }

    /// Sets to 0 what top-k, top-p and min-p leave out, in mistral.rs's order, none of which makes the rest add up to 1
    /// again.
    fn filter(&self, Scratch { probabilities, order }: &mut Scratch) {
        let most = probabilities.iter().copied().fold(0.0, f32::max);
        if self.top_k > 0 || self.cuts_by_top_p() {
            order.clear();
            order.extend(0..probabilities.len() as Token);
            let kept = self.bring_forward(probabilities, order);
            order[kept..].iter().for_each(|&t| probabilities[t as usize] = 0.0);
            if self.cuts_by_top_p() {
                let mut sum = 0.0;
                for &token in &order[..kept] {
                    let p = &mut probabilities[token as usize];
                    let enough = sum >= self.top_p;
                    sum += *p;
                    if enough {
                        *p = 0.0;
                    }
                }
            }
        }
        if self.cuts_by_min_p() {
            probabilities.iter_mut().filter(|p| **p <= self.min_p * most).for_each(|p| *p = 0.0);
        }
    }

    /// Brings the tokens that may stay to the front of `order`, sorted where top-p needs that; returns how many.
    fn bring_forward(&self, probabilities: &[f32], order: &mut [Token]) -> usize {
        let falling = |a: &Token, b: &Token| {
            let [a, b] = [a, b].map(|&t| probabilities[t as usize]);
            b.total_cmp(&a)
        };
        let most = if self.top_k == 0 { order.len() } else { self.top_k.min(order.len()) };
        if !self.cuts_by_top_p() {
            if most < order.len() {
                order.select_nth_unstable_by(most, falling);
            }
            return most;
        }
        // Few tokens have nearly all of the probability: the others need not be sorted.
        let mut kept = most.min(256);
        loop {
            if kept < order.len() {
                order.select_nth_unstable_by(kept, falling);
            }
            let sum: f32 = order[..kept].iter().map(|&t| probabilities[t as usize]).sum();
            if kept == most || sum >= self.top_p {
                break;
            }
            kept = (kept * 8).min(most);
        }
        order[..kept].sort_unstable_by(falling);
        kept
    }
}

/// Memory that draws use again.
#[derive(Default)]
pub(super) struct Scratch {
    probabilities: Vec<f32>,
    order: Vec<Token>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(options: SamplingOptions, probabilities: &[f32]) -> Vec<Token> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let (mut scratch, mut dice) = (Scratch::default(), Dice::new(Some(1)));
        let mut seen: Vec<Token> =
            (0..500).filter_map(|_| options.draw(&logits, &mut dice, &mut scratch)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn filters_leave_what_mistralrs_leaves() {
        let of = [0.4, 0.1, 0.3, 0.15, 0.05];
        let all = SamplingOptions::default();
        assert_eq!(kept(all, &of), [0, 1, 2, 3, 4]);
        assert_eq!(kept(SamplingOptions { top_k: 2, ..all }, &of), [0, 2]);
        // The token that reaches the sum is kept.
        assert_eq!(kept(SamplingOptions { top_p: 0.5, ..all }, &of), [0, 2]);
        assert_eq!(kept(SamplingOptions { top_p: 0.99, min_p: 0.3, ..all }, &of), [0, 2, 3]);
        assert_eq!(kept(SamplingOptions { min_p: 0.3, ..all }, &of), [0, 2, 3]);
    }

    #[test]
    fn nothing_is_drawn_where_nothing_is_allowed() {
        let (mut scratch, mut dice) = (Scratch::default(), Dice::new(None));
        let none = [f32::NEG_INFINITY; 4];
        assert_eq!(SamplingOptions::default().draw(&none, &mut dice, &mut scratch), None);
    }
}
