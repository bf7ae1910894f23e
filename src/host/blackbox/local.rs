//! A model in this process that shows no more than a black box would.
//!
//! With it the same loop runs without a server: to see beforehand what few visible tokens cost a trio, and to hold the loop against
//! whole rows of logits.

use super::advisers::blocking;
use super::{Ask, BlackBox, Candidate, Offers, Prompt, Seen, Spent, Writing};
use crate::backend::llama::{ContextOptions, LlamaContext, LlamaModel, Sampler, SamplerOptions, ThreadPool};
use crate::combine::log_sum_exp_of_numbers;
use crate::decode::accept::Dice;
use crate::error::{Error, Result};
use crate::pair::{CachedModel, SequenceId, Work};
use crate::vocab::Token;
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A host in llama.cpp of which only the likeliest tokens are visible.
pub struct Local {
    shared: Arc<Shared>,
    offers: Offers,
}

struct Shared {
    model: Arc<LlamaModel>,
    host: Mutex<CachedModel>,
    spent: Mutex<Spent>,
}

/// All texts share one sequence: its cache is what they have in common.
const SEQUENCE: SequenceId = 0;

impl Local {
    /// A host with a context of `context` tokens that shows the `top` likeliest ones.
    ///
    /// # Errors
    /// When memory or threads are short.
    pub fn new(model: Arc<LlamaModel>, context: usize, threads: usize, top: usize) -> Result<Self> {
        let name = "the host".to_owned();
        let pool = Arc::new(ThreadPool::new(threads.max(1), 0)?);
        let options =
            ContextOptions { name: name.clone(), slots: 1, context, batch: 512, pool, pool_alone: None };
        let host = Mutex::new(CachedModel::new(name, LlamaContext::new(model.clone(), &options)?));
        let top = top.min(model.vocab_len());
        let offers = Offers {
            top,
            reads: true,
            continues: true,
            by_ids: true,
            bias: Some((model.vocab_len(), f32::INFINITY)),
            same_ids: false,
        };
        Ok(Self { shared: Arc::new(Shared { model, host, spent: Mutex::default() }), offers })
    }

    /// The same with less on offer, or with more where that is known, as for [`Offers::same_ids`].
    pub fn offering(mut self, change: impl FnOnce(&mut Offers)) -> Self {
        change(&mut self.offers);
        self
    }

    fn begin(&self, ask: Ask<'_>, draft: VecDeque<Token>) -> Result<Box<dyn Writing>> {
        let Prompt::Text(text) = ask.prompt else {
            return Err(Error::invalid("prompt", "a conversation", "a text for this host"));
        };
        let model = &self.shared.model;
        let mut tokens = model.tokenize(text, true);
        match &ask.written.ids {
            Some(ids) => tokens.extend(ids),
            None => tokens.extend(model.tokenize_bytes(&ask.written.bytes, false, false)),
        }
        let mut spent = lock(&self.shared.spent);
        spent.requests += 1;
        spent.prompt_tokens += tokens.len() as u64;
        let choosing = ask.choosing;
        let options = SamplerOptions {
            temperature: choosing.temperature,
            top_p: choosing.top_p,
            seed: choosing.seed,
            ..SamplerOptions::default()
        };
        Ok(Box::new(LocalWriting {
            sampler: Some(Sampler::new(&options, model.vocab_len())?),
            dice: Dice::new(choosing.seed),
            shared: self.shared.clone(),
            left: ask.tokens.max(draft.len() + 1),
            tokens,
            draft,
            bias: ask.bias.to_vec(),
            top: self.offers.top,
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl BlackBox for Local {
    fn offers(&self) -> &Offers {
        &self.offers
    }

    async fn write(&self, ask: Ask<'_>) -> Result<Box<dyn Writing>> {
        self.begin(ask, VecDeque::new())
    }

    async fn read(&self, ask: Ask<'_>, draft: &[u8]) -> Result<Box<dyn Writing>> {
        let draft = self.shared.model.tokenize_bytes(draft, false, false).into();
        self.begin(Ask { tokens: 1, ..ask }, draft)
    }

    fn spent(&self) -> Spent {
        *lock(&self.shared.spent)
    }
}

struct LocalWriting {
    shared: Arc<Shared>,
    tokens: Vec<Token>,
    draft: VecDeque<Token>,
    left: usize,
    bias: Vec<(Token, f32)>,
    sampler: Option<Sampler>,
    dice: Dice,
    top: usize,
}

#[async_trait]
impl Writing for LocalWriting {
    async fn next(&mut self) -> Result<Option<Seen>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (shared, tokens) = (self.shared.clone(), self.tokens.clone());
        let row = blocking(move || shared.row(&tokens)).await?;
        let sum = log_sum_exp_of_numbers(&row) as f32;
        let mut order: Vec<Token> = (0..row.len() as Token).collect();
        let heavier = |a: &Token, b: &Token| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        if self.top < order.len() {
            order.select_nth_unstable_by(self.top, heavier);
            order.truncate(self.top);
        }
        order.sort_unstable_by(heavier);
        let chosen = match self.draft.pop_front() {
            Some(drafted) => drafted,
            None => self.draw(row.clone()),
        };
        self.tokens.push(chosen);
        lock(&self.shared.spent).completion_tokens += 1;
        let candidate = |id: Token| {
            let bytes = self.shared.model.piece(id, false);
            let control = bytes.is_empty();
            Candidate { bytes, id: Some(id), logprob: row[id as usize] - sum, control }
        };
        let top = order.into_iter().map(candidate).collect();
        Ok(Some(Seen { chosen: candidate(chosen), top, is_merged: false }))
    }

    fn is_over(&self) -> bool {
        false
    }
}

impl LocalWriting {
    fn draw(&mut self, mut row: Vec<f32>) -> Token {
        for &(token, bias) in &self.bias {
            row[token as usize] += bias;
        }
        let Some(sampler) = self.sampler.as_mut().filter(|s| !s.is_greedy()) else {
            return crate::combine::argmax(&row) as Token;
        };
        let mut probabilities = Vec::new();
        sampler.probabilities(&row, &mut probabilities);
        self.dice.draw(probabilities.iter().copied()).unwrap_or_default()
    }
}

impl Shared {
    /// The logits of the token that follows.
    fn row(&self, tokens: &[Token]) -> Result<Vec<f32>> {
        let mut host = lock(&self.host);
        let mut work = Work::default();
        let request = work.push(SEQUENCE, 1, |history| history.extend_from_slice(tokens));
        while !work.all_done() {
            host.advance(&mut work);
        }
        host.row(&work, request, 0).map(<[f32]>::to_vec)
    }
}
