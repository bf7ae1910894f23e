//! The trait of all ways to combine, and proxy-tuning's.

use super::{Logit, Shift, offset, same_length, shift, shift_by, shift_by_within};
use crate::error::{Error, Result};
use crate::vocab::TokenMap;
use half::{bf16, f16};
use std::fmt;

/// What stands in advice for a token that a proxy lacks, but in proxy-tuning's. Such a proxy is taken to agree with the host
/// on it.
pub const UNKNOWN: f32 = f32::INFINITY;

/// A proxy's row over its own vocabulary, and where the host's tokens stand in it. The row of a proxy that a rule does
/// not [read](Rule::reads) is empty.
pub type ProxyRow<'a> = (&'a [f32], &'a TokenMap);

/// A way to combine the host's row of logits with those of the proxies.
///
/// It comes in two steps, since they happen in different places: whoever runs the proxies makes one row of *advice* of
/// what they say, over the host's vocabulary; whoever has the host's row [applies](Self::apply) the advice to it.
///
/// What holds for every rule: with `alpha` 0 a row keeps its bits. A host logit of -inf stays -inf. No result is NaN or
/// +inf where the host's logit was neither. A token that a proxy lacks is left to the host. What of the advice
/// cannot be used is counted in [`Shift::ignored`].
pub trait Rule: fmt::Debug + fmt::Display + Send + Sync {
    /// Whether it looks at the tuned, and at the untuned proxy; one that no rule reads need not run.
    fn reads(&self) -> [bool; 2];

    /// Whether `alpha` times the advice is added to the logits, and that is all. Engines that take offsets, not rows,
    /// can serve no other rule.
    fn is_offset(&self) -> bool {
        false
    }

    /// What stands in advice for a token that a proxy lacks.
    fn unknown(&self) -> f32 {
        UNKNOWN
    }

    /// Checks a weight beyond its being finite.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a weight that means nothing under this rule.
    fn check_alpha(&self, _alpha: f32) -> Result<()> {
        Ok(())
    }

    /// Writes what the tuned and the untuned proxy say into `advice`, one value for each of the host's tokens.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the row of a proxy that it reads, or `advice`, has another length than
    /// its map says.
    fn advise(&self, advice: &mut [f32], proxies: [ProxyRow<'_>; 2]) -> Result<()>;

    /// Combines the host's logits with advice, in place.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when the lengths differ; `host` is untouched then.
    fn apply(&self, host: Logits<'_>, advice: &[f32], alpha: f32) -> Result<Shift>;

    /// [`apply`](Self::apply) with a cap on what any token may gain or lose ([`shift_by_within`]).
    ///
    /// # Errors
    /// As [`apply`](Self::apply); [`Error::Invalid`](crate::Error::Invalid) for a cap under a rule that is no offset.
    fn apply_within(&self, host: Logits<'_>, advice: &[f32], alpha: f32, cap: Option<f32>) -> Result<Shift> {
        self.check_cap(cap)?;
        self.apply(host, advice, alpha)
    }

    /// Checks a cap.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for one under a rule that is no offset.
    fn check_cap(&self, cap: Option<f32>) -> Result<()> {
        let Some(cap) = cap.filter(|_| !self.is_offset()) else { return Ok(()) };
        let name = self.to_string();
        let expected = format!("no cap beside another rule than proxy-tuning; this is {name}");
        Err(Error::invalid("shift_cap", cap, expected))
    }

    /// Both steps at once. `scratch` is used where the advice has to be written down.
    ///
    /// # Errors
    /// As [`advise`](Self::advise); `host` is untouched then.
    fn combine(
        &self,
        host: &mut [f32],
        proxies: [ProxyRow<'_>; 2],
        alpha: f32,
        scratch: &mut Vec<f32>,
    ) -> Result<Shift> {
        scratch.resize(host.len(), 0.0);
        self.advise(scratch, proxies)?;
        self.apply(Logits::F32(host), scratch, alpha)
    }
}

/// A row of logits in one of the formats that engines have them in.
#[derive(Debug)]
pub enum Logits<'a> {
    /// IEEE 754 single precision.
    F32(&'a mut [f32]),
    /// IEEE 754 half precision.
    F16(&'a mut [f16]),
    /// The upper half of single precision.
    Bf16(&'a mut [bf16]),
}

impl Logits<'_> {
    /// Number of logits.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(row) => row.len(),
            Self::F16(row) => row.len(),
            Self::Bf16(row) => row.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a rule does to a row, whatever its format.
pub(super) trait OnRow {
    /// Returns how much of the advice could not be used. The lengths are equal.
    fn on<L: Logit>(&self, host: &mut [L], advice: &[f32], alpha: f32) -> usize;

    fn apply_to(&self, host: Logits<'_>, advice: &[f32], alpha: f32) -> Result<Shift> {
        same_length("advice", advice.len(), host.len())?;
        if alpha == 0.0 {
            return Ok(Shift::default());
        }
        let ignored = match host {
            Logits::F32(row) => self.on(row, advice, alpha),
            Logits::F16(row) => self.on(row, advice, alpha),
            Logits::Bf16(row) => self.on(row, advice, alpha),
        };
        Ok(Shift { ignored })
    }
}

/// The logits of one proxy in the host's order.
pub(super) fn in_host_order(advice: &mut [f32], (row, map): ProxyRow<'_>) -> Result<()> {
    same_length("proxy", row.len(), map.proxy_len())?;
    same_length("host", advice.len(), map.host_len())?;
    if map.is_identity() {
        advice.copy_from_slice(row);
    } else {
        let of = |&id: &u32| row.get(id as usize).copied().unwrap_or(UNKNOWN);
        advice.iter_mut().zip(map.ids()).for_each(|(advice, id)| *advice = of(id));
    }
    Ok(())
}

/// Proxy-tuning (Liu et al. 2024): `h + alpha * (t - u)`. The advice is `t - u`; 0 for a token that a proxy lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProxyTuning;

impl fmt::Display for ProxyTuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("proxy-tuning: host + alpha * (tuned - untuned)")
    }
}

impl Rule for ProxyTuning {
    fn reads(&self) -> [bool; 2] {
        [true; 2]
    }

    fn is_offset(&self) -> bool {
        true
    }

    fn unknown(&self) -> f32 {
        0.0
    }

    fn advise(&self, advice: &mut [f32], [tuned, untuned]: [ProxyRow<'_>; 2]) -> Result<()> {
        offset(advice, tuned, untuned)
    }

    fn apply(&self, host: Logits<'_>, advice: &[f32], alpha: f32) -> Result<Shift> {
        self.apply_within(host, advice, alpha, None)
    }

    fn apply_within(&self, host: Logits<'_>, advice: &[f32], alpha: f32, cap: Option<f32>) -> Result<Shift> {
        match host {
            Logits::F32(row) => shift_by_within(row, advice, alpha, cap),
            Logits::F16(row) => shift_by_within(row, advice, alpha, cap),
            Logits::Bf16(row) => shift_by_within(row, advice, alpha, cap),
        }
    }

    fn combine(
        &self,
        host: &mut [f32],
        [tuned, untuned]: [ProxyRow<'_>; 2],
        alpha: f32,
        scratch: &mut Vec<f32>,
    ) -> Result<Shift> {
        // Where the vocabularies are one, the difference need not be written down.
        if tuned.1.is_identity() && untuned.1.is_identity() {
            return shift(host, tuned.0, untuned.0, alpha);
        }
        scratch.resize(host.len(), 0.0);
        offset(scratch, tuned, untuned)?;
        shift_by(host, scratch, alpha)
    }
}
