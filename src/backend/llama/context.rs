//! The KV caches of one model, and its forward passes.

use super::model::LlamaModel;
use super::pool::ThreadPool;
use super::{log, sys};
use crate::backend::{Backend, Capabilities, Span};
use crate::error::{Error, Result};
use std::ptr::NonNull;
use std::sync::Arc;

/// How a context is made.
#[derive(Clone)]
pub struct ContextOptions {
    /// What the model is called in errors.
    pub name: String,
    /// Sequences kept at once, 1 to 256.
    pub slots: usize,
    /// Tokens that a slot holds; 0: as many as the model was trained on.
    pub context: usize,
    /// Most tokens of one forward pass.
    pub batch: usize,
    /// The threads that compute.
    pub pool: Arc<ThreadPool>,
    /// The threads that compute while nothing else does ([`Backend::set_alone`]); `None`: those of `pool`.
    pub pool_alone: Option<Arc<ThreadPool>>,
}

/// A [`Backend`] over llama.cpp.
///
/// Every slot is a stream of its own in the KV cache, so a token attends over its own sequence only, whatever the others
/// hold. The cache is in f32 for models in f32, else in f16.
pub struct LlamaContext {
    raw: NonNull<sys::llama_context>,
    /// The one in use, and the one that `set_alone` changes to.
    pool: Arc<ThreadPool>,
    other_pool: Option<Arc<ThreadPool>>,
    alone: bool,
    batch: sys::llama_batch,
    /// Places in the batch whose logits were asked for.
    rows: Vec<i32>,
    capabilities: Capabilities,
    name: String,
    /// Outlives the context, weights, adapter and all.
    model: Arc<LlamaModel>,
}

// SAFETY: a context may be used from any thread, one at a time, which `&mut self` ensures.
unsafe impl Send for LlamaContext {}

impl LlamaContext {
    /// Makes empty caches for a model.
    ///
    /// # Errors
    /// [`Error::Memory`] when the caches would not fit the free memory, [`Error::Engine`] when the engine refuses.
    pub fn new(model: Arc<LlamaModel>, options: &ContextOptions) -> Result<Self> {
        let context = if options.context == 0 { model.trained_context() } else { options.context }.max(1);
        let slots = options.slots;
        if !(1..=256).contains(&slots) {
            return Err(Error::invalid("slots", slots, "1 to 256"));
        }
        let total = u32::try_from(context.next_multiple_of(256) * slots)
            .map_err(|_| Error::invalid("context", context, "slots times context below 2^32 tokens"))?;
        let (kv_type, kv_bytes) =
            if model.is_f32() { (sys::GGML_TYPE_F32, 4) } else { (sys::GGML_TYPE_F16, 2) };
        fits_memory(&options.name, model.kv_bytes_per_token(kv_bytes) * u64::from(total))?;
        let batch = options.batch.max(slots);
        // SAFETY: parameters come from the engine's defaults; the model outlives the context (`model`).
        let (raw, reason) = log::with_last_error(|| unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = total;
            params.n_batch = batch as u32;
            params.n_ubatch = batch as u32;
            params.n_seq_max = slots as u32;
            params.type_k = kv_type;
            params.type_v = kv_type;
            params.flash_attn_type = if model.is_f32() {
                sys::LLAMA_FLASH_ATTN_TYPE_DISABLED
            } else {
                sys::LLAMA_FLASH_ATTN_TYPE_AUTO
            };
            params.kv_unified = false;
            params.swa_full = true;
            params.no_perf = true;
            sys::llama_init_from_model(model.raw(), params)
        });
        let refused = |what: &str| {
            Error::engine(
                &options.name,
                format!("llama.cpp cannot make its KV cache ({what}); lower --ctx or slots"),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| refused(&reason))?;
        // SAFETY: room for `batch` tokens, one sequence each.
        let batch_memory = unsafe { sys::llama_batch_init(batch as i32, 0, 1) };
        let recurrent = model.is_recurrent();
        let capabilities = Capabilities {
            slots,
            context,
            batch,
            vocab: model.vocab_len(),
            truncate: !recurrent,
            fork: !recurrent,
        };
        let name = options.name.clone();
        let context = Self {
            raw,
            pool: options.pool.clone(),
            other_pool: options.pool_alone.clone(),
            alone: false,
            batch: batch_memory,
            rows: Vec::new(),
            capabilities,
            name,
            model,
        };
        context.attach_pool();
        if let Some(adapter) = &context.model.adapter {
            // SAFETY: the context is alive; the adapter belongs to the model that it was made for.
            unsafe { adapter.attach(context.raw.as_ptr(), &context.name)? };
        }
        Ok(context)
    }

    fn attach_pool(&self) {
        let (pool, threads) = (self.pool.raw(), self.pool.threads() as i32);
        // SAFETY: the context is alive; the pool outlives its use, since the context holds it.
        unsafe {
            sys::llama_attach_threadpool(self.raw.as_ptr(), pool, pool);
            sys::llama_set_n_threads(self.raw.as_ptr(), threads, threads);
        }
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is alive.
        unsafe { sys::llama_get_memory(self.raw.as_ptr()) }
    }

    /// The engine's row, if it has one.
    fn row(&self, row: usize) -> Option<NonNull<f32>> {
        // SAFETY: the place was asked for in the last pass.
        NonNull::new(unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), self.rows[row]) })
    }

    fn fill_batch(&mut self, spans: &[Span<'_>]) -> Result<()> {
        let count: usize = spans.iter().map(|s| s.tokens.len()).sum();
        if count == 0 || count > self.capabilities.batch {
            let what = format!("a pass of {count} tokens, 1 to {} are possible", self.capabilities.batch);
            return Err(Error::engine(&self.name, what));
        }
        let vocab = self.capabilities.vocab;
        self.rows.clear();
        let mut at = 0;
        for span in spans {
            let first_row = span.tokens.len() - span.rows;
            for (i, &token) in span.tokens.iter().enumerate() {
                if token as usize >= vocab {
                    let what = format!("token {token} is outside its vocabulary of {vocab}");
                    return Err(Error::engine(&self.name, what));
                }
                // SAFETY: `at` stays below the batch's room; each `seq_id[at]` has room for one.
                unsafe {
                    *self.batch.token.add(at) = token as i32;
                    *self.batch.pos.add(at) = (span.start + i) as i32;
                    *self.batch.n_seq_id.add(at) = 1;
                    **self.batch.seq_id.add(at) = span.slot as i32;
                    *self.batch.logits.add(at) = i8::from(i >= first_row);
                }
                if i >= first_row {
                    self.rows.push(at as i32);
                }
                at += 1;
            }
        }
        self.batch.n_tokens = at as i32;
        Ok(())
    }
}

impl Backend for LlamaContext {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> Result<()> {
        self.fill_batch(spans)?;
        let _turn = self.pool.turn();
        // SAFETY: the batch is filled for `n_tokens` tokens, all within vocabulary, slots and context.
        let (code, reason) =
            log::with_last_error(|| unsafe { sys::llama_decode(self.raw.as_ptr(), self.batch) });
        let what = match code {
            0 => return Ok(()),
            1 => "no room in the KV cache",
            2 => "aborted",
            _ => "the forward pass failed",
        };
        Err(Error::engine(&self.name, format!("{what} (llama.cpp: {code} {reason})")))
    }

    fn logits(&self, row: usize) -> &[f32] {
        match self.row(row) {
            // SAFETY: the engine keeps a row of `vocab` values until the next pass, for which it takes `&mut self`.
            Some(row) => unsafe { std::slice::from_raw_parts(row.as_ptr(), self.capabilities.vocab) },
            None => &[],
        }
    }

    fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        match self.row(row) {
            // SAFETY: as above; rows do not overlap, and `&mut self` allows for one at a time.
            Some(row) => unsafe { std::slice::from_raw_parts_mut(row.as_ptr(), self.capabilities.vocab) },
            None => &mut [],
        }
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<()> {
        // SAFETY: the memory is alive; positions are checked by the engine.
        let done = unsafe { sys::llama_memory_seq_rm(self.memory(), slot as i32, len as i32, -1) };
        if done {
            Ok(())
        } else {
            Err(Error::engine(&self.name, format!("cannot cut slot {slot} back to {len}")))
        }
    }

    fn fork(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.clear(to);
        // SAFETY: the memory is alive and both slots exist. Streams are only ever copied whole.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from as i32, to as i32, -1, -1) };
        self.truncate(to, len)
    }

    fn clear(&mut self, slot: usize) {
        // SAFETY: the memory is alive; removing a whole sequence never fails.
        unsafe { sys::llama_memory_seq_rm(self.memory(), slot as i32, -1, -1) };
    }

    fn rest(&mut self) {
        self.pool.rest();
    }

    fn set_alone(&mut self, alone: bool) {
        if let Some(other) = self.other_pool.as_mut().filter(|_| self.alone != alone) {
            std::mem::swap(&mut self.pool, other);
            self.alone = alone;
            self.attach_pool();
        }
    }
}

impl Drop for LlamaContext {
    fn drop(&mut self) {
        // SAFETY: both were made in `new`, and nobody else frees them.
        unsafe {
            sys::llama_batch_free(self.batch);
            sys::llama_free(self.raw.as_ptr());
        }
    }
}

/// Linux hands out memory it does not have and kills the process on first use: so ask before.
fn fits_memory(name: &str, needed: u64) -> Result<()> {
    // Where the system does not tell, the engine finds out.
    let available = sysinfo::System::new().map_or(0, |mut system| {
        system.refresh_memory();
        system.available_memory()
    });
    if available > 0 && needed > available {
        let help = "lower --ctx, or slots in the configuration".into();
        return Err(Error::Memory { what: format!("the KV cache of the {name}"), needed, available, help });
    }
    Ok(())
}
