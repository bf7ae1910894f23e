//! What may be spent on an API, and what was.

use crate::error::{Error, Result};
use crate::host::blackbox::Spent;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What may be spent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Requests, repeated ones included.
    pub requests: Option<u64>,
    /// Cost, in the currency of the prices.
    pub cost: Option<f64>,
    /// Price of a million tokens read, and of a million written.
    pub price: Option<[f64; 2]>,
}

impl Limits {
    /// Checks that they can be held.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let is_price = |p: &f64| p.is_finite() && *p >= 0.0;
        if let Some(price) = self.price.filter(|p| !p.iter().all(is_price)) {
            return Err(Error::invalid("--price", format!("{price:?}"), "two numbers of 0 or more"));
        }
        match self.cost {
            Some(cost) if !is_price(&cost) => {
                Err(Error::invalid("--max-cost", cost, "a number of 0 or more"))
            }
            Some(_) if self.price.is_none() => {
                let expected = "--price IN,OUT beside it: what a million tokens cost, read and written";
                Err(Error::invalid("--max-cost", "no price", expected))
            }
            _ => Ok(()),
        }
    }

    fn cost(&self, prompt: u64, completion: u64) -> f64 {
        let [read, written] = self.price.unwrap_or_default();
        (prompt as f64 * read + completion as f64 * written) / 1e6
    }
}

/// Counts what is spent, and refuses what would go beyond.
#[derive(Debug, Default)]
pub struct Budget {
    limits: Limits,
    spent: Mutex<Spent>,
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Self { limits, spent: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn spent(&self) -> Spent {
        *self.lock()
    }

    /// Counts a request that is about to be sent, which will read and write about so many tokens.
    ///
    /// # Errors
    /// [`Error::Budget`] where that would be too much; it is not counted then.
    pub fn request(&self, (prompt, completion): (u64, u64), is_retry: bool) -> Result<()> {
        let mut spent = self.lock();
        if let Some(most) = self.limits.requests.filter(|&most| spent.requests >= most) {
            return Err(Error::Budget { what: format!("--max-requests {most} is used up") });
        }
        let next = self.limits.cost(prompt, completion);
        if let Some(most) = self.limits.cost.filter(|&most| spent.cost + next > most) {
            let what = format!(
                "--max-cost {most} has {:.6} left, the next request takes {next:.6}",
                most - spent.cost
            );
            return Err(Error::Budget { what });
        }
        spent.requests += 1;
        spent.retries += u64::from(is_retry);
        Ok(())
    }

    /// Counts the tokens of an answer.
    pub fn tokens(&self, prompt: u64, completion: u64) {
        let mut spent = self.lock();
        // An API may say anything.
        spent.prompt_tokens = spent.prompt_tokens.saturating_add(prompt);
        spent.completion_tokens = spent.completion_tokens.saturating_add(completion);
        spent.cost += self.limits.cost(prompt, completion);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_cost_end_where_they_were_told_to() {
        let limits = Limits { requests: Some(3), cost: Some(1.0), price: Some([1e5, 2e5]) };
        limits.check().unwrap();
        let budget = Budget::new(limits);
        budget.request((4, 1), false).unwrap();
        budget.tokens(4, 1);
        assert_eq!(
            budget.spent(),
            Spent { requests: 1, prompt_tokens: 4, completion_tokens: 1, cost: 0.6, ..Spent::default() }
        );
        assert!(
            matches!(budget.request((4, 1), true), Err(Error::Budget { what }) if what.contains("--max-cost"))
        );
        budget.request((2, 1), true).unwrap();
        budget.request((0, 0), false).unwrap();
        assert!(
            matches!(budget.request((0, 0), false), Err(Error::Budget { what }) if what.contains("--max-requests"))
        );
        assert_eq!((budget.spent().requests, budget.spent().retries), (3, 1));
    }

    #[test]
    fn a_cost_needs_prices() {
        assert!(Limits { cost: Some(1.0), ..Limits::default() }.check().is_err());
        assert!(Limits { price: Some([-1.0, 0.0]), ..Limits::default() }.check().is_err());
        assert!(
            Limits { cost: Some(f64::NAN), price: Some([1.0, 1.0]), ..Limits::default() }.check().is_err()
        );
    }
}
