//! Does proxy-tuning help these models: host, proxies, shifted host and a directly tuned host side by side, on texts and
//! on tasks, over a sweep of alpha.
//!
//! Where the text is given (bits per byte, multiple choice) [`Scorer`] runs each model once over it and scores every
//! alpha from the same logits. Where models write text themselves (answers, code) each alpha is decoded by itself.
//! Finished items go to a [`Journal`], so a run that was killed goes on where it stopped.

mod answers;
mod bootstrap;
mod choice;
#[cfg(target_os = "linux")]
mod code;
mod column;
#[cfg(target_os = "linux")]
pub mod contain;
mod coverage;
mod fit;
mod generation;
mod heat;
mod html;
mod journal;
mod likelihood;
mod metric;
mod passage;
#[cfg(feature = "openai")]
mod picks;
mod plot;
mod prompts;
mod reading;
mod realtimeqa;
mod record;
mod report;
mod rule;
mod setup;
mod sweep;
mod table;
mod task;
mod text;

pub use answers::answers;
pub use bootstrap::{Interval, Intervals, LEVEL, RESAMPLES};
pub use choice::choices;
#[cfg(target_os = "linux")]
pub use code::code;
pub use column::Column;
pub use coverage::{Coverage, coverage};
pub use fit::{Fit, FitKind, fit};
pub use generation::{GenerationOptions, Verdict};
pub use heat::{Heat, HeatToken, Starts, heat, starts_of_items, starts_of_text};
pub use html::html;
pub use journal::Journal;
pub use metric::{Metric, Shifted, percent};
pub use passage::Passage;
#[cfg(feature = "openai")]
pub use picks::{PickOptions, picks};
pub use prompts::PromptOptions;
pub use realtimeqa::Pick;
pub use record::read_text;
pub use report::{Example, Report};
pub use rule::Rule;
pub use setup::{Listen, Progress, Setup, check_alphas};
pub use sweep::{Direct, Scorer};
pub use task::{Ask, Choice, Items, Kind, Problem, Question, read};
pub use text::{CALIBRATION_GRID, Window, calibrate, text};
