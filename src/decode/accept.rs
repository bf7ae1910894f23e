//! Speculative sampling (Leviathan et al. 2023, section 2.3): what a draft proposes, the target accepts or replaces, so
//! that the tokens kept are distributed exactly as if the target had drawn them itself.
//!
//! Distributions are dense: one probability for each token of the vocabulary, 0 for those that a filter removed. They
//! need not add up to exactly 1.

use crate::vocab::Token;
use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};
use std::hash::{BuildHasher, RandomState};

/// The random numbers of one sequence: the same for the same seed, on every machine.
#[derive(Debug, Clone)]
pub struct Dice(Pcg64);

impl Dice {
    /// Fixed by `seed`; without one, others each time.
    pub fn new(seed: Option<u64>) -> Self {
        // The standard library's hasher starts from the system's random numbers.
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        Self(Pcg64::seed_from_u64(seed))
    }

    /// Uniform in 0..1.
    pub fn roll(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A token drawn by weights, of which only positive ones count. `None` when there is none.
    pub fn draw(&mut self, weights: impl Iterator<Item = f32> + Clone) -> Option<Token> {
        let positive = || weights.clone().map(f64::from).enumerate().filter(|&(_, w)| w > 0.0);
        let total: f64 = positive().map(|(_, w)| w).sum();
        let mut left = self.roll() * total;
        let mut last = None;
        for (token, weight) in positive() {
            last = Some(token as Token);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// What became of a drafted token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Accepted,
    /// This one takes its place, and nothing drafted after it counts.
    Replaced(Token),
}

/// Judges a token that was drawn from `draft` and is to be distributed by `target`.
///
/// It stays with probability `min(1, target / draft)`; else its replacement is drawn from what the target has more of
/// than the draft, `max(0, target - draft)`.
pub fn judge(target: &[f32], draft: &[f32], drafted: Token, dice: &mut Dice) -> Verdict {
    let [p, q] = [target, draft].map(|of| of.get(drafted as usize).map_or(0.0, |&x| f64::from(x)));
    if dice.roll() * q < p {
        return Verdict::Accepted;
    }
    let residual = target.iter().zip(draft).map(|(p, q)| p - q);
    // No residual means equal distributions: a rejection is rounding then.
    dice.draw(residual).map_or(Verdict::Accepted, Verdict::Replaced)
}
