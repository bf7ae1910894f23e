//! From the rows of all models to scores: one for each token and column, computed on all threads.

use super::likelihood::nats;
use super::reading::Reading;
use super::sweep::Passage;
use crate::combine;
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
    /// Their scores by column.
    pub nats: Vec<f64>,
}

/// A run of a passage's tokens whose rows are in memory.
pub(super) struct Segment {
    pub passage: usize,
    pub tokens: Range<usize>,
}

/// One token to score: its segment and its place among the passage's tokens.
pub(super) type Unit = (usize, usize);

/// What there is to score from.
pub(super) struct Table<'a> {
    /// Host, tuned, untuned and, where there is one, the directly tuned model.
    pub sides: &'a [Side],
    pub alphas: &'a [f32],
    pub active: &'a [Active<'a>],
    pub segments: &'a [Segment],
}

impl Table<'_> {
    /// Scores all tokens of the segments; the scores of a unit stand side by side, in the order of the columns.
    pub fn scores(&self, threads: usize) -> Result<(Vec<Unit>, Vec<f64>)> {
        let units_of = |(s, segment): (usize, &Segment)| segment.tokens.clone().map(move |t| (s, t));
        let units: Vec<Unit> = self.segments.iter().enumerate().flat_map(units_of).collect();
        let columns = self.sides.len() + self.alphas.len();
        let mut scores = vec![0.0; units.len() * columns];
        let share = units.len().div_ceil(threads).max(1);
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let parts = units.chunks(share).zip(scores.chunks_mut(share * columns));
            let start = |(units, scores)| scope.spawn(move || self.score(units, scores, columns));
            let threads: Vec<_> = parts.map(start).collect();
            let lost = |_| Err(Error::engine("eval", "a scoring thread ended"));
            threads.into_iter().map(|t| t.join().unwrap_or_else(lost)).collect()
        });
        outcomes.into_iter().collect::<Result<()>>()?;
        Ok((units, scores))
    }

    fn score(&self, units: &[Unit], scores: &mut [f64], columns: usize) -> Result<()> {
        let (mut offset, mut shifted) = (Vec::new(), Vec::new());
        for (&unit, scores) in units.iter().zip(scores.chunks_mut(columns)) {
            let (models, alphas) = scores.split_at_mut(self.sides.len());
            // Columns name the untuned proxy before the tuned one.
            for (score, which) in models.iter_mut().zip([0, 2, 1, 3]) {
                *score = self.own(unit, which)?;
            }
            let [host, tuned, untuned] = [self.row(unit, 0)?, self.row(unit, 1)?, self.row(unit, 2)?];
            offset.resize(host.len(), 0.0);
            combine::offset(&mut offset, (tuned, &self.sides[1].map), (untuned, &self.sides[2].map))?;
            let target = self.active[self.segments[unit.0].passage].passage.generated()[unit.1];
            for (score, &alpha) in alphas.iter_mut().zip(self.alphas) {
                shifted.clear();
                shifted.extend_from_slice(host);
                combine::shift_by(&mut shifted, &offset, alpha)?;
                *score = nats(&shifted, target as usize);
            }
        }
        Ok(())
    }

    /// The row of model `which` that predicts a unit's token.
    fn row(&self, unit: Unit, which: usize) -> Result<&[f32]> {
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
    fn own(&self, unit: Unit, which: usize) -> Result<f64> {
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
