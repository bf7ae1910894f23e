//! Flags of how much the shift counts.

use clap::Args;
use proxytune::config::{ProxyTuning, Schedule};

/// Schedule and guards of the shift.
#[derive(Args)]
pub struct Control {
    /// How alpha goes with the tokens generated: constant, warm-up:N, decay:N, stop:N, several with commas between
    /// [default: constant]
    #[arg(long, value_name = "SCHEDULE")]
    alpha_schedule: Option<Schedule>,
    /// The most that the shift may give or take of a token against the host's most likely one, in nats; 0: no cap
    /// [default: 0]
    #[arg(long, value_name = "NATS", allow_negative_numbers = true)]
    shift_cap: Option<f32>,
    /// Leave out the shift while the text ends in a run of tokens that stands there N times; 0: never [default: 0]
    #[arg(long, value_name = "N")]
    repetition_guard: Option<u32>,
}

impl Control {
    /// Lays them over a configuration.
    pub fn lay_over(&self, tuning: &mut ProxyTuning) {
        tuning.alpha_schedule = self.alpha_schedule.unwrap_or(tuning.alpha_schedule);
        tuning.shift_cap = self.shift_cap.unwrap_or(tuning.shift_cap);
        tuning.repetition_guard = self.repetition_guard.unwrap_or(tuning.repetition_guard);
    }
}

/// A weight of the shift, or one to be chosen.
#[derive(Clone, Copy, PartialEq)]
pub enum Alpha {
    Weight(f32),
    Auto,
}

impl std::str::FromStr for Alpha {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            text => text.parse().map(Self::Weight).map_err(|_| "expected a number or auto".into()),
        }
    }
}
