//! What came of an evaluation.

use super::generation::Verdict;
use super::heat::Heat;
use super::metric::{Metric, PERPLEXITY};
use serde_json::{Map, Value, json};

/// An item with what was made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What was asked.
    pub prompt: String,
    /// What is right; may be empty.
    pub expected: String,
    /// Texts by whoever wrote them.
    pub outputs: Vec<(String, Verdict)>,
}

/// All that an evaluation has found out.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The kind of task.
    pub task: String,
    /// The file it came from.
    pub source: String,
    /// Size of the task in words, such as `42 questions`.
    pub size: String,
    /// Scores; the first is the one that alphas are compared by.
    pub metrics: Vec<Metric>,
    /// How alpha was chosen, where it was.
    pub calibration: Option<Metric>,
    /// How it was measured, for whoever reads the report: name and value.
    pub settings: Vec<(String, String)>,
    /// What a reader ought to know, such as prompts that were cut.
    pub notes: Vec<String>,
    /// The first items.
    pub examples: Vec<Example>,
    /// Texts of the shifted host, with what the shift did to each token; for the page alone.
    pub heat: Vec<Heat>,
}

impl Report {
    /// What ought to make a reader hesitate, over all metrics.
    pub fn warnings(&self) -> Vec<String> {
        // Perplexity says what bits per byte say.
        self.metrics.iter().filter(|m| m.unit != PERPLEXITY).flat_map(Metric::warnings).collect()
    }

    /// As one JSON object: the first metric at the top, the others below `other_metrics`.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("task".into(), json!(self.task));
        object.insert("source".into(), json!(self.source));
        object.insert("size".into(), json!(self.size));
        if let Some((first, others)) = self.metrics.split_first() {
            object.extend(first.json());
            object.insert("other_metrics".into(), others.iter().map(Metric::json).collect());
        }
        if let Some(calibration) = &self.calibration {
            object.insert("calibration".into(), calibration.json().into());
        }
        object.insert("warnings".into(), json!(self.warnings()));
        object.insert("notes".into(), json!(self.notes));
        object.into()
    }
}

/// So many of something, which has no irregular plural.
pub(super) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    #[test]
    fn json_has_the_documented_fields_and_alphas_as_they_were_written() {
        let columns = Column::all(false, &[0.1]);
        let metric = Metric::new("bits_per_byte", true, &columns, &[2.0, 9.0, 1.8, 1.5]);
        let json = Report { task: "text".into(), metrics: vec![metric], ..Report::default() }.json();
        for field in ["task", "unit", "host", "untuned", "tuned", "direct", "shifted", "best_alpha"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["best_alpha"].to_string(), "0.1");
        assert_eq!(json["shifted"][0]["alpha"].to_string(), "0.1");
    }
}
