//! Progress bars on stderr, where it is a terminal.

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use proxytune::config::Config;
use proxytune::decode::{Models, NAMES};
use proxytune::{Error, Result};
use std::time::Duration;

/// A bar that shows up only once the work has taken a moment.
pub struct Progress {
    bar: Option<ProgressBar>,
    begin: std::time::Instant,
    template: &'static str,
}

impl Progress {
    pub fn new(template: &'static str) -> Self {
        Self { bar: None, begin: std::time::Instant::now(), template }
    }

    pub fn set(&mut self, done: u64, total: u64, message: &str) {
        if self.bar.is_none() && self.begin.elapsed() < Duration::from_millis(200) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(self.template);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let style = style.with_key("left", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
                let _ = to.write_str(&left(state.per_sec(), state.eta()));
            });
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let bar = bar.with_style(style).with_message(message.to_owned());
            // What was done before says nothing of how long the rest takes.
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
        if bar.message() != message {
            bar.set_message(message.to_owned());
        }
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Loads the models of a configuration under a bar.
pub fn load(config: &Config, alone: bool) -> Result<Models> {
    let mut progress = Progress::new("loading {msg:<13} {bar:30} {percent:>3} %");
    let models = Models::load(config, alone, &mut |which, share| {
        progress.set((share * 1000.0) as u64, 1000, NAMES[which]);
        !crate::interrupted()
    })?;
    if crate::interrupted() { Err(Error::Interrupted) } else { Ok(models) }
}

/// How long the rest takes; nothing as long as that cannot be told.
fn left(per_second: f64, rest: Duration) -> String {
    if per_second > 0.0 { format!("{:#} left", HumanDuration(rest)) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_done_is_not_nothing_left() {
        assert_eq!(left(0.0, Duration::ZERO), "");
        assert_eq!(left(2.0, Duration::from_secs(75)), "75s left");
        assert_eq!(left(2.0, Duration::from_millis(200)), "0s left");
    }
}
