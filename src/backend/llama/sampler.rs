//! llama.cpp's own samplers, behind the shift: penalties, temperature, top-k, top-p, min-p.

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
    /// Seed of the draws, which fixes the text; `None`: another one each time.
    pub seed: Option<u64>,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: None }
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

/// What the options make of logits, for one sequence: penalties know what it has read.
pub struct Sampler {
    /// `None`: nothing to do, and the most likely token is taken.
    chain: Option<NonNull<sys::llama_sampler>>,
    greedy: bool,
    penalises: bool,
    candidates: Vec<sys::llama_token_data>,
    /// Memory for what the chain leaves.
    weights: Vec<f32>,
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
        let (greedy, penalises) = (options.temperature == 0.0, options.repeat_penalty != 1.0);
        let chain = if greedy && !penalises { None } else { Some(Self::chain(options, vocab)?) };
        Ok(Self { chain, greedy, penalises, candidates: Vec::new(), weights: Vec::new() })
    }

    fn chain(options: &SamplerOptions, vocab: usize) -> Result<NonNull<sys::llama_sampler>> {
        // SAFETY: each sampler is fresh and becomes the chain's; the chain becomes the caller's.
        let chain = unsafe {
            let chain = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            let add = |sampler| sys::llama_sampler_chain_add(chain, sampler);
            if options.repeat_penalty != 1.0 {
                let repeat = options.repeat_penalty;
                add(sys::llama_sampler_init_penalties(vocab as i32, PENALTY_WINDOW, repeat, 0.0, 0.0));
            }
            if options.temperature != 0.0 {
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
            }
            chain
        };
        NonNull::new(chain).ok_or_else(|| Error::engine("sampler", "llama.cpp made no sampler chain"))
    }

    /// Whether the most likely token is always taken, after penalties.
    pub fn is_greedy(&self) -> bool {
        self.greedy
    }

    /// Whether tokens read before count.
    pub fn penalises(&self) -> bool {
        self.penalises
    }

    /// The most likely token, after penalties.
    pub fn most_likely(&mut self, logits: &[f32]) -> Token {
        if self.chain.is_none() {
            return combine::argmax(logits) as Token;
        }
        let by_logit = |a: &&sys::llama_token_data, b: &&sys::llama_token_data| {
            // Of equals the first, as without a chain.
            a.logit.total_cmp(&b.logit).then(b.id.cmp(&a.id))
        };
        let best = self.apply(logits).iter().filter(|c| !c.logit.is_nan()).max_by(by_logit);
        best.map_or(0, |candidate| candidate.id as Token)
    }

    /// Writes the probability of each token, 0 for those filtered out. Where no logit is finite, the most likely token
    /// gets all.
    pub fn probabilities(&mut self, logits: &[f32], probabilities: &mut Vec<f32>) {
        probabilities.clear();
        probabilities.resize(logits.len(), 0.0);
        let mut weights = std::mem::take(&mut self.weights);
        weights.clear();
        let candidates = self.apply(logits);
        weights.extend(candidates.iter().map(|c| c.logit));
        if combine::softmax(&mut weights, 1.0) {
            for (candidate, &weight) in candidates.iter().zip(&weights) {
                probabilities[candidate.id as usize] = weight;
            }
        } else {
            probabilities[combine::argmax(logits)] = 1.0;
        }
        self.weights = weights;
    }

    /// What the chain leaves of the candidates.
    fn apply(&mut self, logits: &[f32]) -> &[sys::llama_token_data] {
        let candidate = |(id, &logit): (usize, &f32)| sys::llama_token_data { id: id as i32, logit, p: 0.0 };
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(candidate));
        let mut array = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        if let Some(chain) = self.chain {
            // SAFETY: the array points to our candidates, which samplers reorder and shrink but never outgrow.
            unsafe { sys::llama_sampler_apply(chain.as_ptr(), &mut array) };
        }
        &self.candidates[..array.size.min(self.candidates.len())]
    }

    /// Takes note of a token that the sequence has now read: penalties count it.
    pub fn accept(&mut self, token: Token) {
        if let Some(chain) = self.chain.filter(|_| self.penalises) {
            // SAFETY: the chain is alive.
            unsafe { sys::llama_sampler_accept(chain.as_ptr(), token as i32) };
        }
    }

    /// A sampler that has read the same and goes its own way.
    ///
    /// # Errors
    /// When the engine cannot copy its chain.
    pub fn fork(&self) -> Result<Self> {
        let copy = |chain: NonNull<sys::llama_sampler>| {
            // SAFETY: the chain is alive; the copy becomes ours.
            NonNull::new(unsafe { sys::llama_sampler_clone(chain.as_ptr()) })
                .ok_or_else(|| Error::engine("sampler", "llama.cpp cannot copy its sampler chain"))
        };
        let chain = self.chain.map(copy).transpose()?;
        Ok(Self {
            chain,
            greedy: self.greedy,
            penalises: self.penalises,
            candidates: Vec::new(),
            weights: Vec::new(),
        })
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
