//! The shift with a cap on what it does to any one token.

use super::{Delta, Logit, Shift, Weighed, same_length};
use crate::error::Result;

/// Values held within bounds; NaN stays NaN.
#[derive(Clone, Copy)]
struct Limited<D> {
    delta: D,
    low: f32,
    high: f32,
}

impl<D: Delta> Delta for Limited<D> {
    #[inline(always)]
    fn part(self, at: usize, len: usize) -> Self {
        Self { delta: self.delta.part(at, len), ..self }
    }
    #[inline(always)]
    fn get(self, i: usize) -> f32 {
        let d = self.delta.get(i);
        let d = if d < self.low { self.low } else { d };
        if d > self.high { self.high } else { d }
    }
}

/// Adds `alpha * offset` to `host`, in place, with each value held within `cap` of the one at the host's most likely token:
/// against that token none gains or loses more than `cap` nats, a factor of `e^cap` in odds.
///
/// It is measured from there, not from 0, because logits are known up to a constant only: one that the tuned proxy has on
/// all tokens would use up the cap and change nothing. `None`: as [`shift_by`](super::shift_by).
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when the lengths differ; `host` is untouched then.
pub fn shift_by_within<L: Logit>(
    host: &mut [L],
    offset: &[f32],
    alpha: f32,
    cap: Option<f32>,
) -> Result<Shift> {
    let Some(cap) = cap.filter(|_| alpha != 0.0) else { return super::shift_by(host, offset, alpha) };
    same_length("offset", offset.len(), host.len())?;
    let (mut top, mut best) = (0, f32::NEG_INFINITY);
    for (i, &logit) in host.iter().enumerate() {
        let logit: f32 = logit.into();
        if logit > best {
            (top, best) = (i, logit);
        }
    }
    let centre = offset.get(top).map(|o| alpha * o).filter(|c| c.is_finite()).unwrap_or(0.0);
    let delta = Limited { delta: Weighed { offset, alpha }, low: centre - cap, high: centre + cap };
    Ok(Shift { ignored: L::add(host, delta) })
}

#[cfg(test)]
mod tests {
    use super::super::shift_by;
    use super::*;
    use half::{bf16, f16};

    const HOST: [f32; 5] = [1.0, 4.0, 0.5, f32::NEG_INFINITY, 2.0];
    const OFFSET: [f32; 5] = [9.0, 1.0, -9.0, 9.0, f32::NAN];

    #[test]
    fn no_token_moves_further_than_the_cap_against_the_hosts_first() {
        let mut row = HOST;
        let shift = shift_by_within(&mut row, &OFFSET, 1.0, Some(3.0)).unwrap();
        // Around 1, what the most likely token gets.
        assert_eq!(row[..4], [5.0, 5.0, -1.5, f32::NEG_INFINITY]);
        assert_eq!((row[4], shift.ignored), (2.0, 1));
        let mut half = HOST.map(f16::from_f32);
        shift_by_within(&mut half, &OFFSET, 1.0, Some(3.0)).unwrap();
        assert_eq!(half.map(f16::to_f32), row);
        let mut brain = HOST.map(bf16::from_f32);
        shift_by_within(&mut brain, &OFFSET, 1.0, Some(3.0)).unwrap();
        assert_eq!(brain.map(bf16::to_f32), row);
    }

    #[test]
    fn a_constant_on_all_tokens_uses_up_nothing_of_the_cap() {
        let offset = [0.25, -0.5, 1.0, 0.5, 0.0];
        let (mut plain, mut raised) = (HOST, HOST);
        shift_by_within(&mut plain, &offset, 2.0, Some(1.0)).unwrap();
        shift_by_within(&mut raised, &offset.map(|o| o + 64.0), 2.0, Some(1.0)).unwrap();
        assert_eq!(raised, plain.map(|x| x + 128.0));
    }

    #[test]
    fn a_cap_that_nothing_reaches_changes_no_bit_and_alpha_0_none_at_all() {
        let (mut capped, mut plain) = (HOST, HOST);
        shift_by_within(&mut capped, &OFFSET[..5], 0.37, Some(100.0)).unwrap();
        shift_by(&mut plain, &OFFSET, 0.37).unwrap();
        assert_eq!(capped.map(f32::to_bits), plain.map(f32::to_bits));
        let mut same = HOST;
        shift_by_within(&mut same, &OFFSET, 0.0, Some(0.1)).unwrap();
        assert_eq!(same, HOST);
        // The top's own shift may be unusable; the cap then counts from 0.
        let mut row = [1.0f32, 0.0];
        shift_by_within(&mut row, &[f32::NAN, 50.0], 1.0, Some(2.0)).unwrap();
        assert_eq!(row, [1.0, 2.0]);
        assert!(shift_by_within(&mut row, &[0.0], 1.0, Some(2.0)).is_err());
    }
}
