//! The gate: where the host is so sure of a token that no shift is likely to change it, the proxies' pass is left out. What
//! they have missed they read later, several tokens in one pass.

use super::Decoder;
use super::job::Running;
use crate::combine::{argmax, log_sum_exp};

impl Decoder {
    /// Lets through the sequences whose next token the host gives a probability above the threshold, so that nobody waits
    /// for the proxies' rows there. With `explain` those rows are computed all the same, and what the gate got wrong is counted.
    pub(super) fn gate(&mut self, running: &mut [Running], explain: bool) {
        let Some(threshold) = self.options.skip_above else { return };
        for r in running.iter_mut().filter(|r| r.wants_last()) {
            let Some(at) = r.at else { continue };
            // A host that failed is told of where the token is chosen.
            let Ok(logits) = self.host.row_mut(&mut self.work, r.request, at) else { continue };
            r.gated = is_sure(logits, threshold);
            r.unshifted = r.gated && !explain;
            r.stats.skipped += usize::from(r.gated);
        }
    }
}

/// Whether a row's most likely token has a probability above `threshold`.
fn is_sure(row: &[f32], threshold: f32) -> bool {
    let best = row[argmax(row)];
    if !best.is_finite() {
        return false;
    }
    // NaN among the logits: not sure.
    f64::from(best) - log_sum_exp(row) > f64::from(threshold).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_above_its_threshold_and_never_for_a_row_that_is_no_distribution() {
        let row = [0.0f32, 3f32.ln(), f32::NEG_INFINITY];
        assert!(is_sure(&row, 0.74) && !is_sure(&row, 0.76));
        assert!(!is_sure(&[f32::NEG_INFINITY; 2], 0.1));
        assert!(!is_sure(&[f32::INFINITY, 0.0], 0.1));
        assert!(!is_sure(&[1.0, f32::NAN], 0.1));
    }
}
