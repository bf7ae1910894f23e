//! The shift of a pair with a cap on it.

use super::Pair;
use crate::combine::{self, Shift};
use crate::error::Result;

impl Pair {
    /// As [`Pair::shift`], with the shift of each token held within a cap
    /// ([`shift_by_within`](combine::shift_by_within)); `None`: without.
    ///
    /// # Errors
    /// As [`Pair::shift`].
    pub fn shift_within(
        &self,
        host: &mut [f32],
        rows: [&[f32]; 2],
        alpha: f32,
        cap: Option<f32>,
        scratch: &mut Vec<f32>,
    ) -> Result<Shift> {
        if cap.is_none() {
            return self.shift(host, rows, alpha, scratch);
        }
        let ([tuned, untuned], [tuned_map, untuned_map]) = (rows, self.maps());
        scratch.resize(host.len(), 0.0);
        combine::offset(scratch, (tuned, tuned_map), (untuned, untuned_map))?;
        combine::shift_by_within(host, scratch, alpha, cap)
    }
}
