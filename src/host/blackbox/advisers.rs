//! The two proxies beside a host that shows only text: prompts, histories and differences in the tuned proxy's tokens.

use super::{Candidate, Prompt};
use crate::backend::llama::LlamaModel;
use crate::combine::log_sum_exp_of_numbers;
use crate::config::Config;
use crate::decode::{MappedProxies, NAMES, RunOptions, TunedPrompts, pair, token_map};
use crate::error::{Error, Result};
use crate::host::Proxies;
use crate::pair::{History, Pair, SequenceId};
use crate::prompt::render;
use crate::vocab::{Kind, Token, TokenMap};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Both proxies, for any number of texts at once. The tuned proxy's vocabulary is the one that all is mapped to.
pub struct Advisers {
    pair: Mutex<Pair>,
    models: MappedProxies,
    prompts: TunedPrompts,
    /// The tuned proxy's tokens by what they spell.
    by_bytes: HashMap<Vec<u8>, Token>,
    /// Its control tokens by name.
    by_name: HashMap<Vec<u8>, Token>,
    end: Option<Token>,
    next: AtomicU64,
}

/// What the proxies say of the token that follows a text, over the tuned proxy's vocabulary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Advice {
    /// `log p_tuned - log p_untuned`; 0 for a token that the untuned proxy lacks.
    pub delta: Vec<f32>,
    /// `log p_tuned`.
    pub tuned: Vec<f32>,
    /// `log p_untuned`; -inf for a token that it lacks.
    pub untuned: Vec<f32>,
}

/// How one of the host's tokens is spelt in the tuned proxy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spelling {
    /// By one token of the same bytes.
    One(Token),
    /// By several.
    Several(Vec<Token>),
    /// Not at all.
    None,
}

impl Advisers {
    /// Loads the proxies that a configuration names.
    ///
    /// # Errors
    /// When a model cannot be loaded, or the two do not fit each other.
    pub fn load(config: Config, sequences: usize, longest: usize) -> Result<Self> {
        let rule = config.proxy_tuning.combine.rule()?;
        if !rule.is_offset() {
            let expected =
                "proxy-tuning for a host that does not show whole rows of logits, which this rule needs";
            return Err(Error::invalid("--combine", rule, expected));
        }
        let proxies = Proxies::load(config)?;
        let [tuned, untuned] = proxies.models().clone();
        let vocabulary = tuned.vocabulary();
        let map = token_map(&vocabulary, &untuned, NAMES[2])?;
        let models = [(tuned.clone(), TokenMap::identity(vocabulary.len())), (untuned, map)];
        let run = RunOptions { sequences, longest, ..RunOptions::default() };
        let config = proxies.config();
        let pair = pair(&models, config, run, None)?;
        let prompts = TunedPrompts::new(tuned.clone(), None, &config.proxy_tuning)?;
        let (mut by_bytes, mut by_name) = (HashMap::new(), HashMap::new());
        for (id, entry) in vocabulary.entries().iter().enumerate() {
            let place = match entry.kind {
                Kind::Text | Kind::Byte if !entry.bytes.is_empty() => &mut by_bytes,
                Kind::Control => &mut by_name,
                _ => continue,
            };
            // Of equals the text token, not the raw byte that vocabularies fall back to.
            let first = !place.contains_key(&entry.bytes);
            if first || entry.kind == Kind::Text {
                place.insert(entry.bytes.clone(), id as Token);
            }
        }
        let end = tuned.end();
        Ok(Self { pair: Mutex::new(pair), models, prompts, by_bytes, by_name, end, next: AtomicU64::new(0) })
    }

    /// The tuned proxy.
    pub fn tuned(&self) -> &Arc<LlamaModel> {
        &self.models[0].0
    }

    /// Whether one of the tuned proxy's tokens ends a text.
    pub fn is_end(&self, token: Token) -> bool {
        self.tuned().is_end(token)
    }

    /// The token of the tuned proxy that spells exactly these bytes.
    pub fn token(&self, bytes: &[u8]) -> Option<Token> {
        self.by_bytes.get(bytes).copied()
    }

    /// What each of the tuned proxy's tokens spells; nothing for control tokens.
    pub fn piece(&self, token: Token) -> Vec<u8> {
        self.tuned().piece(token, false)
    }

    /// How a host's token is spelt. `same_ids`: control tokens have the proxies' numbers.
    pub fn spell(&self, candidate: &Candidate, same_ids: bool) -> Spelling {
        if candidate.control || candidate.bytes.is_empty() {
            let by_id = candidate.id.filter(|&id| same_ids && (id as usize) < self.tuned().vocab_len());
            let by_name = || self.by_name.get(&candidate.bytes).copied();
            let end = || self.end.filter(|_| candidate.bytes.is_empty());
            return by_id.or_else(by_name).or_else(end).map_or(Spelling::None, Spelling::One);
        }
        if let Some(token) = self.token(&candidate.bytes) {
            return Spelling::One(token);
        }
        // Some hosts show control tokens by name, as if they were text.
        if let Some(&token) = self.by_name.get(&candidate.bytes) {
            return Spelling::One(token);
        }
        let tokens = self.tuned().tokenize_bytes(&candidate.bytes, false, false);
        let spelt: Vec<u8> = tokens.iter().flat_map(|&t| self.piece(t)).collect();
        // Some tokenizers put a space before all that they split.
        let whole = spelt == candidate.bytes;
        if whole && !tokens.is_empty() { Spelling::Several(tokens) } else { self.by_byte(&candidate.bytes) }
    }

    /// Spells bytes one by one.
    fn by_byte(&self, bytes: &[u8]) -> Spelling {
        let each: Option<Vec<Token>> = bytes.iter().map(|&b| self.token(&[b])).collect();
        each.map_or(Spelling::None, Spelling::Several)
    }

    /// A text at its prompt, as both proxies read it.
    ///
    /// # Errors
    /// When a template refuses the conversation, or the prompt is empty.
    pub fn session(self: &Arc<Self>, prompt: &Prompt, tuned_system: Option<&str>) -> Result<Session> {
        let (untuned, tuned) = match prompt {
            Prompt::Text(text) => {
                (self.tuned().tokenize(text, true), self.prompts.text(text, tuned_system, true)?)
            }
            Prompt::Chat(messages) => {
                let untuned = &self.models[1].0;
                let text = match untuned.chat_template() {
                    Some(template) => render(&template, messages, &untuned.bos_eos_text())?,
                    None => messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n\n"),
                };
                let own = if self.prompts.has_template() {
                    self.prompts.chat(messages.clone(), tuned_system)?
                } else {
                    self.prompts.text(&text, tuned_system, true)?
                };
                (self.tuned().tokenize(&text, true), own)
            }
        };
        if untuned.is_empty() {
            return Err(Error::invalid("prompt", "no text", "at least one character"));
        }
        let history = History::new(untuned, tuned);
        Ok(Session { id: self.take_id(), history, advisers: self.clone() })
    }

    fn take_id(&self) -> SequenceId {
        self.next.fetch_add(1, Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both proxies over the last `rows` positions of a history; one pass each where their caches hold the rest.
    fn advise(&self, id: SequenceId, history: &History, rows: usize) -> Result<Vec<Advice>> {
        let mut pair = self.lock();
        pair.clear();
        let request = pair.push(id, history, [rows, rows]);
        pair.run()?;
        let at =
            |row| pair.row(request, row).map(|[tuned, untuned]| advice(tuned, untuned, &self.models[1].1));
        let advice = (0..rows).map(at).collect();
        pair.clear();
        advice
    }

    /// The most likely tokens to follow, by the tuned proxy alone: `count` of them, or up to an end.
    fn draft(&self, id: SequenceId, mut history: History, count: usize) -> Result<Vec<Token>> {
        let mut drafted = Vec::with_capacity(count);
        let mut pair = self.lock();
        while drafted.len() < count {
            pair.clear();
            let request = pair.push(id, &history, [1, 0]);
            pair.run()?;
            let token = crate::combine::argmax(pair.tuned_row(request, 0)?) as Token;
            if self.is_end(token) {
                break;
            }
            drafted.push(token);
            history.extend(&[token]);
        }
        pair.clear();
        Ok(drafted)
    }
}

fn advice(tuned: &[f32], untuned: &[f32], map: &TokenMap) -> Advice {
    let [sum_t, sum_u] = [tuned, untuned].map(|row| log_sum_exp_of_numbers(row) as f32);
    let tuned: Vec<f32> = tuned.iter().map(|t| t - sum_t).collect();
    let of = |&id: &Token| untuned.get(id as usize).map_or(f32::NEG_INFINITY, |u| u - sum_u);
    let untuned: Vec<f32> = map.ids().iter().map(of).collect();
    let difference = |(t, u): (&f32, &f32)| Some(t - u).filter(|d| d.is_finite()).unwrap_or(0.0);
    Advice { delta: tuned.iter().zip(&untuned).map(difference).collect(), tuned, untuned }
}

/// One text as the proxies have read it. Dropping it frees its slots.
pub struct Session {
    advisers: Arc<Advisers>,
    id: SequenceId,
    history: History,
}

impl Session {
    /// The proxies.
    pub fn advisers(&self) -> &Arc<Advisers> {
        &self.advisers
    }

    /// Tokens of the prompt that host and untuned proxy read, as the tuned proxy splits it.
    pub fn prompt_tokens(&self) -> usize {
        self.history.prompt().len()
    }

    /// Appends what was written, in the tuned proxy's tokens.
    pub fn extend(&mut self, tokens: &[Token]) {
        self.history.extend(tokens);
    }

    /// What the proxies say of the next token. Runs them on a thread that may block.
    ///
    /// # Errors
    /// When a proxy fails on this text, or its context is full.
    pub async fn advise(&self) -> Result<Advice> {
        self.after(&[]).await?.pop().ok_or_else(|| Error::engine("proxies", "gave no row"))
    }

    /// The same at each position from the present one to the end of `tokens`, in one pass of each proxy.
    ///
    /// # Errors
    /// As [`advise`](Self::advise).
    pub async fn after(&self, tokens: &[Token]) -> Result<Vec<Advice>> {
        let (advisers, id, rows) = (self.advisers.clone(), self.id, tokens.len() + 1);
        let mut history = self.history.clone();
        history.extend(tokens);
        blocking(move || advisers.advise(id, &history, rows)).await
    }

    /// What the proxies say of tokens that they spell in several of their own, as sums over their parts; `first` is the
    /// advice on the present position.
    ///
    /// # Errors
    /// As [`advise`](Self::advise).
    pub async fn spelt(&self, first: &Advice, spellings: &[Vec<Token>]) -> Result<Vec<f32>> {
        let mut sums = Vec::with_capacity(spellings.len());
        for tokens in spellings {
            let (last, before) = tokens.split_last().ok_or_else(|| Error::engine("proxies", "no token"))?;
            let mut sum = 0.0;
            if !before.is_empty() {
                let rows = self.after(before).await?;
                let later = before[1..].iter().chain([last]).zip(&rows[1..]);
                sum += later.map(|(&token, advice)| advice.delta[token as usize]).sum::<f32>();
            }
            sums.push(sum + first.delta[tokens[0] as usize]);
        }
        Ok(sums)
    }

    /// What the tuned proxy would write next: at most `count` tokens.
    ///
    /// # Errors
    /// As [`advise`](Self::advise).
    pub async fn draft(&self, count: usize) -> Result<Vec<Token>> {
        let (advisers, id, history) = (self.advisers.clone(), self.id, self.history.clone());
        blocking(move || advisers.draft(id, history, count)).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.advisers.lock().remove(self.id);
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let lost = |e: tokio::task::JoinError| Error::engine("proxies", e.to_string());
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}
