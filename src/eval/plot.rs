//! Plots of a metric, as SVG.

use super::metric::{Metric, percent};
use crate::error::{Error, Result};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SHIFTED: RGBColor = RGBColor(0x1f, 0x6f, 0xc4);
const HOST: RGBColor = RGBColor(0x33, 0x33, 0x33);
const TUNED: RGBColor = RGBColor(0xc2, 0x5b, 0x12);
const UNTUNED: RGBColor = RGBColor(0x8a, 0x8a, 0x8a);
const DIRECT: RGBColor = RGBColor(0x1d, 0x7d, 0x4f);
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xe6, 0xe6, 0xe6);

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The models that stand by themselves: name, colour and score.
fn models(metric: &Metric) -> Vec<(&'static str, RGBColor, f64)> {
    let mut all = vec![
        ("untuned proxy", UNTUNED, metric.untuned),
        ("tuned proxy", TUNED, metric.tuned),
        ("host", HOST, metric.host),
    ];
    all.extend(metric.direct.map(|score| ("directly tuned", DIRECT, score)));
    all.retain(|model| model.2.is_finite());
    all
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::engine("report", format!("a plot cannot be drawn ({error})"))
}

fn text(size: u32, colour: RGBColor, anchor: Pos) -> TextStyle<'static> {
    ("system-ui, sans-serif", size).into_font().color(&colour).pos(anchor)
}

/// A range with some room at both ends.
fn padded(values: impl Iterator<Item = f64> + Clone, share: f64) -> std::ops::Range<f64> {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    let room = ((high - low) * share).max(high.abs() * 0.01).max(1e-6);
    low - room..high + room
}

/// A range that is not too small for its ticks.
fn wide(range: std::ops::Range<f64>, least: f64) -> std::ops::Range<f64> {
    let lacking = (least - (range.end - range.start)).max(0.0) / 2.0;
    range.start - lacking..range.end + lacking
}

/// The range of an axis of scores: wide enough for its ticks to differ as they are written, and no shares that cannot be.
fn scores(metric: &Metric, values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let least = if metric.is_share { 0.1 } else { 0.01 };
    let std::ops::Range { mut start, mut end } = wide(padded(values, 0.08), least);
    if metric.is_share {
        let rim = 0.02 * (end - start);
        (start, end) = (start.max(-rim), end.min(1.0 + rim));
        if start < 0.0 { end = end.max(start + least) } else { start = start.min(end - least) }
    }
    start..end
}

/// Score against alpha, the gap closed at each point, and the other models as levels.
pub(super) fn sweep(metric: &Metric) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (860, 440)).into_drawing_area();
        // No shift is the host: the curve begins there.
        let mut points: Vec<(f64, f64, Option<f64>)> =
            metric.shifted.iter().map(|s| (f64::from(s.alpha), s.score, s.gap_closed)).collect();
        if points.iter().all(|p| p.0 != 0.0) {
            points.push((0.0, metric.host, None));
        }
        let x = wide(padded(points.iter().map(|p| p.0), 0.04), 0.1);
        points.retain(|p| p.1.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let models = models(metric);
        let y = scores(metric, points.iter().map(|p| p.1).chain(models.iter().map(|m| m.2)));
        // Room at the right for the levels' names.
        let (plot, names) = area.split_horizontally(720);
        let mut chart = ChartBuilder::on(&plot)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(x.clone(), y)
            .map_err(failed)?;
        mesh(&mut chart, metric)?;
        for (_, colour, score) in &models {
            let level = [(x.start, *score), (x.end, *score)];
            chart.draw_series(DashedLineSeries::new(level, 5, 4, colour.stroke_width(2))).map_err(failed)?;
        }
        let line = points.iter().map(|p| (p.0, p.1));
        chart.draw_series(LineSeries::new(line, SHIFTED.stroke_width(3))).map_err(failed)?;
        let dot = |p: &(f64, f64, Option<f64>)| Circle::new((p.0, p.1), 4, SHIFTED.filled());
        chart.draw_series(points.iter().map(dot)).map_err(failed)?;
        let gap = |p: &(f64, f64, Option<f64>)| {
            // Away from the host's level, which the curve is often near to.
            let (place, by) = if p.1 < metric.host { (VPos::Top, 9) } else { (VPos::Bottom, -9) };
            let style = text(15, SHIFTED, Pos::new(HPos::Center, place));
            Some(EmptyElement::at((p.0, p.1)) + Text::new(percent(p.2?), (0, by), style))
        };
        chart.draw_series(points.iter().filter_map(gap)).map_err(failed)?;
        let levels: Vec<(&str, RGBColor, i32)> =
            models.iter().map(|m| (m.0, m.1, chart.backend_coord(&(x.end, m.2)).1)).collect();
        for ((name, colour, _), at) in
            levels.iter().zip(apart(&levels.iter().map(|l| l.2).collect::<Vec<_>>(), 19))
        {
            let style = text(16, *colour, Pos::new(HPos::Left, VPos::Center));
            names.draw_text(name, &style, (0, at)).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn mesh(chart: &mut Chart<'_, '_>, metric: &Metric) -> Result<()> {
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc("alpha")
        .y_desc(metric.axis())
        .axis_desc_style(("system-ui, sans-serif", 16).into_font().color(&INK))
        .label_style(("system-ui, sans-serif", 15).into_font().color(&INK))
        .x_label_formatter(&|x| format!("{}", (x * 1000.0).round() / 1000.0 + 0.0))
        .y_label_formatter(&|y| metric.tick(*y))
        .draw()
        .map_err(failed)
}

/// Places for labels, in their order, at least `least` apart and as near as that allows to where they belong.
fn apart(wanted: &[i32], least: i32) -> Vec<i32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&i| wanted[i]);
    let mut places = wanted.to_vec();
    // Pushed down where too near, then the whole crowd back up by half of the push.
    let mut from = 0;
    while from < order.len() {
        let mut to = from + 1;
        while to < order.len() && wanted[order[to]] - wanted[order[from]] < least * (to - from) as i32 {
            to += 1;
        }
        let middle = (wanted[order[from]] + wanted[order[to - 1]]) / 2;
        let first = middle - least * (to - from - 1) as i32 / 2;
        for (step, &i) in order[from..to].iter().enumerate() {
            places[i] = first + least * step as i32;
        }
        from = to;
    }
    places
}

/// Where each model stands, the shifted host at its best alpha: one line each, drawn from the host's score.
pub(super) fn standing(metric: &Metric) -> Result<String> {
    let mut rows: Vec<(String, RGBColor, f64)> =
        models(metric).into_iter().map(|(name, colour, score)| (name.into(), colour, score)).collect();
    if let Some(best) = metric.best().filter(|b| b.score.is_finite()) {
        rows.insert(rows.len().min(3), (format!("shifted, alpha {}", best.alpha), SHIFTED, best.score));
    }
    let mut svg = String::new();
    {
        let height = 60 + 34 * rows.len() as u32;
        let area = SVGBackend::with_string(&mut svg, (860, height)).into_drawing_area();
        let range = padded(rows.iter().map(|r| r.2), 0.05);
        let (left, right) = (190.0, 760.0);
        let x =
            |score: f64| (left + (score - range.start) / (range.end - range.start) * (right - left)) as i32;
        let bottom = height as i32 - 36;
        let host = x(metric.host);
        let rule = PathElement::new([(host, 8), (host, bottom)], HOST.mix(0.35).stroke_width(1));
        area.draw(&rule).map_err(failed)?;
        for (i, (name, colour, score)) in rows.iter().enumerate() {
            let y = 26 + 34 * i as i32;
            let at = x(*score);
            area.draw(&PathElement::new([(host, y), (at, y)], colour.stroke_width(4))).map_err(failed)?;
            area.draw(&Circle::new((at, y), 6, colour.filled())).map_err(failed)?;
            let name_style = text(16, INK, Pos::new(HPos::Right, VPos::Center));
            area.draw_text(name, &name_style, (left as i32 - 16, y)).map_err(failed)?;
            let figure = text(16, *colour, Pos::new(HPos::Left, VPos::Center));
            area.draw_text(&metric.figure(*score), &figure, (at.max(host) + 12, y)).map_err(failed)?;
        }
        let unit = text(16, INK, Pos::new(HPos::Center, VPos::Center));
        area.draw_text(&metric.axis(), &unit, (((left + right) / 2.0) as i32, bottom + 20))
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    /// The texts of a plot that are anchored so.
    fn labels(svg: &str, at: &str) -> Vec<String> {
        let texts = svg.split("<text ").skip(1).filter(|text| text.contains(at));
        texts.filter_map(|text| Some(text.split_once('>')?.1.split('<').next()?.trim().to_owned())).collect()
    }

    #[test]
    fn ticks_differ_and_shares_stay_within_what_can_be_however_close_scores_are() {
        let columns = Column::all(false, &[0.5, 1.0]);
        for (unit, all) in [
            ("accuracy", [0.0; 5]),
            ("accuracy", [1.0; 5]),
            ("accuracy", [0.0, 1.0, 0.5, 0.2, 0.1]),
            ("accuracy", [0.512, 0.513, 0.514, 0.515, 0.513]),
            ("bits_per_byte", [1.2; 5]),
            ("bits_per_byte", [1.2, 1.2001, 1.2002, f64::INFINITY, f64::INFINITY]),
        ] {
            let metric = Metric::new(unit, unit == "bits_per_byte", &columns, &all);
            let svg = sweep(&metric).unwrap();
            for (axis, anchor) in [("scores", "text-anchor=\"end\""), ("alpha", "text-anchor=\"middle\"")] {
                let ticks = labels(&svg, anchor);
                let ticks: Vec<f64> =
                    ticks.iter().filter_map(|t| t.trim_end_matches(" %").parse().ok()).collect();
                assert!(ticks.len() > 3, "{all:?}, {axis}: {ticks:?}");
                assert!((1..ticks.len()).all(|i| !ticks[..i].contains(&ticks[i])), "{axis}: {ticks:?}");
                assert!(ticks.iter().all(|t| t.is_sign_positive()), "{all:?}, {axis}: {ticks:?}");
                assert!(axis == "alpha" || ticks.iter().all(|t| *t <= 100.0), "{all:?}: {ticks:?}");
            }
        }
    }

    #[test]
    fn labels_that_would_cover_each_other_move_apart_and_others_stay() {
        assert_eq!(apart(&[10, 100, 200], 17), [10, 100, 200]);
        let close = apart(&[100, 102, 40], 17);
        assert_eq!(close[2], 40);
        assert!(close[1] - close[0] >= 17 && close[0] < close[1]);
    }
}
