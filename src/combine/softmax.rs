//! Softmax over rows of logits, written to be vectorised: exponentials of a whole vocabulary are what rules and scores cost.
//!
//! The only ones there are. A logit of -inf has no probability; in a row of nothing else no token has any. A NaN is either no
//! number, like -inf ([`softmax`], [`log_sum_exp_of_numbers`]), or not to be hidden ([`log_sum_exp`]).

/// Values summed at a time in f32 before they go to the f64 sum.
pub(super) const BLOCK: usize = 1024;
const LANES: usize = 16;
/// Below it an exponential is as good as nothing.
const LEAST: f32 = -87.0;

/// `ln(sum(exp(row)))`: what logits exceed log-probabilities by. NaN for a row that holds one and whose largest logit is finite; -inf
/// for a row without any logit above that, +inf for one with a logit of +inf.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = max(row);
    if !max.is_finite() {
        return f64::from(max);
    }
    let sum: f64 = row.chunks(BLOCK).map(|block| f64::from(sum_exp(block, max))).sum();
    f64::from(max) + sum.ln()
}

/// As [`log_sum_exp`], where a NaN counts as -inf.
pub fn log_sum_exp_of_numbers(row: &[f32]) -> f64 {
    let sum = log_sum_exp(row);
    if !sum.is_nan() {
        return sum;
    }
    let numbers: Vec<f32> = row.iter().copied().filter(|x| !x.is_nan()).collect();
    log_sum_exp(&numbers)
}

/// Turns logits into probabilities, in place: `softmax(scale * row)`, `scale` being above 0, one over the temperature. A NaN counts
/// as -inf. Returns false, and leaves zeros, where there is no distribution: no logit above -inf, one of +inf, or a scale that is
/// not finite.
pub fn softmax(row: &mut [f32], scale: f32) -> bool {
    let max = max(row);
    if !max.is_finite() || !scale.is_finite() {
        row.fill(0.0);
        return false;
    }
    let mut total = 0.0;
    for block in row.chunks_mut(BLOCK) {
        for x in block.iter_mut() {
            let below = (*x - max) * scale;
            // False for NaN as well.
            *x = if below > LEAST { exp(below) } else { 0.0 };
        }
        total += f64::from(sum(block));
    }
    let share = (1.0 / total) as f32;
    row.iter_mut().for_each(|p| *p *= share);
    true
}

pub(super) fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, x);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

fn sum(block: &[f32]) -> f32 {
    let (blocks, rest) = block.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &x)| *lane += x);
    }
    lanes.iter().chain(rest).sum()
}

pub(super) fn sum_exp(block: &[f32], max: f32) -> f32 {
    let (blocks, rest) = block.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += exp(x - max);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| exp(x - max)).sum::<f32>()
}

/// `e^x` for x of at most 0, to a few units in the last place; below -87 as good as nothing.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, of which the first has few bits, so that its multiples are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // A NaN stays one: the comparison is false.
    let x = if x < LEAST { LEAST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = x - power * LN_2[0] - power * LN_2[1];
    // Taylor's series; r is within half of ln 2.
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + factor;
    }
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    sum * scale
}

/// `ln(e^x + e^y)`, to a few units in the last place; -inf where both are.
#[inline(always)]
pub(super) fn log_add(x: f32, y: f32) -> f32 {
    let (less, more) = if x < y { (x, y) } else { (y, x) };
    let e = exp(less - more);
    // ln(1 + e) as twice the series of artanh, at e / (2 + e), which is at most a third.
    let s = e / (2.0 + e);
    let square = s * s;
    let mut sum = 1.0 / 13.0;
    for factor in [1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0] {
        sum = sum * square + factor;
    }
    if more == f32::NEG_INFINITY { more } else { more + 2.0 * s * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plainly(row: &[f32]) -> f64 {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + row.iter().map(|&x| f64::from(x - max).exp()).sum::<f64>().ln()
    }

    #[test]
    fn the_exponential_is_within_a_few_units_in_the_last_place() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "{x}: {} {exact}", exp(x));
        }
    }

    #[test]
    fn sums_agree_with_plain_arithmetic_at_any_length_and_scale() {
        for len in [1, 15, 16, 17, 1023, 1024, 4096, 5000] {
            for scale in [0.0, 1.0, 30.0, 1000.0] {
                let row: Vec<f32> =
                    (0..len).map(|i| ((i * 7919 % 997) as f32 / 997.0 - 0.5) * scale).collect();
                let (got, expected) = (log_sum_exp(&row), plainly(&row));
                assert!(
                    (got - expected).abs() < 1e-6 * expected.abs().max(1.0),
                    "{len} {scale}: {got} {expected}"
                );
            }
        }
    }

    #[test]
    fn masked_tokens_count_for_nothing() {
        let inf = f32::NEG_INFINITY;
        assert!((log_sum_exp(&[inf, 0.0, 0.0, inf]) - 2f64.ln()).abs() < 1e-7);
        assert_eq!(log_sum_exp(&[inf; 40]), f64::NEG_INFINITY);
    }

    #[test]
    fn a_nan_is_hidden_only_where_that_is_asked_for() {
        let inf = f32::NEG_INFINITY;
        // Within a vectorised block, and in what is left over after the last one.
        for (len, at) in [(40, 3), (40, 39), (2000, 1500)] {
            let mut row = vec![0.0; len];
            row[at] = f32::NAN;
            assert!(log_sum_exp(&row).is_nan());
            assert!((log_sum_exp_of_numbers(&row) - ((len - 1) as f64).ln()).abs() < 1e-6);
            assert!(softmax(&mut row, 1.0));
            assert!(row[at] == 0.0 && (row[0] * (len - 1) as f32 - 1.0).abs() < 1e-5);
        }
        for nothing in [vec![], vec![inf; 40], vec![f32::NAN; 40], vec![inf, f32::NAN]] {
            assert_eq!(log_sum_exp(&nothing), f64::NEG_INFINITY);
            assert_eq!(log_sum_exp_of_numbers(&nothing), f64::NEG_INFINITY);
            let mut row = nothing.clone();
            assert!(!softmax(&mut row, 1.0) && row.iter().all(|&p| p == 0.0));
        }
        assert_eq!(log_sum_exp(&[0.0, f32::INFINITY]), f64::INFINITY);
        assert!(!softmax(&mut [0.0, f32::INFINITY], 1.0) && !softmax(&mut [0.0, 1.0], f32::INFINITY));
    }

    #[test]
    fn probabilities_agree_with_plain_arithmetic_at_any_temperature() {
        for scale in [0.01, 1.0, 1.7, 1e4] {
            let row: Vec<f32> = (0..5000).map(|i| (i * 7919 % 997) as f32 * 0.02 - 10.0).collect();
            let weight = |x: &f32| (f64::from(x - 9.92) * f64::from(scale)).exp();
            let (sum, mut got) = (row.iter().map(weight).sum::<f64>(), row.clone());
            assert!(softmax(&mut got, scale));
            for (x, p) in row.iter().zip(&got) {
                let exact = weight(x) / sum;
                assert!((f64::from(*p) - exact).abs() < 1e-5 * exact.max(1e-3), "{scale} {x}: {p} {exact}");
            }
        }
    }

    #[test]
    fn logarithms_of_sums_agree_with_plain_arithmetic() {
        for i in 0..200_000 {
            let (x, y) = (-(i as f32) * 1e-3, -7.5 + (i % 97) as f32 * 0.1);
            let more = f64::from(x.max(y));
            let exact = more + (f64::from(x.min(y)) - more).exp().ln_1p();
            assert!((f64::from(log_add(x, y)) - exact).abs() < 1e-6 * exact.abs().max(1.0), "{x} {y}");
        }
        let inf = f32::NEG_INFINITY;
        assert_eq!([log_add(inf, inf), log_add(inf, -2.0), log_add(3.0, inf)], [inf, -2.0, 3.0]);
    }
}
