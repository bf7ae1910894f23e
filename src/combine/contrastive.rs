//! Contrastive decoding (Li et al. 2022, section 3): what an expert likes better than an amateur, among what the expert
//! itself holds plausible.

use super::distributions::Distributions;
use super::rule::{OnRow, in_host_order};
use super::{Logit, Logits, ProxyRow, Rule, Shift};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which proxy is the amateur.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amateur {
    /// The tuned one.
    Tuned,
    /// The untuned one: a small model of the host's family, as it is.
    #[default]
    Untuned,
}

/// The host is the expert. The score is `h - alpha * ln p_amateur` for tokens with at least `mask` times the probability
/// of the host's most likely token, and -inf for all others.
///
/// With `alpha` 1 this is the paper's `ln p_expert - ln p_amateur`; its amateur at temperature `T` is `alpha = 1 / T`.
/// The host's most likely token always stays. A token that the amateur lacks it is taken to find as likely as the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrastive {
    mask: f32,
    amateur: Amateur,
}

impl Contrastive {
    /// The paper's mask, there called alpha.
    pub const MASK: f32 = 0.1;

    /// # Errors
    /// [`Error::Invalid`] for a mask that is not from 0 to 1.
    pub fn new(mask: f32, amateur: Amateur) -> Result<Self> {
        if !(0.0..=1.0).contains(&mask) {
            let expected = "a share of the host's largest probability, 0 to 1; 0.1 as in the paper";
            return Err(Error::invalid("combine.mask", mask, expected));
        }
        Ok(Self { mask, amateur })
    }
}

impl fmt::Display for Contrastive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amateur = if self.amateur == Amateur::Tuned { "tuned" } else { "untuned" };
        write!(f, "contrastive decoding: ln host - alpha * ln {amateur}, mask {}", self.mask)
    }
}

impl Rule for Contrastive {
    fn reads(&self) -> [bool; 2] {
        [self.amateur == Amateur::Tuned, self.amateur == Amateur::Untuned]
    }

    fn advise(&self, advice: &mut [f32], [tuned, untuned]: [ProxyRow<'_>; 2]) -> Result<()> {
        in_host_order(advice, if self.amateur == Amateur::Tuned { tuned } else { untuned })
    }

    fn apply(&self, host: Logits<'_>, advice: &[f32], alpha: f32) -> Result<Shift> {
        self.apply_to(host, advice, alpha)
    }
}

impl OnRow for Contrastive {
    fn on<L: Logit>(&self, host: &mut [L], advice: &[f32], alpha: f32) -> usize {
        let Some(both) = Distributions::of(host, advice) else { return host.len() };
        let plausible = both.host.max + self.mask.ln();
        let (host_sum, amateur_sum) = (both.host.log_sum as f32, both.proxy_sum());
        let mut ignored = 0u32;
        L::change(host, |at, row| {
            for (h, &a) in row.iter_mut().zip(&advice[at..]) {
                let is_known = a.is_finite();
                let log_p = if is_known { a - amateur_sum } else { *h - host_sum };
                let score = *h - alpha * log_p;
                let is_usable = score < f32::INFINITY;
                // A weight beyond all measure must not leave a row without any token.
                let score = if is_usable { score.max(f32::MIN) } else { *h };
                // False for NaN as well.
                let stays = *h >= plausible;
                ignored += u32::from(stays & !((is_known | (a == f32::INFINITY)) & is_usable));
                *h = if stays & (*h > f32::NEG_INFINITY) { score } else { f32::NEG_INFINITY };
            }
        });
        ignored as usize
    }
}
