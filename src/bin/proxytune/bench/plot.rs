//! A bench run as a picture: tokens a second of each way, beside the floor.

use super::table::Row;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use proxytune::{Error, Result};
use std::path::Path;

const WIDTH: u32 = 860;
const BAR: i32 = 22;
const GAP: i32 = 18;
const LEFT: i32 = 190;
const RIGHT: i32 = 90;
const TOP: i32 = 64;
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const FLOOR: RGBColor = RGBColor(0xc2, 0x2f, 0x2f);

/// Writes the rows of a run as an SVG file.
///
/// # Errors
/// When the file cannot be written.
pub fn write(rows: &[Row], path: &Path) -> Result<()> {
    let svg = draw(rows).map_err(|e| Error::engine("bench", format!("the plot cannot be drawn ({e})")))?;
    std::fs::write(path, svg).map_err(|e| Error::file(path, e.to_string(), "name a file that can be written"))
}

fn colour(mode: &str) -> RGBColor {
    match mode {
        "host" => RGBColor(0x8a, 0x8a, 0x8a),
        "naive" => RGBColor(0xd9, 0xa4, 0x5b),
        "lockstep" => RGBColor(0x1f, 0x6f, 0xc4),
        _ => RGBColor(0x1d, 0x7d, 0x4f),
    }
}

fn text(size: u32, anchor: HPos) -> TextStyle<'static> {
    ("system-ui, sans-serif", size).into_font().color(&INK).pos(Pos::new(anchor, VPos::Center))
}

fn draw(rows: &[Row]) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let groups = rows.chunk_by(|a, b| a.sequences == b.sequences).count() as i32;
    let height = TOP + rows.len() as i32 * BAR + groups * GAP;
    let most = rows.iter().flat_map(|r| [r.rate(), r.floor_rate()]).fold(1.0, f64::max);
    let wide = |rate: f64| LEFT + (f64::from(WIDTH as i32 - LEFT - RIGHT) * rate / most) as i32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let engine = rows.first().map_or("", |row| row.engine);
        let title = format!("Tokens a second, all sequences together (host in {engine})");
        area.draw_text(&title, &text(18, HPos::Left), (12, 20))?;
        area.draw_text(
            "red: the floor, nothing but the bare forward passes",
            &text(14, HPos::Left),
            (12, 44),
        )?;
        let mut y = TOP;
        for group in rows.chunk_by(|a, b| a.sequences == b.sequences) {
            let name = if group[0].sequences == 1 { "sequence" } else { "sequences" };
            let place = (12, y + group.len() as i32 * BAR / 2);
            area.draw_text(&format!("{} {name}", group[0].sequences), &text(15, HPos::Left), place)?;
            for row in group {
                let (end, middle) = (wide(row.rate()), y + BAR / 2);
                area.draw(&Rectangle::new([(LEFT, y + 2), (end, y + BAR - 2)], colour(row.mode).filled()))?;
                area.draw_text(row.mode, &text(14, HPos::Right), (LEFT - 8, middle))?;
                let floor = wide(row.floor_rate());
                area.draw(&PathElement::new([(floor, y), (floor, y + BAR)], FLOOR.stroke_width(3)))?;
                let number = format!("{:.0}", row.rate());
                area.draw_text(&number, &text(14, HPos::Left), (end.max(floor) + 8, middle))?;
                y += BAR;
            }
            y += GAP;
        }
        area.present()?;
    }
    Ok(svg)
}
