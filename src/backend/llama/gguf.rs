//! A look at a model file before the engine gets it: common mistakes get a plain answer, and what would make the engine
//! end the process is refused.

use super::sys;
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::ptr::NonNull;

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

/// Checks that all tokens of the file at `path` (the same, for C) differ: llama.cpp aborts the process where two are equal.
pub(super) fn check_tokens(path: &Path, c_path: &CStr) -> Result<()> {
    let Some(head) = Head::read(c_path) else { return Ok(()) }; // which the engine explains better
    let mut seen = HashSet::new();
    match head.strings(c"tokenizer.ggml.tokens").find(|token| !seen.insert(*token)) {
        None => Ok(()),
        Some(twice) => Err(Error::Model {
            path: path.into(),
            what: format!("its vocabulary has the token {:?} twice", twice.to_string_lossy()),
            help: "the file is broken; download it again or convert it anew".into(),
        }),
    }
}

/// A file's metadata and what is said of its tensors, without weights.
pub(super) struct Head(NonNull<sys::gguf_context>);

impl Head {
    pub(super) fn read(path: &CStr) -> Option<Self> {
        let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
        // SAFETY: the path is a string; without `ctx` no tensors are made.
        NonNull::new(unsafe { sys::gguf_init_from_file(path.as_ptr(), params) }).map(Self)
    }

    /// The texts of a list; none where there is no such list.
    fn strings(&self, key: &CStr) -> impl Iterator<Item = &CStr> {
        let raw = self.0.as_ptr();
        // SAFETY: the head is alive; number and type of a key are asked for only where it exists.
        let (key, count) = unsafe {
            let key = sys::gguf_find_key(raw, key.as_ptr());
            let is_list = key >= 0 && sys::gguf_get_kv_type(raw, key) == sys::GGUF_TYPE_ARRAY;
            let is_text = is_list && sys::gguf_get_arr_type(raw, key) == sys::GGUF_TYPE_STRING;
            (key, if is_text { sys::gguf_get_arr_n(raw, key) } else { 0 })
        };
        // SAFETY: the index is below the count; the engine's strings live as long as the head.
        (0..count).map(move |i| unsafe { CStr::from_ptr(sys::gguf_get_arr_str(raw, key, i)) })
    }
}

/// What a file says of one tensor.
#[cfg(not(llama_without_adapters))]
pub(super) struct Tensor<'a> {
    pub name: &'a CStr,
    /// Values in each dimension, as many as ggml has; 1 in those that the tensor lacks.
    pub shape: &'a [i64],
    pub kind: sys::ggml_type,
    /// Where its data ends, in bytes from the file's beginning.
    pub end: u64,
}

#[cfg(not(llama_without_adapters))]
impl Head {
    /// The value of a key of this type; `None` where there is none, or one of another type.
    fn value<T>(&self, key: &CStr, kind: sys::gguf_type, read: impl FnOnce(i64) -> T) -> Option<T> {
        // SAFETY: the head is alive; the type of a key is asked for only where it exists.
        let key = unsafe { sys::gguf_find_key(self.0.as_ptr(), key.as_ptr()) };
        // SAFETY: as above.
        (key >= 0 && unsafe { sys::gguf_get_kv_type(self.0.as_ptr(), key) } == kind).then(|| read(key))
    }

    /// The text of a key.
    pub(super) fn text(&self, key: &CStr) -> Option<&CStr> {
        // SAFETY: the key exists and is a text, which lives as long as the head.
        self.value(key, sys::GGUF_TYPE_STRING, |key| unsafe {
            CStr::from_ptr(sys::gguf_get_val_str(self.0.as_ptr(), key))
        })
    }

    /// The number of a key.
    pub(super) fn f32(&self, key: &CStr) -> Option<f32> {
        // SAFETY: the key exists and is a float.
        self.value(key, sys::GGUF_TYPE_FLOAT32, |key| unsafe { sys::gguf_get_val_f32(self.0.as_ptr(), key) })
    }

    /// Whether there is such a key, of whatever type.
    pub(super) fn has(&self, key: &CStr) -> bool {
        // SAFETY: the head is alive.
        unsafe { sys::gguf_find_key(self.0.as_ptr(), key.as_ptr()) >= 0 }
    }

    /// All tensors, in the order of the file.
    pub(super) fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        // GGML_MAX_DIMS, in every version so far.
        const DIMENSIONS: usize = 4;
        let raw = self.0.as_ptr();
        // SAFETY: the head is alive; indices are below the count; names and shapes live as long as the head.
        unsafe {
            let data = sys::gguf_get_data_offset(raw) as u64;
            (0..sys::gguf_get_n_tensors(raw)).map(move |i| Tensor {
                name: CStr::from_ptr(sys::gguf_get_tensor_name(raw, i)),
                shape: std::slice::from_raw_parts(sys::gguf_get_tensor_ne(raw, i), DIMENSIONS),
                kind: sys::gguf_get_tensor_type(raw, i),
                end: data
                    .saturating_add(sys::gguf_get_tensor_offset(raw, i) as u64)
                    .saturating_add(sys::gguf_get_tensor_size(raw, i) as u64),
            })
        }
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        // SAFETY: nobody else frees it.
        unsafe { sys::gguf_free(self.0.as_ptr()) }
    }
}
