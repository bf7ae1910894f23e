//! TOML files, with errors that name the line and what was probably meant.

use super::OnError;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::de::DeTable;

/// Reads a TOML file into a type that refuses what it does not know.
///
/// # Errors
/// [`Error::Config`] with line and key; an unknown key names the nearest known one.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let error = |what, help: &str| Error::Config { path: path.into(), what, help: help.into() };
    let text = std::fs::read_to_string(path)
        .map_err(|e| error(format!("cannot be read ({e})"), "give the path of a TOML file"))?;
    parse(&text).map_err(|(what, help)| error(what, &help))
}

/// What a configuration says about failures, also where it is itself one: whoever wrote `on_error = "stop"` beside a typing
/// error does not want to go on unshifted.
pub fn read_on_error(path: &Path) -> OnError {
    std::fs::read_to_string(path).map_or(OnError::default(), |text| on_error(&text))
}

fn on_error(text: &str) -> OnError {
    let (table, _) = DeTable::parse_recoverable(text);
    let value = table.get_ref().get("proxy_tuning").and_then(|section| section.get_ref().get("on_error"));
    match value.and_then(|value| value.get_ref().as_str()) {
        Some("stop") => OnError::Stop,
        _ => OnError::Host,
    }
}

/// The error: what is wrong, and what to do.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> std::result::Result<T, (String, String)> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        (format!("line {line}: {}", e.message()), advice(e.message()))
    })
}

/// What to do about a TOML error; for an unknown key the known one that is spelt most alike.
fn advice(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field").then(|| quoted.next()).flatten();
    let nearest = unknown.and_then(|unknown| {
        let alike = |known: &str| strsim::jaro_winkler(unknown, known);
        quoted.max_by(|a, b| alike(a).total_cmp(&alike(b)))
    });
    match nearest {
        Some(known) => format!("did you mean `{known}`?"),
        None => "see the example in the README".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broken_file_says_about_failures() {
        let stop = "[proxy_tuning]\non_error = \"stop\"\n";
        for broken in ["", "alfa = 1\n", "alpha = \n", "tuned = \"a", "[host\n", "alpha = 1 2\n]]]\n"] {
            assert_eq!(on_error(&format!("{stop}{broken}")), OnError::Stop, "{broken}");
        }
        for other in [
            "",
            "alpha = 1",
            "[proxy_tuning]\non_error = 3",
            "[proxy_tuning]\n# on_error = \"stop\"",
            "proxy_tuning = 1",
        ] {
            assert_eq!(on_error(other), OnError::Host, "{other}");
        }
    }
}
