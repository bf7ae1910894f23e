//! `proxytune.ProxyPair`: offsets for histories.

use crate::errors::exception;
use crate::load::{self, Host, Settings};
use crate::process::Local;
use crate::rows::BatchRow;
use crate::tensor::Tensor;
use crate::texts::Texts;
use crate::tokens::histories;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use proxytune::Error;
use proxytune::config::check_alpha;
use proxytune::host::requests::{Logits, Requests, TunedPrompt};
use proxytune::vocab::Token;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Two small models, tuned and untuned, whose difference customises a large one.
///
/// At each step the large model's logits `h` become `h + alpha * (t - u)`, where `t` and `u` are the logits of the
/// tuned and of the untuned proxy for the same history (proxy-tuning, Liu et al. 2024). A history is all tokens that
/// the large model has read: the prompt and what was generated since, in the large model's tokens.
///
/// Histories are matched with what stands in the proxies' caches, so a history that goes on from one seen before costs
/// one token; nothing needs to be opened, closed or rolled back. Any order of calls gives the same offsets.
///
/// Parameters
/// ----------
/// config : path or mapping
///     A TOML file with a section ``[proxy_tuning]``, or a mapping with the same keys::
///
///         {"proxy_tuning": {"tuned": "tuned.gguf", "untuned": "untuned.gguf", "alpha": 1.0}}
/// vocabulary : path, optional
///     Where the large model's tokens stand: its GGUF file, its ``tokenizer.json``, or the folder of its checkpoint.
///     Not needed where the configuration names the host's GGUF file, as ``model`` in its section ``[host]``.
/// vocab_size : int, optional
///     Length of the large model's rows of logits, where they are padded beyond its tokens.
/// context, sequences, threads : int, optional
///     Tokens of a sequence, sequences at once, and threads of the large model, where known: the proxies get as much.
///
/// Raises ``ValueError`` for a configuration or a model that cannot be used, ``MemoryError`` where memory is short.
///
/// Example
/// -------
/// >>> pair = ProxyPair("proxytune.toml", vocabulary="my-70b-checkpoint/")
/// >>> pair.shift_(logits, histories)             # logits: (batch, vocabulary), changed in place
/// {}
#[pyclass(module = "proxytune", frozen)]
pub struct ProxyPair {
    state: Local<Mutex<State>>,
    settings: Settings,
}

struct State {
    requests: Requests,
    texts: Texts,
    /// Offsets of the last batch; kept for its memory.
    offsets: Vec<f32>,
}

/// What is computed of rows: see `Requests::offsets`.
type Write = fn(&mut Requests, &mut [BatchRow<'_>], &mut [f32], usize) -> proxytune::Result<()>;

/// Why rows have no offset, by row.
pub type Failures = BTreeMap<usize, String>;

/// Rows without requests have no place in a text that a schedule could go by.
fn refuse_control(config: &proxytune::config::Config) -> PyResult<()> {
    if config.proxy_tuning.control() == Default::default() {
        return Ok(());
    }
    let expected = "none of them: a ProxyPair does not know where a text begins; give each row its alpha";
    Err(exception(&Error::invalid("alpha_schedule, shift_cap or repetition_guard", "a value", expected)))
}

#[pymethods]
impl ProxyPair {
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
        refuse_control(&config)?;
        let host = Host { vocabulary, vocab_size, context, sequences, threads };
        let (requests, settings) = py.detach(|| load::requests(config, host)).map_err(|e| exception(&e))?;
        let texts = Texts::new(settings.sequences);
        Ok(Self { settings, state: Local::new(Mutex::new(State { requests, texts, offsets: Vec::new() })) })
    }

    /// Length of a row of offsets: the tokens of the large model's vocabulary.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.settings.vocab
    }

    /// Tokens that a history may have: the shorter of the proxies' contexts.
    #[getter]
    fn context(&self) -> usize {
        self.settings.context
    }

    /// The weight of the shift where a call says nothing else, from the configuration.
    #[getter]
    fn alpha(&self) -> f32 {
        self.settings.alpha
    }

    /// What happens to a row whose proxies fail: ``"host"``, it stays as it is, or ``"stop"``, an exception is raised.
    #[getter]
    fn on_error(&self) -> &'static str {
        self.settings.on_error()
    }

    /// What was done so far, as counters: ``shifted`` and ``failed`` rows, ``rounds`` of the proxies, ``tuned_us`` and
    /// ``untuned_us``, microseconds in each.
    #[getter]
    fn stats(&self) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(counters(&self.lock()?.requests))
    }

    /// The offsets ``tuned - untuned`` for the token after each history, not yet weighed by alpha.
    ///
    /// Parameters
    /// ----------
    /// histories : sequence of sequences of int, or a matrix
    ///     All tokens read so far, prompt first; lists, arrays or CPU tensors.
    ///
    /// Returns
    /// -------
    /// numpy.ndarray
    ///     float32, shape (histories, vocab_size). 0 for a token that a proxy lacks.
    ///
    /// The interpreter's lock is released while the models run. Raises ``RuntimeError`` where a proxy fails, for
    /// instance on a history longer than its context; ``ValueError`` where the configuration's ``combine`` is more than
    /// an offset.
    fn offsets<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = histories)] histories: Vec<Vec<Token>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let shape = [histories.len(), self.settings.vocab];
        let state = self.state.get()?;
        let (offsets, failures) = py
            .detach(|| {
                let mut state = lock(state);
                state.requests.refuse_more_than_offsets()?;
                let failures =
                    state.compute(&histories, |core, rows, out, stride| core.offsets(rows, out, stride))?;
                Ok((std::mem::take(&mut state.offsets), failures))
            })
            .map_err(|e| exception(&e))?;
        if let Some((row, why)) = failures.first_key_value() {
            return Err(failure(*row, why));
        }
        PyArray1::from_vec(py, offsets).reshape(shape)
    }

    /// Adds ``alpha * (tuned - untuned)`` to each row of logits, in place.
    ///
    /// Parameters
    /// ----------
    /// logits : CPU tensor or array
    ///     Shape (histories, vocabulary), or (vocabulary) for a single history; float32, float16 or bfloat16, through
    ///     DLPack or the buffer protocol. Rows may be longer than ``vocab_size``: what is beyond is padding.
    /// histories : sequence of sequences of int, or a matrix
    ///     All tokens read so far, one history for each row.
    /// alphas : float or sequence of float, optional
    ///     Weights, one for all or one for each row. With 0 no model runs and the row keeps its bits.
    ///
    /// Returns
    /// -------
    /// dict
    ///     Rows that were left as they were because a proxy failed on them, and why; empty when all went well. With
    ///     ``on_error = "stop"`` a ``RuntimeError`` is raised instead, and no row is changed.
    #[pyo3(signature = (logits, histories, alphas=None))]
    fn shift_(
        &self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = histories)] histories: Vec<Vec<Token>>,
        alphas: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Failures> {
        let alphas = self.alphas(alphas, histories.len())?;
        let mut tensor = Tensor::of(logits)?;
        tensor.check_shape(histories.len(), self.settings.vocab)?;
        let (state, stops) = (self.state.get()?, self.settings.stops);
        let rows = tensor.split().narrow(self.settings.vocab);
        let failures =
            py.detach(|| lock(state).shift(rows, histories, &alphas, stops)).map_err(|e| exception(&e))?;
        match failures.first_key_value() {
            Some((row, why)) if stops => Err(failure(*row, why)),
            _ => Ok(failures),
        }
    }

    /// Says which histories will come next, so that the proxies can start on them. Returns at once.
    ///
    /// Where the proxies have a device of their own, or ``placement = "together"``, they work while the caller does
    /// something else. Elsewhere they want the caller's cores, and start when somebody waits for them.
    fn prefetch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = histories)] histories: Vec<Vec<Token>>,
    ) -> PyResult<()> {
        let state = self.state.get()?;
        py.detach(|| lock(state).prefetch(&histories)).map_err(|e| exception(&e))
    }

    fn __repr__(&self) -> String {
        format!("ProxyPair({})", self.settings)
    }
}

impl ProxyPair {
    fn lock(&self) -> PyResult<MutexGuard<'_, State>> {
        self.state.get().map(lock)
    }

    fn alphas(&self, given: Option<&Bound<'_, PyAny>>, rows: usize) -> PyResult<Vec<f32>> {
        let alphas = match given {
            None => vec![self.settings.alpha; rows],
            Some(given) => match given.extract::<f32>() {
                Ok(alpha) => vec![alpha; rows],
                Err(_) => given.try_iter()?.map(|alpha| alpha?.extract()).collect::<PyResult<Vec<f32>>>()?,
            },
        };
        if alphas.len() != rows {
            let what =
                format!("alphas: got {} for {rows} histories, expected one, or one for each", alphas.len());
            return Err(PyValueError::new_err(what));
        }
        alphas.iter().try_for_each(|&alpha| check_alpha(alpha)).map_err(|e| exception(&e))?;
        Ok(alphas)
    }
}

impl State {
    /// Matches histories with texts, for which the core has a request each, of weight 1.
    fn assign(&mut self, histories: &[Vec<Token>]) -> proxytune::Result<Vec<u64>> {
        let assigned = self.texts.assign(histories);
        for request in assigned.added {
            self.requests.add(request, None, TunedPrompt::Host, Some(1.0))?;
        }
        Ok(assigned.requests)
    }

    fn prefetch(&mut self, histories: &[Vec<Token>]) -> proxytune::Result<()> {
        let requests = self.assign(histories)?;
        let rows: Vec<_> = requests.iter().zip(histories).map(|(&r, h)| BatchRow::new(r, h)).collect();
        self.requests.prefetch(&rows)
    }

    /// Computes the offsets of all histories, or what else `what` writes, in one round; of those that failed they are 0.
    fn compute(&mut self, histories: &[Vec<Token>], what: Write) -> proxytune::Result<Failures> {
        let vocab = self.requests.vocab();
        let requests = self.assign(histories)?;
        let mut rows: Vec<_> = requests.iter().zip(histories).map(|(&r, h)| BatchRow::new(r, h)).collect();
        self.offsets.resize(rows.len() * vocab, 0.0);
        what(&mut self.requests, &mut rows, &mut self.offsets, vocab)?;
        let failed: Vec<_> =
            rows.iter().enumerate().filter(|(_, row)| row.failed()).map(|(at, _)| at).collect();
        let failures = failed.into_iter().map(|at| (at, why(&self.requests, requests[at]))).collect();
        for request in self.texts.surplus() {
            self.requests.remove(request)?;
        }
        Ok(failures)
    }

    fn shift<'a>(
        &mut self,
        rows: impl Iterator<Item = Logits<'a>>,
        histories: Vec<Vec<Token>>,
        alphas: &[f32],
        stops: bool,
    ) -> proxytune::Result<Failures> {
        alphas.iter().try_for_each(|&alpha| self.requests.rule().check_alpha(alpha))?;
        // Where nothing is added no model runs.
        let wanted: Vec<usize> = (0..histories.len()).filter(|&row| alphas[row] != 0.0).collect();
        let mut histories = histories;
        let histories: Vec<_> = wanted.iter().map(|&row| std::mem::take(&mut histories[row])).collect();
        let failures = self.compute(&histories, |core, rows, out, stride| core.advice(rows, out, stride))?;
        let failures: Failures = failures.into_iter().map(|(at, why)| (wanted[at], why)).collect();
        if stops && !failures.is_empty() {
            return Ok(failures);
        }
        let mut offsets = self.offsets.chunks_exact(self.requests.vocab());
        let rule = self.requests.rule();
        for (at, (row, &alpha)) in rows.zip(alphas).enumerate().filter(|(_, (_, alpha))| **alpha != 0.0) {
            let Some(offset) = offsets.next() else { break };
            if !failures.contains_key(&at) {
                rule.apply(row, offset, alpha)?;
            }
        }
        Ok(failures)
    }
}

/// Why the last row of a request failed.
pub fn why(requests: &Requests, request: u64) -> String {
    let failure = requests.failure(request).ok().flatten();
    failure.map_or_else(|| "the proxies failed".into(), ToString::to_string)
}

pub fn failure(row: usize, why: &str) -> PyErr {
    PyRuntimeError::new_err(format!("row {row}: {why}"))
}

pub fn counters(requests: &Requests) -> BTreeMap<&'static str, u64> {
    let stats = requests.stats();
    BTreeMap::from([
        ("shifted", stats.shifted),
        ("failed", stats.failed),
        ("ignored", stats.ignored),
        ("rounds", stats.rounds),
        ("tuned_us", stats.tuned_us),
        ("untuned_us", stats.untuned_us),
    ])
}

/// A panic elsewhere leaves the caches as they are, which is all that matters: they are reconciled at each call.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
