//! What a runner's handles tell the owner of its pair.

use super::sync::Sender;
use super::{History, SequenceId};
use crate::error::Result;

/// A wish for the offsets at the last `rows` positions of a history.
pub(super) struct Wish {
    pub sequence: SequenceId,
    pub history: History,
    pub rows: usize,
    /// Whether the proxies' log-probabilities are wanted beside the offsets.
    pub explains: bool,
    /// A buffer to write into.
    pub offset: Vec<f32>,
    pub reply: Sender<Result<Vec<f32>>>,
}

/// See the [module](self).
pub(super) enum Message {
    /// Waits for the next `Start`, so that one round serves all that have come by then.
    Wish(Wish),
    Start,
    Remove(SequenceId),
    Stop,
}
