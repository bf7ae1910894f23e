//! The shift itself: `h += alpha * (t - u)`, in place (Liu et al. 2024, section 2); and, behind the trait [`Rule`], other ways to
//! combine a host with its proxies.
//!
//! Rows are logits over one vocabulary: `host` in f32, f16 or bf16, the proxies' in f32. Nothing is allocated.
//!
//! Rules for what is not a number, held for every format:
//! - a host logit of -inf stays -inf (a grammar or a mask put it there);
//! - where the shift is NaN (inf - inf, a proxy that returned NaN) or would make the result NaN or +inf, the
//!   host's logit stays as it is, and the position is counted in [`Shift::ignored`];
//! - a shift of exactly zero leaves the host's bits untouched, so `alpha = 0` and `tuned = untuned` are identities.

mod contrastive;
mod control;
mod distributions;
mod limit;
mod mixture;
mod network;
mod options;
mod rule;
mod softmax;

pub use contrastive::{Amateur, Contrastive};
pub use control::{Control, Schedule};
pub use distributions::{Distributions, Softmax};
pub use limit::shift_by_within;
pub use mixture::{Mixture, Weight};
pub use network::{Features, Network, sigmoid};
pub use options::{RuleName, RuleOptions};
pub use rule::{Logits, ProxyRow, ProxyTuning, Rule, UNKNOWN};
pub use softmax::{log_sum_exp, log_sum_exp_of_numbers, softmax};

use crate::error::{Error, Result};
use crate::vocab::TokenMap;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// What one application of the shift did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shift {
    /// Logits left as the host had them because the shift was NaN or would have made them NaN or +inf. Under another
    /// [`Rule`]: those of which the advice could not be used.
    pub ignored: usize,
}

/// A format of host logits.
pub trait Logit: Copy + Into<f32> + Send + Sync + 'static {
    /// Adds one value a logit, by the rules of the [module](self), and counts those ignored.
    #[doc(hidden)]
    fn add(row: &mut [Self], delta: impl Delta) -> usize;

    /// A row whose format is told at run time.
    #[doc(hidden)]
    fn of_row(row: &mut [Self]) -> Logits<'_>;

    /// Hands the row to `visit` in f32, piece by piece, each with where it begins.
    #[doc(hidden)]
    fn read(row: &[Self], visit: impl FnMut(usize, &[f32]));

    /// The same for what `change` does to it; what is beyond the format's range becomes its largest number.
    #[doc(hidden)]
    fn change(row: &mut [Self], change: impl FnMut(usize, &mut [f32]));
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
        add_each(row, delta.part(0, row.len()))
    }
    fn of_row(row: &mut [f32]) -> Logits<'_> {
        Logits::F32(row)
    }
    fn read(row: &[f32], mut visit: impl FnMut(usize, &[f32])) {
        visit(0, row);
    }
    fn change(row: &mut [f32], mut change: impl FnMut(usize, &mut [f32])) {
        change(0, row);
    }
}

/// A format of 16 bits.
trait Half: Logit {
    const MAX: f32;
    /// Bits of the infinity; without the sign, only NaN has larger ones.
    const INFINITY: u16;
    fn bits(self) -> u16;
    fn widen(halves: &[Self], wide: &mut [f32]);
    /// Rounds to the nearest, of two equally near to the even one. What comes of NaN may be NaN or zero.
    fn narrow(wide: &[f32], halves: &mut [Self]);
}

/// Halves taken at a time: the most that stay in vector registers from one conversion to the other.
const BLOCK: usize = 128;

#[inline(always)]
fn add_halves<H: Half>(row: &mut [H], delta: impl Delta) -> usize {
    let (blocks, rest) = row.as_chunks_mut::<BLOCK>();
    let in_blocks = blocks.len() * BLOCK;
    let mut ignored = add_by_the_rules(rest, delta.part(in_blocks, rest.len()));
    for (i, block) in blocks.iter_mut().enumerate() {
        ignored += add_block(block, delta.part(i * BLOCK, BLOCK));
    }
    ignored
}

/// The rules concern only sums that are not finite, and zeros: `-0.0 + 0.0` would lose its sign. Those are
/// rare: a block without them is added plainly.
#[inline(always)]
fn add_block<H: Half>(host: &mut [H; BLOCK], delta: impl Delta) -> usize {
    let (mut wide, mut sums) = ([0.0; BLOCK], *host);
    H::widen(host, &mut wide);
    wide.iter_mut().enumerate().for_each(|(i, x)| *x += delta.get(i));
    H::narrow(&wide, &mut sums);
    // One comparison for both: without the sign, and less one, zero has the largest bits of all.
    let special = |sum: &H| (sum.bits() << 1).wrapping_sub(1) >= (H::INFINITY << 1) - 1;
    if sums.iter().fold(false, |any, sum| any | special(sum)) {
        return add_by_the_rules(host, delta);
    }
    *host = sums;
    0
}

/// At most a block, by the rules; their result has no NaN but the host's own.
#[inline(always)]
fn add_by_the_rules<H: Half>(host: &mut [H], delta: impl Delta) -> usize {
    let wide = &mut [0.0; BLOCK][..host.len()];
    H::widen(host, wide);
    let ignored = add_each(wide, delta);
    saturate(wide, H::MAX);
    H::narrow(wide, host);
    ignored
}

fn read_halves<H: Half>(row: &[H], mut visit: impl FnMut(usize, &[f32])) {
    for (i, halves) in row.chunks(BLOCK).enumerate() {
        let wide = &mut [0.0; BLOCK][..halves.len()];
        H::widen(halves, wide);
        visit(i * BLOCK, wide);
    }
}

fn change_halves<H: Half>(row: &mut [H], mut change: impl FnMut(usize, &mut [f32])) {
    for (i, halves) in row.chunks_mut(BLOCK).enumerate() {
        let wide = &mut [0.0; BLOCK][..halves.len()];
        H::widen(halves, wide);
        change(i * BLOCK, wide);
        saturate(wide, H::MAX);
        H::narrow(wide, halves);
    }
}

impl Logit for f16 {
    #[inline(always)]
    fn add(row: &mut [f16], delta: impl Delta) -> usize {
        add_halves(row, delta)
    }
    fn of_row(row: &mut [f16]) -> Logits<'_> {
        Logits::F16(row)
    }
    fn read(row: &[f16], visit: impl FnMut(usize, &[f32])) {
        read_halves(row, visit);
    }
    fn change(row: &mut [f16], change: impl FnMut(usize, &mut [f32])) {
        change_halves(row, change);
    }
}

impl Half for f16 {
    const MAX: f32 = f16::MAX.to_f32_const();
    const INFINITY: u16 = f16::INFINITY.to_bits();
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
    #[inline(always)]
    fn widen(halves: &[f16], wide: &mut [f32]) {
        halves.convert_to_f32_slice(wide);
    }
    #[inline(always)]
    fn narrow(wide: &[f32], halves: &mut [f16]) {
        halves.convert_from_f32_slice(wide);
    }
}

impl Logit for bf16 {
    #[inline(always)]
    fn add(row: &mut [bf16], delta: impl Delta) -> usize {
        add_halves(row, delta)
    }
    fn of_row(row: &mut [bf16]) -> Logits<'_> {
        Logits::Bf16(row)
    }
    fn read(row: &[bf16], visit: impl FnMut(usize, &[f32])) {
        read_halves(row, visit);
    }
    fn change(row: &mut [bf16], change: impl FnMut(usize, &mut [f32])) {
        change_halves(row, change);
    }
}

/// The conversions of `half` have branches for this format; these vectorise.
impl Half for bf16 {
    const MAX: f32 = bf16::MAX.to_f32_const();
    const INFINITY: u16 = bf16::INFINITY.to_bits();
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
    #[inline(always)]
    fn widen(halves: &[bf16], wide: &mut [f32]) {
        for (h, w) in halves.iter().zip(wide) {
            *w = f32::from_bits(u32::from(h.to_bits()) << 16);
        }
    }
    #[inline(always)]
    fn narrow(wide: &[f32], halves: &mut [bf16]) {
        for (w, h) in wide.iter().zip(halves) {
            // The half that stays turns low. The one cut off, now high, rounds up when it is more than half a
            // unit, or just that beside an odd number: one comparison, with the lowest bit to decide a tie.
            let turned = w.to_bits().rotate_left(16);
            let up = turned & 0xffff_0001 > 0x8000_0000;
            *h = bf16::from_bits((turned as u16).wrapping_add(u16::from(up)));
        }
    }
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
fn add_each(host: &mut [f32], delta: impl Delta) -> usize {
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
