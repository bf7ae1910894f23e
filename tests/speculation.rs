//! Speculation changes how fast tokens come, never which ones: greedy the same tokens, sampled the same distribution.
#![cfg(feature = "llama")]

mod common;

use common::{Case, cases, fixture_config, models, take_turns};
use proxytune::backend::llama::SamplerOptions;
use proxytune::backend::toy::Toy;
use proxytune::backend::{Backend, Capabilities};
use proxytune::combine::{RuleName, RuleOptions, shift_by_within};
use proxytune::config::{Control, Speculate};
use proxytune::decode::accept::{Dice, Verdict, judge};
use proxytune::decode::{DecodeOptions, Decoder, Finish, Job, Outcome, Pieces, RunOptions};
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy};
use proxytune::vocab::{Entry, Kind, TokenMap, Vocabulary};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

const MODES: [Speculate; 5] =
    [Speculate::Tokens(1), Speculate::Tokens(2), Speculate::Tokens(3), Speculate::Tokens(7), Speculate::Auto];

fn decode(speculate: Speculate, jobs: Vec<Job>) -> Vec<Outcome> {
    decode_with(speculate, Control::default(), jobs)
}

fn decode_with(speculate: Speculate, control: Control, jobs: Vec<Job>) -> Vec<Outcome> {
    let mut config = fixture_config();
    config.proxy_tuning.speculate = speculate;
    config.proxy_tuning.alpha_schedule = control.schedule;
    config.proxy_tuning.shift_cap = control.cap.unwrap_or(0.0);
    config.proxy_tuning.repetition_guard = control.repetition_guard;
    let run = RunOptions { sequences: jobs.len(), longest: 512, ..RunOptions::default() };
    let mut decoder = models(&config, false).decoder(&config, run).unwrap();
    decoder.generate(jobs, false, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn greedy_tokens_are_the_oracles_whatever_is_drafted() {
    let _turn = take_turns();
    let cases = cases();
    for mode in MODES {
        let together = decode(mode, cases.iter().map(Case::job).collect());
        for (case, together) in cases.iter().zip(&together) {
            let alone = &decode(mode, vec![case.job()])[0];
            assert_eq!(alone.tokens, case.tokens, "{} {mode:?}", case.name);
            assert_eq!(together.tokens, case.tokens, "{} {mode:?} in a batch", case.name);
            assert_eq!(together.stats.unshifted, 0);
            if mode != Speculate::Auto && case.alpha != 0.0 {
                let stats = &alone.stats;
                assert!(stats.accepted > 0 && stats.accepted < stats.drafted, "{stats:?}");
                // A step brings its accepted tokens and one more; the first token comes with the prompt.
                assert_eq!(alone.tokens.len(), 1 + alone.stats.steps + alone.stats.accepted);
            }
        }
    }
}

/// Penalties see drafted tokens only once they are accepted; ends, lengths and stop strings cut a draft short.
#[test]
fn penalties_stops_and_anti_tuning_give_the_same_text_with_and_without_drafts() {
    let _turn = take_turns();
    let cases = cases();
    let plain = decode(Speculate::Off, vec![cases[0].job()]);
    let middle = plain[0].text.char_indices().nth(plain[0].text.chars().count() / 2).unwrap().0;
    let stop = plain[0].text[middle..].chars().take(3).collect::<String>();
    let variants: [fn(Job) -> Job; 5] = [
        |job| Job { sampler: SamplerOptions { repeat_penalty: 1.3, ..job.sampler }, ..job },
        |job| Job { alpha: -0.8, ..job },
        |job| Job { alpha: 0.0, ..job },
        |job| Job { max_tokens: 5, ..job },
        |job| Job { ignore_end: false, ..job },
    ];
    let mut jobs: Vec<Job> =
        variants.iter().flat_map(|change| cases.iter().take(4).map(|case| change(case.job()))).collect();
    jobs.push(Job { stops: vec![stop], ..cases[0].job() });
    let plain = decode(Speculate::Off, jobs.clone());
    let drafted = decode(Speculate::Tokens(3), jobs);
    for (plain, drafted) in plain.iter().zip(&drafted) {
        assert_eq!(plain.tokens, drafted.tokens);
        assert_eq!(plain.text, drafted.text);
        assert_eq!(matches!(plain.finish, Finish::Stop), matches!(drafted.finish, Finish::Stop));
    }
    assert!(matches!(drafted.last().unwrap().finish, Finish::Stop));
}

fn schedule(text: &str) -> Control {
    Control { schedule: text.parse().unwrap(), ..Control::default() }
}

#[test]
fn schedules_and_guards_give_the_same_text_with_and_without_drafts() {
    let _turn = take_turns();
    let guard = Control { repetition_guard: 2, ..Control::default() };
    let cap = Control { cap: Some(1.0), ..Control::default() };
    let cases = cases();
    let jobs = || cases.iter().take(5).map(|case| Job { alpha: 1.5, max_tokens: 80, ..case.job() }).collect();
    let plain = decode(Speculate::Off, jobs());
    for control in [schedule("warm-up:12"), schedule("decay:20"), schedule("stop:9"), guard, cap] {
        let off = decode_with(Speculate::Off, control, jobs());
        assert!(off.iter().zip(&plain).any(|(a, b)| a.tokens != b.tokens), "{control:?} does nothing");
        for mode in [Speculate::Tokens(1), Speculate::Tokens(3), Speculate::Auto] {
            let drafted = decode_with(mode, control, jobs());
            for (off, drafted) in off.iter().zip(&drafted) {
                assert_eq!(off.tokens, drafted.tokens, "{control:?} {mode:?}");
                assert_eq!(off.stats.left_to_host, drafted.stats.left_to_host, "{control:?} {mode:?}");
                assert_eq!(drafted.stats.unshifted, 0);
                assert!(mode == Speculate::Auto || drafted.stats.accepted > 0, "{control:?} {mode:?}");
            }
        }
        let left: usize = off.iter().map(|o| o.stats.left_to_host).sum();
        let expected = [("stop:9", 71), ("decay:20", 60)].iter().find(|(s, _)| control == schedule(s));
        match expected {
            Some((_, each)) => assert_eq!(left, 5 * each),
            None => assert_eq!(left > 0, control == guard, "{control:?}"),
        }
    }
}

/// After its last shifted token a text goes on as the host alone would from there.
#[test]
fn a_schedule_that_has_stopped_leaves_the_text_to_the_host_alone() {
    let _turn = take_turns();
    let case = &cases()[0];
    let long = Job { max_tokens: 40, ..case.job() };
    let stopped = &decode_with(Speculate::Tokens(3), schedule("stop:10"), vec![long.clone()])[0];
    let shifted = &decode(Speculate::Off, vec![long.clone()])[0];
    assert_eq!(stopped.tokens[..10], shifted.tokens[..10]);
    let so_far = [&case.prompt_tokens[..], &stopped.tokens[..10]].concat();
    let alone = Job { history: History::new(so_far, None), alpha: 0.0, max_tokens: 30, ..long };
    assert_eq!(stopped.tokens[10..], decode(Speculate::Off, vec![alone])[0].tokens[..]);
}

// From here on models are toys, small enough to know every distribution exactly.

const VOCAB: usize = 8;
const PROMPT: [u32; 3] = [1, 5, 2];
const TOKENS: usize = 3;
const ALPHA: f32 = 0.7;

struct NoText;

impl Pieces for NoText {
    fn is_end(&self, _: u32) -> bool {
        false
    }
    fn piece(&self, _: u32, _: bool) -> Vec<u8> {
        vec![]
    }
}

struct Toys {
    host: Toy,
    tuned: Toy,
    untuned: Toy,
    rule: RuleName,
    control: Control,
}

impl Toys {
    fn new(slots: usize) -> Self {
        let toy = |seed| {
            let capabilities =
                Capabilities { slots, context: 32, batch: 4096, vocab: VOCAB, truncate: true, fork: true };
            Toy::new(capabilities, seed)
        };
        // With the host's own seed for a proxy, drafts are neither always right nor always wrong.
        Self {
            host: toy(1),
            tuned: toy(1),
            untuned: toy(3),
            rule: RuleName::ProxyTuning,
            control: Control::default(),
        }
    }

    /// The same under another rule, with proxies that are no copies of the host.
    fn by(rule: RuleName, slots: usize) -> Self {
        let toys = Self::new(slots);
        let tuned = Toy::new(toys.tuned.capabilities().clone(), 2);
        Self { tuned, rule, ..toys }
    }

    fn decoder(&self, speculate: Speculate) -> Decoder {
        self.decoder_with(speculate, TokenMap::identity(VOCAB), Placement::InTurn)
    }

    fn decoder_with(&self, speculate: Speculate, untuned_map: TokenMap, placement: Placement) -> Decoder {
        let model = |name: &str, toy: &Toy| CachedModel::new(name, toy.clone());
        let proxy = |name, toy, map| Proxy { model: model(name, toy), map };
        let tuned = proxy("tuned", &self.tuned, TokenMap::identity(VOCAB));
        let pair = Pair::new(tuned, proxy("untuned", &self.untuned, untuned_map), placement);
        let pair = pair.map(|pair| pair.with_rule(RuleOptions::from(self.rule).rule().unwrap()));
        let options = DecodeOptions { speculate, control: self.control, ..DecodeOptions::default() };
        Decoder::new(Arc::new(NoText), model("host", &self.host), Some(pair.unwrap()), options)
    }

    /// The exact distribution of the token after `history`, worked out from the definition.
    fn exact(&self, history: &[u32], alpha: f32, options: &SamplerOptions) -> Vec<f64> {
        let [h, t, u] = [&self.host, &self.tuned, &self.untuned].map(|toy| toy.logits_after(history));
        let [p, q, r] = [&h, &t, &u].map(|row| {
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            row.iter().map(|&x| f64::from(x).exp() / total).collect::<Vec<f64>>()
        });
        let most = p.iter().copied().fold(0.0, f64::max);
        let alpha = self.control.weight(alpha, &history[PROMPT.len()..]);
        let weight = f64::from(alpha);
        let offset: Vec<f32> = t.iter().zip(&u).map(|(t, u)| t - u).collect();
        let mut shifted = h.clone();
        shift_by_within(&mut shifted, &offset, alpha, self.control.cap).unwrap();
        let combined = |i: usize| match self.rule {
            RuleName::ProxyTuning => f64::from(shifted[i]),
            RuleName::Contrastive if p[i] < 0.1 * most => f64::NEG_INFINITY,
            RuleName::Contrastive => p[i].ln() - weight * r[i].ln(),
            _ => ((1.0 - 0.5 * weight) * p[i] + 0.5 * weight * q[i]).ln(),
        };
        let logit = |i: usize| combined(i) / f64::from(options.temperature);
        let mut order: Vec<(usize, f64)> = (0..VOCAB).map(|i| (i, logit(i).exp())).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        if options.top_k > 0 {
            order.truncate(options.top_k);
        }
        let total: f64 = order.iter().map(|(_, w)| w).sum();
        let mut sum = 0.0;
        let within = order.iter().take_while(|(_, w)| {
            let before = sum;
            sum += w / total;
            before < f64::from(options.top_p)
        });
        let kept = within.count();
        order.truncate(kept);
        let best = order[0].1;
        order.retain(|(_, w)| *w >= f64::from(options.min_p) * best);
        let total: f64 = order.iter().map(|(_, w)| w).sum();
        let mut exact = vec![0.0; VOCAB];
        order.iter().for_each(|&(i, w)| exact[i] = w / total);
        exact
    }

    /// The exact probability of every run of tokens after the prompt.
    fn exact_runs(&self, alpha: f32, options: &SamplerOptions) -> Vec<f64> {
        let mut runs = vec![(PROMPT.to_vec(), 1.0)];
        for _ in 0..TOKENS {
            runs = runs
                .into_iter()
                .flat_map(|(history, p)| {
                    let next = self.exact(&history, alpha, options);
                    (0..VOCAB).map(move |i| ([history.as_slice(), &[i as u32]].concat(), p * next[i]))
                })
                .collect();
        }
        runs.into_iter().map(|(_, p)| p).collect()
    }
}

/// How far counts are from their expectation, in standard deviations of Pearson's statistic (its cube root is nearly
/// normal: Wilson and Hilferty 1931). Cells that expect few are taken together.
fn deviation(counts: &[usize], exact: &[f64]) -> f64 {
    let draws = counts.iter().sum::<usize>() as f64;
    let (mut statistic, mut cells, mut rest) = (0.0, 0.0, (0.0, 0.0));
    for (&count, &p) in counts.iter().zip(exact) {
        let expected = p * draws;
        assert!(p > 0.0 || count == 0, "{count} draws of something impossible");
        if expected >= 10.0 {
            statistic += (count as f64 - expected).powi(2) / expected;
            cells += 1.0;
        } else {
            rest = (rest.0 + count as f64, rest.1 + expected);
        }
    }
    if rest.1 >= 10.0 {
        statistic += (rest.0 - rest.1).powi(2) / rest.1;
        cells += 1.0;
    }
    let spread = 2.0 / (9.0 * (cells - 1.0));
    ((statistic / (cells - 1.0)).cbrt() - (1.0 - spread)) / f64::sqrt(spread)
}

/// Chance puts a right sampler beyond this once in ten million times; seeds are fixed besides.
const TOO_FAR: f64 = 5.2;

/// Sums of the runs' cells that share their first, second or third token.
fn marginals<T: Copy + std::iter::Sum>(runs: &[T]) -> [Vec<T>; TOKENS] {
    std::array::from_fn(|position| {
        let stride = VOCAB.pow((TOKENS - 1 - position) as u32);
        let of = |token| runs.iter().enumerate().filter(move |(i, _)| i / stride % VOCAB == token);
        (0..VOCAB).map(|token| of(token).map(|(_, &x)| x).sum()).collect()
    })
}

/// Worst deviation of all runs and of each position's tokens.
fn worst_deviation(counts: &[usize], exact: &[f64]) -> f64 {
    let by_position = marginals(counts).into_iter().zip(marginals(exact)).map(|(c, e)| deviation(&c, &e));
    by_position.fold(deviation(counts, exact), f64::max)
}

/// The same with 0.01 of probability taken from the most likely first token and given to the others.
fn off_by_a_hundredth(exact: &[f64]) -> Vec<f64> {
    let [first, ..] = marginals(exact);
    let top = (0..VOCAB).max_by(|&a, &b| first[a].total_cmp(&first[b])).unwrap();
    let stride = exact.len() / VOCAB;
    let factor = |token| if token == top { 1.0 - 0.01 / first[top] } else { 1.0 + 0.01 / (1.0 - first[top]) };
    exact.iter().enumerate().map(|(i, p)| p * factor(i / stride)).collect()
}

/// Counts of every run of tokens over many draws, and the share of drafts accepted.
fn draw_runs(toys: &Toys, speculate: Speculate, options: &SamplerOptions, draws: usize) -> (Vec<usize>, f64) {
    const AT_ONCE: usize = 64;
    let mut decoder = toys.decoder(speculate);
    let mut counts = vec![0; VOCAB.pow(TOKENS as u32)];
    let (mut drafted, mut accepted) = (0, 0);
    for round in 0..draws / AT_ONCE {
        let job = |i| Job {
            history: History::new(PROMPT.to_vec(), None),
            alpha: ALPHA,
            sampler: SamplerOptions { seed: Some((round * AT_ONCE + i) as u64), ..options.clone() },
            max_tokens: TOKENS,
            stops: vec![],
            control: false,
            ignore_end: true,
        };
        let jobs = (0..AT_ONCE).map(job).collect();
        for outcome in decoder.generate(jobs, false, &mut |_| ControlFlow::Continue(())).unwrap() {
            counts[outcome.tokens.iter().fold(0, |cell, &t| cell * VOCAB + t as usize)] += 1;
            drafted += outcome.stats.drafted;
            accepted += outcome.stats.accepted;
        }
    }
    (counts, accepted as f64 / drafted.max(1) as f64)
}

fn filters() -> Vec<SamplerOptions> {
    let options = |temperature| SamplerOptions { temperature, ..SamplerOptions::default() };
    vec![
        options(0.6),
        options(1.7),
        SamplerOptions { top_k: 6, min_p: 0.1, ..options(1.4) },
        SamplerOptions { top_p: 0.8, ..options(1.0) },
    ]
}

/// Holds draws, with drafts of which a share within `accepted` is kept and without, against their exact distribution.
fn assert_follows(toys: &Toys, exact: &[f64], options: &SamplerOptions, accepted: Range<f64>) {
    let rule = toys.rule;
    for mode in [Speculate::Off, Speculate::Tokens(1), Speculate::Tokens(2)] {
        let (counts, kept) = draw_runs(toys, mode, options, 200_000);
        assert!(mode == Speculate::Off || accepted.contains(&kept), "{rule:?} {kept}");
        let far = worst_deviation(&counts, exact);
        assert!(far < TOO_FAR, "{rule:?} {options:?} {mode:?}: {far} standard deviations");
        let off = worst_deviation(&counts, &off_by_a_hundredth(exact));
        assert!(off > TOO_FAR, "{rule:?} {options:?} {mode:?}: blind to an error of 1 %, {off}");
    }
}

#[test]
fn sampled_tokens_follow_the_shifted_distribution_with_and_without_drafts() {
    let toys = Toys::new(64);
    for options in filters() {
        let exact = toys.exact_runs(ALPHA, &options);
        assert_follows(&toys, &exact, &options, 0.2..0.95);
    }
}

#[test]
fn sampled_tokens_follow_the_distribution_of_any_rule_with_and_without_drafts() {
    let options = SamplerOptions { temperature: 1.2, ..SamplerOptions::default() };
    for rule in [RuleName::Contrastive, RuleName::Mean] {
        let toys = Toys::by(rule, 64);
        assert_follows(&toys, &toys.exact_runs(ALPHA, &options), &options, 0.05..0.95);
    }
}

#[test]
fn sampled_tokens_follow_the_schedules_and_the_caps_distribution_with_and_without_drafts() {
    let mut toys = Toys::new(64);
    let options = SamplerOptions { temperature: 1.0, ..SamplerOptions::default() };
    let plain = toys.exact_runs(ALPHA, &options);
    let cap = Control { cap: Some(0.2), ..Control::default() };
    for control in [schedule("warm-up:3"), schedule("decay:2"), schedule("stop:1"), cap] {
        toys.control = control;
        let exact = toys.exact_runs(ALPHA, &options);
        for mode in [Speculate::Off, Speculate::Tokens(1), Speculate::Tokens(2)] {
            let (counts, _) = draw_runs(&toys, mode, &options, 100_000);
            let far = worst_deviation(&counts, &exact);
            assert!(far < TOO_FAR, "{control:?} {mode:?}: {far} standard deviations");
            let otherwise = worst_deviation(&counts, &plain);
            assert!(otherwise > TOO_FAR, "{control:?} {mode:?}: as without, {otherwise}");
        }
    }
}

/// A host token that the untuned proxy lacks is two of its own, so its rows after it stand elsewhere.
#[test]
fn a_vocabulary_with_gaps_gives_the_same_tokens_with_and_without_drafts() {
    let entry = |id: usize| Entry { bytes: vec![b'a' + id as u8], kind: Kind::Text };
    let host = Vocabulary::new((0..VOCAB).map(entry).collect());
    let lacking = Vocabulary::new((0..VOCAB).filter(|&id| id != 5).map(entry).collect());
    let map = TokenMap::between(&host, &lacking, |_| vec![0, 1]).unwrap();
    let mut toys = Toys::new(4);
    let capabilities =
        Capabilities { vocab: VOCAB - 1, slots: 4, context: 128, ..toys.untuned.capabilities().clone() };
    toys.untuned = Toy::new(capabilities, 3);
    let mut drawn = 0;
    for placement in [Placement::InTurn, Placement::SideBySide, Placement::Together] {
        let tokens = |speculate| {
            let mut decoder = toys.decoder_with(speculate, map.clone(), placement);
            let job = |start| Job {
                history: History::new(vec![start, 5, 2], None),
                alpha: ALPHA,
                sampler: SamplerOptions::default(),
                max_tokens: 24,
                stops: vec![],
                control: false,
                ignore_end: true,
            };
            let outcomes =
                decoder.generate((0..4).map(job).collect(), false, &mut |_| ControlFlow::Continue(()));
            outcomes.unwrap().into_iter().map(|o| o.tokens).collect::<Vec<_>>()
        };
        let plain = tokens(Speculate::Off);
        drawn += plain.iter().flatten().filter(|&&t| t == 5).count();
        assert_eq!(plain, tokens(Speculate::Tokens(1)), "{placement:?}");
        assert_eq!(plain, tokens(Speculate::Tokens(3)), "{placement:?}");
    }
    assert!(drawn > 0, "the token that is lacking never came");
}

type Judge = fn(&[f32], &[f32], u32, &mut Dice) -> Verdict;

/// Draws once from `draft`, judges against `target`, and counts what comes out.
fn counts_of(judge: Judge, target: &[f32], draft: &[f32], draws: usize) -> Vec<usize> {
    let mut dice = Dice::new(Some(7));
    let mut counts = vec![0; target.len()];
    for _ in 0..draws {
        let drafted = dice.draw(draft.iter().copied()).unwrap();
        let token = match judge(target, draft, drafted, &mut dice) {
            Verdict::Accepted => drafted,
            Verdict::Replaced(token) => token,
        };
        counts[token as usize] += 1;
    }
    counts
}

#[test]
fn the_acceptance_rule_is_exact_and_its_wrong_versions_are_caught() {
    let softmax = |logits: &[f32]| {
        let weights: Vec<f32> = logits.iter().map(|x| x.exp()).collect();
        let total: f32 = weights.iter().sum();
        weights.into_iter().map(|w| w / total).collect::<Vec<f32>>()
    };
    let host = softmax(&[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, -2.0]);
    let target = softmax(&[1.5, 1.3, 0.5, 0.4, -0.5, -1.2, 1.6, -2.5]);
    let draft = softmax(&[1.0, 1.6, 0.1, 0.8, 0.0, -1.5, 1.4, -3.0]);
    let exact: Vec<f64> = target.iter().map(|&p| f64::from(p)).collect();
    let draws = 400_000;
    let far = |judge| deviation(&counts_of(judge, &target, &draft, draws), &exact);
    assert!(far(judge) < TOO_FAR);
    assert!(far(|_, _, _, _| Verdict::Accepted) > TOO_FAR, "no check at all");
    // A rejected token is replaced by a draw from the target itself.
    let no_residual: Judge = |target, draft, drafted, dice| match judge(target, draft, drafted, dice) {
        Verdict::Replaced(_) => Verdict::Replaced(dice.draw(target.iter().copied()).unwrap()),
        accepted => accepted,
    };
    assert!(far(no_residual) > TOO_FAR, "no residual");
    let against_host = deviation(&counts_of(judge, &host, &draft, draws), &exact);
    assert!(against_host > TOO_FAR, "judged by the host alone");
    // A filter that leaves one token, and one that removes all that is drafted.
    let one = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(counts_of(judge, &one, &draft, 1000)[3], 1000);
    assert_eq!(counts_of(judge, &one, &one, 1000)[3], 1000);
}
