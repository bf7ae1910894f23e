//! A pair and the rule that it is combined with its host by.

use super::Pair;
use crate::combine::{Logits, ProxyRow, Rule, Shift, UNKNOWN, log_sum_exp_of_numbers};
use crate::error::Result;
use crate::vocab::Token;
use std::sync::Arc;

impl Pair {
    /// The same pair, combined with its host by another rule than [proxy-tuning](crate::combine::ProxyTuning). A proxy that
    /// the rule does not read does not run from here on.
    pub fn with_rule(mut self, rule: Arc<dyn Rule>) -> Self {
        self.reads = rule.reads();
        self.rule = rule;
        self
    }

    /// How it is combined with its host.
    pub fn rule(&self) -> &Arc<dyn Rule> {
        &self.rule
    }

    /// Whether the tuned, and whether the untuned proxy runs.
    pub fn reads(&self) -> [bool; 2] {
        self.reads
    }

    /// The proxy that goes ahead of the host: the tuned one, 0, unless only the untuned one, 1, runs.
    pub fn leader(&self) -> usize {
        usize::from(!self.reads[0])
    }

    /// Rows of the tuned and of the untuned proxy, so many of the one that goes ahead and so many of the other.
    pub fn rows_of(&self, leader: usize, other: usize) -> [usize; 2] {
        if self.leader() == 0 { [leader, other] } else { [other, leader] }
    }

    /// Row `row` of request `index`, tuned and untuned; empty for a proxy that does not run.
    ///
    /// # Errors
    /// As [`Pair::tuned_row`].
    pub fn row(&self, index: usize, row: usize) -> Result<[&[f32]; 2]> {
        Ok([self.row_of(0, index, row)?, self.row_of(1, index, row)?])
    }

    /// As [`row`](Self::row), of the tuned proxy, 0, or of the untuned one, 1.
    ///
    /// # Errors
    /// As [`Pair::tuned_row`].
    pub fn row_of(&self, which: usize, index: usize, row: usize) -> Result<&[f32]> {
        match which {
            _ if !self.reads[which] => Ok(&[]),
            0 => self.tuned_row(index, row),
            _ => self.untuned_row(index, row),
        }
    }

    /// Writes what the proxies say of a row over the host's vocabulary, by the rule: `tuned - untuned` in
    /// proxy-tuning.
    ///
    /// # Errors
    /// As [`Pair::tuned_row`].
    pub fn offset(&self, index: usize, row: usize, offset: &mut [f32]) -> Result<()> {
        self.rule.advise(offset, self.beside_maps(self.row(index, row)?))
    }

    /// Appends the log-probabilities of a row to the tuned and to the untuned proxy, each over the host's vocabulary:
    /// [`UNKNOWN`] for a token that a proxy lacks, NaN throughout for a proxy that does not run.
    pub fn append_log_probabilities(&self, rows: [&[f32]; 2], to: &mut Vec<f32>) {
        for (row, map) in self.beside_maps(rows) {
            let sum = log_sum_exp_of_numbers(row) as f32;
            let of = |&id: &Token| match row.get(id as usize) {
                _ if row.is_empty() => f32::NAN,
                Some(logit) => logit - sum,
                None => UNKNOWN,
            };
            to.extend(map.ids().iter().map(of));
        }
    }

    /// Writes the [offsets](Self::offset) of the first `rows` rows of a request one after the other; where it `explains`, their
    /// [log-probabilities](Self::append_log_probabilities) follow.
    pub(super) fn answer(&self, index: usize, rows: usize, explains: bool, to: &mut Vec<f32>) -> Result<()> {
        to.resize(rows * self.host_vocab(), 0.0);
        let mut parts = to.chunks_exact_mut(self.host_vocab()).enumerate();
        parts.try_for_each(|(row, offset)| self.offset(index, row, offset))?;
        for row in 0..if explains { rows } else { 0 } {
            self.append_log_probabilities(self.row(index, row)?, to);
        }
        Ok(())
    }

    /// Combines the host's logits with both rows by the rule, in place: adds `alpha * (tuned - untuned)` in
    /// proxy-tuning. Rows are over their proxy's own vocabulary; `scratch` is used where the vocabularies differ.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a row has the wrong length; `host` is untouched then.
    pub fn shift(
        &self,
        host: &mut [f32],
        rows: [&[f32]; 2],
        alpha: f32,
        scratch: &mut Vec<f32>,
    ) -> Result<Shift> {
        self.rule.combine(host, self.beside_maps(rows), alpha, scratch)
    }

    /// As [`shift`](Self::shift), with what any token may gain or lose held within a cap
    /// ([`shift_by_within`](crate::combine::shift_by_within)); `None`: without.
    ///
    /// # Errors
    /// As [`shift`](Self::shift), and for a cap under another rule than proxy-tuning.
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
        scratch.resize(host.len(), 0.0);
        self.rule.advise(scratch, self.beside_maps(rows))?;
        self.rule.apply_within(Logits::F32(host), scratch, alpha, cap)
    }

    fn beside_maps<'a>(&'a self, [tuned, untuned]: [&'a [f32]; 2]) -> [ProxyRow<'a>; 2] {
        [(tuned, &self.maps[0]), (untuned, &self.maps[1])]
    }
}
