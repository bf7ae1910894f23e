//! Keys that clients must show.

use super::error::ApiError;
use crate::config::Server;
use crate::error::{Error, Result};
use axum::http::{HeaderMap, StatusCode, header};
use subtle::{Choice, ConstantTimeEq};

/// The keys that open this server; never shown anywhere.
pub struct Keys(Vec<String>);

impl Keys {
    /// The keys that a configuration names; `None` where the server is open to all who reach it.
    ///
    /// # Errors
    /// When the file or variable cannot be read or holds no key: an open server is not what was asked for.
    pub fn read(server: &Server) -> Result<Option<Self>> {
        let mut keys = Vec::new();
        if let Some(path) = &server.api_key_file {
            let refused = |what: String| Error::file(path, what, "give a file with a key on each line");
            let text = std::fs::read_to_string(path).map_err(|e| refused(format!("cannot be read ({e})")))?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from));
            if keys.is_empty() {
                return Err(refused("holds no key".into()));
            }
        }
        if let Some(name) = &server.api_key_env {
            let key = std::env::var(name).unwrap_or_default();
            if key.trim().is_empty() {
                return Err(Error::invalid("server.api_key_env", name, "a variable that holds the key"));
            }
            keys.push(key.trim().into());
        }
        Ok((!keys.is_empty()).then_some(Self(keys)))
    }

    /// Looks whether a request shows one of the keys; takes the same time whichever bytes of it are wrong.
    pub fn check(&self, headers: &HeaderMap) -> std::result::Result<(), ApiError> {
        let shown = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let shown = shown.and_then(|value| value.split_first_chunk::<7>());
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, key)| key);
        let matches = |shown: &[u8]| {
            let each = self.0.iter().map(|key| key.as_bytes().ct_eq(shown));
            bool::from(each.fold(Choice::from(0), |any, one| any | one))
        };
        match shown {
            Some(shown) if matches(shown) => Ok(()),
            Some(_) => Err(refused("this is not a key of this server")),
            None => Err(refused("a key is needed: send the header `Authorization: Bearer KEY`")),
        }
    }
}

fn refused(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn any_of_the_keys_opens_and_nothing_else() {
        let keys = Keys(vec!["one".into(), "another".into()]);
        for good in ["Bearer one", "bearer another"] {
            assert!(keys.check(&headers(good)).is_ok(), "{good}");
        }
        for bad in ["Bearer on", "Bearer onee", "Bearer ", "Bearer", "Basic one", "one"] {
            assert!(keys.check(&headers(bad)).is_err(), "{bad}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_file_without_a_key_is_no_open_door() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, " \n\n").unwrap();
        let server = Server { api_key_file: Some(path.clone()), ..Server::default() };
        assert!(Keys::read(&server).is_err());
        std::fs::write(&path, "first\n second \n").unwrap();
        assert_eq!(Keys::read(&server).unwrap().unwrap().0, ["first", "second"]);
        assert!(Keys::read(&Server::default()).unwrap().is_none());
    }
}
