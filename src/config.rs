//! The configuration file.

mod combine;
mod file;
mod server;

pub use crate::combine::{Control, Schedule};
pub use combine::Combine;
pub use file::{read_on_error, read_toml};
pub use server::Server;

use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All of it. Every key has a default but the models.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The large model.
    pub host: Host,
    /// The two small ones and what they do to it.
    pub proxy_tuning: ProxyTuning,
    /// Where a server listens.
    pub server: Server,
}

/// `[host]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// GGUF file.
    pub model: Option<PathBuf>,
    /// Tokens a sequence may have; 0: what the model was trained on.
    pub ctx: usize,
    /// Layers on the accelerator, as llama.cpp's; negative: all.
    pub gpu_layers: i32,
    /// The accelerator by llama.cpp's name.
    pub device: Option<String>,
}

/// `[proxy_tuning]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyTuning {
    /// GGUF file of the tuned proxy.
    pub tuned: Option<PathBuf>,
    /// GGUF file of a LoRA adapter that makes the tuned proxy of the untuned one, in place of `tuned`.
    pub tuned_lora: Option<PathBuf>,
    /// GGUF file of the untuned proxy.
    pub untuned: Option<PathBuf>,
    /// Weight of the shift; negative turns it round.
    pub alpha: f32,
    /// How host and proxies are combined.
    pub combine: Combine,
    /// How that weight goes with the number of tokens generated.
    pub alpha_schedule: Schedule,
    /// The most that a token may gain or lose against the host's most likely one, in nats; 0: no cap.
    pub shift_cap: f32,
    /// Times that a run of tokens may stand at the text's end before the shift is left out; 0: no guard.
    pub repetition_guard: u32,
    /// Whether the tuned proxy drafts for the host.
    pub speculate: Speculate,
    /// What happens to a request whose proxies fail.
    pub on_error: OnError,
    /// Seconds that a round of the proxies may keep anybody waiting; 0: as long as it takes.
    pub proxy_timeout: f64,
    /// Sequences kept in the proxies' caches.
    pub slots: usize,
    /// Tokens a slot holds; 0: what the proxy was trained on.
    pub ctx: usize,
    /// Threads for all models together; 0: all cores.
    pub threads: usize,
    /// Where the proxies' passes run in relation to the host's.
    pub placement: Placement,
    /// Layers of the proxies on the accelerator, as llama.cpp's; negative: all.
    pub gpu_layers: i32,
    /// The proxies' accelerator by llama.cpp's name.
    pub device: Option<String>,
    /// The proxies' pass is left out where the host's most likely token has a probability above this; 1: never.
    pub skip_above: f32,
    /// What the tuned proxy reads for a prompt.
    pub tuned_prompt: TunedPrompt,
}

impl Default for ProxyTuning {
    fn default() -> Self {
        Self {
            tuned: None,
            tuned_lora: None,
            untuned: None,
            alpha: 1.0,
            combine: Combine::default(),
            alpha_schedule: Schedule::default(),
            shift_cap: 0.0,
            repetition_guard: 0,
            speculate: Speculate::Auto,
            on_error: OnError::Host,
            proxy_timeout: 0.0,
            slots: 16,
            ctx: 0,
            threads: 0,
            placement: Placement::Auto,
            gpu_layers: 0,
            device: None,
            skip_above: 1.0,
            tuned_prompt: TunedPrompt::default(),
        }
    }
}

impl ProxyTuning {
    /// The file that the tuned proxy is made by: a whole model, or an adapter.
    pub fn tuned_file(&self) -> Option<&Path> {
        self.tuned.as_deref().or(self.tuned_lora.as_deref())
    }

    /// `skip_above`; `None` for never.
    pub fn gate(&self) -> Option<f32> {
        (self.skip_above < 1.0).then_some(self.skip_above)
    }

    /// Schedule and guards.
    pub fn control(&self) -> Control {
        let cap = (self.shift_cap != 0.0).then_some(self.shift_cap);
        Control { schedule: self.alpha_schedule, cap, repetition_guard: self.repetition_guard }
    }

    /// `proxy_timeout` as a time; `None` for none.
    pub fn time_limit(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.proxy_timeout).ok().filter(|limit| !limit.is_zero())
    }
}

/// Whether the tuned proxy drafts tokens that the host then checks, several in one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SpeculateValue")]
pub enum Speculate {
    /// Never.
    Off,
    /// As many tokens as pay, by what is measured.
    #[default]
    Auto,
    /// Always so many, 1 to 16.
    Tokens(u8),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpeculateValue {
    Number(i64),
    Text(String),
}

impl TryFrom<SpeculateValue> for Speculate {
    type Error = Error;
    fn try_from(value: SpeculateValue) -> Result<Self> {
        match value {
            SpeculateValue::Number(number) => number.to_string().parse(),
            SpeculateValue::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for Speculate {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("off", _) => Ok(Self::Off),
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(tokens @ 1..=16)) => Ok(Self::Tokens(tokens)),
            _ => Err(Error::invalid("--speculate", text, "off, auto, or a number of tokens from 1 to 16")),
        }
    }
}

/// What happens to a request whose proxies fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It goes on unshifted, counted and logged.
    #[default]
    Host,
    /// It ends with an error.
    Stop,
}

/// Where the proxies' passes run in relation to the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Together where an accelerator is used; else in turn or side by side, whichever measures faster.
    #[default]
    Auto,
    /// Host, tuned and untuned one after the other, each on all threads.
    InTurn,
    /// The host on all threads, then both proxies at once on half of them each.
    SideBySide,
    /// All three at once, where the token is known early enough.
    Together,
}

/// `[proxy_tuning.tuned_prompt]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TunedPrompt {
    /// `own`, `host`, `none`, or a file with a Jinja chat template.
    pub template: String,
    /// System prompt for the tuned proxy alone.
    pub system: Option<String>,
}

impl Default for TunedPrompt {
    fn default() -> Self {
        Self { template: "own".into(), system: None }
    }
}

impl Config {
    /// Reads a TOML file; model paths in it are relative to the working directory.
    ///
    /// # Errors
    /// [`Error::Config`] with line and key; an unknown key names the nearest known one.
    pub fn read(path: &Path) -> Result<Self> {
        read_toml(path)
    }

    /// Checks values that no type can.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the flag or key.
    pub fn check(&self) -> Result<()> {
        let tuning = &self.proxy_tuning;
        if let (Some(tuned), Some(_)) = (&tuning.tuned, &tuning.tuned_lora) {
            let expected = "either a tuned proxy or, with tuned_lora, an adapter over the untuned one";
            return Err(Error::invalid("tuned", tuned.display(), expected));
        }
        check_alpha(tuning.alpha)?;
        tuning.control().check()?;
        let seconds = tuning.proxy_timeout;
        if seconds != 0.0 && !(0.001..=86400.0).contains(&seconds) {
            let expected = "seconds from 0.001 to 86400, or 0 for no limit";
            return Err(Error::invalid("--proxy-timeout", seconds, expected));
        }
        if !(tuning.skip_above > 0.0 && tuning.skip_above <= 1.0) {
            let expected = "a probability above 0 and at most 1, which is never";
            return Err(Error::invalid("--skip-above", tuning.skip_above, expected));
        }
        if !(1..=256).contains(&tuning.slots) {
            return Err(Error::invalid("slots", tuning.slots, "1 to 256"));
        }
        self.server.check()
    }
}

/// Checks the weight of a shift.
///
/// # Errors
/// [`Error::Invalid`] when it is NaN or infinite.
pub fn check_alpha(alpha: f32) -> Result<()> {
    let expected = "a finite number: 1 as in the paper, 0 for none, negative to turn the shift round";
    if alpha.is_finite() { Ok(()) } else { Err(Error::invalid("--alpha", alpha, expected)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Config, (String, String)> {
        file::parse(text)
    }

    #[test]
    fn the_documented_file_is_read() {
        let text = r#"
            [host]
            model = "models/tiny-host.gguf"
            [proxy_tuning]
            tuned = "models/tiny-tuned.gguf"
            untuned = "models/tiny-untuned.gguf"
            alpha = 0.5
            speculate = "auto"
            on_error = "stop"
            proxy_timeout = 2.5
            slots = 8
            placement = "in-turn"
            [proxy_tuning.tuned_prompt]
            template = "own"
            system = "You are helpful."
            [server]
            port = 9000
        "#;
        let config = parse(text).unwrap();
        assert_eq!(config.proxy_tuning.alpha, 0.5);
        assert_eq!(config.proxy_tuning.on_error, OnError::Stop);
        assert_eq!(config.proxy_tuning.placement, Placement::InTurn);
        assert_eq!(config.proxy_tuning.time_limit(), Some(Duration::from_millis(2500)));
        assert_eq!(config.server, Server { port: 9000, ..Server::default() });
        config.check().unwrap();
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        let (what, help) = parse("[proxy_tuning]\nalpha = 1\nuntunned = 'x'\n").unwrap_err();
        assert!(what.contains("line 3") && what.contains("untunned"), "{what}");
        assert_eq!(help, "did you mean `untuned`?");
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let (what, _) = parse("[proxy_tuning]\nalpha = 'much'\n").unwrap_err();
        assert!(what.contains("line 2"), "{what}");
    }

    #[test]
    fn drafts_are_off_auto_or_a_number_in_the_file_and_as_a_flag() {
        let read = |value| parse(&format!("[proxy_tuning]\nspeculate = {value}\n"));
        assert_eq!(read("3").unwrap().proxy_tuning.speculate, Speculate::Tokens(3));
        assert_eq!(read("'off'").unwrap().proxy_tuning.speculate, Speculate::Off);
        assert!(read("17").unwrap_err().0.contains("got 17, expected off, auto"));
        assert!("0".parse::<Speculate>().is_err() && "auto".parse::<Speculate>().is_ok());
    }

    #[test]
    fn the_tuned_proxy_is_a_model_or_an_adapter() {
        let read = |text: &str| parse(&format!("[proxy_tuning]\n{text}")).unwrap();
        let adapter = read("tuned_lora = 'a.gguf'");
        assert_eq!(adapter.proxy_tuning.tuned_file(), Some(Path::new("a.gguf")));
        adapter.check().unwrap();
        let both = read("tuned_lora = 'a.gguf'\ntuned = 't.gguf'").check().unwrap_err().to_string();
        assert!(both.contains("got t.gguf, expected either"), "{both}");
    }

    #[test]
    fn a_time_limit_is_none_or_within_reason() {
        let with = |seconds| {
            let mut config = Config::default();
            config.proxy_tuning.proxy_timeout = seconds;
            config.check().map(|()| config.proxy_tuning.time_limit())
        };
        assert_eq!(with(0.0).unwrap(), None);
        assert_eq!(with(10.0).unwrap(), Some(Duration::from_secs(10)));
        for seconds in [-1.0, 0.0001, 1e9, f64::INFINITY, f64::NAN] {
            assert!(with(seconds).unwrap_err().to_string().contains("0 for no limit"), "{seconds}");
        }
    }

    #[test]
    fn alpha_may_be_any_finite_number() {
        assert!([-1.0, 0.0, 30.0].iter().all(|&a| check_alpha(a).is_ok()));
        assert!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().all(|&a| check_alpha(a).is_err()));
    }
}
