//! Files and vocabularies as an enemy would write them. Whatever they say: an answer or a clear error, never a panic, and
//! never more memory than the file deserves.
//!
//! `PROPTEST_CASES` says how many of each are tried, by default 256.

#[cfg(feature = "llama")]
mod files;
mod mutate;
mod templates;
mod vocabularies;
