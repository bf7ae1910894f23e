//! The report as one self-contained HTML page.

use super::report::Report;
use crate::error::Result;

/// Renders the page.
pub fn html(report: &Report) -> Result<String> {
    Ok(format!("{}", report.json()))
}
