//! Which history goes on from which: for callers that have no names for their sequences.

use proxytune::host::requests::RequestId;
use proxytune::vocab::Token;
use std::collections::HashSet;

/// A request of the core for each text, found again by what it has read.
///
/// Whichever a history is given, its offset is right: the choice only decides what is found in the proxies' caches.
pub struct Texts {
    /// The least recently used first.
    known: Vec<Text>,
    most: usize,
    next: RequestId,
}

struct Text {
    request: RequestId,
    history: Vec<Token>,
}

/// Requests for a batch of histories.
pub struct Assigned {
    /// One for each history.
    pub requests: Vec<RequestId>,
    /// Those among them that are new.
    pub added: Vec<RequestId>,
}

impl Texts {
    /// Keeps as many texts as `most`, or as a batch has.
    pub fn new(most: usize) -> Self {
        Self { known: Vec::new(), most, next: 0 }
    }

    /// A request for each history: that of the longest text that it goes on from, or the least recently used, or a
    /// new one.
    pub fn assign(&mut self, histories: &[Vec<Token>]) -> Assigned {
        let mut requests = vec![None; histories.len()];
        let mut taken = HashSet::new();
        for (history, request) in histories.iter().zip(&mut requests) {
            let goes_on = |text: &&Text| history.starts_with(&text.history) && !taken.contains(&text.request);
            let longest = self.known.iter().filter(goes_on).max_by_key(|text| text.history.len());
            *request = longest.map(|text| text.request);
            taken.extend(*request);
        }
        let mut added = Vec::new();
        for request in requests.iter_mut().filter(|r| r.is_none()) {
            let full = self.known.len() + added.len() >= self.most;
            let oldest = self.known.iter().map(|text| text.request).find(|r| full && !taken.contains(r));
            let chosen = oldest.unwrap_or_else(|| {
                self.next += 1;
                added.push(self.next);
                self.next
            });
            *request = Some(chosen);
            taken.insert(chosen);
        }
        let requests: Vec<_> = requests.into_iter().flatten().collect();
        self.known.retain(|text| !taken.contains(&text.request));
        let texts = requests.iter().zip(histories);
        self.known.extend(texts.map(|(&request, history)| Text { request, history: history.clone() }));
        Assigned { requests, added }
    }

    /// Texts beyond what is kept, which are forgotten.
    pub fn surplus(&mut self) -> Vec<RequestId> {
        let surplus = self.known.len().saturating_sub(self.most);
        self.known.drain(..surplus).map(|text| text.request).collect()
    }
}
