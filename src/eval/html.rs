//! The report as one self-contained HTML page.

use super::bootstrap::LEVEL;
use super::heat::{Heat, HeatToken};
use super::metric::{Metric, PERPLEXITY, percent};
use super::plot;
use super::report::Report;
use crate::decode::Candidate;
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
    let heat: Vec<Value> = report.heat.iter().map(heat).collect();
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
        heat,
        version => env!("CARGO_PKG_VERSION"),
    };
    environment.get_template("report.html").and_then(|t| t.render(page)).map_err(failed)
}

fn metric(metric: &Metric, beside: Option<&Metric>) -> Result<Value> {
    let best = metric.best();
    let intervals = metric.intervals_in_words();
    let first = 3 + usize::from(metric.direct.is_some());
    let row = |name: String,
               score: &dyn Fn(&Metric) -> Option<f64>,
               gap: Option<String>,
               class: &str,
               column: usize| {
        let figure = |m: &Metric| score(m).map(|s| m.figure(s));
        let interval = intervals.as_ref().and_then(|i| i.get(column));
        context! { name, score => figure(metric), beside => beside.map(figure), gap, class, interval }
    };
    let mut rows = vec![
        row("untuned proxy".into(), &|m| Some(m.untuned), None, "", 1),
        row("tuned proxy".into(), &|m| Some(m.tuned), None, "", 2),
        row("host".into(), &|m| Some(m.host), None, "", 0),
    ];
    for (i, shifted) in metric.shifted.iter().enumerate() {
        let class = match shifted {
            s if best == Some(*s) => "best",
            s if metric.is_worse(s.score, metric.host) => "worse",
            _ => "",
        };
        let name = format!("shifted, alpha {}", shifted.alpha);
        let gap = shifted.gap_closed.map(|share| match metric.interval_of_gap(i) {
            Some(of) => format!("{} ({} to {})", percent(share), percent(of.low), percent(of.high)),
            None => percent(share),
        });
        rows.push(row(name, &|m| m.shifted.get(i).map(|s| s.score), gap, class, first + i));
    }
    if metric.direct.is_some() {
        rows.push(row("directly tuned".into(), &|m| m.direct, None, "", 3));
    }
    Ok(context! {
        unit => metric.unit_in_words(),
        better => if metric.lower_is_better { "lower is better" } else { "higher is better" },
        rows,
        beside => beside.map(Metric::unit_in_words),
        level => intervals.as_ref().map(|_| format!("{:.0} % interval", 100.0 * LEVEL)),
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

/// A text whose tokens are the warmer the more the shift changed the choice, with what there is to say when one points at
/// them.
fn heat(heat: &Heat) -> Value {
    let percent = |p: f32| format!("{:.1} %", 100.0 * p);
    let line = |(text, c): &(String, Candidate)| {
        let by = c.moved_by.map_or(String::new(), |mover| format!(", by the {} proxy", mover.name()));
        format!("{text:?}: {} \u{2192} {}{by}", percent(c.host), percent(c.shifted))
    };
    let token = |token: &HeatToken| {
        let lines: Vec<String> = token.candidates.iter().map(line).collect();
        let title =
            format!("the shift changed {:.0} % of the choice\n{}", 100.0 * token.change, lines.join("\n"));
        // Whole per cent: the page is the same wherever it is made.
        let warmth = (token.change.clamp(0.0, 1.0) * 100.0).round() / 100.0;
        context! { text => &token.text, title, warmth => warmth.to_string(), is_shifted => token.is_shifted }
    };
    let tokens: Vec<Value> = heat.tokens.iter().map(token).collect();
    context! { prompt => short(&heat.prompt), tokens }
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
    fn tokens_are_as_warm_as_the_shift_changed_them_and_say_why() {
        let candidate =
            |token, host, shifted, moved_by| Candidate { token, host, shifted, proxies: None, moved_by };
        let candidates = vec![
            ("<b>\"".into(), candidate(1, 0.125, 0.75, Some(crate::decode::Mover::Tuned))),
            ("it".into(), candidate(2, 0.5, 0.1, None)),
        ];
        let warm = HeatToken { text: "<b>\"".into(), change: 0.625, is_shifted: true, candidates };
        let cold = HeatToken { text: " cold".into(), change: 0.0, is_shifted: false, candidates: Vec::new() };
        let mut with = report();
        with.heat = vec![Heat { prompt: "<i>".into(), tokens: vec![warm, cold] }];
        let page = html(&with).unwrap();
        assert!(page.contains("--warmth: 0.63") && page.contains("--warmth: 0\""), "{page}");
        assert!(
            page.contains("&lt;b&gt;&quot;</span>") && page.contains("&lt;i&gt;") && !page.contains("<b>")
        );
        assert!(page.contains("12.5 % \u{2192} 75.0 %, by the tuned proxy") && page.contains("changed 62 %"));
        assert!(!html(&report()).unwrap().contains("--warmth: "));
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
