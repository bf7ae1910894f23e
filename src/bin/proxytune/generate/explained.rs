//! What the shift did at each token, for people and for programs.

use anstyle::{AnsiColor, Style};
use proxytune::backend::llama::LlamaModel;
use proxytune::decode::{Outcome, Position};

/// From which change of the choice on a token has which colour.
const COLOURS: [(f32, AnsiColor); 3] =
    [(0.6, AnsiColor::Red), (0.3, AnsiColor::Yellow), (0.1, AnsiColor::Cyan)];

/// What the colours mean.
pub fn legend() -> String {
    let parts: Vec<String> = COLOURS
        .iter()
        .rev()
        .map(|(from, colour)| {
            let style = colour.on_default();
            format!("{style}from {:.0} %{style:#}", from * 100.0)
        })
        .collect();
    let bold = Style::new().bold();
    format!(
        "how much the shift changed the choice: {}; {bold}bold{bold:#}: the most likely token is another",
        parts.join(", ")
    )
}

/// How a token is shown: by how much the shift changed the choice, where that is known.
pub fn style(position: &Position) -> Style {
    let Some(of) = &position.probabilities else {
        return if position.is_shifted() { AnsiColor::Green.on_default().bold() } else { Style::new() };
    };
    let colour = COLOURS.iter().find(|(from, _)| of.change >= *from).map(|(_, colour)| (*colour).into());
    let style = Style::new().fg_color(colour);
    if position.is_shifted() { style.bold() } else { style }
}

/// What a token spells; a control token's name.
pub fn text(host: &LlamaModel, token: u32) -> String {
    String::from_utf8_lossy(&host.piece(token, true)).into_owned()
}

/// A line for each candidate of each token.
pub fn table(outcome: &Outcome, host: &LlamaModel) -> String {
    let mut table = String::new();
    let percent = |p: f32| format!("{:>6.1} %", 100.0 * p);
    for (number, position) in outcome.positions.iter().enumerate() {
        let Some(of) = &position.probabilities else { continue };
        let style = style(position);
        let chosen = text(host, position.token);
        table += &format!(
            "{style}{:>4}  {chosen:?}{style:#}  the shift changed {:.0} % of the choice\n",
            number + 1,
            100.0 * of.change
        );
        for c in &position.candidates {
            let by = c.moved_by.map_or(String::new(), |mover| format!("  by the {} proxy", mover.name()));
            let text = format!("{:?}", text(host, c.token));
            table += &format!("      {text:<20} {} -> {}{by}\n", percent(c.host), percent(c.shifted));
        }
    }
    table
}
