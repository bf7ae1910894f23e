//! What the host's contexts have read, as far as their forward passes tell.
//!
//! A sampler is told of the tokens that its program thinks of telling; some programs leave out the prompt. And only
//! the pass says which drafted tokens are to be verified with it.

use crate::vocab::Token;
use std::collections::HashMap;

/// One token of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `None` for a place that is given as an embedding.
    pub token: Option<Token>,
    /// The host's sequences that it belongs to; at least one.
    pub sequences: Vec<i32>,
    /// Its place in them.
    pub position: i32,
    /// Whether its logits are wanted.
    pub output: bool,
}

/// Passes of all contexts of the process. A context or batch is known by its address.
#[derive(Default)]
pub struct Passes {
    batches: HashMap<usize, Vec<Entry>>,
    contexts: HashMap<usize, Context>,
}

#[derive(Default)]
struct Context {
    last: Vec<Entry>,
    sequences: HashMap<i32, Vec<Token>>,
}

/// What a row of logits stands for.
pub struct Place<'a> {
    /// What the model has read up to this row, where that is known.
    pub read: Option<&'a [Token]>,
    /// Tokens of the sequence up to this row.
    pub len: usize,
    /// Tokens that follow in the same pass with logits of their own: drafted ones.
    pub ahead: Vec<Token>,
}

impl Passes {
    /// The entries of a batch that is being filled.
    pub fn batch(&mut self, batch: usize) -> &mut Vec<Entry> {
        self.batches.entry(batch).or_default()
    }

    /// A batch is gone.
    pub fn forget_batch(&mut self, batch: usize) {
        self.batches.remove(&batch);
    }

    /// A context is gone.
    pub fn forget_context(&mut self, context: usize) {
        self.contexts.remove(&context);
    }

    /// Whether a context has computed anything and is still there.
    pub fn knows(&self, context: usize) -> bool {
        self.contexts.contains_key(&context)
    }

    /// A context computes a batch that was filled before.
    pub fn run_batch(&mut self, context: usize, batch: usize) {
        let entries = self.batches.get(&batch).cloned().unwrap_or_default();
        self.run(context, entries);
    }

    /// A context computes these entries.
    pub fn run(&mut self, context: usize, entries: Vec<Entry>) {
        let context = self.contexts.entry(context).or_default();
        for entry in &entries {
            for &sequence in &entry.sequences {
                let read = context.sequences.entry(sequence).or_default();
                let position = usize::try_from(entry.position).unwrap_or(usize::MAX);
                match entry.token {
                    // What stood from here on has been taken back.
                    Some(token) if position <= read.len() => {
                        read.truncate(position);
                        read.push(token);
                    }
                    // Restored, copied or not text: unknown until the sequence starts anew.
                    _ => drop(context.sequences.remove(&sequence)),
                }
            }
        }
        context.last = entries;
    }

    /// What row `i` of a context's last pass stands for; below 0 counts from the end of those with logits.
    pub fn place(&self, context: usize, i: i32) -> Option<Place<'_>> {
        let context = self.contexts.get(&context)?;
        let at = match usize::try_from(i) {
            Ok(at) => at,
            Err(_) => {
                let from_end = i.unsigned_abs() as usize - 1;
                context.last.iter().enumerate().rev().filter(|(_, e)| e.output).nth(from_end)?.0
            }
        };
        let entry = context.last.get(at)?;
        let sequence = *entry.sequences.first()?;
        let len = usize::try_from(entry.position).ok()? + 1;
        let read = context.sequences.get(&sequence).and_then(|read| read.get(..len));
        let later = context.last[at + 1..].iter().filter(|e| e.sequences.contains(&sequence));
        let follows = |(i, e): (usize, &Entry)| {
            let next = e.output && e.position as usize == len + i;
            e.token.filter(|_| next)
        };
        Some(Place { read, len, ahead: later.enumerate().map_while(follows).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(sequence: i32, start: i32, tokens: &[Token], outputs: usize) -> Vec<Entry> {
        let first = tokens.len() - outputs;
        let entry = |(i, &token): (usize, &Token)| Entry {
            token: Some(token),
            sequences: vec![sequence],
            position: start + i as i32,
            output: i >= first,
        };
        tokens.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn a_row_stands_for_all_that_its_sequence_has_read() {
        let mut passes = Passes::default();
        passes.run(1, entries(0, 0, &[5, 6, 7], 1));
        let mut both = entries(0, 3, &[8], 1);
        both.extend(entries(3, 0, &[9, 10], 1));
        passes.run(1, both);
        assert_eq!(passes.place(1, 0).unwrap().read, Some(&[5, 6, 7, 8][..]));
        assert_eq!(passes.place(1, 2).unwrap().read, Some(&[9, 10][..]));
        assert_eq!(passes.place(1, -1).unwrap().read, Some(&[9, 10][..]));
        assert_eq!(passes.place(1, -2).unwrap().len, 4);
        assert!(passes.place(1, 3).is_none() && passes.place(2, 0).is_none());
    }

    #[test]
    fn drafted_tokens_are_ahead_of_a_row_and_can_be_taken_back() {
        let mut passes = Passes::default();
        passes.run(1, entries(0, 0, &[5, 6], 1));
        passes.run(1, entries(0, 2, &[7, 8, 9], 3));
        assert_eq!(passes.place(1, 0).unwrap().ahead, [8, 9]);
        assert!(passes.place(1, 2).unwrap().ahead.is_empty());
        passes.run(1, entries(0, 3, &[4], 1));
        assert_eq!(passes.place(1, 0).unwrap().read, Some(&[5, 6, 7, 4][..]));
    }

    #[test]
    fn a_sequence_that_was_restored_is_unknown() {
        let mut passes = Passes::default();
        passes.run(1, entries(0, 100, &[5, 6], 1));
        let place = passes.place(1, -1).unwrap();
        assert!(place.read.is_none() && place.len == 102);
    }
}
