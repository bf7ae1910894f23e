//! How calls end: a code and a message, whatever happens.

use crate::ffi::Status;
use proxytune::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `StatusCode` of the header.
const OK: u8 = 0;
const INVALID_ARGUMENT: u8 = 1;
const FILE: u8 = 2;
const VOCABULARY: u8 = 3;
const OUT_OF_MEMORY: u8 = 4;
const ENGINE: u8 = 5;
const INTERNAL: u8 = 6;

/// Runs a call so that neither an error nor a panic leaves it. What succeeds allocates nothing here.
pub fn status(call: impl FnOnce() -> Result<()>) -> Status {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => Status { code: OK, message: String::new() },
        Ok(Err(error)) => Status { code: code(&error), message: error.to_string() },
        Err(panic) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref().copied()).unwrap_or("no words");
            Status {
                code: INTERNAL,
                message: format!("an error in proxytune itself: {words}; please report it"),
            }
        }
    }
}

fn code(error: &Error) -> u8 {
    match error {
        Error::Invalid { .. } | Error::Shape { .. } | Error::Length { .. } => INVALID_ARGUMENT,
        Error::Model { .. } | Error::Config { .. } | Error::File { .. } => FILE,
        Error::Vocabulary { .. } => VOCABULARY,
        Error::Memory { .. } => OUT_OF_MEMORY,
        Error::Engine { .. } | Error::Timeout { .. } | Error::Stopped(_) => ENGINE,
        _ => INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status() {
        type Call = Box<dyn FnOnce() -> Result<()>>;
        let now = std::time::Instant::now();
        let cases: [(Call, u8, &str); 4] = [
            (Box::new(|| Ok(())), OK, ""),
            (Box::new(|| Err(Error::invalid("alpha", "NaN", "a number"))), INVALID_ARGUMENT, "got NaN"),
            (Box::new(|| panic!("plain words")), INTERNAL, "proxytune itself: plain words"),
            (Box::new(move || panic!("at {now:?}")), INTERNAL, "proxytune itself: at Instant"),
        ];
        for (call, code, words) in cases {
            let status = status(call);
            assert!(status.code == code && status.message.contains(words), "{}", status.message);
        }
    }
}
