//! From histories to engine calls: which slot serves which sequence, what is dropped, copied and computed.
//!
//! Pure state, no engine: the planner is told what is wanted and keeps in mind what each slot holds; whoever
//! executes a [`Pass`] does so literally and reports only failures ([`Planner::forget`]).
//!
//! *Architecture invariant:* history is the truth. A slot's contents are compared with the history by longest common
//! prefix at each pass, so extending, rolling back, swapping or re-feeding a history needs no word of its own.

use crate::backend::{Capabilities, Span};
use crate::vocab::Token;

/// Names a sequence across passes, so that it finds its slot again.
pub type SequenceId = u64;

/// What a sequence wants: its history in the cache, and the logits of the last `rows` positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whose history it is.
    pub sequence: SequenceId,
    /// All tokens from position 0; at least one.
    pub history: Vec<Token>,
    /// Rows of logits wanted, counted from the history's end; 1 to `history.len()`.
    pub rows: usize,
}

/// A change to the slots, to be made before the pass, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Empty the slot.
    Clear {
        /// The slot.
        slot: usize,
    },
    /// Keep the slot's first `len` tokens.
    Truncate {
        /// The slot.
        slot: usize,
        /// Tokens kept.
        len: usize,
    },
    /// Copy the first `len` tokens of one slot into another.
    Fork {
        /// Slot copied.
        from: usize,
        /// Slot overwritten.
        to: usize,
        /// Tokens copied.
        len: usize,
    },
}

/// The part of a pass that belongs to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index of the request among those planned.
    pub request: usize,
    /// The slot that serves it.
    pub slot: usize,
    /// First position computed.
    pub start: usize,
    /// One past the last position computed.
    pub end: usize,
    /// Rows of logits from this piece, the last ones.
    pub rows: usize,
    /// Whether the request is complete with this piece.
    pub last: bool,
}

impl Piece {
    /// The piece as the backend wants it.
    pub fn span<'a>(&self, requests: &'a [Request]) -> Span<'a> {
        let tokens = &requests[self.request].history[self.start..self.end];
        Span { slot: self.slot, start: self.start, tokens, rows: self.rows }
    }
}

/// One forward pass: changes first, then all pieces at once, in order of their slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// To be made in order, before the forward pass.
    pub changes: Vec<Change>,
    /// At most one a slot; together no more tokens than a batch.
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    tokens: Vec<Token>,
    owner: Option<SequenceId>,
    /// Pass in which it was last used.
    used: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Planner {
    capabilities: Capabilities,
    slots: Vec<Slot>,
    passes: u64,
    evictions: u64,
    /// Scratch: remaining tokens and index of each pending request.
    order: Vec<(usize, usize)>,
}

/// A copy must save at least this many tokens of forward pass: copying a slot is not free either.
const FORK_GAIN: usize = 32;

impl Planner {
    /// A planner for a backend whose slots are all empty.
    pub fn new(capabilities: Capabilities) -> Self {
        let slots = vec![Slot::default(); capabilities.slots];
        Self { capabilities, slots, passes: 0, evictions: 0, order: Vec::new() }
    }

    /// Capabilities of the backend planned for.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Sequences that have lost their slot to another so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Plans one pass for requests not yet complete, at most one a sequence.
    ///
    /// Short remainders go first, so sequences that decode are not held up by one that prefills. What does not fit
    /// this pass (no batch left, no slot left) waits for the next; at least one request makes progress in each.
    /// `progress[i]` belongs to request `i` over all its passes: [`Progress::default`] at first.
    pub fn plan(&mut self, requests: &[Request], progress: &mut [Progress], pass: &mut Pass) {
        pass.changes.clear();
        pass.pieces.clear();
        self.passes += 1;
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        let pending = (0..requests.len()).filter(|&i| !progress[i].complete);
        order.extend(pending.map(|i| (self.remaining(&requests[i], &progress[i]), i)));
        order.sort_unstable();
        let mut batch = self.capabilities.batch;
        for &(remaining, index) in &order {
            if batch == 0 {
                break;
            }
            let request = &requests[index];
            // Only a long remainder can gain from a copy; the look around is not free.
            let long = self.capabilities.fork && remaining >= FORK_GAIN;
            if long && self.would_repeat(request, requests, pass) {
                continue;
            }
            let Some(slot) = self.place(request, requests, pass) else { continue };
            if long {
                self.copy_prefix(slot, request, &progress[index], pass);
            }
            let start = self.reconcile(slot, request, &progress[index], &mut pass.changes);
            let end = request.history.len().min(start + batch);
            batch -= end - start;
            let held = &mut self.slots[slot];
            held.tokens.extend_from_slice(&request.history[start..end]);
            held.used = self.passes;
            let rows = end.saturating_sub(first_row(request, &progress[index]).max(start));
            let last = end == request.history.len();
            progress[index] = Progress { computed: end.max(progress[index].computed), complete: last };
            pass.pieces.push(Piece { request: index, slot, start, end, rows, last });
        }
        self.order = order;
        // Engines batch neighbouring slots; rows come out in this order.
        pass.pieces.sort_unstable_by_key(|p| p.slot);
    }

    /// Frees the slot of a sequence that is gone. Its tokens stay as a prefix for others to copy.
    pub fn remove(&mut self, sequence: SequenceId) {
        for slot in self.slots.iter_mut().filter(|s| s.owner == Some(sequence)) {
            slot.owner = None;
        }
    }

    /// Takes note that a slot's contents are unknown and that its next use must begin with a clear.
    pub fn forget(&mut self, slot: usize) {
        self.slots[slot].tokens.clear();
    }

    /// Tokens still to be computed for a request, going by its own slot.
    fn remaining(&self, request: &Request, progress: &Progress) -> usize {
        let prefix = |slot: usize| common_prefix(&self.slots[slot].tokens, &request.history);
        let held = self.owned(request.sequence).map_or(0, prefix);
        request.history.len() - held.min(first_row(request, progress))
    }

    fn owned(&self, sequence: SequenceId) -> Option<usize> {
        self.slots.iter().position(|s| s.owner == Some(sequence))
    }

    /// Whether a request of this pass computes a long prefix that this one could copy afterwards.
    fn would_repeat(&self, request: &Request, requests: &[Request], pass: &Pass) -> bool {
        // What this pass computes is noted already, but nobody can copy it before the next.
        let idle = |s: usize| !pass.pieces.iter().any(|p| p.slot == s);
        let own = self.longest_prefix(request, idle).map_or(0, |(_, len)| len);
        pass.pieces.iter().any(|p| {
            let other = &requests[p.request].history[..p.end];
            common_prefix(other, &request.history) >= own.max(p.start) + FORK_GAIN
        })
    }

    /// The eligible slot that holds the longest prefix of the request's history; of equals the first.
    fn longest_prefix(&self, request: &Request, eligible: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
        let prefix = |s: usize| (s, common_prefix(&self.slots[s].tokens, &request.history));
        (0..self.slots.len())
            .filter(|&s| eligible(s))
            .map(prefix)
            .max_by_key(|&(s, len)| (len, usize::MAX - s))
    }

    /// Finds a slot: its own; else a free one, the best prefix first; else that of the least recently used sequence,
    /// one that waits in this very call last. `None` when all are busy in this pass.
    fn place(&mut self, request: &Request, requests: &[Request], pass: &Pass) -> Option<usize> {
        let busy = |s: usize| pass.pieces.iter().any(|p| p.slot == s);
        if let Some(slot) = self.owned(request.sequence) {
            return (!busy(slot)).then_some(slot);
        }
        let free = |s: usize| !busy(s) && self.slots[s].owner.is_none();
        let slot = match self.longest_prefix(request, free) {
            Some((slot, _)) => slot,
            None => {
                let waits = |s: usize| requests.iter().any(|r| self.slots[s].owner == Some(r.sequence));
                let idle = (0..self.slots.len()).filter(|&s| !busy(s));
                let slot = idle.min_by_key(|&s| (waits(s), self.slots[s].used))?;
                self.evictions += 1;
                slot
            }
        };
        self.slots[slot].owner = Some(request.sequence);
        Some(slot)
    }

    /// Copies a longer prefix from another slot where that saves enough.
    fn copy_prefix(&mut self, slot: usize, request: &Request, progress: &Progress, pass: &mut Pass) {
        // A slot of this pass does not hold its new tokens yet when the copy is made: leave those alone.
        let idle = |s: usize| s != slot && !pass.pieces.iter().any(|p| p.slot == s);
        // A copy that has to be cut back gains nothing where that means to clear it: only a whole slot will do.
        let most = first_row(request, progress);
        let whole = |s: usize| {
            let held = &self.slots[s].tokens;
            held.len() <= most && common_prefix(held, &request.history) == held.len()
        };
        let usable = |s: usize| idle(s) && (self.capabilities.truncate || whole(s));
        let own = common_prefix(&self.slots[slot].tokens, &request.history).min(most);
        let longest = self.longest_prefix(request, usable).map(|(from, len)| (from, len.min(most)));
        if let Some((from, len)) = longest.filter(|&(_, len)| len >= own + FORK_GAIN) {
            pass.changes.push(Change::Fork { from, to: slot, len });
            self.slots[slot].tokens = self.slots[from].tokens[..len].to_vec();
        }
    }

    /// Cuts a slot back to what the history can use, and returns the first position to compute.
    fn reconcile(
        &mut self,
        slot: usize,
        request: &Request,
        progress: &Progress,
        changes: &mut Vec<Change>,
    ) -> usize {
        let held = &mut self.slots[slot].tokens;
        let keep = common_prefix(held, &request.history).min(first_row(request, progress));
        if keep == held.len() && keep > 0 {
            return keep;
        }
        let keep = if self.capabilities.truncate { keep } else { 0 };
        held.truncate(keep);
        // Also on an empty slot: after a failure the engine's may hold what we have forgotten.
        changes.push(if keep == 0 { Change::Clear { slot } } else { Change::Truncate { slot, len: keep } });
        keep
    }
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Positions computed for this request, rows delivered with them.
    computed: usize,
    /// Whether all rows have been delivered.
    pub complete: bool,
}

impl Progress {
    /// Positions that are in the cache for this request.
    pub fn computed(&self) -> usize {
        self.computed
    }
}

/// The first position whose row is still to be delivered: what is cached from there on must be computed again.
fn first_row(request: &Request, progress: &Progress) -> usize {
    (request.history.len() - request.rows).max(progress.computed)
}

/// Tokens that two runs have in common from the start.
pub fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    // Whole blocks compare as memory, which matters for long histories at every step.
    const BLOCK: usize = 64;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK)).take_while(|(a, b)| a == b).count() * BLOCK;
    let rest = a[blocks..].iter().zip(&b[blocks..]).take_while(|(a, b)| a == b).count();
    blocks + rest
}
