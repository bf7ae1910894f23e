//! `proxytune.LogitsProcessor`: requests by number, for serving loops.

use crate::errors::exception;
use crate::load::{self, Host, Settings};
use crate::pair::{Failures, counters, lock, why};
use crate::process::Local;
use crate::rows::BatchRow;
use crate::tensor::Tensor;
use crate::tokens;
use proxytune::Error;
use proxytune::host::requests::{RequestId, Requests, Row, TunedPrompt};
use proxytune::vocab::Token;
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;

/// Proxy-tuning for an engine's serving loop: requests come and go by number, rows of a batch name theirs.
///
/// For loops that own their batch. Each step: ``update`` each request with its generated tokens, ``prefetch`` the
/// batch before the large model's pass, ``apply`` after it. One pass of each proxy serves the whole batch.
///
/// Parameters as for ``ProxyPair``. Without a serving loop, ``ProxyPair`` is simpler.
///
/// Example
/// -------
/// >>> processor = LogitsProcessor("proxytune.toml", vocabulary="my-70b-checkpoint/")
/// >>> processor.add_request(7, prompt, alpha=0.5)
/// >>> processor.update(7, generated)
/// >>> processor.apply(logits, [7])               # logits: (1, vocabulary), changed in place
/// {}
#[pyclass(module = "proxytune", frozen)]
pub struct LogitsProcessor {
    state: Local<Mutex<State>>,
    settings: Settings,
}

struct State {
    requests: Requests,
    histories: HashMap<RequestId, Text>,
}

struct Text {
    /// Prompt, then generated tokens.
    history: Vec<Token>,
    prompt: usize,
}

#[pymethods]
impl LogitsProcessor {
    #[new]
    #[pyo3(signature = (config, *, vocabulary=None, vocab_size=None, context=0, sequences=0, threads=0))]
    fn new(
        py: Python<'_>,
        config: &Bound<'_, PyAny>,
        vocabulary: Option<PathBuf>,
        vocab_size: Option<usize>,
        context: usize,
        sequences: usize,
        threads: usize,
    ) -> PyResult<Self> {
        let config = load::config(config)?;
        let host = Host { vocabulary, vocab_size, context, sequences, threads };
        let (requests, settings) = py.detach(|| load::requests(config, host)).map_err(|e| exception(&e))?;
        Ok(Self { settings, state: Local::new(Mutex::new(State { requests, histories: HashMap::new() })) })
    }

    /// Values of a row that are shifted: the tokens of the large model's vocabulary.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.settings.vocab
    }

    /// Tokens that a history may have: the shorter of the proxies' contexts.
    #[getter]
    fn context(&self) -> usize {
        self.settings.context
    }

    /// The weight of the shift where a request says nothing else, from the configuration.
    #[getter]
    fn alpha(&self) -> f32 {
        self.settings.alpha
    }

    /// What is to happen to a request whose proxies fail: ``"host"``, it goes on unshifted, or ``"stop"``, it ends.
    #[getter]
    fn on_error(&self) -> &'static str {
        self.settings.on_error()
    }

    /// Whether the proxies work while the caller does something else, after ``prefetch``.
    #[getter]
    fn background(&self) -> bool {
        self.settings.background
    }

    /// Whether the proxies' part is an offset, so that ``offsets_`` can serve it: true for proxy-tuning, false for the other
    /// ways to combine.
    #[getter]
    fn is_offset(&self) -> PyResult<bool> {
        Ok(lock(self.state.get()?).requests.rule().is_offset())
    }

    /// Requests that keep their place in the proxies' caches; beyond that they take turns.
    #[getter]
    fn sequences(&self) -> usize {
        self.settings.sequences
    }

    /// Counters, as ``ProxyPair.stats``.
    #[getter]
    fn stats(&self) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(counters(&lock(self.state.get()?).requests))
    }

    /// Adds a request. No model runs.
    ///
    /// ``prompt`` is the large model's, in its tokens. ``tuned_prompt`` is for a tuned proxy that reads another one:
    /// tokens of its own, or text with its chat template applied. ``alpha``: the configured one where not given.
    #[pyo3(signature = (request, prompt, *, alpha=None, tuned_prompt=None))]
    fn add_request(
        &self,
        request: RequestId,
        #[pyo3(from_py_with = tokens::tokens)] prompt: Vec<Token>,
        alpha: Option<f32>,
        tuned_prompt: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let tuned_prompt = match tuned_prompt {
            None => TunedPrompt::Host,
            Some(text) => match text.extract::<String>() {
                Ok(text) => TunedPrompt::Text(text),
                Err(_) => TunedPrompt::Tokens(tokens::tokens(text)?),
            },
        };
        let own = (tuned_prompt != TunedPrompt::Host).then(|| prompt.clone());
        let mut state = lock(self.state.get()?);
        state.requests.add(request, own, tuned_prompt, alpha).map_err(|e| exception(&e))?;
        let text = Text { prompt: prompt.len(), history: prompt };
        state.histories.insert(request, text);
        Ok(())
    }

    /// Takes over all that a request has generated so far, as a list. Only what is new in it is read: to take back
    /// tokens, give a shorter list.
    fn update(&self, request: RequestId, generated: &Bound<'_, PyList>) -> PyResult<()> {
        let mut state = lock(self.state.get()?);
        let text = state.histories.get_mut(&request).ok_or_else(|| exception(&unknown(request)))?;
        let same = text.known(generated)?;
        text.history.truncate(text.prompt + same);
        for at in same..generated.len() {
            text.history.push(tokens::one(&generated.get_item(at)?)?);
        }
        Ok(())
    }

    /// Removes a request; its place in the proxies' caches is free for others.
    fn remove_request(&self, request: RequestId) -> PyResult<()> {
        let mut state = lock(self.state.get()?);
        state.histories.remove(&request);
        state.requests.remove(request).map_err(|e| exception(&e))
    }

    /// Says that rows of these requests will come. Where ``background`` is true the proxies start now. ``None`` for
    /// rows that are nobody's.
    fn prefetch(&self, py: Python<'_>, requests: Vec<Option<RequestId>>) -> PyResult<()> {
        let state = self.state.get()?;
        let prefetch = || {
            let State { requests: core, histories } = &mut *lock(state);
            core.prefetch(&rows(histories, requests.into_iter().flatten())?)
        };
        py.detach(prefetch).map_err(|e| exception(&e))
    }

    /// Adds ``alpha * (tuned - untuned)`` to each row of logits, in place.
    ///
    /// Parameters
    /// ----------
    /// logits : CPU tensor or array
    ///     Shape (rows, vocabulary), as for ``ProxyPair.shift_``.
    /// requests : sequence of int or None
    ///     The request of each row; ``None`` leaves a row as it is.
    ///
    /// Returns
    /// -------
    /// dict
    ///     Rows that were left as they were because a proxy failed on them, and why.
    fn apply(
        &self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        requests: Vec<Option<RequestId>>,
    ) -> PyResult<Failures> {
        let mut tensor = Tensor::of(logits)?;
        tensor.check_shape(requests.len(), self.settings.vocab)?;
        let (state, logits) = (self.state.get()?, tensor.split().narrow(self.settings.vocab));
        let apply = || {
            let State { requests: core, histories } = &mut *lock(state);
            let (mut places, mut rows) = (Vec::new(), Vec::new());
            for (at, (request, logits)) in requests.into_iter().zip(logits).enumerate() {
                let Some(request) = request else { continue };
                rows.push(BatchRow::with_logits(request, history(histories, request)?, logits));
                places.push(at);
            }
            core.apply(&mut rows)?;
            Ok(failures(core, &places, &rows))
        };
        py.detach(apply).map_err(|e| exception(&e))
    }

    /// Writes the offsets ``alpha * (tuned - untuned)`` into a float32 tensor in the CPU's memory, one row for each
    /// request: for logits that stand elsewhere. What could not be used as a shift is 0. Returns as ``apply``.
    fn offsets_(
        &self,
        py: Python<'_>,
        out: &Bound<'_, PyAny>,
        requests: Vec<RequestId>,
    ) -> PyResult<Failures> {
        let mut tensor = Tensor::of(out)?;
        tensor.check_shape(requests.len(), self.settings.vocab)?;
        let (state, (out, stride)) = (self.state.get()?, tensor.float32()?);
        let offsets = || {
            let State { requests: core, histories } = &mut *lock(state);
            let mut rows = rows(histories, requests)?;
            core.offsets(&mut rows, out, stride)?;
            let places: Vec<_> = (0..rows.len()).collect();
            Ok(failures(core, &places, &rows))
        };
        py.detach(offsets).map_err(|e| exception(&e))
    }

    fn __repr__(&self) -> String {
        format!("LogitsProcessor({})", self.settings)
    }
}

impl Text {
    /// How many of these generated tokens are known already.
    ///
    /// A list that only grew is recognised by its last known token: nothing else is compared then.
    fn known(&self, generated: &Bound<'_, PyList>) -> PyResult<usize> {
        let known = &self.history[self.prompt..];
        if let Some((last, _)) = known.split_last()
            && known.len() <= generated.len()
            && tokens::one(&generated.get_item(known.len() - 1)?)? == *last
        {
            return Ok(known.len());
        }
        for (at, token) in known.iter().enumerate().take(generated.len()) {
            if tokens::one(&generated.get_item(at)?)? != *token {
                return Ok(at);
            }
        }
        Ok(known.len().min(generated.len()))
    }
}

fn history(histories: &HashMap<RequestId, Text>, request: RequestId) -> proxytune::Result<&[Token]> {
    histories.get(&request).map(|text| &*text.history).ok_or_else(|| unknown(request))
}

fn rows(
    histories: &HashMap<RequestId, Text>,
    requests: impl IntoIterator<Item = RequestId>,
) -> proxytune::Result<Vec<BatchRow<'_>>> {
    requests.into_iter().map(|request| Ok(BatchRow::new(request, history(histories, request)?))).collect()
}

fn failures(core: &Requests, places: &[usize], rows: &[BatchRow<'_>]) -> Failures {
    let failed = places.iter().zip(rows).filter(|(_, row)| row.failed());
    failed.map(|(&at, row)| (at, why(core, row.request()))).collect()
}

fn unknown(request: RequestId) -> Error {
    Error::invalid("request", request, "one that was added and not removed")
}
