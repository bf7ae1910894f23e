//! What can go wrong, said so that a person can act on it: what was given, what was expected, what to do.

use std::path::PathBuf;
use std::time::Duration;

/// The one result type of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure that leaves the crate.
///
/// Variants tell apart what a caller may want to treat differently; each message is complete by itself.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file that is missing, truncated, of another format, or not loadable.
    #[error("{}: {what}; {help}", path.display())]
    Model {
        /// The file as it was given.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        help: String,
    },

    /// Models whose vocabularies cannot be mapped onto each other.
    #[error("vocabularies do not match: {what}; {help}")]
    Vocabulary {
        /// Which models, and by how much they differ.
        what: String,
        /// What to do.
        help: String,
    },

    /// A configuration file that cannot be read or holds something unknown.
    #[error("{}: {what}; {help}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        what: String,
        /// What to do.
        help: String,
    },

    /// A text, task or result file that cannot be read, written or made sense of.
    #[error("{}: {what}; {help}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and field where there is one.
        what: String,
        /// What to do.
        help: String,
    },

    /// A flag, field or argument whose value cannot be used.
    #[error("{name}: got {given}, expected {expected}")]
    Invalid {
        /// The flag or field.
        name: String,
        /// The value as given.
        given: String,
        /// What would be accepted.
        expected: String,
    },

    /// A history that does not fit a model's context.
    #[error(
        "{model}: {tokens} tokens do not fit its context of {context}; shorten the prompt, lower --max-tokens, or raise --ctx"
    )]
    Length {
        /// Which model.
        model: String,
        /// Tokens of the history.
        tokens: usize,
        /// Tokens that one slot of the model holds.
        context: usize,
    },

    /// Not enough memory for what was asked.
    #[error("{what} needs {} MiB, {} MiB are free; {help}", needed >> 20, available >> 20)]
    Memory {
        /// What the memory is for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// What to do.
        help: String,
    },

    /// A forward pass of an engine failed. The engine itself goes on.
    #[error("{engine}: {what}")]
    Engine {
        /// Which engine or model.
        engine: String,
        /// Its own words, as far as it says any.
        what: String,
    },

    /// A proxy that did not end its round in time, or has not ended one that was late.
    #[error(
        "{model}: no answer within {} s; nothing waits for it before it has answered (--proxy-timeout)", limit.as_secs_f64()
    )]
    Timeout {
        /// Which proxy.
        model: String,
        /// How long a round is waited for.
        limit: Duration,
    },

    /// Rows that ought to be of one length are not.
    #[error("{what}: got {got} logits, expected {expected}")]
    Shape {
        /// Which row.
        what: &'static str,
        /// Length given.
        got: usize,
        /// Length expected.
        expected: usize,
    },

    /// A host behind an API that refused a request, did not answer, or answered what makes no sense.
    #[error("{url}: {what}; {help}")]
    Upstream {
        /// Where the request went.
        url: String,
        /// The HTTP status, where there was an answer.
        status: Option<u16>,
        /// What is wrong, in the API's own words where it said any.
        what: String,
        /// What to do.
        help: String,
        /// Whether the same request may succeed later.
        transient: bool,
    },

    /// What may be spent on a host behind an API is spent.
    #[error("{what}; raise it, or go on from the text so far")]
    Budget {
        /// Which limit, and how far it was used.
        what: String,
    },

    /// The thread that owns the proxies is gone.
    #[error("the proxies' runner has stopped: {0}")]
    Stopped(String),

    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What sort of failure it is, in a word: for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Model { .. } => "model",
            Self::Vocabulary { .. } => "vocabulary",
            Self::Config { .. } => "config",
            Self::File { .. } => "file",
            Self::Invalid { .. } => "invalid",
            Self::Length { .. } => "length",
            Self::Memory { .. } => "memory",
            Self::Engine { .. } => "engine",
            Self::Timeout { .. } => "timeout",
            Self::Shape { .. } => "shape",
            Self::Upstream { .. } => "upstream",
            Self::Budget { .. } => "budget",
            Self::Stopped(_) => "stopped",
            Self::Interrupted => "interrupted",
        }
    }

    /// Shorthand for [`Error::Engine`].
    pub fn engine(engine: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Engine { engine: engine.into(), what: what.into() }
    }

    /// Shorthand for [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into(), help: help.into() }
    }

    /// Shorthand for [`Error::Invalid`].
    pub fn invalid(name: impl Into<String>, given: impl ToString, expected: impl Into<String>) -> Self {
        Self::Invalid { name: name.into(), given: given.to_string(), expected: expected.into() }
    }
}
