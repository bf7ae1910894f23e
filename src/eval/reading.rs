//! A passage as one model reads it: in its own tokens, with the places of the host's.

use crate::pair::History;
use crate::vocab::{Token, TokenMap};
use std::ops::Range;

/// See the [module](self).
pub(super) struct Reading {
    tokens: Vec<Token>,
    /// Where each of the host's tokens after the prompt begins, and where the last one ends.
    begins: Vec<usize>,
}

impl Reading {
    /// As the host reads it.
    pub fn plain(history: &History) -> Self {
        let (prompt, all) = (history.prompt().len(), history.tokens());
        Self { tokens: all.to_vec(), begins: (prompt..=all.len()).collect() }
    }

    /// As another model does, which may have a prompt of its own, in its own tokens.
    pub fn new(history: &History, map: &TokenMap, own_prompt: Option<&[Token]>) -> Self {
        let mut tokens = Vec::new();
        match own_prompt {
            Some(own) => tokens.extend_from_slice(own),
            None => map.translate(history.prompt(), &mut tokens),
        }
        let mut begins = vec![tokens.len()];
        for token in history.generated() {
            map.translate(&[*token], &mut tokens);
            begins.push(tokens.len());
        }
        Self { tokens, begins }
    }

    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Nothing predicts the first token then.
    pub fn has_no_prompt(&self) -> bool {
        self.begins[0] == 0
    }

    /// Where the host's token `t` after the prompt begins.
    pub fn begin(&self, t: usize) -> usize {
        self.begins[t]
    }

    /// Positions whose rows score the host's tokens `range`; the model need not read beyond their end.
    pub fn positions(&self, range: &Range<usize>) -> Range<usize> {
        let (first, end) = (self.begins[range.start], self.begins[range.end]);
        // The row before the last token is needed even where the model lacks that token altogether.
        let last = self.begins[range.end.saturating_sub(1).max(range.start)];
        first - 1..(end - 1).max(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::{Entry, Kind, Vocabulary};

    fn vocabulary(words: &[&str]) -> Vocabulary {
        let entry = |w: &&str| Entry { bytes: w.as_bytes().to_vec(), kind: Kind::Text };
        Vocabulary::new(words.iter().map(entry).collect())
    }

    #[test]
    fn the_same_vocabulary_has_one_position_a_token() {
        let mut history = History::new(vec![7, 8], None);
        history.extend(&[1, 2, 3]);
        let reading = Reading::plain(&history);
        assert_eq!(reading.positions(&(0..3)), 1..4);
        assert_eq!(reading.positions(&(1..2)), 2..3);
        assert_eq!(reading.begin(2), 4);
    }

    #[test]
    fn a_token_spelt_in_several_has_as_many_positions() {
        let words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "ab"];
        let host = vocabulary(&words);
        let proxy = vocabulary(&words[..10]);
        let map = TokenMap::between(&host, &proxy, |_| vec![0, 1]).unwrap();
        let mut history = History::new(vec![2], None);
        history.extend(&[10, 3]);
        let reading = Reading::new(&history, &map, None);
        assert_eq!(reading.tokens(), [2, 0, 1, 3]);
        assert_eq!(reading.positions(&(0..1)), 0..2);
        assert_eq!(reading.positions(&(0..2)), 0..3);
        assert_eq!(reading.begin(1), 3);
    }
}
