//! What a bench run prints.

use super::bare::BareMs;
use serde_json::json;

/// One way at one number of sequences.
pub struct Row {
    pub engine: &'static str,
    pub mode: &'static str,
    pub sequences: usize,
    /// A token for each sequence.
    pub step_ms: f64,
    pub bare_ms: BareMs,
    pub drafted: usize,
    pub accepted: usize,
}

impl Row {
    fn floor_ms(&self, bare: [f64; 3]) -> f64 {
        if self.mode == "host" { bare[0] } else { bare.iter().sum() }
    }

    fn tokens_per_s(&self, ms: f64) -> f64 {
        self.sequences as f64 * 1e3 / ms
    }

    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        self.tokens_per_s(self.step_ms)
    }

    /// Tokens a second of the floor.
    pub fn floor_rate(&self) -> f64 {
        self.tokens_per_s(self.floor_ms(self.bare_ms.alone))
    }

    pub fn json(&self) -> serde_json::Value {
        let [host, tuned, untuned] = self.bare_ms.alone;
        let floor = self.floor_ms(self.bare_ms.alone);
        json!({
            "engine": self.engine, "mode": self.mode, "sequences": self.sequences,
            "tokens_per_s": self.rate(),
            "floor_tokens_per_s": self.floor_rate(),
            "in_turn_tokens_per_s": self.tokens_per_s(self.floor_ms(self.bare_ms.in_turn)),
            "host_ms": host, "tuned_ms": tuned, "untuned_ms": untuned,
            "overhead_ms": self.step_ms - floor,
            "drafted": self.drafted, "accepted": self.accepted,
        })
    }
}

pub fn print_table(rows: &[Row]) {
    crate::say::outln!(
        "{:>9}  {:<11}  {:>9}  {:>9}  {:>9}  {:>10}  {:>8}  {:>22}",
        "sequences",
        "mode",
        "tokens/s",
        "of floor",
        "of bare",
        "of host",
        "accepted",
        "bare ms: H, T, U"
    );
    for row in rows {
        let [host, tuned, untuned] = row.bare_ms.alone;
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let host_ms = rows.iter().find(|r| r.sequences == row.sequences).map_or(f64::NAN, |r| r.step_ms);
        let accepted = match row.drafted {
            0 => String::new(),
            drafted => percent(row.accepted as f64 / drafted as f64),
        };
        crate::say::outln!(
            "{:>9}  {:<11}  {:>9.0}  {:>9}  {:>9}  {:>10}  {accepted:>8}  {host:>8.3} {tuned:>6.3} {untuned:>6.3}",
            row.sequences,
            row.mode,
            row.rate(),
            percent(row.floor_ms(row.bare_ms.alone) / row.step_ms),
            percent(row.floor_ms(row.bare_ms.in_turn) / row.step_ms),
            percent(host_ms / row.step_ms),
        );
    }
    crate::say::outln!(
        "\nMedians over rounds of the mean time of a token. Floor: the sum of the bare passes, each model repeated alone\n\
         on its best number of threads. Bare: the same passes after one another, as a step needs them."
    );
}
