//! Mixtures in probability space (CombLM: Ormazabal et al. 2023): `(1 - w) * p_host + w * p_tuned`.

use super::distributions::Distributions;
use super::network::Network;
use super::rule::{OnRow, in_host_order};
use super::softmax::log_add;
use super::{Logit, Logits, ProxyRow, Rule, Shift};
use crate::error::{Error, Result};
use std::fmt;

/// Where the tuned proxy's weight comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// Always the same: 0.5 is the mean, another one the paper's constant scalar.
    Constant(f32),
    /// From both distributions, at each position anew: the paper's entropy scalar, made with [`Network`].
    Learned(Network),
}

/// A mixture of the host and the tuned proxy, the paper's domain expert. The untuned proxy has no part in it.
///
/// The weight is multiplied by `alpha`, and is at most 1: 0 is the host alone, 1 the mixture as it was made. Results are
/// log-probabilities. Tokens that the proxy lacks keep the host's probability, and the others share the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture(Weight);

impl Mixture {
    /// # Errors
    /// [`Error::Invalid`] for a constant weight that is not from 0 to 1.
    pub fn new(weight: Weight) -> Result<Self> {
        match weight {
            Weight::Constant(weight) if !(0.0..=1.0).contains(&weight) => {
                Err(Error::invalid("combine.weight", weight, "the tuned proxy's share, 0 to 1"))
            }
            weight => Ok(Self(weight)),
        }
    }

    fn weight(&self, both: &Distributions) -> f32 {
        match &self.0 {
            Weight::Constant(weight) => *weight,
            Weight::Learned(network) => network.weight(both),
        }
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Weight::Constant(weight) => {
                write!(f, "mixture: {} * p(host) + {weight} * p(tuned)", 1.0 - weight)
            }
            Weight::Learned(_) => f.write_str("mixture of p(host) and p(tuned), weighed by a fitted network"),
        }
    }
}

impl Rule for Mixture {
    fn reads(&self) -> [bool; 2] {
        [true, false]
    }

    fn check_alpha(&self, alpha: f32) -> Result<()> {
        let expected = "0 or more, as it multiplies a share of probability; 1 for the mixture as it was made";
        if alpha >= 0.0 { Ok(()) } else { Err(Error::invalid("--alpha", alpha, expected)) }
    }

    fn advise(&self, advice: &mut [f32], [tuned, _]: [ProxyRow<'_>; 2]) -> Result<()> {
        in_host_order(advice, tuned)
    }

    fn apply(&self, host: Logits<'_>, advice: &[f32], alpha: f32) -> Result<Shift> {
        self.apply_to(host, advice, alpha)
    }
}

impl OnRow for Mixture {
    fn on<L: Logit>(&self, host: &mut [L], advice: &[f32], alpha: f32) -> usize {
        let Some(both) = Distributions::of(host, advice) else { return host.len() };
        let weight = alpha * self.weight(&both);
        // A weight that is NaN, or less than nothing, is none.
        let weight = if weight.is_nan() { 0.0 } else { weight.clamp(0.0, 1.0) };
        let (of_host, of_proxy) = ((1.0 - weight).ln(), weight.ln());
        let (host_sum, proxy_sum) = (both.host.log_sum as f32, both.proxy_sum());
        let mut ignored = 0u32;
        L::change(host, |at, row| {
            for (h, &a) in row.iter_mut().zip(&advice[at..]) {
                let own = *h - host_sum;
                let mixed = log_add(own + of_host, a - proxy_sum + of_proxy);
                let log_p = if a < f32::INFINITY { mixed } else { own };
                ignored += u32::from(h.is_nan() | a.is_nan());
                *h = if *h > f32::NEG_INFINITY { log_p } else { f32::NEG_INFINITY };
            }
        });
        ignored as usize
    }
}
