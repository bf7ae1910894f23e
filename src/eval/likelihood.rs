//! Logarithms of probabilities from rows of logits.

use crate::combine::log_sum_exp;

/// `-ln softmax(row)[target]`, in nats. Infinite for a token without any probability, NaN for a row that holds NaN.
pub fn nats(row: &[f32], target: usize) -> f64 {
    let Some(&logit) = row.get(target) else { return f64::INFINITY };
    if logit == f32::NEG_INFINITY { f64::INFINITY } else { log_sum_exp(row) - f64::from(logit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_token_is_impossible_and_nan_is_not_hidden() {
        assert_eq!(nats(&[f32::NEG_INFINITY, 0.0], 0), f64::INFINITY);
        assert!(nats(&[0.0, f32::NAN, 1.0], 0).is_nan());
    }
}
