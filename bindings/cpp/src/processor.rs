//! The processor that the C++ class holds: requests behind a lock, so that any thread may call.

use crate::ffi::{Counters, NewRequest, Options, Status};
use crate::row::{self, Row};
use crate::status::status;
use proxytune::config::{Config, OnError};
use proxytune::host::requests::{Requests, TunedPrompt};
use proxytune::host::{HostShape, vocabulary};
use proxytune::vocab::Token;
use proxytune::{Error, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Made empty and then opened, as the bridge can hand back a status or an object but not one of both.
#[derive(Default)]
pub struct Processor(OnceLock<Opened>);

struct Opened {
    requests: Mutex<Requests>,
    vocabulary_size: usize,
    context_size: usize,
}

impl Processor {
    pub fn open(&self, options: &Options<'_>) -> Status {
        status(|| {
            let requests = load(options)?;
            let (vocabulary_size, [tuned, untuned]) = (requests.vocab(), requests.context());
            let opened =
                Opened { requests: Mutex::new(requests), vocabulary_size, context_size: tuned.min(untuned) };
            self.0.set(opened).map_err(|_| Error::invalid("processor", "an open one", "one to be opened"))
        })
    }

    pub fn vocabulary_size(&self) -> usize {
        self.0.get().map_or(0, |opened| opened.vocabulary_size)
    }

    pub fn context_size(&self) -> usize {
        self.0.get().map_or(0, |opened| opened.context_size)
    }

    pub fn counters(&self) -> Counters {
        let Ok(requests) = self.requests() else { return Counters::default() };
        let stats = requests.stats();
        Counters {
            requests: stats.requests,
            shifted: stats.shifted,
            failed: stats.failed,
            ignored: stats.ignored,
            rounds: stats.rounds,
            tuned_us: stats.tuned_us,
            untuned_us: stats.untuned_us,
        }
    }

    pub fn add(&self, id: u64, request: &NewRequest<'_>) -> Status {
        let tokens = |tokens: &[i32]| -> Vec<Token> { tokens.iter().map(|&t| t.cast_unsigned()).collect() };
        status(|| {
            let tuned = match (request.tuned, request.tuned_text) {
                ([], []) => TunedPrompt::Host,
                (own, []) => TunedPrompt::Tokens(tokens(own)),
                ([], text) => TunedPrompt::Text(utf8(text)?.to_owned()),
                _ => return Err(Error::invalid("prompts", "both tuned and tuned_text", "one of them")),
            };
            let prompt = (!request.host.is_empty()).then(|| tokens(request.host));
            self.requests()?.add(id, prompt, tuned, request.has_alpha.then_some(request.alpha))
        })
    }

    pub fn remove(&self, id: u64) -> Status {
        status(|| self.requests()?.remove(id))
    }

    pub fn rollback(&self, id: u64, count: usize) -> Status {
        status(|| self.requests()?.rollback(id, count))
    }

    pub fn failure(&self, id: u64, message: &mut String) -> Status {
        status(|| {
            if let Some(error) = self.requests()?.failure(id)? {
                *message = error.to_string();
            }
            Ok(())
        })
    }

    /// # Safety
    /// As [`row::check`].
    pub unsafe fn prefetch(&self, rows: &[Row]) -> Status {
        // SAFETY: as the caller promises.
        status(|| self.requests()?.prefetch(unsafe { row::check(rows, false) }?))
    }

    /// # Safety
    /// As [`row::check_mut`].
    pub unsafe fn apply(&self, rows: &mut [Row]) -> Status {
        // SAFETY: as the caller promises.
        status(|| self.requests()?.apply(unsafe { row::check_mut(rows, true) }?))
    }

    /// # Safety
    /// As [`row::check_mut`]; `out` is null or good for the last row's values at that stride.
    pub unsafe fn compute_offsets(&self, rows: &mut [Row], out: *mut f32, stride: usize) -> Status {
        status(|| {
            // SAFETY: as the caller promises.
            let rows = unsafe { row::check_mut(rows, false) }?;
            let mut requests = self.requests()?;
            // Without rows as well, so that an engine can ask before it takes requests.
            requests.refuse_more_than_offsets()?;
            let Some(last) = rows.len().checked_sub(1) else { return Ok(()) };
            if out.is_null() || !out.is_aligned() {
                let given = if out.is_null() { "null" } else { "a pointer that is not aligned" };
                return Err(Error::invalid("out", given, "room for the offsets, as float"));
            }
            let values = last.checked_mul(stride).and_then(|start| start.checked_add(requests.vocab()));
            let Some(values) = values.filter(|&values| values <= isize::MAX as usize / size_of::<f32>())
            else {
                return Err(Error::invalid("stride", stride, "values between the starts of two rows"));
            };
            // SAFETY: not null and aligned; the caller promises so much room.
            let out = unsafe { std::slice::from_raw_parts_mut(out, values) };
            requests.offsets(rows, out, stride)
        })
    }

    /// After a panic the requests go on: whatever a call was in the middle of is computed anew by the next.
    fn requests(&self) -> Result<MutexGuard<'_, Requests>> {
        let closed = || Error::invalid("processor", "one that was moved from", "one that is open");
        let opened = self.0.get().ok_or_else(closed)?;
        Ok(opened.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn load(options: &Options<'_>) -> Result<Requests> {
    let mut config = match path(options.config) {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let set = |into: &mut Option<PathBuf>, bytes| *into = path(bytes).map(Path::to_owned).or(into.take());
    // Of a model and an adapter, the one given here holds.
    if !options.tuned.is_empty() || !options.tuned_lora.is_empty() {
        (config.proxy_tuning.tuned, config.proxy_tuning.tuned_lora) = (None, None);
    }
    set(&mut config.proxy_tuning.tuned, options.tuned);
    set(&mut config.proxy_tuning.tuned_lora, options.tuned_lora);
    set(&mut config.proxy_tuning.untuned, options.untuned);
    set(&mut config.host.model, options.host);
    if options.has_alpha {
        config.proxy_tuning.alpha = options.alpha;
    }
    config.proxy_tuning.on_error = match options.on_error {
        0 => config.proxy_tuning.on_error,
        1 => OnError::Host,
        2 => OnError::Stop,
        other => return Err(Error::invalid("on_error", other, "kHost or kStop")),
    };
    let host = config.host.model.clone().ok_or_else(|| {
        let expected = "where the host's vocabulary is: a GGUF file, a tokenizer.json or a folder with one";
        Error::invalid("host", "nothing", expected)
    })?;
    let mut shape = HostShape {
        vocabulary: vocabulary::read(&host)?,
        context: options.context,
        sequences: options.sequences,
        threads: options.threads,
        ..HostShape::default()
    };
    pad(&mut shape, options.vocabulary_size)?;
    Requests::load(config, &shape)
}

/// Rows may be longer than the vocabulary, never shorter.
fn pad(shape: &mut HostShape, size: usize) -> Result<()> {
    let known = shape.vocabulary.len();
    match size {
        0 => Ok(()),
        size if size < known => Err(Error::invalid(
            "vocabulary_size",
            size,
            format!("at least the {known} tokens of the host's file"),
        )),
        size => {
            shape.vocabulary.pad(size);
            Ok(())
        }
    }
}

fn path(bytes: &[u8]) -> Option<&Path> {
    (!bytes.is_empty()).then(|| Path::new(OsStr::from_bytes(bytes)))
}

fn utf8(text: &[u8]) -> Result<&str> {
    std::str::from_utf8(text).map_err(|e| Error::invalid("tuned_text", e, "text in UTF-8"))
}
