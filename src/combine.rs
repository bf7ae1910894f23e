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
    /// Adds one value a logit, by the rules of the [module](self), and counts those ignored.
    #[doc(hidden)]
    fn add(row: &mut [Self], delta: impl Delta) -> usize;
}

/// What is added to a row.
#[doc(hidden)]
pub trait Delta: Copy {
    /// The values from `at` on, as many as `len`.
    fn part(self, at: usize, len: usize) -> Self;
    fn get(self, i: usize) -> f32;
}

#[derive(Clone, Copy)]
struct Difference<'a> {
    tuned: &'a [f32],
    untuned: &'a [f32],
    alpha: f32,
}

impl Delta for Difference<'_> {
    #[inline(always)]
    fn part(self, at: usize, len: usize) -> Self {
        Self { tuned: &self.tuned[at..][..len], untuned: &self.untuned[at..][..len], ..self }
    }
    #[inline(always)]
    fn get(self, i: usize) -> f32 {
        self.alpha * (self.tuned[i] - self.untuned[i])
    }
}

#[derive(Clone, Copy)]
struct Weighed<'a> {
    offset: &'a [f32],
    alpha: f32,
}

impl Delta for Weighed<'_> {
    #[inline(always)]
    fn part(self, at: usize, len: usize) -> Self {
        Self { offset: &self.offset[at..][..len], ..self }
    }
    #[inline(always)]
    fn get(self, i: usize) -> f32 {
        self.alpha * self.offset[i]
    }
}

impl Logit for f32 {
    #[inline(always)]
    fn add(row: &mut [f32], delta: impl Delta) -> usize {
        let pieces = row.chunks_mut(PIECE).enumerate();
        pieces.map(|(i, piece)| add_piece(piece, delta.part(i * PIECE, piece.len()))).sum()
    }
}

/// Logits taken at a time: small enough for the first-level cache beside the proxies' rows.
const PIECE: usize = 1024;

macro_rules! half_logit {
    ($half:ty, $add_plainly:path) => {
        impl Logit for $half {
            #[inline(always)]
            fn add(row: &mut [$half], delta: impl Delta) -> usize {
                const EXPONENT: u16 = <$half>::INFINITY.to_bits();
                let mut sums = [<$half>::ZERO; PIECE];
                let mut ignored = 0;
                for (i, piece) in row.chunks_mut(PIECE).enumerate() {
                    let delta = delta.part(i * PIECE, piece.len());
                    let sums = &mut sums[..piece.len()];
                    $add_plainly(piece, delta, sums);
                    // The rules concern only sums that are not finite. Those are rare: all else goes without them.
                    if sums.iter().fold(false, |any, x| any | (x.to_bits() & EXPONENT == EXPONENT)) {
                        ignored += add_by_the_rules(piece, delta, <$half>::MAX.to_f32());
                    } else {
                        piece.copy_from_slice(sums);
                    }
                }
                ignored
            }
        }
    };
}
half_logit!(f16, add_plainly_f16);
half_logit!(bf16, add_plainly_bf16);

#[inline(always)]
fn sum(host: f32, delta: f32) -> f32 {
    if delta == 0.0 { host } else { host + delta }
}

/// The sums in f16, by blocks that stay in registers between the conversions.
#[inline(always)]
fn add_plainly_f16(host: &[f16], delta: impl Delta, sums: &mut [f16]) {
    const BLOCK: usize = 8;
    let (blocks, rest) = host.as_chunks::<BLOCK>();
    let (block_sums, rest_sums) = sums.as_chunks_mut::<BLOCK>();
    for (i, (host, sums)) in blocks.iter().zip(block_sums).enumerate() {
        let (mut wide, delta) = ([0.0; BLOCK], delta.part(i * BLOCK, BLOCK));
        host.convert_to_f32_slice(&mut wide);
        sums.convert_from_f32_slice(&std::array::from_fn::<f32, BLOCK, _>(|i| sum(wide[i], delta.get(i))));
    }
    let delta = delta.part(host.len() - rest.len(), rest.len());
    for (i, (h, s)) in rest.iter().zip(rest_sums).enumerate() {
        *s = f16::from_f32(sum(h.to_f32(), delta.get(i)));
    }
}

/// The sums in bf16. The conversions of `half` have branches; these vectorise.
#[inline(always)]
fn add_plainly_bf16(host: &[bf16], delta: impl Delta, sums: &mut [bf16]) {
    for (i, (h, s)) in host.iter().zip(sums).enumerate() {
        let wide = sum(f32::from_bits(u32::from(h.to_bits()) << 16), delta.get(i));
        let bits = wide.to_bits();
        // To the nearest, of two equally near to the even one.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let quiet_nan = bits | 0x40_0000;
        *s = bf16::from_bits(((if wide.is_nan() { quiet_nan } else { rounded }) >> 16) as u16);
    }
}

/// A piece whose sums are not all finite; `max` is the format's largest number.
#[cold]
fn add_by_the_rules<H>(piece: &mut [H], delta: impl Delta, max: f32) -> usize
where
    [H]: HalfFloatSliceExt,
{
    let wide = &mut [0.0; PIECE][..piece.len()];
    piece.convert_to_f32_slice(wide);
    let ignored = add_piece(wide, delta);
    saturate(wide, max);
    piece.convert_from_f32_slice(wide);
    ignored
}

/// Finite values beyond a format's range become its largest: rounding must not create an infinity.
fn saturate(row: &mut [f32], max: f32) {
    for x in row {
        let saturated = if *x > max { max } else { -max };
        *x = if x.abs() > max && x.is_finite() { saturated } else { *x };
    }
}

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
    let ignored = if alpha == 0.0 { 0 } else { L::add(host, Difference { tuned, untuned, alpha }) };
    Ok(Shift { ignored })
}

/// Adds `alpha * offset` to `host`, in place: the shift with `tuned - untuned` taken beforehand.
///
/// # Errors
/// [`Error::Shape`] when the lengths differ; `host` is untouched then.
pub fn shift_by<L: Logit>(host: &mut [L], offset: &[f32], alpha: f32) -> Result<Shift> {
    same_length("offset", offset.len(), host.len())?;
    let ignored = if alpha == 0.0 { 0 } else { L::add(host, Weighed { offset, alpha }) };
    Ok(Shift { ignored })
}

/// Writes `tuned - untuned` over the host's vocabulary into `offset`, through each proxy's token map.
///
/// A token that either proxy lacks gets 0. The rows of the proxies have the lengths their maps were made for.
///
/// # Errors
/// [`Error::Shape`] when a row's length is not its map's.
pub fn offset(offset: &mut [f32], tuned: (&[f32], &TokenMap), untuned: (&[f32], &TokenMap)) -> Result<()> {
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
fn add_piece(host: &mut [f32], delta: impl Delta) -> usize {
    let mut ignored = 0u32;
    for (i, h) in host.iter_mut().enumerate() {
        let d = delta.get(i);
        let sum = *h + d;
        let unusable = sum.is_nan() | (sum == f32::INFINITY);
        ignored += u32::from(unusable);
        *h = if unusable | (d == 0.0) { *h } else { sum };
    }
    ignored as usize
}

fn same_length(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Shape { what, got, expected }) }
}

/// Index of the largest logit; of equals the first. 0 for an empty row; NaN is never the largest.
pub fn argmax(row: &[f32]) -> usize {
    // First the value, in independent lanes so that it vectorises, then its place, block by block.
    const LANES: usize = 32;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], block[i]);
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    let has_max = |block: &[f32; LANES]| block.iter().fold(false, |found, &x| found | (x == max));
    let from = blocks.iter().position(has_max).unwrap_or(blocks.len()) * LANES;
    row[from..].iter().position(|&x| x == max).map_or(0, |at| from + at)
}
