//! From Python's arguments to proxies in memory.

use crate::errors::exception;
use proxytune::Error;
use proxytune::config::{Config, OnError};
use proxytune::host::requests::Requests;
use proxytune::host::{HostShape, Proxies, vocabulary};
use pyo3::exceptions::{PyTypeError, PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyMapping;
use std::fmt;
use std::path::PathBuf;

/// What is known of the host, and where its vocabulary stands.
pub struct Host {
    /// `None`: the configuration says it.
    pub vocabulary: Option<PathBuf>,
    /// Length of its rows of logits, where that is known.
    pub vocab_size: Option<usize>,
    /// Tokens that one of its sequences may have; 0: not known.
    pub context: usize,
    /// Sequences that it runs at once; 0: as many as the configuration has slots.
    pub sequences: usize,
    /// Threads that it computes on; 0: not known.
    pub threads: usize,
}

/// A path of a TOML file, or a mapping with the same sections. Warns of what has no effect in here.
pub fn config(object: &Bound<'_, PyAny>) -> PyResult<Config> {
    let config = read(object)?;
    if config.proxy_tuning.tuned_prompt.system.is_some() {
        let message = c"proxytune: tuned_prompt is not used here: all three models read the host's prompt";
        PyErr::warn(object.py(), &object.py().get_type::<PyUserWarning>(), message, 1)?;
    }
    Ok(config)
}

fn read(object: &Bound<'_, PyAny>) -> PyResult<Config> {
    if let Ok(path) = object.extract::<PathBuf>() {
        return Config::read(&path).map_err(|e| exception(&e));
    }
    if object.cast::<PyMapping>().is_err() {
        let given = object.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "config: got {given}, expected the path of a TOML file or a mapping with a section \"proxy_tuning\""
        )));
    }
    // Paths are written as text.
    let dumps = object.py().import("json")?.getattr("dumps")?;
    let options = [("default", object.py().import("os")?.getattr("fspath")?)];
    let text: String = dumps
        .call((object,), Some(&pyo3::types::IntoPyDict::into_py_dict(options, object.py())?))?
        .extract()?;
    serde_json::from_str(&text).map_err(|e| PyValueError::new_err(format!("config: {e}")))
}

/// How proxies were loaded.
pub struct Settings {
    /// Values of a row of the host's logits that are shifted.
    pub vocab: usize,
    /// Tokens that a history may have.
    pub context: usize,
    /// Sequences that keep their place in the proxies' caches.
    pub sequences: usize,
    pub alpha: f32,
    /// Whether a failure of the proxies ends a request.
    pub stops: bool,
    /// Whether the proxies work while the caller does something else.
    pub background: bool,
}

impl Settings {
    pub fn on_error(&self) -> &'static str {
        if self.stops { "stop" } else { "host" }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vocab, context, alpha, .. } = self;
        write!(f, "vocab_size={vocab}, context={context}, alpha={alpha}, on_error={:?}", self.on_error())
    }
}

/// Loads both proxies and gives them contexts that fit the host.
pub fn requests(config: Config, host: Host) -> proxytune::Result<(Requests, Settings)> {
    let path = host.vocabulary.or_else(|| config.host.model.clone()).ok_or_else(|| {
        let expected =
            "the host's GGUF file, tokenizer.json or checkpoint folder, or `model` in section [host]";
        Error::invalid("vocabulary", "nothing", expected)
    })?;
    // Before the weights are read: a wrong path should not take that long to show.
    let mut vocabulary = vocabulary::read(&path)?;
    let proxies = Proxies::load(config)?;
    let [tuned, _] = proxies.models().clone();
    if let Some(size) = host.vocab_size {
        vocabulary.pad(size);
        if vocabulary.len() > size {
            let expected = format!("at least {}, the tokens of the host's vocabulary", vocabulary.len());
            return Err(Error::invalid("vocab_size", size, expected));
        }
    }
    let Host { context, sequences, threads, .. } = host;
    let runner =
        proxies.runner(&HostShape { vocabulary, context, sequences, threads, ..HostShape::default() })?;
    let tuning = &proxies.config().proxy_tuning;
    let settings = Settings {
        vocab: runner.host_vocab(),
        context: runner.context().into_iter().min().unwrap_or(0),
        sequences: if sequences == 0 { tuning.slots } else { sequences },
        alpha: tuning.alpha,
        stops: tuning.on_error == OnError::Stop,
        background: runner.has_thread(),
    };
    let tokenize = move |text: &str| tuned.tokenize(text, true);
    let requests = Requests::new(runner, tuning.alpha, tuning.on_error, tokenize);
    Ok((requests.with_control(tuning.control()), settings))
}
