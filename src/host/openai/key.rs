//! The key to an API.

use crate::error::{Error, Result};
use std::fmt;

/// A key that shows itself nowhere: neither in logs nor in messages.
#[derive(Clone)]
pub struct Key(String);

impl Key {
    /// Reads a key from an environment variable; `None` where it is not set.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that no header can carry.
    pub fn from_env(name: &str) -> Result<Option<Self>> {
        let Some(key) = std::env::var_os(name) else { return Ok(None) };
        let key = key.to_str().map(str::trim).unwrap_or("\n");
        if key.is_empty() {
            return Ok(None);
        }
        Self::new(key)
            .ok_or_else(|| {
                let given = format!("what the variable {name} holds, with characters that no key has");
                Error::invalid("--host-key-env", given, "a key in printable ASCII")
            })
            .map(Some)
    }

    /// A key, where a header can carry it.
    pub fn new(key: &str) -> Option<Self> {
        key.bytes().all(|b| b.is_ascii_graphic()).then(|| Self(key.into()))
    }

    /// For the header that carries it.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text without the key, should an API repeat it.
    pub(super) fn blot_out(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_itself_nowhere() {
        let key = Key::new("sk-123").unwrap();
        assert_eq!(format!("{key:?}"), "Key(***)");
        assert_eq!(key.blot_out("no such key: sk-123."), "no such key: ***.");
        assert!(Key::new("a\nb").is_none() && Key::new("ä").is_none());
    }
}
