//! From the rows of all models to values for each token, computed on all threads: scores by column, or whatever is asked for.

use super::likelihood::nats;
use super::passage::Passage;
use super::reading::Reading;
use crate::combine::{Logits, Rule};
use crate::error::{Error, Result};
use crate::pair::Work;
use crate::vocab::TokenMap;
use std::ops::Range;

/// One model's rows, and how to read them.
pub(super) struct Side {
    pub name: &'static str,
    /// From host tokens to its own.
    pub map: TokenMap,
    /// One request a segment.
    pub work: Work,
}

impl Side {
    pub fn new(name: &'static str, map: TokenMap) -> Self {
        Self { name, map, work: Work::default() }
    }
}

/// A passage on its way.
pub(super) struct Active<'a> {
    pub index: usize,
    pub passage: &'a Passage,
    /// As each model reads it.
    pub readings: Vec<Reading>,
    /// Tokens scored so far.
    pub scored: usize,
    /// Sums of what was measured of them; scores by column.
    pub nats: Vec<f64>,
}

/// A run of a passage's tokens whose rows are in memory.
pub(super) struct Segment {
    pub passage: usize,
    pub tokens: Range<usize>,
}

/// One token to score: its segment and its place among the passage's tokens.
pub(super) type Unit = (usize, usize);

/// What is computed for each token.
pub(super) trait Measure: Sync {
    /// Values for each token.
    fn width(&self) -> usize;

    /// Whether the rows of a side are needed.
    fn reads(&self, side: usize) -> bool;

    /// Writes the values of one token; `scratch` is used for rows.
    fn measure(&self, table: &Table<'_>, unit: Unit, values: &mut [f64], scratch: &mut Scratch)
    -> Result<()>;
}

/// Rows that one thread uses again.
pub(super) type Scratch = [Vec<f32>; 2];

/// What there is to measure from.
pub(super) struct Table<'a> {
    /// The host, then all others.
    pub sides: &'a [Side],
    pub active: &'a [Active<'a>],
    pub segments: &'a [Segment],
}

impl Table<'_> {
    /// Measures all tokens of the segments; the values of a unit stand side by side.
    pub fn measure(&self, measure: &dyn Measure, threads: usize) -> Result<(Vec<Unit>, Vec<f64>)> {
        let units_of = |(s, segment): (usize, &Segment)| segment.tokens.clone().map(move |t| (s, t));
        let units: Vec<Unit> = self.segments.iter().enumerate().flat_map(units_of).collect();
        let width = measure.width();
        let mut values = vec![0.0; units.len() * width];
        let share = units.len().div_ceil(threads).max(1);
        let part = |(units, values): (&[Unit], &mut [f64])| {
            let mut scratch = Scratch::default();
            let mut each = units.iter().zip(values.chunks_mut(width));
            each.try_for_each(|(&unit, values)| measure.measure(self, unit, values, &mut scratch))
        };
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let parts = units.chunks(share).zip(values.chunks_mut(share * width));
            let threads: Vec<_> = parts.map(|both| scope.spawn(move || part(both))).collect();
            let lost = |_| Err(Error::engine("eval", "a scoring thread ended"));
            threads.into_iter().map(|t| t.join().unwrap_or_else(lost)).collect()
        });
        outcomes.into_iter().collect::<Result<()>>()?;
        Ok((units, values))
    }

    /// The token that a unit is about, in the host's vocabulary.
    pub fn target(&self, (segment, token): Unit) -> usize {
        self.active[self.segments[segment].passage].passage.generated()[token] as usize
    }

    /// The row of model `which` that predicts a unit's token.
    pub fn row(&self, unit: Unit, which: usize) -> Result<&[f32]> {
        self.row_at(unit, which, self.reading(unit, which).begin(unit.1) - 1)
    }

    fn row_at(&self, (segment, _): Unit, which: usize, position: usize) -> Result<&[f32]> {
        let side = &self.sides[which];
        let vocab = side.map.proxy_len();
        let rows = side.work.rows(segment)?;
        let segment = &self.segments[segment];
        let row = position - self.active[segment.passage].readings[which].positions(&segment.tokens).start;
        let missing = || Error::Shape { what: "rows", got: rows.len(), expected: (row + 1) * vocab };
        rows.get(row * vocab..(row + 1) * vocab).ok_or_else(missing)
    }

    fn reading(&self, (segment, _): Unit, which: usize) -> &Reading {
        &self.active[self.segments[segment].passage].readings[which]
    }

    /// What a token costs model `which` by itself, over all of its own tokens that spell it.
    pub fn own(&self, unit: Unit, which: usize) -> Result<f64> {
        let reading = self.reading(unit, which);
        let mut sum = 0.0;
        for at in reading.begin(unit.1)..reading.begin(unit.1 + 1) {
            sum += nats(self.row_at(unit, which, at - 1)?, reading.tokens()[at] as usize);
        }
        let what = "its logits are not numbers; the file may be broken";
        if sum.is_nan() {
            return Err(Error::engine(format!("the {}", self.sides[which].name), what));
        }
        Ok(sum)
    }
}

/// What a token costs each model by itself, and the host shifted by each alpha: one value a column, in nats.
pub(super) struct Scores<'a> {
    /// Three, or four where there is a directly tuned model.
    pub models: usize,
    pub alphas: &'a [f32],
    pub rule: &'a dyn Rule,
}

impl Measure for Scores<'_> {
    fn width(&self) -> usize {
        self.models + self.alphas.len()
    }

    fn reads(&self, _: usize) -> bool {
        true
    }

    fn measure(
        &self,
        table: &Table<'_>,
        unit: Unit,
        values: &mut [f64],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (models, alphas) = values.split_at_mut(self.models);
        // Columns name the untuned proxy before the tuned one.
        for (score, which) in models.iter_mut().zip([0, 2, 1, 3]) {
            *score = table.own(unit, which)?;
        }
        let [host, tuned, untuned] = [table.row(unit, 0)?, table.row(unit, 1)?, table.row(unit, 2)?];
        let [advice, shifted] = scratch;
        advice.resize(host.len(), 0.0);
        self.rule.advise(advice, [(tuned, &table.sides[1].map), (untuned, &table.sides[2].map)])?;
        for (score, &alpha) in alphas.iter_mut().zip(self.alphas) {
            shifted.clear();
            shifted.extend_from_slice(host);
            self.rule.apply(Logits::F32(shifted), advice, alpha)?;
            *score = nats(shifted, table.target(unit));
        }
        Ok(())
    }
}
