//! An evaluation in the terminal.

use anstyle::{AnsiColor, Style};
use proxytune::eval::{LEVEL, Metric, Report, percent};

/// A line of the table: name, then for each metric its score, then the gap closed.
struct Row {
    name: String,
    cells: Vec<String>,
    style: Style,
}

pub fn print(report: &Report) {
    let Some(first) = report.metrics.first() else { return };
    let bold = Style::new().bold();
    crate::say::outln!("{bold}{}{bold:#}  {}", report.source, report.size);
    let rows = rows(report, first);
    let width = |column: usize| rows.iter().map(|r| r.cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].cells.len()).map(width).collect();
    let name_width = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0);
    crate::say::outln!();
    for Row { name, cells, style } in &rows {
        let cells: String = cells.iter().zip(&widths).map(|(cell, &w)| format!("  {cell:>w$}")).collect();
        crate::say::outln!("{style}{}{style:#}", format!("{name:<name_width$}{cells}").trim_end());
    }
    let (yellow, dim) = (AnsiColor::Yellow.on_default().bold(), Style::new().dimmed());
    for warning in report.warnings() {
        crate::say::outln!("\n{yellow}warning{yellow:#}: {warning}");
    }
    for note in &report.notes {
        crate::say::outln!("\n{dim}{note}{dim:#}");
    }
}

fn rows(report: &Report, first: &Metric) -> Vec<Row> {
    let gap_title = first.has_gap().then(|| "gap closed".to_owned());
    let intervals = first.intervals_in_words();
    let interval_title = intervals.as_ref().map(|_| format!("{:.0} % interval", 100.0 * LEVEL));
    let titles = report.metrics.iter().map(Metric::unit_in_words);
    let titles = titles.chain(gap_title.clone()).chain(interval_title).collect();
    // The intervals are in the order of the models, then of the alphas; the lines are not.
    let (direct, shifted) = (3, 3 + usize::from(first.direct.is_some()));
    let mut rows = vec![Row { name: String::new(), cells: titles, style: Style::new().dimmed() }];
    let mut add =
        |name: String, score: &dyn Fn(&Metric) -> Option<f64>, gap: Option<String>, style, column: usize| {
            let cell = |m: &Metric| score(m).map(|s| m.figure(s)).unwrap_or_default();
            let gap = gap_title.as_ref().map(|_| gap.unwrap_or_default());
            let interval = intervals.as_ref().map(|i| i.get(column).cloned().unwrap_or_default());
            let cells = report.metrics.iter().map(cell).chain(gap).chain(interval).collect();
            rows.push(Row { name, cells, style });
        };
    add("untuned proxy".into(), &|m| Some(m.untuned), None, Style::new(), 1);
    add("tuned proxy".into(), &|m| Some(m.tuned), None, Style::new(), 2);
    add("host".into(), &|m| Some(m.host), None, Style::new(), 0);
    let best = first.best();
    for (i, s) in first.shifted.iter().enumerate() {
        let (style, mark) = if Some(*s) == best && first.shifted.len() > 1 {
            (AnsiColor::Green.on_default().bold(), " (best)")
        } else if first.is_worse(s.score, first.host) {
            (AnsiColor::Yellow.on_default(), "")
        } else {
            (Style::new(), "")
        };
        let calibrated = report.calibration.as_ref().and_then(Metric::best).map(|b| b.alpha) == Some(s.alpha);
        let calibrated = if calibrated { " (calibrated)" } else { "" };
        let name = format!("shifted, alpha {}{calibrated}{mark}", s.alpha);
        let gap = s.gap_closed.map(|share| match first.interval_of_gap(i) {
            Some(of) => format!("{} ({} to {})", percent(share), percent(of.low), percent(of.high)),
            None => percent(share),
        });
        add(name, &|m| m.shifted.get(i).map(|s| s.score), gap, style, shifted + i);
    }
    if first.direct.is_some() {
        add("directly tuned".into(), &|m| m.direct, None, Style::new(), direct);
    }
    rows
}
