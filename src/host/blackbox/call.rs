//! One call to the host, either way.

use super::draft::CallLength;
use super::generate::Run;
use super::outcome::hidden;
use super::{Ask, Biases, Choosing, Draft, Finish, Seen, Writing};
use crate::backend::llama::SamplerOptions;
use crate::error::{Error, Result};

/// Tokens to ask for where a call for one ended without any: a host may hold back part of a character until it has the rest.
const WHOLE: usize = 4;

impl Run<'_> {
    /// One call whose visible tokens are weighed anew, for as long as the choice is the token that stands there.
    pub(super) async fn reweighed(&mut self, length: &CallLength) -> Result<()> {
        let left = self.job.max_tokens - self.tokens.len();
        let count = match self.stats.draft {
            Draft::Off if self.faults > 0 => WHOLE.min(left),
            Draft::Off => 1,
            _ => length.next().min(left),
        };
        let by = if self.stats.draft == Draft::Either { self.drafters.next() } else { self.stats.draft };
        let before = self.tokens.len();
        let outcome = self.look(count, by).await;
        self.drafters.record(by, self.tokens.len() - before);
        outcome
    }

    /// The same, once it is known how long it may be and who drafts.
    async fn look(&mut self, count: usize, by: Draft) -> Result<()> {
        let mut call = self.open(count, by).await?;
        self.stats.calls += 1;
        self.stats.reads += usize::from(by == Draft::Tuned);
        let mut positions = 0;
        loop {
            let last = positions + 1 >= count;
            self.advise().await?;
            let Some(seen) = call.next().await? else { return self.call_ended(&*call, positions) };
            positions += 1;
            self.stats.drafted += usize::from(positions > 1);
            if seen.is_merged {
                self.push_merged(seen);
                if self.ended.is_some() || last {
                    return Ok(());
                }
                continue;
            }
            if seen.top.is_empty() {
                let what = "it showed no log-probabilities, so its answer cannot be shifted";
                return Err(hidden(what, "use --way bias, or a server that gives logprobs"));
            }
            let weighed = self.weigh(seen).await?;
            let choice = self.choose(&weighed, last)?;
            self.count(&weighed);
            let is_shifted = weighed.host_top != weighed.top;
            let spelling = weighed.spellings.get(choice).cloned();
            let goes_on = choice == weighed.chosen;
            self.push(&weighed.candidates[choice], spelling, is_shifted);
            if self.ended.is_some() || !goes_on || (positions >= count && by != Draft::Tuned) {
                return Ok(());
            }
        }
    }

    /// Asks the host for `count` positions.
    async fn open(&mut self, count: usize, by: Draft) -> Result<Box<dyn Writing>> {
        let draft = match (&self.session, by) {
            (Some(session), Draft::Tuned) if count > 1 => {
                let tokens = session.draft(count - 1).await.unwrap_or_default();
                self.whole(tokens.iter().flat_map(|&t| session.advisers().piece(t)).collect())
            }
            _ => Vec::new(),
        };
        let Self { host, job, written, .. } = self;
        let ask =
            Ask { prompt: &job.prompt, written, tokens: count, bias: &[], choosing: Choosing::default() };
        if draft.is_empty() { host.write(ask).await } else { host.read(ask, &draft).await }
    }

    /// Takes what the host shows as one: nobody knows what else there was within, so it stays as the host wrote it.
    fn push_merged(&mut self, seen: Seen) {
        let spelling = self.session.as_ref().map(|s| s.advisers().spell(&seen.chosen, false));
        self.stats.unshifted += usize::from(self.session.is_some());
        self.push(&seen.chosen, spelling, false);
    }

    /// A draft up to its last whole character: it is sent as text.
    fn whole(&self, mut draft: Vec<u8>) -> Vec<u8> {
        let before = self.written.bytes.len();
        let all = [&self.written.bytes[..], &draft].concat();
        let end = std::str::from_utf8(&all).map_or_else(|e| e.valid_up_to(), str::len);
        draft.truncate(end.saturating_sub(before));
        draft
    }

    /// A call came to its end before the choice left it.
    fn call_ended(&mut self, call: &dyn Writing, positions: usize) -> Result<()> {
        if call.is_over() {
            // It did not show what else there was; its word has to do.
            self.stats.unseen_ends += 1;
            self.ended = Some(Finish::Stop);
        } else if positions == 0 {
            return Err(Error::Upstream {
                url: "the host".into(),
                status: None,
                what: "it ended its answer without a token".into(),
                help: "see its log".into(),
                transient: true,
            });
        }
        Ok(())
    }

    /// One call in which the host samples from its biased logits.
    pub(super) async fn biased(&mut self) -> Result<()> {
        self.advise().await?;
        let (count, size) = self.host.offers().bias.unwrap_or((0, 0.0));
        let weight = self.weight();
        let biases =
            self.advice.as_ref().map(|a| Biases::new(a, weight, self.ids, count, size)).unwrap_or_default();
        let SamplerOptions { temperature, top_p, seed, .. } = self.job.sampler;
        // Another number for each token, or all would fall alike.
        let seed = seed.map(|seed| seed.wrapping_add(self.tokens.len() as u64));
        let choosing = Choosing { temperature, top_p, seed };
        let tokens = if self.faults > 0 { WHOLE } else { 1 };
        let ask =
            Ask { prompt: &self.job.prompt, written: &self.written, tokens, bias: &biases.list, choosing };
        let mut call = self.host.write(ask).await?;
        self.stats.calls += 1;
        let Some(Seen { chosen, top, .. }) = call.next().await? else { return self.call_ended(&*call, 0) };
        if chosen.is_lost() {
            return Err(hidden("it sent part of a character without its bytes", "use --way reweigh"));
        }
        self.stats.fewest_visible = self.stats.fewest_visible.min(top.len());
        self.stats.left_out += biases.left_out;
        self.stats.cut += biases.cut;
        self.stats.unshifted +=
            usize::from(self.session.is_some() && weight != 0.0 && biases.list.is_empty());
        let same_ids = self.host.offers().same_ids;
        let spelling = self.session.as_ref().map(|s| s.advisers().spell(&chosen, same_ids));
        self.push(&chosen, spelling, false);
        Ok(())
    }
}
