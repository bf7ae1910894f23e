//! How many tokens to draft before the host looks at them.
//!
//! A draft of `k` tokens for each of `n` sequences costs `k` passes of the tuned proxy and makes the pass that checks
//! it longer: `n * (k + 1)` positions of host and untuned proxy instead of `n`. It brings as many tokens as are accepted
//! in a row. Both are measured as decoding goes on, and a draft grows as long as a further token brings more tokens a
//! second than decoding makes at its best. That is a forecast; where whole steps with drafts turn out slower than those
//! without, there are none.

use super::cost::CostTable;
use crate::config::Speculate;
use std::collections::BTreeMap;
use std::time::Duration;

/// No draft is longer.
pub const LONGEST: usize = 16;

/// Steps without a draft after which some have one all the same, to see whether drafts would pay by now: few at first, as what is known
/// then may be bad luck, and twice as many each time.
const PROBE_DRAFT: [u32; 2] = [16, 512];

/// So many drafts: fewer say nothing where they are often refused.
const PROBES: usize = 8;

/// Steps with drafts after which one goes without, to see what that costs by now.
const PROBE_PLAIN: u32 = 24;

/// Steps without a draft at first: what a plain step costs must be known well.
const WARM_UP: usize = 5;

/// What a pass of the tuned proxy is taken to cost before it was seen, as a share of a step: low enough to be tried.
const UNSEEN_DRAFT: f64 = 0.1;

/// By how much decoding with drafts must promise to be faster: what looks like less is noise.
const MARGIN_ALONE: f64 = 1.03;

/// The same for several sequences: those whose drafts are often refused wait for the longer step all the same.
const MARGIN_TOGETHER: f64 = 1.2;

/// Judgements after which an older one counts half.
const HALF_LIFE: f64 = 200.0;

/// Steps with drafts that must have been seen before it is told from them whether drafts pay.
const ENOUGH: f64 = 8.0;

/// Steps after which an older one counts half in that.
const STEPS_HALF_LIFE: f64 = 32.0;

/// Confidences are told apart in so many classes.
const CLASSES: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct DraftLength {
    mode: Speculate,
    /// By positions checked.
    check: CostTable,
    /// By sequences drafted for.
    draft: CostTable,
    all: Share,
    by_confidence: [Share; CLASSES],
    /// Steps in a row, without and with a draft.
    streak: [u32; 2],
    /// Steps without a draft until some have one all the same.
    patience: u32,
    /// Steps that are still to have one.
    to_probe: u32,
    /// Whether the step at hand checked more positions than any that are known.
    ventures: bool,
    /// By sequences: what steps came to, without and with a draft.
    yields: BTreeMap<usize, [Yield; 2]>,
}

/// What steps came to, all in all.
#[derive(Debug, Clone, Copy, Default)]
struct Yield {
    steps: f64,
    tokens: f64,
    seconds: f64,
}

impl Yield {
    fn rate(self) -> f64 {
        self.tokens / self.seconds
    }

    fn record(&mut self, tokens: usize, time: Duration) {
        // A step that the machine interrupted says nothing.
        let usual = 3.0 * self.seconds / self.steps;
        let seconds = if self.steps >= 1.0 { time.as_secs_f64().min(usual) } else { time.as_secs_f64() };
        let keep = 0.5f64.powf(1.0 / STEPS_HALF_LIFE);
        self.steps = self.steps * keep + 1.0;
        self.tokens = self.tokens * keep + tokens as f64;
        self.seconds = self.seconds * keep + seconds;
    }
}

/// How often something happened of late.
#[derive(Debug, Clone, Copy)]
struct Share {
    happened: f64,
    seen: f64,
}

impl Share {
    fn value(self) -> f64 {
        self.happened / self.seen
    }

    fn record(&mut self, happened: bool) {
        let keep = 0.5f64.powf(1.0 / HALF_LIFE);
        self.happened = self.happened * keep + f64::from(u8::from(happened));
        self.seen = self.seen * keep + 1.0;
    }
}

impl DraftLength {
    pub(super) fn new(mode: Speculate) -> Self {
        // What small drafters reach, until something was seen: it counts as much as the number of tokens says.
        let guess = |share: f64, tokens: f64| Share { happened: share * tokens, seen: tokens };
        // A drafter is right about as often as it thinks, until it is seen to err.
        let by_confidence = std::array::from_fn(|class| guess((class as f64 + 0.5) / CLASSES as f64, 2.0));
        Self {
            mode,
            check: CostTable::default(),
            draft: CostTable::default(),
            all: guess(0.7, 4.0),
            by_confidence,
            streak: [0; 2],
            patience: PROBE_DRAFT[0],
            to_probe: 0,
            ventures: false,
            yields: BTreeMap::new(),
        }
    }

    /// Takes note of a pass of the tuned proxy that drafted a token for each of so many sequences.
    pub(super) fn drafted(&mut self, sequences: usize, time: Duration) {
        self.draft.record(sequences, time);
    }

    /// Takes note of a step's passes over all models, drafts checked, and of how many positions there were.
    pub(super) fn checked(&mut self, sequences: usize, positions: usize, time: Duration) {
        self.ventures = positions > self.check.largest();
        self.check.record(positions, time);
        let drafted = positions > sequences;
        if drafted && self.streak[0] >= self.patience {
            self.patience = (2 * self.patience).min(PROBE_DRAFT[1]);
            self.to_probe = (PROBES / sequences).max(1) as u32;
        }
        self.to_probe = self.to_probe.saturating_sub(u32::from(drafted));
        self.streak[usize::from(drafted)] += 1;
        self.streak[usize::from(!drafted)] = 0;
    }

    /// Takes note of a whole step: how many tokens it brought the sequences together, and how long it took.
    pub(super) fn stepped(&mut self, sequences: usize, drafted: bool, tokens: usize, time: Duration) {
        // Where two positions cost two passes and four not much more, the way to long drafts leads over short ones that lose.
        if drafted && self.ventures {
            return;
        }
        self.yields.entry(sequences).or_default()[usize::from(drafted)].record(tokens, time);
    }

    /// Whether drafts have been seen to bring fewer tokens a second than none, whatever they promise.
    fn loses(&self, sequences: usize) -> bool {
        let Some([plain, drafted]) = self.yields.get(&sequences) else { return false };
        drafted.steps >= ENOUGH && drafted.rate() < plain.rate()
    }

    /// Takes note of a drafted token's fate; `confidence` is how likely the drafter thought it.
    pub(super) fn judged(&mut self, confidence: f32, accepted: bool) {
        self.all.record(accepted);
        self.by_confidence[class(confidence)].record(accepted);
    }

    /// How likely a drafted token will be accepted.
    pub(super) fn chance(&self, confidence: f32) -> f64 {
        self.by_confidence[class(confidence)].value()
    }

    /// Whether to draft a further token for each of `sequences`, after `length` ones. `reach` adds up, over the
    /// sequences, how likely all tokens drafted so far will be accepted.
    pub(super) fn goes_on(&self, sequences: usize, length: usize, reach: f64) -> bool {
        match self.mode {
            Speculate::Off => false,
            Speculate::Tokens(tokens) => length < usize::from(tokens),
            Speculate::Auto => {
                let probe = if length == 0 { self.probe(sequences) } else { None };
                let wins = length > 0 || !self.loses(sequences);
                let gains = || wins && self.gains(sequences, length, reach).unwrap_or(false);
                length < LONGEST && probe.unwrap_or_else(gains)
            }
        }
    }

    /// Once in a while some steps go the other way, whatever their prospects.
    fn probe(&self, sequences: usize) -> Option<bool> {
        let [plain, drafted] = self.streak;
        if self.check.seen(sequences) < WARM_UP || drafted >= PROBE_PLAIN {
            return Some(false);
        }
        (plain >= self.patience || self.to_probe > 0).then_some(true)
    }

    /// Whether some number of further tokens brings more than the best that decoding can do in the time they take.
    fn gains(&self, sequences: usize, length: usize, reach: f64) -> Option<bool> {
        let seconds_to = |k: usize| self.check.estimate(sequences * (k + 1));
        let draft = self
            .draft
            .estimate(sequences)
            .or_else(|| Some(UNSEEN_DRAFT * self.check.estimate(sequences)?))?;
        let accepted = self.all.value();
        // Sizes are tried one by one, so that a guess about costs cannot lead far astray.
        let most = (self.check.largest() / sequences).clamp(1, LONGEST);
        let rate =
            |k: usize| Some(sequences as f64 * run(accepted, k + 1) / (seconds_to(k)? + k as f64 * draft));
        let best = (0..=most).filter_map(rate).fold(0.0, f64::max);
        let margin = if sequences == 1 { MARGIN_ALONE } else { MARGIN_TOGETHER };
        if length == 0 && best < margin * rate(0)? {
            return Some(false);
        }
        let now = seconds_to(length)?;
        let gain = |k: usize| {
            let tokens = reach * accepted * run(accepted, k - length);
            let seconds = seconds_to(k)? - now + (k - length) as f64 * draft;
            Some(tokens > best * seconds)
        };
        Some((length + 1..=most).any(|k| gain(k).unwrap_or(false)))
    }
}

/// `1 + a + a^2 + …`, `terms` of them: how many tokens come out when each is accepted with probability `a`.
fn run(a: f64, terms: usize) -> f64 {
    (0..terms).fold(0.0, |sum, _| sum * a + 1.0)
}

fn class(confidence: f32) -> usize {
    ((confidence * CLASSES as f32) as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::super::accept::Dice;
    use super::*;

    /// Where checking `n` positions takes `check(n)` ms, a draft pass `draft` ms, a step with drafts `unforeseen` ms more than its passes,
    /// and a drafted token is accepted with the probability `accept`.
    struct World<F> {
        check: F,
        draft: f64,
        accept: f64,
        sequences: usize,
        unforeseen: f64,
        seed: u64,
    }

    impl<F: Fn(usize) -> f64> World<F> {
        fn new(check: F, draft: f64, accept: f64, sequences: usize) -> Self {
            Self { check, draft, accept, sequences, unforeseen: 0.0, seed: 1 }
        }

        /// Decodes 1,000 steps; returns the mean length of the last drafts.
        fn settle(&self) -> f64 {
            let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
            let sequences = self.sequences;
            let (mut lengths, mut dice) = (DraftLength::new(Speculate::Auto), Dice::new(Some(self.seed)));
            let mut total = 0;
            for step in 0..1000 {
                let (mut length, mut reach) = (0, sequences as f64);
                while lengths.goes_on(sequences, length, reach) {
                    length += 1;
                    reach *= lengths.chance(0.6);
                    lengths.drafted(sequences, ms(self.draft));
                }
                let positions = sequences * (length + 1);
                lengths.checked(sequences, positions, ms((self.check)(positions)));
                let mut tokens = 0;
                for _ in 0..sequences {
                    let accepted = (0..length).take_while(|_| dice.roll() < self.accept).count();
                    let judged = length.min(accepted + 1);
                    (0..judged).for_each(|at| lengths.judged(0.6, at < accepted));
                    tokens += accepted + 1;
                }
                let more = if length > 0 { self.unforeseen } else { 0.0 };
                let whole = (self.check)(positions) + self.draft * length as f64 + more;
                lengths.stepped(sequences, length > 0, tokens, ms(whole));
                total += if step >= 500 { length } else { 0 };
            }
            total as f64 / 500.0
        }
    }

    #[test]
    fn drafts_stop_where_they_lose_and_are_long_where_they_cost_nothing() {
        assert!(World::new(|n| n as f64, 0.2, 0.0, 1).settle() < 0.05);
        assert!(World::new(|n| 10.0 + 0.01 * n as f64, 0.1, 1.0, 1).settle() > 12.0);
        // A pass as dear as its positions, as with a full batch on a small machine: nothing to be gained.
        let length = World::new(|n| n as f64, 0.2, 1.0, 16).settle();
        assert!(length < 0.05, "{length}");
    }

    #[test]
    fn a_draft_ends_where_the_next_position_costs_a_step() {
        // As a CPU's kernels: four positions hardly dearer than one, from the fifth on each at its full price.
        let tiles = |n: usize| if n <= 4 { 20.0 + n as f64 } else { 20.0 + 10.0 * n as f64 };
        let length = World::new(tiles, 1.0, 1.0, 1).settle();
        assert!((2.8..=3.1).contains(&length), "{length}");
    }

    #[test]
    fn short_drafts_that_gain_little_lead_to_long_ones() {
        // As kernels that stream the weights for each of up to three positions, but once for four.
        let check = |n: usize| [55.0, 100.0, 106.0, 103.0][n.min(4) - 1] + 2.0 * n.saturating_sub(4) as f64;
        for seed in 0..32 {
            let length = World { seed, ..World::new(check, 4.0, 0.8, 1) }.settle();
            assert!(length > 2.5, "seed {seed}: {length}");
        }
    }

    #[test]
    fn drafts_that_turn_out_slower_than_none_are_left_out() {
        let flat = |n: usize| 10.0 + 0.01 * n as f64;
        assert!(World::new(flat, 0.1, 1.0, 4).settle() > 8.0);
        assert!(World { unforeseen: 1000.0, ..World::new(flat, 0.1, 1.0, 4) }.settle() < 0.5);
    }

    #[test]
    fn a_fixed_length_is_kept_and_off_is_off() {
        let fixed = DraftLength::new(Speculate::Tokens(2));
        assert!(fixed.goes_on(1, 1, 0.0) && !fixed.goes_on(1, 2, 1.0));
        assert!(!DraftLength::new(Speculate::Off).goes_on(1, 0, 1.0));
    }
}
