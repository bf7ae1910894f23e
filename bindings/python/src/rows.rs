//! Rows of a batch as the core takes them.

use proxytune::host::requests::{Logits, Outcome, RequestId, Row};
use proxytune::vocab::Token;

/// One row: whose it is, what it has read, and where its logits stand, if they are wanted.
pub struct BatchRow<'a> {
    request: RequestId,
    history: &'a [Token],
    logits: Option<Logits<'a>>,
    outcome: Option<Outcome>,
}

impl<'a> BatchRow<'a> {
    /// A row whose offset is wanted, or will be.
    pub fn new(request: RequestId, history: &'a [Token]) -> Self {
        Self { request, history, logits: None, outcome: None }
    }

    /// A row that is to be shifted.
    pub fn with_logits(request: RequestId, history: &'a [Token], logits: Logits<'a>) -> Self {
        Self { logits: Some(logits), ..Self::new(request, history) }
    }

    /// Whether the proxies failed on it.
    pub fn failed(&self) -> bool {
        !matches!(self.outcome, None | Some(Outcome::Shifted))
    }
}

impl Row for BatchRow<'_> {
    fn request(&self) -> RequestId {
        self.request
    }

    fn history(&self) -> &[Token] {
        self.history
    }

    fn logits(&mut self) -> Logits<'_> {
        match &mut self.logits {
            Some(Logits::F32(row)) => Logits::F32(row),
            Some(Logits::F16(row)) => Logits::F16(row),
            Some(Logits::Bf16(row)) => Logits::Bf16(row),
            None => Logits::F32(&mut []),
        }
    }

    fn report(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}
