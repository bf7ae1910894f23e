//! Vocabularies, and the maps between them.
//!
//! Models of one family differ in padding, in added tokens and sometimes in order, so tokens are matched by what
//! they spell and what they are, never by their index.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// A token's index in one model's vocabulary.
pub type Token = u32;

/// What a token is, as far as it matters for matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ordinary text, user-defined tokens included.
    Text,
    /// A raw byte that SentencePiece vocabularies fall back to.
    Byte,
    /// A control token, such as the end of a turn; it spells its name.
    Control,
    /// Padding and reserved places: never matched.
    Unused,
}

/// One entry of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The bytes that the token spells; a control token's name.
    pub bytes: Vec<u8>,
    /// What it is.
    pub kind: Kind,
}

/// A model's vocabulary: one [`Entry`] an index, as many as the model has logits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vocabulary {
    entries: Vec<Entry>,
}

impl Vocabulary {
    /// A vocabulary of these entries, in order of index.
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// Appends unused tokens up to `len`: engines pad rows past the last token.
    pub fn pad(&mut self, len: usize) {
        let unused = || Entry { bytes: Vec::new(), kind: Kind::Unused };
        self.entries.resize_with(self.entries.len().max(len), unused);
    }

    /// Number of tokens, which is the length of a row of logits.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries, in order of index.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// The place nearest to `id`, of ascending ones. Not by looking at each: a broken file may have all its tokens equal.
fn nearest(places: &[Token], id: Token) -> Token {
    let after = places.partition_point(|&place| place < id);
    let around = &places[after.saturating_sub(1)..places.len().min(after + 1)];
    around.iter().copied().min_by_key(|place| place.abs_diff(id)).unwrap_or(TokenMap::NONE)
}

/// Where each host token stands in a proxy's vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMap {
    /// For each host token its proxy token, or [`TokenMap::NONE`].
    ids: Vec<Token>,
    /// How a host token that the proxy lacks is spelt in the proxy's tokens; control tokens are left out.
    spelling: HashMap<Token, Vec<Token>>,
    proxy_len: usize,
    identity: bool,
    common: usize,
}

impl TokenMap {
    /// Marks a host token without counterpart.
    pub const NONE: Token = Token::MAX;

    /// The least share of the smaller vocabulary that must be common; below it the tokenizers are not one family.
    pub const MIN_COMMON: f64 = 0.9;

    /// The map of a proxy that has the host's very vocabulary of `len` tokens.
    pub fn identity(len: usize) -> Self {
        Self {
            ids: (0..len as Token).collect(),
            spelling: HashMap::new(),
            proxy_len: len,
            identity: true,
            common: len,
        }
    }

    /// Matches two vocabularies by bytes and kind; of several equal entries, the nearest index.
    ///
    /// `tokenize` spells text in the proxy's tokens; it is asked for host tokens that the proxy lacks, so that
    /// histories which hold one still reach the proxy as text.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] when less than [`TokenMap::MIN_COMMON`] of the smaller vocabulary is common.
    pub fn between(
        host: &Vocabulary,
        proxy: &Vocabulary,
        tokenize: impl Fn(&[u8]) -> Vec<Token>,
    ) -> Result<Self> {
        let map = Self::matched(host, proxy, tokenize);
        let usable = |v: &Vocabulary| v.entries.iter().filter(|e| e.kind != Kind::Unused).count();
        let smaller = usable(host).min(usable(proxy));
        if (map.common as f64) < Self::MIN_COMMON * smaller as f64 || smaller == 0 {
            return Err(Error::Vocabulary {
                what: format!(
                    "the host has {} tokens, the proxy {}, and only {} are common",
                    host.len(),
                    proxy.len(),
                    map.common
                ),
                help: "use proxies of the host's model family, with the same tokenizer".into(),
            });
        }
        Ok(map)
    }

    fn matched(host: &Vocabulary, proxy: &Vocabulary, tokenize: impl Fn(&[u8]) -> Vec<Token>) -> Self {
        let mut places: HashMap<&Entry, Vec<Token>> = HashMap::with_capacity(proxy.len());
        for (id, entry) in proxy.entries.iter().enumerate().filter(|(_, e)| e.kind != Kind::Unused) {
            places.entry(entry).or_default().push(id as Token);
        }
        let mut spelling = HashMap::new();
        let mut ids = Vec::with_capacity(host.len());
        for (id, entry) in host.entries.iter().enumerate() {
            let nearest = places.get(entry).map(|places| nearest(places, id as Token));
            if nearest.is_none() && matches!(entry.kind, Kind::Text | Kind::Byte) {
                spelling.insert(id as Token, tokenize(&entry.bytes));
            }
            ids.push(nearest.unwrap_or(Self::NONE));
        }
        let common = ids.iter().filter(|&&id| id != Self::NONE).count();
        // Padding has no counterpart, yet where all else stands in place the rows can be taken as they are:
        // no model gives padding a shift worth the name, and none samples it.
        let same_length = host.len() == proxy.len();
        let in_place = |(i, &id): (usize, &Token)| {
            id == i as Token || (id == Self::NONE && host.entries[i] == proxy.entries[i])
        };
        let identity = same_length && ids.iter().enumerate().all(in_place);
        Self { ids, spelling, proxy_len: proxy.len(), identity, common }
    }

    /// Whether rows of the proxy can be used as they are.
    pub fn is_identity(&self) -> bool {
        self.identity
    }

    /// Host tokens that the proxy has too.
    pub fn common(&self) -> usize {
        self.common
    }

    /// Length of the host's rows.
    pub fn host_len(&self) -> usize {
        self.ids.len()
    }

    /// Length of the proxy's rows.
    pub fn proxy_len(&self) -> usize {
        self.proxy_len
    }

    /// For each host token its proxy token, or [`TokenMap::NONE`].
    pub fn ids(&self) -> &[Token] {
        &self.ids
    }

    /// Whether each of these host tokens is one of the proxy's, so that positions correspond.
    pub fn is_one_to_one(&self, host: &[Token]) -> bool {
        self.identity || host.iter().all(|&t| self.ids.get(t as usize).is_some_and(|&id| id != Self::NONE))
    }

    /// Appends the proxy's tokens for a piece of the host's history.
    ///
    /// A token that the proxy lacks is spelt in several of its own; a control token or an index beyond the host's
    /// vocabulary that it lacks is left out.
    pub fn translate(&self, host: &[Token], proxy: &mut Vec<Token>) {
        if self.identity {
            proxy.extend_from_slice(host);
            return;
        }
        for token in host {
            match self.ids.get(*token as usize) {
                Some(&id) if id != Self::NONE => proxy.push(id),
                _ => proxy.extend(self.spelling.get(token).into_iter().flatten()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(texts: &[&str]) -> Vocabulary {
        let entry = |t: &&str| {
            let kind = match *t {
                "" => Kind::Unused,
                t if t.starts_with('<') => Kind::Control,
                _ => Kind::Text,
            };
            Entry { bytes: t.as_bytes().to_vec(), kind }
        };
        Vocabulary::new(texts.iter().map(entry).collect())
    }

    fn letters(vocabulary: &Vocabulary) -> impl Fn(&[u8]) -> Vec<Token> {
        let entries = vocabulary.entries().to_vec();
        move |bytes| {
            let find = |b: &u8| entries.iter().position(|e| e.bytes == [*b]);
            bytes.iter().filter_map(find).map(|i| i as Token).collect()
        }
    }

    #[test]
    fn equal_vocabularies_map_in_place_padding_included() {
        let v = vocabulary(&["a", "b", "<end>", "", ""]);
        let map = TokenMap::between(&v, &v, |_| vec![]).unwrap();
        assert!(map.is_identity());
        assert_eq!(map.common(), 3);
    }

    #[test]
    fn order_padding_and_added_tokens_are_matched_by_bytes() {
        let host = vocabulary(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "ab", "<end>", "<tool>", ""]);
        let proxy = vocabulary(&["<end>", "b", "a", "c", "d", "e", "f", "g", "h", "i", ""]);
        let map = TokenMap::between(&host, &proxy, letters(&proxy)).unwrap();
        assert!(!map.is_identity());
        assert_eq!(&map.ids()[..3], [2, 1, 3]);
        assert_eq!(map.ids()[9], TokenMap::NONE);
        assert_eq!(map.ids()[10], 0);

        let mut spelt = vec![];
        map.translate(&[0, 9, 11, 10, 99], &mut spelt);
        assert_eq!(spelt, [2, 2, 1, 0], "ab is spelt a b; <tool> and an unknown index are left out");
    }

    #[test]
    fn strangers_are_refused_with_figures() {
        let host = vocabulary(&["a", "b", "c", "d"]);
        let proxy = vocabulary(&["a", "x", "y", "z"]);
        let error = TokenMap::between(&host, &proxy, |_| vec![]).unwrap_err().to_string();
        assert!(error.contains("only 1 are common"), "{error}");
    }

    #[test]
    fn a_control_token_never_matches_text_of_the_same_spelling() {
        let entry = |kind| Entry { bytes: b"<end>".to_vec(), kind };
        let mut host = vec![entry(Kind::Control)];
        let mut proxy = vec![entry(Kind::Text)];
        for e in vocabulary(&["a"; 20]).entries() {
            host.push(e.clone());
            proxy.push(e.clone());
        }
        let map = TokenMap::between(&Vocabulary::new(host), &Vocabulary::new(proxy), |_| vec![]).unwrap();
        assert_eq!(map.ids()[0], TokenMap::NONE);
    }
}
