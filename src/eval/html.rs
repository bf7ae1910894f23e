//! The report as one self-contained HTML page.

use super::plot;
use super::report::{Metric, PERPLEXITY, Report, percent};
use crate::error::{Error, Result};
use minijinja::{Environment, Value, context};

const TEMPLATE: &str = include_str!("report.html");
/// Characters of a text that are shown.
const SHOWN: usize = 1200;

/// Renders the page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(report: &Report) -> Result<String> {
    let failed = |e: minijinja::Error| Error::engine("report", format!("the page cannot be made ({e})"));
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).map_err(failed)?;
    // Perplexity is bits per byte on another scale: a column beside it, not a plot of its own.
    let perplexity = report.metrics.iter().find(|m| m.unit == PERPLEXITY);
    let plotted = report.metrics.iter().filter(|m| m.unit != PERPLEXITY);
    let metrics = plotted.map(|m| metric(m, perplexity)).collect::<Result<Vec<_>>>()?;
    let examples: Vec<Value> = report
        .examples
        .iter()
        .map(|e| {
            let output = |(name, verdict): &(String, super::Verdict)| {
                context! { name, right => verdict.right, text => short(&verdict.text), why => short(&verdict.why) }
            };
            let outputs: Vec<Value> = e.outputs.iter().map(output).collect();
            context! { prompt => short(&e.prompt), expected => short(&e.expected), outputs }
        })
        .collect();
    let page = context! {
        task => &report.task,
        source => &report.source,
        size => &report.size,
        metrics,
        warnings => report.warnings(),
        notes => &report.notes,
        settings => &report.settings,
        calibration => report.calibration.as_ref().map(calibration),
        examples,
        version => env!("CARGO_PKG_VERSION"),
    };
    environment.get_template("report.html").and_then(|t| t.render(page)).map_err(failed)
}

fn metric(metric: &Metric, beside: Option<&Metric>) -> Result<Value> {
    let best = metric.best();
    let row = |name: String, score: &dyn Fn(&Metric) -> Option<f64>, gap: Option<f64>, class: &str| {
        let figure = |m: &Metric| score(m).map(|s| m.figure(s));
        context! { name, score => figure(metric), beside => beside.map(figure), gap => gap.map(percent), class }
    };
    let mut rows = vec![
        row("untuned proxy".into(), &|m| Some(m.untuned), None, ""),
        row("tuned proxy".into(), &|m| Some(m.tuned), None, ""),
        row("host".into(), &|m| Some(m.host), None, ""),
    ];
    for (i, shifted) in metric.shifted.iter().enumerate() {
        let class = match shifted {
            s if best == Some(*s) => "best",
            s if metric.is_worse(s.score, metric.host) => "worse",
            _ => "",
        };
        let name = format!("shifted, alpha {}", shifted.alpha);
        rows.push(row(name, &|m| m.shifted.get(i).map(|s| s.score), shifted.gap_closed, class));
    }
    if metric.direct.is_some() {
        rows.push(row("directly tuned".into(), &|m| m.direct, None, ""));
    }
    Ok(context! {
        unit => metric.unit_in_words(),
        better => if metric.lower_is_better { "lower is better" } else { "higher is better" },
        rows,
        beside => beside.map(Metric::unit_in_words),
        has_gap => metric.has_gap(),
        best => best.map(|b| context! {
            alpha => b.alpha.to_string(),
            score => metric.figure(b.score),
            gap => b.gap_closed.map(percent),
        }),
        host => metric.figure(metric.host),
        sweep => plot::sweep(metric)?,
        standing => plot::standing(metric)?,
    })
}

fn calibration(metric: &Metric) -> Value {
    let best = metric.best();
    context! {
        alpha => best.map(|b| b.alpha.to_string()),
        score => best.map(|b| metric.figure(b.score)),
        host => metric.figure(metric.host),
        unit => metric.unit_in_words(),
    }
}

fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::super::column::Column;
    use super::super::{Example, Verdict};
    use super::*;

    fn report() -> Report {
        let columns = Column::all(true, &[0.5, 1.0]);
        let verdict = Verdict { text: "<script>alert(1)</script>".into(), right: false, why: "a & b".into() };
        Report {
            task: "gsm8k".into(),
            source: "<file>.jsonl".into(),
            metrics: vec![Metric::new("accuracy", false, &columns, &[0.2, 0.1, 0.7, 0.6, 0.4, 0.3])],
            examples: vec![Example {
                prompt: "1 < 2?".into(),
                expected: "yes".into(),
                outputs: vec![("host".into(), verdict)],
            }],
            ..Report::default()
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_runs_nothing() {
        let page = html(&report()).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        for outside in ["<script", "<link", "<img", "url(", "@import", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(
            page.contains("&lt;script&gt;")
                && page.contains("&lt;file&gt;.jsonl")
                && page.contains("a &amp; b")
        );
    }

    #[test]
    fn the_page_says_gap_best_alpha_and_warning() {
        let page = html(&report()).unwrap();
        assert!(page.contains("50 %") && page.contains("25 %"), "gaps");
        assert!(page.contains("tuned proxy alone is better"), "warning");
    }

    #[test]
    fn scores_that_are_not_finite_do_not_break_the_page() {
        let mut broken = report();
        let columns = Column::all(false, &[1.0]);
        broken.metrics =
            vec![Metric::new("bits_per_byte", true, &columns, &[1.0, f64::INFINITY, 2.0, f64::INFINITY])];
        assert!(html(&broken).is_ok());
    }
}
