//! The logits processor for batches of rows, against offsets computed from scratch. Every comparison is exact.
#![cfg(any(feature = "llama", feature = "llama-system"))]

use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proxytune::backend::Capabilities;
use proxytune::backend::toy::Toy;
use proxytune::combine;
use proxytune::config::{Control, OnError};
use proxytune::host::requests::{Logits, Outcome, RequestId, Requests, Row, TunedPrompt};
use proxytune::pair::{CachedModel, Pair, Placement, Proxy, Runner};
use proxytune::vocab::{Token, TokenMap};
use std::collections::HashMap;

const CONTEXT: usize = 48;
const VOCAB: usize = 16;
/// The tuned proxy fails on it.
const POISON: Token = 13;

fn toys(slots: usize) -> [Toy; 2] {
    let capabilities =
        Capabilities { slots, context: CONTEXT, batch: 16, vocab: VOCAB, truncate: true, fork: true };
    [Toy::new(capabilities.clone(), 1).poisoned_by(POISON), Toy::new(capabilities, 2)]
}

fn requests(slots: usize, thread: bool, on_error: OnError) -> Requests {
    let [tuned, untuned] = toys(slots)
        .map(|toy| Proxy { model: CachedModel::new("proxy", toy), map: TokenMap::identity(VOCAB) });
    let pair = Pair::new(tuned, untuned, Placement::InTurn).unwrap();
    let runner = if thread { Runner::new(pair).unwrap() } else { Runner::without_thread(pair) };
    Requests::new(runner, 1.0, on_error, |text| text.bytes().map(|b| Token::from(b % 12)).collect())
}

/// As an engine would have it.
#[derive(Debug, Clone)]
struct Place {
    request: RequestId,
    history: Vec<Token>,
    logits: Format,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone)]
enum Format {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Format {
    fn new(which: usize) -> Self {
        let values: Vec<f32> =
            (0..VOCAB).map(|i| if i == 3 { f32::NEG_INFINITY } else { i as f32 / 3.0 }).collect();
        match which % 3 {
            0 => Self::F32(values),
            1 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            _ => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        }
    }

    fn shift(&mut self, offset: &[f32], alpha: f32) {
        match self {
            Self::F32(row) => combine::shift_by(row, offset, alpha),
            Self::F16(row) => combine::shift_by(row, offset, alpha),
            Self::Bf16(row) => combine::shift_by(row, offset, alpha),
        }
        .unwrap();
    }

    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(row) => row.iter().map(|x| x.to_bits()).collect(),
            Self::F16(row) => row.iter().map(|x| x.to_bits().into()).collect(),
            Self::Bf16(row) => row.iter().map(|x| x.to_bits().into()).collect(),
        }
    }
}

impl Row for Place {
    fn request(&self) -> RequestId {
        self.request
    }
    fn history(&self) -> &[Token] {
        &self.history
    }
    fn logits(&mut self) -> Logits<'_> {
        match &mut self.logits {
            Format::F32(row) => Logits::F32(row),
            Format::F16(row) => Logits::F16(row),
            Format::Bf16(row) => Logits::Bf16(row),
        }
    }
    fn report(&mut self, outcome: Outcome) {
        assert!(self.outcome.replace(outcome).is_none(), "one outcome a row");
    }
}

fn place(request: RequestId, history: &[Token]) -> Place {
    Place { request, history: history.to_vec(), logits: Format::new(0), outcome: None }
}

fn from_scratch(tuned: &[Token], untuned: &[Token]) -> Vec<f32> {
    let [t, u] = toys(1);
    t.logits_after(tuned).into_iter().zip(u.logits_after(untuned)).map(|(t, u)| t - u).collect()
}

/// What a request is, kept beside it.
#[derive(Debug, Clone)]
struct Model {
    prompt: Vec<Token>,
    tuned: Option<Vec<Token>>,
    alpha: f32,
    text: Vec<Token>,
}

impl Model {
    /// The offset after a history; `None` where a proxy must fail.
    fn offset(&self, history: &[Token]) -> Option<Vec<f32>> {
        let own = |own: &Vec<Token>| [own, &history[self.prompt.len()..]].concat();
        let tuned = self.tuned.as_ref().map_or_else(|| history.to_vec(), own);
        let fits = history.len().max(tuned.len()) <= CONTEXT && !tuned.contains(&POISON);
        fits.then(|| from_scratch(&tuned, history))
    }

    fn assert_right(&self, before: &Place, after: &Place, on_error: OnError) {
        let mut expected = before.logits.clone();
        let shifted = self.alpha == 0.0
            || self.offset(&before.history).is_some_and(|offset| {
                expected.shift(&offset, self.alpha);
                true
            });
        let otherwise = if on_error == OnError::Stop { Outcome::Stop } else { Outcome::Unshifted };
        assert_eq!(after.outcome, Some(if shifted { Outcome::Shifted } else { otherwise }), "{before:?}");
        assert_eq!(after.logits.bits(), expected.bits(), "{before:?}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(RequestId, Option<Vec<Token>>, f32),
    Remove(RequestId),
    Rollback(RequestId, usize),
    Prefetch(Vec<Pick>),
    Apply(Vec<Pick>),
    Offsets(Vec<Pick>),
}

/// Rows of one request: its text up to a place, then other tokens, and rows before the last ones of these.
#[derive(Debug, Clone)]
struct Pick {
    who: RequestId,
    keep: usize,
    tokens: Vec<Token>,
    draft: usize,
}

fn step() -> impl Strategy<Value = Step> {
    let token = || prop_oneof![30 => 0..3 as Token, 1 => Just(POISON)];
    let pick = (0..4u64, 0..CONTEXT, vec(token(), 0..9), 0..4usize);
    let pick = pick.prop_map(|(who, keep, tokens, draft)| Pick { who, keep, tokens, draft });
    let picks = vec(pick, 0..6).boxed();
    let own = prop::option::of(vec(0..12 as Token, 1..20));
    prop_oneof![
        3 => (0..4u64, own, select(vec![1.0, -0.5, 0.0])).prop_map(|(id, own, alpha)| Step::Add(id, own, alpha)),
        1 => (0..4u64).prop_map(Step::Remove),
        1 => (0..4u64, 0..12usize).prop_map(|(id, count)| Step::Rollback(id, count)),
        3 => picks.clone().prop_map(Step::Prefetch),
        6 => picks.clone().prop_map(Step::Apply),
        2 => picks.prop_map(Step::Offsets),
    ]
}

struct World {
    requests: Requests,
    models: HashMap<RequestId, Model>,
    on_error: OnError,
    format: usize,
}

impl World {
    fn take(&mut self, step: Step) {
        match step {
            Step::Add(id, tuned, alpha) => {
                let prompt = vec![id as Token, 1];
                let own = tuned.clone().map_or(TunedPrompt::Host, TunedPrompt::Tokens);
                let added = self.requests.add(id, Some(prompt.clone()), own, Some(alpha));
                assert_eq!(added.is_ok(), !self.models.contains_key(&id));
                let text = prompt.clone();
                self.models.entry(id).or_insert(Model { prompt, tuned, alpha, text });
            }
            Step::Remove(id) => {
                let known = self.models.remove(&id).is_some();
                assert_eq!(self.requests.remove(id).is_ok(), known);
            }
            // More than was read is an error, and none of it matters for the rows to come.
            Step::Rollback(id, count) => drop(self.requests.rollback(id, count)),
            Step::Prefetch(picks) => {
                let rows = self.rows(picks);
                self.requests.prefetch(&rows).unwrap();
            }
            Step::Apply(picks) => {
                let before = self.rows(picks);
                let mut after = before.clone();
                self.requests.apply(&mut after).unwrap();
                for (before, after) in before.iter().zip(&after) {
                    self.models[&before.request].assert_right(before, after, self.on_error);
                }
            }
            Step::Offsets(picks) => self.offsets(picks),
        }
    }

    fn offsets(&mut self, picks: Vec<Pick>) {
        const STRIDE: usize = VOCAB + 3;
        let mut rows = self.rows(picks);
        let mut out = vec![9.0; rows.len() * STRIDE];
        self.requests.offsets(&mut rows, &mut out, STRIDE).unwrap();
        for (row, out) in rows.iter().zip(out.chunks(STRIDE)) {
            let model = &self.models[&row.request];
            let offset =
                model.offset(&row.history).filter(|_| model.alpha != 0.0).unwrap_or(vec![0.0; VOCAB]);
            let weighed: Vec<f32> = offset.iter().map(|x| model.alpha * x).collect();
            assert_eq!(&out[..VOCAB], weighed);
            assert_eq!(&out[VOCAB..], [9.0; 3]);
            assert!(row.outcome.is_some());
        }
    }

    /// The rows of these picks, the last first: an engine's order means nothing.
    fn rows(&mut self, picks: Vec<Pick>) -> Vec<Place> {
        let mut rows = Vec::new();
        for Pick { who, keep, tokens, draft } in picks {
            let Some(model) = self.models.get_mut(&who) else { continue };
            model.text.truncate(keep.max(model.prompt.len()));
            model.text.extend(tokens);
            let first = model.text.len().saturating_sub(draft).max(model.prompt.len());
            for len in first..=model.text.len() {
                self.format += 1;
                let logits = Format::new(self.format);
                rows.insert(0, Place { logits, ..place(who, &model.text[..len]) });
            }
        }
        rows
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_order_of_operations_shifts_every_row_as_from_scratch(
        steps in vec(step(), 1..60),
        (slots, thread, stop) in (2..6usize, any::<bool>(), any::<bool>()),
    ) {
        let on_error = if stop { OnError::Stop } else { OnError::Host };
        let requests = requests(slots, thread, on_error);
        let mut world = World { requests, models: HashMap::new(), on_error, format: 0 };
        steps.into_iter().for_each(|step| world.take(step));
    }
}

/// A processor with requests 0 to 3.
fn four() -> Requests {
    let mut requests = requests(4, false, OnError::Host);
    (0..4).for_each(|id| requests.add(id, None, TunedPrompt::Host, None).unwrap());
    requests
}

#[test]
fn all_rows_of_a_call_share_one_round_drafts_included() {
    let mut requests = four();
    for step in 0..3 {
        let text =
            |id: u64, more: &[Token]| place(id, &[&[id as Token, 5][..], &vec![2; step], more].concat());
        let mut rows =
            vec![text(3, &[]), text(0, &[7, 8]), text(0, &[]), text(2, &[]), text(0, &[7]), text(1, &[4])];
        requests.apply(&mut rows).unwrap();
        assert!(rows.iter().all(|row| row.outcome == Some(Outcome::Shifted)));
        assert_eq!(requests.stats().rounds, step as u64 + 1);
    }
    assert_eq!((requests.stats().shifted, requests.stats().requests), (18, 4));
}

#[test]
fn a_prefetched_step_needs_no_further_round() {
    for thread in [false, true] {
        let mut requests = requests(4, thread, OnError::Host);
        (0..4).for_each(|id| requests.add(id, None, TunedPrompt::Host, None).unwrap());
        let mut rows: Vec<_> = (0..4).map(|id| place(id, &[1, 2, id as Token])).collect();
        requests.prefetch(&rows).unwrap();
        rows.reverse();
        requests.apply(&mut rows).unwrap();
        assert_eq!(requests.stats().rounds, 1);
    }
}

#[test]
fn a_proxy_that_fails_leaves_its_neighbours_alone_and_says_why() {
    let mut requests = four();
    let mut rows: Vec<_> = (0..4).map(|id| place(id, &[1, 2, id as Token])).collect();
    rows[2].history.push(POISON);
    rows[3].history = vec![1; CONTEXT + 1];
    let before = rows.clone();
    requests.apply(&mut rows).unwrap();
    let [first, second, poisoned, long] = [0, 1, 2, 3].map(|i| rows[i].outcome.unwrap());
    assert_eq!([first, second], [Outcome::Shifted; 2]);
    assert_eq!([poisoned, long], [Outcome::Unshifted; 2]);
    assert!((2..4).all(|i| rows[i].logits.bits() == before[i].logits.bits()));
    assert!(requests.failure(0).unwrap().is_none());
    assert!(requests.failure(2).unwrap().unwrap().to_string().contains("poisoned"));
    let too_long = requests.failure(3).unwrap().unwrap().to_string();
    assert!(too_long.contains("49 tokens do not fit its context of 48"), "{too_long}");
    assert_eq!((requests.stats().shifted, requests.stats().failed), (2, 2));
}

#[test]
fn what_follows_a_draft_that_does_not_fit_is_refused_alone() {
    let mut requests = four();
    let text = [3; CONTEXT + 2];
    let mut rows: Vec<_> = (CONTEXT - 1..=CONTEXT + 1).map(|len| place(0, &text[..len])).collect();
    requests.apply(&mut rows).unwrap();
    let outcomes: Vec<_> = rows.iter().map(|row| row.outcome.unwrap()).collect();
    assert_eq!(outcomes, [Outcome::Shifted, Outcome::Shifted, Outcome::Unshifted]);
}

#[test]
fn alpha_zero_leaves_every_bit_and_runs_no_model() {
    let mut requests = requests(2, false, OnError::Stop);
    requests.add(7, None, TunedPrompt::Host, Some(0.0)).unwrap();
    for format in 0..3 {
        // Not even a history that no proxy could read matters.
        let mut rows = [Place { logits: Format::new(format), ..place(7, &[POISON; CONTEXT + 9]) }];
        let before = rows[0].logits.bits();
        requests.prefetch(&rows).unwrap();
        requests.apply(&mut rows).unwrap();
        assert_eq!((rows[0].logits.bits(), rows[0].outcome), (before, Some(Outcome::Shifted)));
    }
    assert_eq!((requests.stats().rounds, requests.stats().shifted), (0, 0));
}

#[test]
fn the_tuned_proxy_may_read_another_prompt_as_tokens_or_as_text() {
    let text = "ab";
    let spelt: Vec<Token> = text.bytes().map(|b| Token::from(b % 12)).collect();
    for own in [TunedPrompt::Tokens(spelt.clone()), TunedPrompt::Text(text.into())] {
        for prompt in [None, Some(vec![1, 2])] {
            let mut requests = requests(2, false, OnError::Host);
            requests.add(1, prompt, own.clone(), None).unwrap();
            for generated in [&[][..], &[5], &[5, 6]] {
                let mut rows = [place(1, &[&[1, 2], generated].concat())];
                let mut out = [0.0; VOCAB];
                requests.offsets(&mut rows, &mut out, VOCAB).unwrap();
                assert_eq!(out.to_vec(), from_scratch(&[&spelt, generated].concat(), &rows[0].history));
            }
        }
    }
}

#[test]
fn bad_calls_are_named_and_touch_nothing() {
    let mut requests = four();
    requests.add(9, Some(vec![1, 2]), TunedPrompt::Tokens(vec![7]), None).unwrap();
    let wrong_length = Place { logits: Format::F32(vec![0.0; VOCAB - 1]), ..place(1, &[1]) };
    let cases = [
        (place(8, &[1]), "rows[1].request: got 8, expected a request that was added"),
        (place(1, &[]), "rows[1].history: got no tokens"),
        (place(9, &[1, 3, 5]), "rows[1].history: got 3 tokens that begin otherwise"),
        (wrong_length, "rows[1].logits: got 15 values, expected 16"),
    ];
    for (bad, message) in cases {
        let mut rows = [place(0, &[1, 2]), bad];
        let error = requests.apply(&mut rows).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!((rows[0].logits.bits(), rows[0].outcome), (Format::new(0).bits(), None));
    }
    let refused = |result: proxytune::Result<()>, message| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    refused(
        requests.add(3, None, TunedPrompt::Host, None),
        "request: got 3, expected a number that no other",
    );
    refused(requests.add(5, None, TunedPrompt::Host, Some(f32::NAN)), "alpha: got NaN, expected a finite");
    refused(requests.add(5, None, TunedPrompt::Text(String::new()), None), "tuned proxy: got no tokens");
    refused(requests.remove(5), "request: got 5, expected a request that was added");
    refused(requests.rollback(0, 1), "rollback: got 1, expected at most the 0 tokens");
    let mut rows = [place(0, &[1]), place(1, &[1])];
    refused(requests.offsets(&mut rows, &mut [0.0; 99], VOCAB - 1), "stride: got 15, expected at least 16");
    refused(
        requests.offsets(&mut rows, &mut [0.0; 31], VOCAB),
        "out: got 31 values, expected room for 2 rows",
    );
    refused(requests.offsets(&mut rows, &mut [0.0; 31], usize::MAX), "out: got 31 values");
    assert_eq!(requests.stats().rounds, 0);
}

/// What a row must become at a weight, with or without a cap.
fn shifted(which: usize, history: &[Token], alpha: f32, cap: Option<f32>) -> Vec<u32> {
    let mut expected = Format::new(which);
    let offset = from_scratch(history, history);
    match &mut expected {
        Format::F32(row) => combine::shift_by_within(row, &offset, alpha, cap),
        Format::F16(row) => combine::shift_by_within(row, &offset, alpha, cap),
        Format::Bf16(row) => combine::shift_by_within(row, &offset, alpha, cap),
    }
    .unwrap();
    expected.bits()
}

#[test]
fn a_schedule_counts_from_the_prompts_end_in_every_row_of_a_request() {
    let schedule = "decay:2".parse().unwrap();
    for prompt in [None, Some(vec![1, 2])] {
        let mut requests =
            requests(4, false, OnError::Host).with_control(Control { schedule, ..Control::default() });
        requests.add(7, prompt.clone(), TunedPrompt::Host, Some(0.5)).unwrap();
        let history = [1, 2, 4, 5, 6];
        // All positions of a draft in one call, then one that goes back.
        for lengths in [vec![2], vec![3, 4, 5], vec![3]] {
            let mut rows: Vec<Place> = lengths
                .iter()
                .map(|&len| Place { logits: Format::new(len), ..place(7, &history[..len]) })
                .collect();
            requests.apply(&mut rows).unwrap();
            for (row, &len) in rows.iter().zip(&lengths) {
                let alpha = [0.5, 0.25, 0.0, 0.0][len - 2];
                assert_eq!(row.logits.bits(), shifted(len, &history[..len], alpha, None), "{len} {prompt:?}");
                assert_eq!(row.outcome, Some(Outcome::Shifted));
            }
        }
    }
}

#[test]
fn no_proxy_runs_where_the_schedule_or_the_guard_leaves_a_row_to_the_host() {
    let control = Control { schedule: "stop:1".parse().unwrap(), ..Control::default() };
    let mut requests = requests(4, false, OnError::Host).with_control(control);
    requests.add(1, None, TunedPrompt::Host, None).unwrap();
    for len in 2..6 {
        let mut rows = [place(1, &[1, 2, 3, 4, 5, 6][..len])];
        requests.apply(&mut rows).unwrap();
        assert_eq!(rows[0].logits.bits() == Format::new(0).bits(), len > 2);
        assert_eq!(requests.stats().rounds, 1);
    }
    let guard = Control { repetition_guard: 2, ..Control::default() };
    let mut requests = self::requests(4, false, OnError::Host).with_control(guard);
    requests.add(1, Some(vec![5]), TunedPrompt::Host, None).unwrap();
    let looping = [&[5][..], &[1, 2, 3, 4, 5, 6, 7, 8].repeat(2)].concat();
    let mut rows = [place(1, &looping), place(1, &looping[..looping.len() - 1])];
    requests.apply(&mut rows).unwrap();
    assert_eq!(rows[0].logits.bits(), Format::new(0).bits());
    assert_eq!(rows[1].logits.bits(), shifted(0, &looping[..looping.len() - 1], 1.0, None));
}

#[test]
fn a_cap_holds_in_every_format_and_is_refused_where_only_offsets_are_taken() {
    let mut requests =
        requests(4, false, OnError::Host).with_control(Control { cap: Some(0.25), ..Control::default() });
    requests.add(1, None, TunedPrompt::Host, Some(2.0)).unwrap();
    for which in 0..3 {
        let mut rows = [Place { logits: Format::new(which), ..place(1, &[1, 2, 3]) }];
        requests.apply(&mut rows).unwrap();
        assert_eq!(rows[0].logits.bits(), shifted(which, &[1, 2, 3], 2.0, Some(0.25)));
        assert_ne!(rows[0].logits.bits(), shifted(which, &[1, 2, 3], 2.0, None));
    }
    let mut out = vec![1.0; VOCAB];
    let error = requests.offsets(&mut [place(1, &[1, 2])], &mut out, VOCAB).unwrap_err();
    assert!(error.to_string().contains("shift_cap") && out == vec![1.0; VOCAB], "{error}");
}
