//! llama.cpp's own samplers, behind the shift: penalties, temperature, top-k, top-p, min-p, draw.

use super::{log, sys};
use crate::combine;
use crate::error::{Error, Result};
use crate::vocab::Token;
use std::ptr::NonNull;

/// How a token is chosen from shifted logits.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// 0: always the most likely token.
    pub temperature: f32,
    /// Only the K most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1: all.
    pub top_p: f32,
    /// Only tokens with at least this share of the most likely one's probability; 0: all.
    pub min_p: f32,
    /// Divides the logits of tokens among the last 64; 1: none.
    pub repeat_penalty: f32,
    /// Seed of the draws.
    pub seed: u32,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: 0 }
    }
}

impl SamplerOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f32, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(Error::invalid(name, value, expected)) }
        };
        let t = self.temperature;
        within("--temperature", t, t.is_finite() && t >= 0.0, "a number of 0 or more")?;
        within("--top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "a number above 0, at most 1")?;
        within("--min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1")?;
        let r = self.repeat_penalty;
        within("--repeat-penalty", r, r.is_finite() && r > 0.0, "a number above 0")
    }
}

/// Chooses tokens for one sequence.
pub struct Sampler {
    /// `None`: the most likely token, no chain needed.
    chain: Option<NonNull<sys::llama_sampler>>,
    candidates: Vec<sys::llama_token_data>,
}

// SAFETY: a chain has no tie to a thread; `&mut self` keeps its use to one at a time.
unsafe impl Send for Sampler {}

const PENALTY_WINDOW: i32 = 64;

impl Sampler {
    /// A sampler for rows of `vocab` logits.
    ///
    /// # Errors
    /// As [`SamplerOptions::check`].
    pub fn new(options: &SamplerOptions, vocab: usize) -> Result<Self> {
        options.check()?;
        log::init();
        let greedy = options.temperature == 0.0;
        if greedy && options.repeat_penalty == 1.0 {
            return Ok(Self { chain: None, candidates: Vec::new() });
        }
        // SAFETY: each sampler is fresh and becomes the chain's; the chain becomes ours.
        let chain = unsafe {
            let chain = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            let add = |sampler| sys::llama_sampler_chain_add(chain, sampler);
            if options.repeat_penalty != 1.0 {
                let repeat = options.repeat_penalty;
                add(sys::llama_sampler_init_penalties(vocab as i32, PENALTY_WINDOW, repeat, 0.0, 0.0));
            }
            if greedy {
                add(sys::llama_sampler_init_greedy());
            } else {
                add(sys::llama_sampler_init_temp(options.temperature));
                if options.top_k > 0 {
                    add(sys::llama_sampler_init_top_k(options.top_k.min(vocab) as i32));
                }
                if options.top_p < 1.0 {
                    add(sys::llama_sampler_init_top_p(options.top_p, 1));
                }
                if options.min_p > 0.0 {
                    add(sys::llama_sampler_init_min_p(options.min_p, 1));
                }
                add(sys::llama_sampler_init_dist(options.seed));
            }
            chain
        };
        let chain =
            NonNull::new(chain).ok_or_else(|| Error::engine("sampler", "llama.cpp made no sampler chain"))?;
        Ok(Self { chain: Some(chain), candidates: Vec::with_capacity(vocab) })
    }

    /// Whether it always takes the most likely token as it stands.
    pub fn is_greedy(&self) -> bool {
        self.chain.is_none()
    }

    /// Chooses the next token from a row of logits, and takes note of it.
    pub fn sample(&mut self, logits: &[f32]) -> Token {
        let Some(chain) = self.chain else { return combine::argmax(logits) as Token };
        self.candidates.clear();
        let candidate = |(id, &logit): (usize, &f32)| sys::llama_token_data { id: id as i32, logit, p: 0.0 };
        self.candidates.extend(logits.iter().enumerate().map(candidate));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        // SAFETY: the array points to our candidates, which samplers reorder and shrink but never outgrow.
        unsafe { sys::llama_sampler_apply(chain.as_ptr(), &mut array) };
        let chosen = match usize::try_from(array.selected) {
            // SAFETY: a selected index is below the array's size.
            Ok(selected) if selected < array.size => unsafe { (*array.data.add(selected)).id as Token },
            // No probability anywhere (all logits -inf): the least surprising is what greedy would do.
            _ => combine::argmax(logits) as Token,
        };
        self.accept(chosen);
        chosen
    }

    /// Takes note of a token that was not sampled here, such as one of the prompt: penalties count it.
    pub fn accept(&mut self, token: Token) {
        if let Some(chain) = self.chain {
            // SAFETY: the chain is alive.
            unsafe { sys::llama_sampler_accept(chain.as_ptr(), token as i32) };
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(chain) = self.chain {
            // SAFETY: ours alone; frees its samplers too.
            unsafe { sys::llama_sampler_free(chain.as_ptr()) }
        }
    }
}
