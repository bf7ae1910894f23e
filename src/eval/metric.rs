//! A score of all columns: gap closed, best alpha, and where the shift does harm.

use super::bootstrap::{Interval, Intervals, Items, LEVEL, RESAMPLES};
use super::column::Column;
use serde_json::{Map, Value, json};

/// The unit of perplexity, which always stands beside bits per byte.
pub(super) const PERPLEXITY: &str = "perplexity";

/// A score of every column, in one unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// What the numbers are: `bits_per_byte`, `accuracy`, ….
    pub unit: String,
    /// Whether less is better.
    pub lower_is_better: bool,
    /// Whether scores are shares of a whole, 0 to 1.
    pub is_share: bool,
    /// The host alone.
    pub host: f64,
    /// The untuned proxy alone.
    pub untuned: f64,
    /// The tuned proxy alone.
    pub tuned: f64,
    /// The host tuned directly.
    pub direct: Option<f64>,
    /// The shifted host, in the order in which alphas were given.
    pub shifted: Vec<Shifted>,
    /// How far all of this may be off by chance, where items are many enough to tell.
    pub intervals: Option<Intervals>,
}

/// The score of the shifted host at one alpha.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shifted {
    /// Weight of the shift.
    pub alpha: f32,
    /// Its score.
    pub score: f64,
    /// `(shifted - host) / (direct - host)`; `None` without a directly tuned model, or where that is no better or worse
    /// than the host.
    pub gap_closed: Option<f64>,
}

impl Metric {
    /// A metric from the scores of all columns.
    pub(super) fn new(unit: &str, lower_is_better: bool, columns: &[Column], scores: &[f64]) -> Self {
        let score = |column| columns.iter().position(|&c| c == column).map(|i| scores[i]);
        let host = score(Column::Host).unwrap_or(f64::NAN);
        let direct = score(Column::Direct);
        let shifted = columns.iter().zip(scores).filter_map(|(&column, &score)| {
            let Column::Shifted(alpha) = column else { return None };
            let gap_closed = direct.map(|d| (score - host) / (d - host)).filter(|gap| gap.is_finite());
            Some(Shifted { alpha, score, gap_closed })
        });
        Self {
            unit: unit.into(),
            lower_is_better,
            is_share: !lower_is_better,
            host,
            untuned: score(Column::Untuned).unwrap_or(f64::NAN),
            tuned: score(Column::Tuned).unwrap_or(f64::NAN),
            direct,
            shifted: shifted.collect(),
            intervals: None,
        }
    }

    /// With intervals over the items that it was made of.
    pub(super) fn over(mut self, items: &Items) -> Self {
        self.intervals = items.intervals(self.direct.is_some(), |a, b| self.is_worse(a, b));
        self
    }

    /// The interval of a score: of a column by its place, see [`Intervals`].
    pub(super) fn interval(&self, column: usize) -> Option<Interval> {
        self.intervals.as_ref()?.scores.get(column).copied()
    }

    /// The interval of the score at the alpha of this place.
    pub fn interval_of_shifted(&self, place: usize) -> Option<Interval> {
        self.interval(3 + usize::from(self.direct.is_some()) + place)
    }

    /// The interval of the gap closed at the alpha of this place.
    pub fn interval_of_gap(&self, place: usize) -> Option<Interval> {
        self.intervals.as_ref()?.gaps.get(place).copied().flatten()
    }

    /// Intervals for people: of host, untuned and tuned proxy, then of the directly tuned model, then of each alpha.
    pub fn intervals_in_words(&self) -> Option<Vec<String>> {
        let words = |i: &Interval| format!("{} to {}", self.figure(i.low), self.figure(i.high));
        Some(self.intervals.as_ref()?.scores.iter().map(words).collect())
    }

    /// Whether `a` is worse than `b`.
    pub fn is_worse(&self, a: f64, b: f64) -> bool {
        if self.lower_is_better { a > b } else { a < b }
    }

    /// The alpha with the best score; of equals the one nearest to 0.
    pub fn best(&self) -> Option<Shifted> {
        let mut best: Option<Shifted> = None;
        for &s in &self.shifted {
            let better = best.is_none_or(|b| {
                self.is_worse(b.score, s.score) || (b.score == s.score && s.alpha.abs() < b.alpha.abs())
            });
            if better {
                best = Some(s);
            }
        }
        best
    }

    /// Where shifting does harm: worse than the tuned proxy alone, which would be cheaper, or than the host as it is.
    pub fn warnings(&self) -> Vec<String> {
        let Some(best) = self.best() else { return Vec::new() };
        let mut warnings = Vec::new();
        let unit = self.unit_in_words();
        if best.score == f64::INFINITY {
            warnings.push(format!(
                "under the rule some of the text has no probability at all, so its {unit} are infinite: score it with mask = 0, or a task"
            ));
        }
        for (name, score, why) in [
            ("host", self.host, "the shift does harm here: leave it out, or try a smaller alpha"),
            ("tuned proxy", self.tuned, "the tuned proxy alone is better and cheaper here"),
        ] {
            if best.score.is_finite() && self.is_worse(best.score, score) {
                let Shifted { alpha, score: shifted, .. } = best;
                let which = match self.shifted.len() {
                    1 => format!("alpha {alpha}"),
                    _ => format!("even the best alpha, {alpha},"),
                };
                warnings.push(format!(
                    "{which} scores worse ({}) than the {name} alone ({}) in {unit}: {why}",
                    self.figure(shifted),
                    self.figure(score)
                ));
            }
        }
        if let Some(direct) = self.direct.filter(|&d| !self.is_worse(self.host, d)) {
            warnings.push(format!(
                "the directly tuned model ({}) is no better than the host ({}) in {unit}: there is no gap to close",
                self.figure(direct),
                self.figure(self.host)
            ));
        }
        warnings
    }

    /// Whether there is a gap to speak of.
    pub fn has_gap(&self) -> bool {
        self.shifted.iter().any(|s| s.gap_closed.is_some())
    }

    /// A score with the digits that mean something: shares in per cent.
    pub fn figure(&self, score: f64) -> String {
        if self.is_share { percent_of(score) } else { figure(score) }
    }

    /// A score at an axis.
    pub(super) fn tick(&self, score: f64) -> String {
        if self.is_share { percent(score) } else { format!("{}", (score * 1000.0).round() / 1000.0 + 0.0) }
    }

    /// What an axis is called.
    pub(super) fn axis(&self) -> String {
        let better = if self.lower_is_better { "lower is better" } else { "higher is better" };
        format!("{} ({better})", self.unit_in_words())
    }

    /// The unit for people.
    pub fn unit_in_words(&self) -> String {
        self.unit.replace('_', " ")
    }

    /// As the fields of a JSON object.
    pub(super) fn json(&self) -> Map<String, Value> {
        let pair = |interval: Option<Interval>| interval.map(|i| [i.low, i.high]);
        let shifted = |(place, s): (usize, &Shifted)| {
            json!({
                "alpha": plain(s.alpha), "score": s.score, "gap_closed": s.gap_closed,
                "interval": pair(self.interval_of_shifted(place)),
                "gap_interval": pair(self.interval_of_gap(place)),
            })
        };
        let mut object = Map::new();
        object.insert("unit".into(), json!(self.unit));
        object.insert("host".into(), json!(self.host));
        object.insert("untuned".into(), json!(self.untuned));
        object.insert("tuned".into(), json!(self.tuned));
        object.insert("direct".into(), json!(self.direct));
        object.insert("shifted".into(), self.shifted.iter().enumerate().map(shifted).collect());
        let of = |column| pair(self.interval(column));
        let intervals = self.intervals.as_ref().map(|_| {
            json!({
                "level": LEVEL, "resamples": RESAMPLES, "host": of(0), "untuned": of(1), "tuned": of(2),
                "direct": self.direct.and_then(|_| of(3)),
            })
        });
        object.insert("intervals".into(), json!(intervals));
        object.insert("best_alpha".into(), json!(self.best().map(|b| plain(b.alpha))));
        object
    }
}

/// A share of the gap, for people.
pub fn percent(share: f64) -> String {
    // Never -0.
    format!("{:.0} %", (share * 100.0).round() + 0.0)
}

fn percent_of(score: f64) -> String {
    format!("{:.1} %", score * 100.0)
}

fn figure(score: f64) -> String {
    match score.abs() {
        s if s >= 1000.0 => format!("{score:.0}"),
        s if s >= 10.0 => format!("{score:.2}"),
        _ => format!("{score:.3}"),
    }
}

/// An f32 as the number that was written: 0.1 rather than 0.10000000149.
fn plain(alpha: f32) -> f64 {
    alpha.to_string().parse().unwrap_or(f64::from(alpha))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(lower: bool, host: f64, tuned: f64, direct: Option<f64>, shifted: &[(f32, f64)]) -> Metric {
        let alphas: Vec<f32> = shifted.iter().map(|s| s.0).collect();
        let columns = Column::all(direct.is_some(), &alphas);
        let scores: Vec<f64> =
            [host, 9.0, tuned].into_iter().chain(direct).chain(shifted.iter().map(|s| s.1)).collect();
        Metric::new("bits_per_byte", lower, &columns, &scores)
    }

    #[test]
    fn the_gap_is_closed_by_what_the_shift_gains_of_what_tuning_gains() {
        let m = metric(true, 2.0, 1.8, Some(1.0), &[(0.5, 1.5), (1.0, 1.25), (2.0, 2.5)]);
        let gaps: Vec<_> = m.shifted.iter().map(|s| s.gap_closed.unwrap()).collect();
        assert_eq!(gaps, [0.5, 0.75, -0.5]);
        assert_eq!(m.best().unwrap().alpha, 1.0);
        assert!(m.warnings().is_empty());
        let higher = metric(false, 0.2, 0.3, Some(0.6), &[(0.5, 0.5), (1.0, 0.4)]);
        assert_eq!(higher.best().unwrap().alpha, 0.5);
        assert!((higher.shifted[0].gap_closed.unwrap() - 0.75).abs() < 1e-12);
    }

    #[test]
    fn harm_is_said_against_host_and_tuned_proxy_and_where_there_is_no_gap() {
        let said = metric(false, 0.5, 0.6, Some(0.4), &[(1.0, 0.45), (2.0, 0.45)]).warnings();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("even the best alpha, 1,") && said[0].contains("host"), "{said:?}");
        assert!(said[1].contains("tuned proxy") && said[2].contains("no gap"), "{said:?}");
    }

    #[test]
    fn what_a_mask_rules_out_is_no_harm_of_the_shift() {
        let said = metric(true, 1.0, 1.2, None, &[(0.5, f64::INFINITY), (1.0, f64::INFINITY)]).warnings();
        assert!(said.len() == 1 && said[0].contains("mask = 0"), "{said:?}");
    }

    #[test]
    fn no_gap_no_share_of_it() {
        assert_eq!(metric(true, 1.0, 1.0, None, &[(1.0, 0.5)]).shifted[0].gap_closed, None);
        assert_eq!(metric(true, 1.0, 1.0, Some(1.0), &[(1.0, 0.5)]).shifted[0].gap_closed, None);
    }
}
