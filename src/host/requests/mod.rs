//! A logits processor for engines that hand over whole batches: each row with its request's number, its history and its
//! logits.
//!
//! A row is not a request. Rows may stand elsewhere at every step, come and go; a request may own several, such as the
//! positions of a draft, or several texts that go on from one prompt. All rows of a call share one round of the proxies.

mod offsets;
mod row;

pub use row::{Logits, Outcome, RequestId, Row, Stats, TunedPrompt};

use super::proxies::{HostShape, Proxies};
use crate::combine::{Rule, Shift};
use crate::config::{Config, Control, OnError, check_alpha};
use crate::error::{Error, Result};
use crate::pair::plan::common_prefix;
use crate::pair::{History, Runner, Sequence};
use crate::vocab::Token;
use std::collections::HashMap;

type Tokenize = Box<dyn Fn(&str) -> Vec<Token> + Send>;

/// See the [module](self). For one thread at a time.
pub struct Requests {
    runner: Runner,
    tokenize: Tokenize,
    alpha: f32,
    control: Control,
    on_error: OnError,
    requests: HashMap<RequestId, Request>,
    /// Rows of the call at hand, by request and length, and the chain of each; kept for its memory, as the next.
    order: Vec<(usize, usize)>,
    chains: Vec<Chain>,
    stats: Stats,
}

struct Request {
    alpha: f32,
    control: Control,
    /// Tokens before the generated ones: those of the prompt, else of the first history.
    start: Option<usize>,
    /// The tuned proxy's own prompt, and the host's that it stands for: where not given, the first history.
    tuned_prompt: Option<Vec<Token>>,
    prompt: Option<Vec<Token>>,
    sequences: Vec<Sequence>,
    failure: Option<Error>,
}

/// Rows of one request each of which goes on from the one before: one sequence reads them in one pass, as a draft.
struct Chain {
    request: RequestId,
    /// Rows with the shortest and with the longest history.
    first: usize,
    last: usize,
    sequence: Sequence,
}

impl Requests {
    /// Loads the proxies that a configuration names, for a host that runs elsewhere.
    ///
    /// # Errors
    /// As [`Proxies::load`] and [`Proxies::runner`].
    pub fn load(config: Config, host: &HostShape) -> Result<Self> {
        let proxies = Proxies::load(config)?;
        let runner = proxies.runner(host)?;
        let tuning = &proxies.config().proxy_tuning;
        let [tuned, _] = proxies.models().clone();
        let requests =
            Self::new(runner, tuning.alpha, tuning.on_error, move |text| tuned.tokenize(text, true));
        Ok(requests.with_control(tuning.control()))
    }

    /// A processor without requests. `alpha` is theirs where they say nothing else; `tokenize` spells text in the tuned
    /// proxy's tokens.
    pub fn new(
        runner: Runner,
        alpha: f32,
        on_error: OnError,
        tokenize: impl Fn(&str) -> Vec<Token> + Send + 'static,
    ) -> Self {
        let (requests, order, chains, stats) = Default::default();
        let tokenize = Box::new(tokenize);
        let control = Control::default();
        Self { runner, tokenize, alpha, control, on_error, requests, order, chains, stats }
    }

    /// With schedule and guards, for requests that are added from here on. Positions are counted from the end of the
    /// prompt that a request is added with, else of the first history that it has.
    pub fn with_control(self, control: Control) -> Self {
        Self { control, ..self }
    }

    /// Length of the host's rows.
    pub fn vocab(&self) -> usize {
        self.runner.host_vocab()
    }

    /// Tokens that a slot of the tuned and of the untuned proxy holds.
    pub fn context(&self) -> [usize; 2] {
        self.runner.context()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let runner = self.runner.stats();
        Stats {
            requests: self.requests.len() as u64,
            rounds: runner.rounds(),
            tuned_us: runner.tuned_us(),
            untuned_us: runner.untuned_us(),
            ..self.stats
        }
    }

    /// Adds a request. No model runs. `alpha`: `None` for the configured one.
    ///
    /// `prompt` is the host's, in its tokens. It is needed only where the tuned proxy reads another one, and not even
    /// then if the first history is the prompt.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number in use, or an `alpha` that is not finite.
    pub fn add(
        &mut self,
        id: RequestId,
        prompt: Option<Vec<Token>>,
        tuned_prompt: TunedPrompt,
        alpha: Option<f32>,
    ) -> Result<()> {
        if self.requests.contains_key(&id) {
            return Err(Error::invalid(
                "request",
                id,
                "a number that no other request has; remove that first",
            ));
        }
        let alpha = alpha.unwrap_or(self.alpha);
        check_alpha(alpha).and_then(|()| self.rule().check_alpha(alpha)).map_err(|error| match error {
            Error::Invalid { given, expected, .. } => Error::invalid("alpha", given, expected),
            other => other,
        })?;
        let tuned_prompt = match tuned_prompt {
            TunedPrompt::Host => None,
            TunedPrompt::Tokens(tokens) => Some(tokens),
            TunedPrompt::Text(text) => Some((self.tokenize)(&text)),
        };
        if tuned_prompt.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("prompt of the tuned proxy", "no tokens", "at least one"));
        }
        let (control, start) = (self.control, prompt.as_ref().map(Vec::len));
        let request =
            Request { alpha, control, start, tuned_prompt, prompt, sequences: Vec::new(), failure: None };
        self.requests.insert(id, request);
        Ok(())
    }

    /// Removes a request; its slots in the proxies' caches are free for others.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that no request has.
    pub fn remove(&mut self, id: RequestId) -> Result<()> {
        self.requests.remove(&id).map(drop).ok_or_else(|| unknown("request", id))
    }

    /// Says that the last `count` tokens of a request are taken back, of each of its texts, never any of its prompt.
    ///
    /// The next histories say so as well; this only forgets sooner what was asked for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that no request has, or more tokens than its longest text has.
    pub fn rollback(&mut self, id: RequestId, count: usize) -> Result<()> {
        let request = self.requests.get_mut(&id).ok_or_else(|| unknown("request", id))?;
        let most = request.sequences.iter().map(|s| s.history().generated().len()).max().unwrap_or(0);
        if count > most {
            return Err(Error::invalid("rollback", count, format!("at most the {most} tokens read so far")));
        }
        request.sequences.iter_mut().for_each(|s| s.rollback(count));
        Ok(())
    }

    /// Why the last row of a request that failed did so; `None` where none has.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that no request has.
    pub fn failure(&self, id: RequestId) -> Result<Option<&Error>> {
        self.requests.get(&id).map(|r| r.failure.as_ref()).ok_or_else(|| unknown("request", id))
    }

    /// Says that these rows will come. Where the proxies have a thread of their own, they start at once, and work while
    /// the host computes its logits; elsewhere nothing runs before [`apply`](Self::apply).
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn prefetch<R: Row>(&mut self, rows: &[R]) -> Result<()> {
        self.check(rows)?;
        self.announce(rows)?;
        self.put_back();
        if self.runner.has_thread() {
            self.runner.start();
        }
        Ok(())
    }

    /// How host and proxies are combined.
    pub fn rule(&self) -> &dyn Rule {
        self.runner.rule()
    }

    /// Combines each row with what the proxies say, in place, and reports what became of it: adds
    /// `alpha * (tuned - untuned)`, unless the configuration asks for another [rule](Self::rule).
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the row, where one has an unknown request, an empty history, one that does not go
    /// on from its prompt, or logits of another length than the vocabulary. No row is touched then. The failure of a
    /// proxy is none of these: it stays with its row, see [`Outcome`].
    pub fn apply<R: Row>(&mut self, rows: &mut [R]) -> Result<()> {
        self.check(rows)?;
        for (at, row) in rows.iter_mut().enumerate() {
            let (got, vocab) = (row.logits().len(), self.vocab());
            if got != vocab {
                let expected = format!("{vocab}, one for each token of the host's vocabulary");
                return Err(Error::invalid(format!("rows[{at}].logits"), format!("{got} values"), expected));
            }
        }
        self.announce(rows)?;
        let cap = self.control.cap;
        self.deliver(rows, |_, row, offset, alpha, rule| match offset {
            Some(offset) => rule.apply_within(row.logits(), offset, alpha, cap),
            None => Ok(Shift::default()),
        })
    }

    fn check<R: Row>(&self, rows: &[R]) -> Result<()> {
        for (at, row) in rows.iter().enumerate() {
            let name = |field| format!("rows[{at}].{field}");
            let (id, history) = (row.request(), row.history());
            let request = self.requests.get(&id).ok_or_else(|| unknown(name("request"), id))?;
            if history.is_empty() {
                return Err(Error::invalid(name("history"), "no tokens", "at least one"));
            }
            if let (Some(_), Some(prompt)) = (&request.tuned_prompt, &request.prompt)
                && !history.starts_with(prompt)
            {
                let given =
                    format!("{} tokens that begin otherwise than the request's prompt", history.len());
                let expected = format!("that prompt, {} tokens, and what was generated", prompt.len());
                return Err(Error::invalid(name("history"), given, expected));
            }
        }
        Ok(())
    }

    /// Arranges rows in chains, takes a sequence for each and tells the runner what will be wanted of it.
    fn announce<R: Row>(&mut self, rows: &[R]) -> Result<()> {
        let Self { runner, requests, order, chains, .. } = self;
        chains.clear();
        order.clear();
        let is_shifted = |row: &R| requests[&row.request()].alpha != 0.0;
        order.extend((0..rows.len()).filter(|&row| is_shifted(&rows[row])).map(|row| (row, 0)));
        order.sort_unstable_by_key(|&(row, _)| (rows[row].request(), rows[row].history().len(), row));
        for (row, chain) in order.iter_mut() {
            let (id, history) = (rows[*row].request(), rows[*row].history());
            let same_request = chains.iter().rev().take_while(|c| c.request == id);
            let behind = same_request.enumerate().find(|(_, c)| history.starts_with(rows[c.last].history()));
            *chain = match behind {
                Some((back, _)) => chains.len() - 1 - back,
                None => {
                    let request = requests.get_mut(&id).ok_or_else(|| unknown("request", id))?;
                    let sequence = request.take(runner, history)?;
                    chains.push(Chain { request: id, first: *row, last: *row, sequence });
                    chains.len() - 1
                }
            };
            chains[*chain].last = *row;
        }
        for chain in chains {
            let (read, ahead) = (rows[chain.first].history(), rows[chain.last].history());
            chain.sequence.draft(&ahead[read.len()..]);
            // A runner that is gone shows when the offset is waited for.
            let _ = chain.sequence.announce();
        }
        Ok(())
    }

    /// Waits for the offsets of what was announced, hands each row its own, `None` where the proxies failed or need not
    /// run, and reports.
    fn deliver<R: Row>(
        &mut self,
        rows: &mut [R],
        mut write: impl FnMut(usize, &mut R, Option<&[f32]>, f32, &dyn Rule) -> Result<Shift>,
    ) -> Result<()> {
        let rule = self.runner.rule();
        for (at, row) in rows.iter_mut().enumerate().filter(|(_, r)| self.requests[&r.request()].alpha == 0.0)
        {
            write(at, row, None, 0.0, rule)?;
            row.report(Outcome::Shifted);
        }
        for &(at, chain) in &self.order {
            let (chain, row) = (&mut self.chains[chain], &mut rows[at]);
            let Some(request) = self.requests.get_mut(&chain.request) else { continue };
            let outcome = match chain.offset(row.history()) {
                Ok((offset, weight)) => {
                    self.stats.ignored += write(at, row, Some(offset), weight, rule)?.ignored as u64;
                    self.stats.shifted += 1;
                    Outcome::Shifted
                }
                Err(error) => {
                    write(at, row, None, 0.0, rule)?;
                    self.stats.failed += 1;
                    request.fail(chain.request, error);
                    if self.on_error == OnError::Stop { Outcome::Stop } else { Outcome::Unshifted }
                }
            };
            row.report(outcome);
        }
        self.put_back();
        Ok(())
    }

    fn put_back(&mut self) {
        for chain in self.chains.drain(..) {
            if let Some(request) = self.requests.get_mut(&chain.request) {
                request.sequences.push(chain.sequence);
            }
        }
    }
}

impl Request {
    /// The sequence that has most of this history already, or a new one.
    fn take(&mut self, runner: &Runner, history: &[Token]) -> Result<Sequence> {
        let shared = |s: &Sequence| common_prefix(s.history().tokens(), history);
        let best = (0..self.sequences.len()).max_by_key(|&i| shared(&self.sequences[i]));
        let mut sequence = match best {
            Some(best) => self.sequences.swap_remove(best),
            None => runner.sequence(self.beginning(history), self.alpha),
        };
        sequence.set_control(self.control, *self.start.get_or_insert(history.len()));
        sequence.sync(history)?;
        Ok(sequence)
    }

    fn beginning(&mut self, history: &[Token]) -> History {
        match &self.tuned_prompt {
            // The tuned proxy reads what the host does, wherever the prompt ends.
            None => History::default(),
            Some(own) => {
                let prompt = self.prompt.get_or_insert_with(|| history.to_vec());
                History::new(prompt.clone(), Some(own.clone()))
            }
        }
    }

    fn fail(&mut self, id: RequestId, error: Error) {
        if self.failure.is_none() {
            tracing::warn!(request = id, %error, "not proxy-tuned (said once for a request)");
        }
        self.failure = Some(error);
    }
}

impl Chain {
    /// The offset for a row, and its weight.
    fn offset(&mut self, history: &[Token]) -> Result<(&[f32], f32)> {
        self.sequence.sync(history)?;
        let weight = self.sequence.weight();
        Ok((self.sequence.offset()?, weight))
    }
}

fn unknown(name: impl Into<String>, id: RequestId) -> Error {
    Error::invalid(name, id, "a request that was added and not removed")
}
