//! The loop: what the host shows, the shift, a choice, until the text ends.

use super::draft::{CallLength, Drafters};
use super::way::choose_way;
use super::{
    Advice, Advisers, BlackBox, Candidate, Draft, Event, Finish, Ids, Outcome, Prompt, Seen, Session,
    Spelling, Stats, Way, Weighed, Weight, Written, weigh,
};
use crate::backend::llama::{Sampler, SamplerOptions};
use crate::config::{Control, OnError, Speculate, check_alpha};
use crate::decode::TextStream;
use crate::decode::accept::Dice;
use crate::error::{Error, Result};
use crate::vocab::Token;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// A text to write.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it goes on from.
    pub prompt: Prompt,
    /// A system prompt for the tuned proxy alone.
    pub tuned_system: Option<String>,
    /// Weight of the shift.
    pub alpha: f32,
    /// Schedule and guards. A cap takes the host's visible tokens: by bias there are none.
    pub control: Control,
    /// How tokens are chosen. By bias the host chooses, by temperature, top-p and seed.
    pub sampler: SamplerOptions,
    /// Most tokens.
    pub max_tokens: usize,
    /// Strings that end the text and are not part of it.
    pub stops: Vec<String>,
    /// How it is shifted.
    pub way: Way,
    /// Whether one call looks at several tokens.
    pub speculate: Speculate,
    /// What happens where a proxy fails.
    pub on_error: OnError,
}

/// Positions after which a vocabulary that hardly fits ends the text, and the share that must fit.
const PROBATION: usize = 8;
const LEAST_COVERAGE: f64 = 0.5;

/// Calls in a row that may end without a token.
const MOST_FAULTS: u32 = 4;

/// Tokens that a sampler may see at one position.
const MOST_VISIBLE: usize = 1 << 20;

/// Writes a text. Without `advisers` it is the host's own, through the same calls.
///
/// # Errors
/// [`Error::Upstream`] when the host fails for good, [`Error::Vocabulary`] when the proxies can spell little of what it
/// shows, [`Error::Invalid`] for what it does not offer, [`Error::Budget`] when not even one token can be paid; what makes a
/// proxy fail, where the job says so. A text of which no position could be shifted is an error as well.
pub async fn generate(
    host: &dyn BlackBox,
    advisers: Option<&Arc<Advisers>>,
    ids: &Ids,
    job: Job,
    listen: &mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
) -> Result<Outcome> {
    check_alpha(job.alpha)?;
    job.control.check()?;
    let way = choose_way(host, advisers, ids, &job)?;
    let session = advisers.map(|a| a.session(&job.prompt, job.tuned_system.as_deref())).transpose()?;
    let prompt_tokens = session.as_ref().map_or(0, Session::prompt_tokens);
    // At 0 no proxy runs.
    let session = session.filter(|_| job.alpha != 0.0);
    let offers = host.offers();
    let draft = match (way, job.speculate) {
        (Way::Bias, _) | (_, Speculate::Off) => Draft::Off,
        _ if !offers.continues || job.max_tokens == 1 => Draft::Off,
        (_, Speculate::Auto) if offers.reads && session.is_some() => Draft::Either,
        _ if offers.reads && session.is_some() => Draft::Tuned,
        _ => Draft::Host,
    };
    let mut run = Run {
        host,
        ids,
        advisers,
        session,
        advice: None,
        text: TextStream::new(&job.stops),
        written: Written { bytes: Vec::new(), ids: offers.by_ids.then(Vec::new) },
        tokens: Vec::new(),
        sampler: Sampler::new(&job.sampler, MOST_VISIBLE)?,
        scores: Vec::new(),
        dice: Dice::new(job.sampler.seed),
        stats: Stats { way, draft, prompt_tokens, fewest_visible: usize::MAX, ..Stats::default() },
        drafters: Drafters::default(),
        failure: None,
        faults: 0,
        ended: (job.max_tokens == 0).then_some(Finish::Length),
        job,
        listen,
    };
    let finish = run.write().await?;
    run.finish(finish)
}

pub(super) struct Run<'a> {
    pub host: &'a dyn BlackBox,
    pub ids: &'a Ids,
    pub advisers: Option<&'a Arc<Advisers>>,
    pub session: Option<Session>,
    /// For the position at hand, once known.
    pub advice: Option<Advice>,
    pub job: Job,
    pub text: TextStream,
    pub written: Written,
    pub tokens: Vec<Vec<u8>>,
    pub sampler: Sampler,
    pub scores: Vec<f32>,
    pub dice: Dice,
    pub stats: Stats,
    pub drafters: Drafters,
    /// What made a proxy fail first.
    pub failure: Option<Error>,
    pub faults: u32,
    pub ended: Option<Finish>,
    pub listen: &'a mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
}

impl Run<'_> {
    async fn write(&mut self) -> Result<Finish> {
        let mut length = CallLength::new(self.job.speculate);
        loop {
            if let Some(finish) = self.ended {
                return Ok(finish);
            }
            let before = self.tokens.len();
            let outcome = match self.stats.way {
                Way::Bias => self.biased().await,
                _ => self.reweighed(&length).await,
            };
            let kept = self.tokens.len() - before;
            length.record(kept);
            match outcome {
                Ok(()) => {}
                Err(Error::Budget { .. }) if !self.tokens.is_empty() => return Ok(Finish::Budget),
                Err(error @ Error::Upstream { transient: true, .. }) => self.lost(error, kept).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// A call that broke off: the text goes on from what has come of it.
    async fn lost(&mut self, error: Error, kept: usize) -> Result<()> {
        self.faults = if kept > 0 { 0 } else { self.faults + 1 };
        if self.faults > MOST_FAULTS {
            return Err(error);
        }
        tracing::warn!(%error, "asking again, from the text so far");
        self.stats.resumed += 1;
        tokio::time::sleep(Duration::from_millis(100 << self.faults)).await;
        Ok(())
    }

    /// Sees to it that the proxies have said what they have to say here.
    pub async fn advise(&mut self) -> Result<()> {
        let wanted = self.advice.is_none() && self.weight() != 0.0;
        let Some(session) = self.session.as_ref().filter(|_| wanted) else { return Ok(()) };
        match session.advise().await {
            Ok(advice) => self.advice = Some(advice),
            Err(error) => self.proxy_failed(error)?,
        }
        Ok(())
    }

    /// The weight of the shift at the position at hand.
    pub fn weight(&self) -> f32 {
        self.job.control.weight(self.job.alpha, &self.tokens)
    }

    fn proxy_failed(&mut self, error: Error) -> Result<()> {
        if self.job.on_error == OnError::Stop {
            return Err(error);
        }
        if self.failure.is_none() {
            tracing::warn!(%error, "a proxy failed: the text goes on unshifted");
            self.failure = Some(error);
        }
        Ok(())
    }

    pub async fn weigh(&mut self, seen: Seen) -> Result<Weighed> {
        let weight = Weight { alpha: self.weight(), cap: self.job.control.cap };
        let same_ids = self.host.offers().same_ids;
        let advice = self.session.as_ref().zip(self.advice.as_ref());
        match weigh(seen.clone(), advice, weight, same_ids).await {
            Ok(weighed) => Ok(weighed),
            Err(error) => {
                self.proxy_failed(error)?;
                self.advice = None;
                weigh(seen, None, weight, same_ids).await
            }
        }
    }

    /// Draws from the shifted distribution. `last`: the call shows nothing after this position, so that what is chosen has to
    /// be sent back.
    pub fn choose(&mut self, weighed: &Weighed, last: bool) -> Result<usize> {
        let scores = &mut self.scores;
        scores.clear();
        scores.extend_from_slice(&weighed.scores);
        if self.written.ids.is_none() {
            // Text is sent in whole characters.
            let open = open_bytes(&self.written.bytes);
            for (i, candidate) in weighed.candidates.iter().enumerate() {
                let kept = i == weighed.chosen && !last;
                if !kept && !open_bytes(&[open, &candidate.bytes].concat()).is_empty() {
                    scores[i] = f32::NEG_INFINITY;
                }
            }
        }
        if scores.iter().all(|s| !s.is_finite()) {
            let given = "only tokens that end in the middle of a character";
            return Err(Error::invalid("--speculate", given, "a number of tokens: this API is sent text"));
        }
        if self.sampler.is_greedy() {
            let top = weighed.top;
            let best = || crate::combine::argmax(scores);
            return Ok(if scores[top].is_finite() { top } else { best() });
        }
        let mut probabilities = Vec::new();
        self.sampler.probabilities(scores, &mut probabilities);
        let drawn = self.dice.draw(probabilities.iter().copied());
        Ok(drawn.map_or(weighed.top, |token| token as usize))
    }

    pub fn count(&mut self, weighed: &Weighed) {
        let wanted = self.weight() != 0.0;
        let stats = &mut self.stats;
        stats.shifted += usize::from(weighed.host_top != weighed.top);
        stats.certain += usize::from(weighed.certain);
        stats.fewest_visible = stats.fewest_visible.min(weighed.candidates.len());
        stats.visible += weighed.visible;
        stats.mapped += weighed.mapped;
        let none = weighed.spellings.iter().all(|s| *s == Spelling::None);
        let wanted = self.session.is_some() && wanted;
        stats.unshifted += usize::from(wanted && (self.advice.is_none() || none));
    }

    /// Appends a token, and tells the listener.
    pub fn push(&mut self, token: &Candidate, spelling: Option<Spelling>, is_shifted: bool) {
        self.advice = None;
        self.faults = 0;
        // Where no proxy runs they still know an end by its name.
        let named = self.advisers.filter(|_| self.session.is_none());
        let named = named.map(|a| (a, a.spell(token, self.host.offers().same_ids)));
        let mut is_end = token.control || token.bytes.is_empty();
        is_end |= matches!(named, Some((advisers, Spelling::One(token))) if advisers.is_end(token));
        if let (Some(session), Some(spelling)) = (&mut self.session, spelling) {
            match spelling {
                Spelling::One(token) => {
                    is_end = is_end || session.advisers().is_end(token);
                    session.extend(&[token]);
                }
                Spelling::Several(tokens) => {
                    self.stats.spelt += 1;
                    session.extend(&tokens);
                }
                Spelling::None if !is_end => self.stats.unreadable += 1,
                Spelling::None => {}
            }
        }
        self.stats.tokens += 1;
        self.tokens.push(token.bytes.clone());
        if is_end {
            self.ended = Some(Finish::Stop);
        } else {
            self.written.bytes.extend_from_slice(&token.bytes);
            self.written.ids = self.written.ids.take().zip(token.id).map(|(mut ids, id): (Vec<Token>, _)| {
                ids.push(id);
                ids
            });
            if self.text.push(&token.bytes) {
                self.ended = Some(Finish::Stop);
            } else if self.tokens.len() >= self.job.max_tokens {
                self.ended = Some(Finish::Length);
            }
        }
        let text = if self.ended.is_some() { self.text.finish() } else { self.text.take() };
        let event = Event { text: &text, is_shifted, spent: self.host.spent() };
        if (self.listen)(event).is_break() && self.ended.is_none() {
            self.ended = Some(Finish::Interrupted);
        }
        if self.stats.tokens == PROBATION && self.is_foreign() {
            self.ended = Some(Finish::Stop);
        }
    }

    /// Whether the proxies can spell too little of what the host shows for a shift worth the name.
    fn is_foreign(&self) -> bool {
        self.session.is_some() && self.stats.coverage() < LEAST_COVERAGE
    }

    fn finish(mut self, finish: Finish) -> Result<Outcome> {
        if self.is_foreign() {
            let share = 100.0 * self.stats.coverage();
            return Err(Error::Vocabulary {
                what: format!(
                    "the proxies can spell tokens with {share:.0} % of the probability that the host shows, over {} positions",
                    self.stats.tokens
                ),
                help: "use proxies whose vocabulary covers the host's text".into(),
            });
        }
        if self.stats.tokens > 0 && self.stats.unshifted == self.stats.tokens {
            let none = || Error::engine("proxies", "could spell none of the tokens that the host showed");
            return Err(self.failure.take().unwrap_or_else(none));
        }
        if self.stats.fewest_visible == usize::MAX {
            self.stats.fewest_visible = 0;
        }
        let (text, tokens, spent) = (self.text.text(), self.tokens, self.host.spent());
        Ok(Outcome { text, tokens, finish, stats: self.stats, spent })
    }
}

/// The begun character at an end.
fn open_bytes(bytes: &[u8]) -> &[u8] {
    let from = bytes.len().saturating_sub(4);
    // A cut character at the front of these few bytes is no matter: only the end is asked for.
    let start = (from..bytes.len()).find(|&i| bytes[i] & 0xc0 != 0x80).unwrap_or(from);
    match std::str::from_utf8(&bytes[start..]) {
        Ok(_) => &[],
        Err(e) => &bytes[start + e.valid_up_to()..],
    }
}
