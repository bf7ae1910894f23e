//! What is added to rows, for engines whose logits stand elsewhere.

use super::{Logits, Requests, Row};
use crate::combine::{Rule, Shift};
use crate::error::{Error, Result};

impl Requests {
    /// Writes `alpha * (tuned - untuned)` for each row instead of adding it: `vocab` values for row `i` from
    /// `out[i * stride]` on. For engines that have their logits elsewhere. What could not be used as a shift is 0, and so
    /// are rows of which the proxies failed. `out` between the rows stays as it is.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); where `stride` or `out` is too small; with a cap, and under a [rule](Self::rule) that is more than an
    /// offset, with no rows as well, so that it can be asked beforehand. `out` is untouched then.
    pub fn offsets<R: Row>(&mut self, rows: &mut [R], out: &mut [f32], stride: usize) -> Result<()> {
        self.refuse_more_than_offsets()?;
        self.write(rows, out, stride, |out, offset, alpha, rule| {
            out.fill(0.0);
            rule.apply(Logits::F32(out), offset, alpha)
        })
    }

    /// Writes what the proxies say of each row, by the [rule](Self::rule), laid out as by [`offsets`](Self::offsets) and not
    /// weighed by `alpha`, to be [applied](Rule::apply) elsewhere. Rows of which the proxies failed are 0.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), and where `stride` or `out` is too small; `out` is untouched then.
    pub fn advice<R: Row>(&mut self, rows: &mut [R], out: &mut [f32], stride: usize) -> Result<()> {
        self.write(rows, out, stride, |out, offset, _, _| {
            out.copy_from_slice(offset);
            Ok(Shift::default())
        })
    }

    /// Says whether [`offsets`](Self::offsets) can be had.
    ///
    /// # Errors
    /// [`Error::Invalid`] under a rule that is more than an offset, and with a cap, which takes the host's logits.
    pub fn refuse_more_than_offsets(&self) -> Result<()> {
        if let Some(cap) = self.control.cap {
            let expected =
                "0 where offsets are asked for: what a token gains is capped beside the host's logits";
            return Err(Error::invalid("shift_cap", cap, expected));
        }
        let rule = self.rule();
        if rule.is_offset() {
            return Ok(());
        }
        let expected = "proxy-tuning where only offsets are taken: this rule needs the host's row, in memory that it can \
                        be changed in";
        Err(Error::invalid("combine", rule, expected))
    }

    fn write<R: Row>(
        &mut self,
        rows: &mut [R],
        out: &mut [f32],
        stride: usize,
        write: impl Fn(&mut [f32], &[f32], f32, &dyn Rule) -> Result<Shift>,
    ) -> Result<()> {
        self.check(rows)?;
        let vocab = self.vocab();
        if stride < vocab {
            return Err(Error::invalid("stride", stride, format!("at least {vocab}, the host's vocabulary")));
        }
        let needed = rows
            .len()
            .checked_sub(1)
            .map_or(Some(0), |others| others.checked_mul(stride)?.checked_add(vocab));
        if needed.is_none_or(|needed| out.len() < needed) {
            let expected = format!("room for {} rows, {stride} values apart", rows.len());
            return Err(Error::invalid("out", format!("{} values", out.len()), expected));
        }
        self.announce(rows)?;
        self.deliver(rows, |at, _, offset, alpha, rule| {
            let out = &mut out[at * stride..][..vocab];
            match offset {
                Some(offset) => write(out, offset, alpha, rule),
                None => {
                    out.fill(0.0);
                    Ok(Shift::default())
                }
            }
        })
    }
}
