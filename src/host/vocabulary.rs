//! The vocabulary of a host that runs elsewhere, from its files.

use crate::backend::llama::{LlamaModel, LoadOptions};
use crate::error::{Error, Result};
use crate::vocab::Vocabulary;
use std::path::Path;

/// Reads the vocabulary of a model: from a GGUF file, a `tokenizer.json` of Hugging Face, or a folder with one.
///
/// A `tokenizer.json` does not say how long the model's rows are; see [`Vocabulary::pad`].
///
/// # Errors
/// [`Error::Model`] or [`Error::File`] when it cannot be read.
pub fn read(path: &Path) -> Result<Vocabulary> {
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
    if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return of_tokenizer(&file);
    }
    of_gguf(&file).map(|model| model.vocabulary())
}

/// A GGUF file's vocabulary and metadata, without weights.
///
/// # Errors
/// As [`LlamaModel::load`].
pub fn of_gguf(path: &Path) -> Result<LlamaModel> {
    LlamaModel::load(path, LoadOptions { vocab_only: true, ..LoadOptions::default() })
}

#[cfg(feature = "tokenizers")]
fn of_tokenizer(path: &Path) -> Result<Vocabulary> {
    let help = "give a GGUF file, a tokenizer.json, or a folder that has one of the latter";
    let wrong = |what: String| Error::file(path, what, help);
    // It panics over some broken files.
    let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_file(path));
    let read = read.map_err(|_| wrong("is no tokenizer".into()))?;
    let tokenizer = read.map_err(|e| wrong(e.to_string()))?;
    let beyond = || wrong("numbers a token beyond any vocabulary".into());
    super::tokenizer::vocabulary(&tokenizer).ok_or_else(beyond)
}

#[cfg(not(feature = "tokenizers"))]
fn of_tokenizer(path: &Path) -> Result<Vocabulary> {
    let what = "this build cannot read a tokenizer.json";
    Err(Error::file(path, what, "build with the feature `tokenizers`, or name the host's GGUF file"))
}
