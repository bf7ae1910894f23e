//! A look at a model file before the engine gets it, so that common mistakes get a plain answer.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

const HELP: &str = "give the path of a model in GGUF format";

/// Checks that `path` is a readable file that begins as a GGUF file does.
pub(super) fn check(path: &Path) -> Result<()> {
    let problem = |what: &str, help: &str| {
        Err(Error::Model { path: path.into(), what: what.into(), help: help.into() })
    };
    if path.is_dir() {
        return problem("is a directory, not a model file", HELP);
    }
    let mut magic = [0; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) if &magic == b"GGUF" => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => problem("no such file", HELP),
        Err(e) if e.kind() != ErrorKind::UnexpectedEof => problem(&format!("cannot be read ({e})"), HELP),
        _ => problem("is not a GGUF file", "convert the model with llama.cpp's convert_hf_to_gguf.py"),
    }
}
