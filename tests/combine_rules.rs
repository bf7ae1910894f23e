//! Contrastive decoding and mixtures against their definitions in f64, with any numbers at all, in every format.

use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use proxytune::Error;
use proxytune::combine::{
    Amateur, Contrastive, Logits, Mixture, Network, ProxyRow, ProxyTuning, Rule, Shift, UNKNOWN, Weight,
    log_sum_exp,
};
use proxytune::vocab::{Entry, Kind, TokenMap, Vocabulary};

const NEVER: f32 = f32::NEG_INFINITY;

fn network() -> Network {
    Network {
        mean: [2.0, 1.0, -1.0, -0.5],
        deviation: [1.0, 0.5, 2.0, 1.5],
        hidden: vec![[0.5, -1.0, 0.25, 0.75, 0.1], [-1.5, 0.3, 1.0, -0.2, -0.4]],
        output: vec![1.5, -2.0],
        bias: 0.3,
    }
}

fn rules() -> Vec<Box<dyn Rule>> {
    let mixture = |weight| Box::new(Mixture::new(weight).unwrap()) as Box<dyn Rule>;
    let contrastive = |mask, amateur| Box::new(Contrastive::new(mask, amateur).unwrap()) as Box<dyn Rule>;
    vec![
        contrastive(0.1, Amateur::Untuned),
        contrastive(0.0, Amateur::Tuned),
        contrastive(1.0, Amateur::Untuned),
        mixture(Weight::Constant(0.5)),
        mixture(Weight::Constant(0.0)),
        mixture(Weight::Constant(1.0)),
        mixture(Weight::Learned(network())),
        Box::new(ProxyTuning),
    ]
}

fn apply(rule: &dyn Rule, host: &[f32], advice: &[f32], alpha: f32) -> (Vec<f32>, usize) {
    let mut row = host.to_vec();
    let Shift { ignored } = rule.apply(Logits::F32(&mut row), advice, alpha).unwrap();
    (row, ignored)
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(NEVER, f32::max);
    let weights: Vec<f64> = row.iter().map(|&x| f64::from(x - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

fn any_logit() -> impl Strategy<Value = f32> {
    let special = [0.0, -0.0, f32::INFINITY, NEVER, f32::NAN, f32::MAX, f32::MIN, 1e-40, 1e30];
    Union::new_weighted(vec![
        (16, (-30f32..30.0).boxed()),
        (1, any::<u32>().prop_map(f32::from_bits).boxed()),
        (2, select(special.to_vec()).boxed()),
    ])
}

fn two_rows<S: Strategy<Value = f32>>(logit: fn() -> S) -> impl Strategy<Value = [Vec<f32>; 2]> {
    prop_oneof![select(vec![1, 15, 16, 17, 127, 128, 129, 1024, 1025]), 1..300usize]
        .prop_flat_map(move |n| [vec(logit(), n), vec(logit(), n)])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn whatever_comes_in_no_nan_and_no_new_infinity_comes_out(
        [host, advice] in two_rows(any_logit),
        alpha in prop_oneof![select(vec![1.0f32, 0.5, 1e30, 1e-30, -1.0, -1e30]), 0f32..3.0],
    ) {
        let halves: Vec<f16> = host.iter().map(|&x| f16::from_f32(x)).collect();
        for rule in rules() {
            let (row, _) = apply(&*rule, &host, &advice, alpha);
            let mut in_f16 = halves.clone();
            rule.apply(Logits::F16(&mut in_f16), &advice, alpha).unwrap();
            let in_f16 = halves.iter().zip(&in_f16).map(|(a, b)| (a.to_f32(), b.to_f32()));
            for (before, after) in host.iter().copied().zip(row).chain(in_f16) {
                prop_assert!(before != NEVER || after == NEVER, "{rule}: {before} -> {after}");
                let ordinary = before < f32::INFINITY;
                prop_assert!(!ordinary || after < f32::INFINITY, "{rule}: {before} -> {after}");
            }
        }
    }

    #[test]
    fn weight_zero_leaves_every_bit(host in vec(any::<u32>(), 1..300), advice in any_logit()) {
        let host: Vec<f32> = host.into_iter().map(f32::from_bits).collect();
        for rule in rules() {
            let (row, ignored) = apply(&*rule, &host, &vec![advice; host.len()], 0.0);
            prop_assert_eq!(ignored, 0);
            prop_assert!(row.iter().zip(&host).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn a_mixture_is_one_of_probabilities(
        [host, tuned] in two_rows(|| -20f32..20.0),
        weight in 0f32..1.0,
        alpha in 0.1f32..1.0,
    ) {
        let rule = Mixture::new(Weight::Constant(weight)).unwrap();
        let (row, ignored) = apply(&rule, &host, &tuned, alpha);
        prop_assert_eq!(ignored, 0);
        let weight = f64::from(alpha * weight);
        for ((h, t), got) in softmax(&host).into_iter().zip(softmax(&tuned)).zip(&row) {
            let exact = ((1.0 - weight) * h + weight * t).ln();
            prop_assert!((f64::from(*got) - exact).abs() < 2e-5 * exact.abs().max(1.0), "{got} {exact}");
        }
        prop_assert!(log_sum_exp(&row).abs() < 1e-5, "probabilities add up to one");
    }

    #[test]
    fn contrastive_decoding_is_the_difference_among_what_is_plausible(
        [host, amateur] in two_rows(|| -20f32..20.0),
        mask in 0.01f32..1.0,
        alpha in -1f32..2.0,
    ) {
        let rule = Contrastive::new(mask, Amateur::Untuned).unwrap();
        let (row, _) = apply(&rule, &host, &amateur, alpha);
        let (h, a) = (softmax(&host), softmax(&amateur));
        let most = h.iter().copied().fold(0.0, f64::max);
        let first = row.iter().position(|&x| x > NEVER).expect("the likeliest token stays");
        for i in 0..row.len() {
            let margin = (h[i] / most / f64::from(mask)).ln();
            if margin.abs() > 1e-4 && alpha != 0.0 {
                prop_assert_eq!(row[i] > NEVER, margin > 0.0);
            }
            if row[i] > NEVER {
                let exact = |i: usize| h[i].ln() - f64::from(alpha) * a[i].ln();
                let got = f64::from(row[i] - row[first]);
                prop_assert!((got - (exact(i) - exact(first))).abs() < 1e-4, "{} {}", got, exact(i));
            }
        }
    }

    #[test]
    fn tokens_that_a_proxy_lacks_are_left_to_the_host(
        [host, proxy] in two_rows(|| -10f32..10.0),
        lacking in vec(any::<bool>(), 1100),
        weight in 0.1f32..0.9,
    ) {
        let advice: Vec<f32> =
            proxy.iter().zip(&lacking).map(|(&x, &lacks)| if lacks { UNKNOWN } else { x }).collect();
        prop_assume!(advice.iter().any(|&x| x < UNKNOWN));
        let (row, ignored) = apply(&Mixture::new(Weight::Constant(weight)).unwrap(), &host, &advice, 1.0);
        prop_assert_eq!(ignored, 0);
        let h = softmax(&host);
        for i in (0..row.len()).filter(|&i| advice[i] == UNKNOWN) {
            prop_assert!((f64::from(row[i]) - h[i].ln()).abs() < 2e-5 * h[i].ln().abs().max(1.0));
        }
        prop_assert!(log_sum_exp(&row).abs() < 1e-5);
        // An amateur that agrees on them takes `alpha` times the host's own opinion away.
        let (row, ignored) = apply(&Contrastive::new(0.0, Amateur::Tuned).unwrap(), &host, &advice, 0.5);
        prop_assert_eq!(ignored, 0);
        let log_sum = log_sum_exp(&host) as f32;
        for i in (0..row.len()).filter(|&i| advice[i] == UNKNOWN) {
            prop_assert!((row[i] - (host[i] - 0.5 * (host[i] - log_sum))).abs() < 1e-4);
        }
    }

    #[test]
    fn a_mask_of_the_host_is_as_if_the_tokens_were_not_there(
        [host, proxy] in two_rows(|| -10f32..10.0),
        masked in vec(any::<bool>(), 1100),
    ) {
        let masked = |i: usize| masked[i] && i > 0;
        let row: Vec<f32> = host.iter().enumerate().map(|(i, &x)| if masked(i) { NEVER } else { x }).collect();
        let kept: Vec<usize> = (0..host.len()).filter(|&i| !masked(i)).collect();
        let only = |row: &[f32]| kept.iter().map(|&i| row[i]).collect::<Vec<f32>>();
        for rule in rules() {
            let (whole, _) = apply(&*rule, &row, &proxy, 0.7);
            let (short, _) = apply(&*rule, &only(&host), &only(&proxy), 0.7);
            for (a, b) in only(&whole).into_iter().zip(short) {
                prop_assert!(a == b || (a - b).abs() < 1e-4 * b.abs().max(1.0), "{rule}: {a} {b}");
            }
        }
    }

    // `alpha` ends where a mixture still leaves the host a share of more than a few digits.
    #[test]
    fn halves_are_the_result_in_f32_rounded([host, proxy] in two_rows(|| -20f32..20.0), alpha in 0.1f32..0.9) {
        let f16s: Vec<f16> = host.iter().map(|&x| f16::from_f32(x)).collect();
        let bf16s: Vec<bf16> = host.iter().map(|&x| bf16::from_f32(x)).collect();
        for rule in rules() {
            let (mut a, mut b) = (f16s.clone(), bf16s.clone());
            rule.apply(Logits::F16(&mut a), &proxy, alpha).unwrap();
            rule.apply(Logits::Bf16(&mut b), &proxy, alpha).unwrap();
            let wide_a: Vec<f32> = f16s.iter().map(|x| x.to_f32()).collect();
            let wide_b: Vec<f32> = bf16s.iter().map(|x| x.to_f32()).collect();
            let (exact_a, _) = apply(&*rule, &wide_a, &proxy, alpha);
            let (exact_b, _) = apply(&*rule, &wide_b, &proxy, alpha);
            // Sums of other pieces end otherwise in the last place: of the terms, which a small difference does not show.
            let near = |got: f32, exact: f32, unit: f32| {
                got == exact || (got - exact).abs() <= unit * exact.abs() + 4e-5
            };
            prop_assert!(a.iter().zip(exact_a).all(|(a, e)| near(a.to_f32(), e, 5e-4)), "{rule}");
            prop_assert!(b.iter().zip(exact_b).all(|(b, e)| near(b.to_f32(), e, 4e-3)), "{rule}");
        }
    }
}

fn vocabulary(tokens: &[&str]) -> Vocabulary {
    Vocabulary::new(tokens.iter().map(|t| Entry { bytes: t.as_bytes().to_vec(), kind: Kind::Text }).collect())
}

#[test]
fn advice_goes_through_the_map_of_the_proxy_that_is_read() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
    let host = vocabulary(&names);
    let proxy = vocabulary(&["j", "i", "h", "g", "f", "e", "d", "c", "b", "a"]);
    let map = TokenMap::between(&host, &proxy, |_| vec![]).unwrap();
    let row: Vec<f32> = (0..10).map(|x| x as f32).collect();
    let (none, here): (ProxyRow<'_>, ProxyRow<'_>) = ((&[], &map), (&row, &map));
    let mut advice = vec![7.0; 11];
    Contrastive::new(0.1, Amateur::Untuned).unwrap().advise(&mut advice, [none, here]).unwrap();
    assert_eq!((advice[0], advice[9], advice[10]), (9.0, 0.0, UNKNOWN));
    let mean = Mixture::new(Weight::Constant(0.5)).unwrap();
    mean.advise(&mut advice, [here, none]).unwrap();
    assert_eq!(advice[1], 8.0);
    let error = mean.advise(&mut advice, [none, here]).unwrap_err();
    assert!(matches!(error, Error::Shape { got: 0, expected: 10, .. }), "{error:?}");
}

#[test]
fn rows_without_anything_to_combine_stay_and_what_is_unusable_is_counted() {
    let mean = Mixture::new(Weight::Constant(0.5)).unwrap();
    let contrastive = Contrastive::new(0.5, Amateur::Untuned).unwrap();
    for rule in [&mean as &dyn Rule, &contrastive] {
        for (host, advice) in [
            ([NEVER, NEVER], [1.0, 2.0]),
            ([1.0, f32::INFINITY], [1.0, 2.0]),
            ([1.0, 2.0], [NEVER, UNKNOWN]),
            ([1.0, NEVER], [UNKNOWN, 5.0]),
        ] {
            assert_eq!(apply(rule, &host, &advice, 1.0), (host.to_vec(), 2), "{rule} {host:?} {advice:?}");
        }
        let error = rule.apply(Logits::F32(&mut [1.0, 2.0]), &[1.0], 1.0).unwrap_err();
        assert!(matches!(error, Error::Shape { got: 1, expected: 2, .. }), "{error:?}");
        assert_eq!(apply(rule, &[1.0, 1.0, 1.0], &[f32::NAN, 1.0, 2.0], 1.0).1, 1);
    }
    // A token that the amateur holds impossible is not thereby the best of all.
    let (row, ignored) = apply(&contrastive, &[1.0, 1.0], &[NEVER, 0.0], 1.0);
    assert!(ignored == 1 && row.iter().all(|x| x.is_finite()), "{row:?}");
    // One that the tuned proxy holds impossible keeps half of what the host gives it.
    let (row, _) = apply(&mean, &[0.0, 0.0], &[NEVER, 0.0], 1.0);
    assert!((row[0] - 0.25f32.ln()).abs() < 1e-6 && (row[1] - 0.75f32.ln()).abs() < 1e-6, "{row:?}");
}

#[test]
fn a_mixture_has_no_weight_below_nothing_and_none_beyond_all() {
    let rule = Mixture::new(Weight::Constant(0.5)).unwrap();
    assert!(rule.check_alpha(-0.5).unwrap_err().to_string().contains("0 or more"));
    let [host, tuned] = [[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]];
    let exact = softmax(&tuned).into_iter().map(|p| p.ln() as f32);
    let (row, _) = apply(&rule, &host, &tuned, 3.0);
    assert!(row.into_iter().zip(exact).all(|(got, exact)| (got - exact).abs() < 1e-5), "the proxy alone");
    for bad in [-0.1, 1.1, f32::NAN] {
        assert!(Mixture::new(Weight::Constant(bad)).is_err());
        assert!(Contrastive::new(bad, Amateur::Untuned).is_err());
    }
}
