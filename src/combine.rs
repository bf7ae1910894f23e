//! The shift itself: `h += alpha * (t - u)`, in place (Liu et al. 2024, section 2).
//!
//! Rows are logits over one vocabulary: `host` in f32, f16 or bf16, the proxies' in f32. Nothing is allocated.
//!
//! Rules for what is not a number, held for every format:
//! - a host logit of -inf stays -inf (a grammar or a mask put it there);
//! - where the shift is NaN (inf - inf, a proxy that returned NaN) or would make the result NaN or +inf, the
//!   host's logit stays as it is, and the position is counted in [`Shift::ignored`];
//! - a shift of exactly zero leaves the host's bits untouched, so `alpha = 0` and `tuned = untuned` are identities.

use crate::error::{Error, Result};
use crate::vocab::TokenMap;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// What one application of the shift did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shift {
    /// Logits left as the host had them because the shift was NaN or would have made them NaN or +inf.
    pub ignored: usize,
}

/// A format of host logits.
pub trait Logit: Copy + Send + Sync + 'static {
    /// Runs `kernel` on f32 values of `row`, piece by piece, and stores what it leaves there.
    ///
    /// `kernel` gets the index of the piece's first logit and the piece.
    #[doc(hidden)]
    fn in_f32(row: &mut [Self], kernel: impl FnMut(usize, &mut [f32]));
}

impl Logit for f32 {
    #[inline(always)]
    fn in_f32(row: &mut [f32], mut kernel: impl FnMut(usize, &mut [f32])) {
        kernel(0, row);
    }
}

/// Logits widened at a time: small enough for the first-level cache beside the proxies' rows.
const PIECE: usize = 1024;

macro_rules! half_logit {
    ($half:ty) => {
        impl Logit for $half {
            #[inline(always)]
            fn in_f32(row: &mut [$half], mut kernel: impl FnMut(usize, &mut [f32])) {
                let max = <$half>::MAX.to_f32();
                let mut wide = [0.0f32; PIECE];
                for (i, piece) in row.chunks_mut(PIECE).enumerate() {
                    let wide = &mut wide[..piece.len()];
                    piece.convert_to_f32_slice(wide);
                    kernel(i * PIECE, wide);
                    // A finite sum beyond the format's range saturates: rounding must not create an infinity.
                    for x in wide.iter_mut() {
                        let saturated = if *x > max { max } else { -max };
                        *x = if x.abs() > max && x.is_finite() { saturated } else { *x };
                    }
                    piece.convert_from_f32_slice(wide);
                }
            }
        }
    };
}
half_logit!(f16);
half_logit!(bf16);

/// Adds `alpha * (tuned - untuned)` to `host`, in place.
///
/// All three rows have the length of the vocabulary, in the same order; for proxies with other vocabularies take
/// [`offset`] first, then [`shift_by`].
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; `host` is untouched then.
pub fn shift<L: Logit>(host: &mut [L], tuned: &[f32], untuned: &[f32], alpha: f32) -> Result<Shift> {
    same_length("tuned proxy", tuned.len(), host.len())?;
    same_length("untuned proxy", untuned.len(), host.len())?;
    let mut ignored = 0;
    if alpha != 0.0 {
        L::in_f32(host, |at, h| {
            let (t, u) = (&tuned[at..][..h.len()], &untuned[at..][..h.len()]);
            ignored += add(h, |i| alpha * (t[i] - u[i]));
        });
    }
    Ok(Shift { ignored })
}

/// Adds `alpha * offset` to `host`, in place: the shift with `tuned - untuned` taken beforehand.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; `host` is untouched then.
pub fn shift_by<L: Logit>(host: &mut [L], offset: &[f32], alpha: f32) -> Result<Shift> {
    same_length("offset", offset.len(), host.len())?;
    let mut ignored = 0;
    if alpha != 0.0 {
        L::in_f32(host, |at, h| {
            let d = &offset[at..][..h.len()];
            ignored += add(h, |i| alpha * d[i]);
        });
    }
    Ok(Shift { ignored })
}

/// Writes `tuned - untuned` over the host's vocabulary into `offset`, through each proxy's token map.
///
/// A token that either proxy lacks gets 0. The rows of the proxies have the lengths their maps were made for.
///
/// # Errors
/// [`Error::Shape`] when a row's length is not its map's.
pub fn offset(
    offset: &mut [f32],
    tuned: (&[f32], &TokenMap),
    untuned: (&[f32], &TokenMap),
) -> Result<()> {
    for (row, map) in [tuned, untuned] {
        same_length("proxy", row.len(), map.proxy_len())?;
        same_length("host", offset.len(), map.host_len())?;
    }
    if tuned.1.is_identity() && untuned.1.is_identity() {
        let rows = tuned.0.iter().zip(untuned.0);
        offset.iter_mut().zip(rows).for_each(|(o, (t, u))| *o = t - u);
    } else {
        let ids = tuned.1.ids().iter().zip(untuned.1.ids());
        for (o, (&t, &u)) in offset.iter_mut().zip(ids) {
            *o = match (tuned.0.get(t as usize), untuned.0.get(u as usize)) {
                (Some(t), Some(u)) => t - u,
                _ => 0.0,
            };
        }
    }
    Ok(())
}

/// Adds one value a logit and counts the values that could not be used. Branch-free, so that it vectorises.
#[inline(always)]
fn add(host: &mut [f32], delta: impl Fn(usize) -> f32) -> usize {
    let mut total = 0;
    for (at, piece) in host.chunks_mut(PIECE).enumerate() {
        let mut ignored = 0u32;
        for (i, h) in piece.iter_mut().enumerate() {
            let d = delta(at * PIECE + i);
            let sum = *h + d;
            let unusable = sum.is_nan() | (sum == f32::INFINITY);
            ignored += u32::from(unusable);
            *h = if unusable | (d == 0.0) { *h } else { sum };
        }
        total += ignored as usize;
    }
    total
}

fn same_length(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Shape { what, got, expected }) }
}

/// Index of the largest logit; of equals the first. 0 for an empty row; NaN is never the largest.
pub fn argmax(row: &[f32]) -> usize {
    // First the value, in independent lanes so that it vectorises, then its place.
    const LANES: usize = 32;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let pieces = row.chunks_exact(LANES);
    let rest = pieces.remainder();
    for piece in pieces {
        for (lane, &x) in lanes.iter_mut().zip(piece) {
            *lane = larger(*lane, x);
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    row.iter().position(|&x| x == max).unwrap_or(0)
}
