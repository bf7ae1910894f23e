//! What the tokens of a Hugging Face tokenizer spell.

use crate::vocab::{Entry, Kind, Token, Vocabulary};
use tokenizers::{DecoderWrapper, Tokenizer};

/// Tokens that a vocabulary may have: many times as many as any model's. A number in a broken file must not ask for all memory.
const MAX_TOKENS: usize = 1 << 22;

/// The vocabulary of a tokenizer, up to its highest token; numbers without a token are unused. `None` where a token's
/// number is beyond any vocabulary.
pub fn vocabulary(tokenizer: &Tokenizer) -> Option<Vocabulary> {
    let added = tokenizer.get_added_tokens_decoder();
    let spelling = Spelling::of(tokenizer);
    let vocab = tokenizer.get_vocab(true);
    let len = vocab.values().max().map_or(0, |&last| last as usize + 1);
    if len > MAX_TOKENS {
        return None;
    }
    let mut entries = vec![Entry { bytes: Vec::new(), kind: Kind::Unused }; len];
    for (text, id) in vocab {
        entries[id as usize] = match added.get(&(id as Token)) {
            Some(token) => {
                let kind = if token.special { Kind::Control } else { Kind::Text };
                Entry { bytes: token.content.clone().into_bytes(), kind }
            }
            None => spelling.entry(&text),
        };
    }
    Some(Vocabulary::new(entries))
}

/// How a vocabulary writes bytes as text.
enum Spelling {
    /// Each byte as a printable character (GPT-2).
    ByteLevel(Vec<Option<u8>>),
    /// Spaces as U+2581, bytes without a token of their own as `<0x0A>` (SentencePiece).
    SentencePiece,
}

impl Spelling {
    fn of(tokenizer: &Tokenizer) -> Self {
        fn is_byte_level(decoder: &DecoderWrapper) -> bool {
            match decoder {
                DecoderWrapper::ByteLevel(_) => true,
                DecoderWrapper::Sequence(parts) => parts.get_decoders().iter().any(is_byte_level),
                _ => false,
            }
        }
        match tokenizer.get_decoder() {
            Some(decoder) if is_byte_level(decoder) => Self::ByteLevel(byte_level()),
            _ => Self::SentencePiece,
        }
    }

    fn entry(&self, text: &str) -> Entry {
        match self {
            Self::ByteLevel(bytes) => {
                let byte = |c: char| bytes.get(c as usize).copied().flatten();
                let bytes = text.chars().map(byte).collect::<Option<Vec<u8>>>();
                // A token with a character from outside that alphabet spells itself.
                Entry { bytes: bytes.unwrap_or_else(|| text.as_bytes().to_vec()), kind: Kind::Text }
            }
            Self::SentencePiece => {
                let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
                match hex.filter(|t| t.len() == 2).and_then(|t| u8::from_str_radix(t, 16).ok()) {
                    Some(byte) => Entry { bytes: vec![byte], kind: Kind::Byte },
                    None => Entry { bytes: text.replace('\u{2581}', " ").into_bytes(), kind: Kind::Text },
                }
            }
        }
    }
}

/// The byte behind each character of GPT-2's alphabet: printable bytes stand for themselves, the others follow from
/// U+0100 on.
fn byte_level() -> Vec<Option<u8>> {
    let mut bytes = vec![None; 0x200];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let place = if printable { usize::from(byte) } else { next };
        next += usize::from(!printable);
        bytes[place] = Some(byte);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_text_spells_its_bytes() {
        let spelling = Spelling::ByteLevel(byte_level());
        assert_eq!(spelling.entry("Ġthe").bytes, b" the");
        assert_eq!(spelling.entry("Ċ").bytes, b"\n");
        assert_eq!(spelling.entry("Ã©").bytes, "é".as_bytes());
        assert_eq!(byte_level().iter().flatten().count(), 256);
    }

    #[test]
    fn sentencepiece_text_has_spaces_and_raw_bytes() {
        assert_eq!(Spelling::SentencePiece.entry("▁the").bytes, b" the");
        let byte = Spelling::SentencePiece.entry("<0x0A>");
        assert_eq!((byte.bytes.as_slice(), byte.kind), (b"\n".as_slice(), Kind::Byte));
    }
}
