//! Softmax over rows of logits, written to be vectorised: exponentials of a whole vocabulary are what rules and scores cost.

/// Values summed at a time in f32 before they go to the f64 sum.
pub(super) const BLOCK: usize = 1024;
const LANES: usize = 16;

/// `ln(sum(exp(row)))`.
///
/// A sweep takes it over a whole vocabulary for each token and each alpha, so it is written to be vectorised.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = max(row);
    if !max.is_finite() {
        return f64::from(max);
    }
    let sum: f64 = row.chunks(BLOCK).map(|block| f64::from(sum_exp(block, max))).sum();
    f64::from(max) + sum.ln()
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
    let x = if x < -87.0 { -87.0 } else { x };
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
