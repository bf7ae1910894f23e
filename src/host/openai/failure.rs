//! What goes wrong with an API, by kind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// It refused with this HTTP status.
    Status(u16),
    /// No connection.
    Unreachable,
    /// A connection that was lost, or an answer that broke off.
    Lost,
    /// Nothing came for longer than the time-out.
    Silent,
    /// An answer that makes no sense.
    Nonsense,
}

impl Failure {
    /// The HTTP status, where there was one.
    pub fn status(self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Lost => f.write_str("lost"),
            Self::Silent => f.write_str("silent"),
            Self::Nonsense => f.write_str("nonsense"),
        }
    }
}

/// How often each kind was seen.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<Failure, u64>>);

impl Failures {
    pub fn count(&self, kind: Failure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    pub fn counts(&self) -> Vec<(Failure, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(&kind, &n)| (kind, n)).collect()
    }
}
