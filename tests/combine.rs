//! The shift against scalar references, in every format of host logits.

use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::Union;
use proptest::test_runner::TestCaseResult;
use proptest::{prop_assert, prop_assert_eq, proptest};
use proxytune::Error;
use proxytune::combine::{Logit, Shift, argmax, offset, shift, shift_by};
use proxytune::vocab::{Entry, Kind, Token, TokenMap, Vocabulary};

const SPECIAL: [f32; 11] = [
    0.0,
    -0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    65504.0,
    -65504.0,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    1e-40,
];

/// What the references need to know of a format.
trait Format: Logit + std::fmt::Debug {
    const MAX: f32;
    /// Half the distance between neighbouring numbers, relative to them.
    const ROUNDING: f64;
    fn narrow(wide: f32) -> Self;
    fn wide(self) -> f32;
    fn bits(self) -> u32;
}

macro_rules! logit_format {
    ($format:ty, $digits:literal, $narrow:expr, $wide:expr) => {
        impl Format for $format {
            const MAX: f32 = $wide(<$format>::MAX);
            const ROUNDING: f64 = 1.0 / (1u64 << $digits) as f64;
            fn narrow(wide: f32) -> Self {
                $narrow(wide)
            }
            fn wide(self) -> f32 {
                $wide(self)
            }
            fn bits(self) -> u32 {
                self.to_bits().into()
            }
        }
    };
}
logit_format!(f32, 24, std::convert::identity, std::convert::identity);
logit_format!(f16, 11, f16::from_f32, f16::to_f32_const);
logit_format!(bf16, 8, bf16::from_f32, bf16::to_f32_const);

/// The rules of the shift, one logit at a time: the new logit, and whether the shift was ignored.
fn naive<L: Format>(host: L, delta: f32) -> (L, bool) {
    let sum = host.wide() + delta;
    if sum.is_nan() || sum == f32::INFINITY {
        (host, true)
    } else if delta == 0.0 {
        (host, false)
    } else if sum.is_finite() {
        (L::narrow(sum.clamp(-L::MAX, L::MAX)), false)
    } else {
        (L::narrow(sum), false)
    }
}

fn narrow<L: Format>(wide: &[f32]) -> Vec<L> {
    wide.iter().copied().map(L::narrow).collect()
}

/// Bits, but one NaN of a half format is as good as another: widening may quieten it.
fn same_bits<L: Format>(a: &[L], b: &[L]) -> bool {
    let nan = |a: &L, b: &L| size_of::<L>() < 4 && a.wide().is_nan() && b.wide().is_nan();
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bits() == b.bits() || nan(a, b))
}

fn length() -> impl Strategy<Value = usize> {
    // Miri takes a thousand times as long.
    let edges =
        if cfg!(miri) { vec![0, 1, 31, 32, 33] } else { vec![0, 1, 31, 32, 33, 1023, 1024, 1025, 2048] };
    prop_oneof![select(edges), 0..if cfg!(miri) { 70 } else { 3000usize }]
}

fn any_logit() -> impl Strategy<Value = f32> {
    Union::new_weighted(vec![
        (16, (-30f32..30.0).boxed()),
        (2, prop::num::f32::ANY.boxed()),
        (2, select(SPECIAL.to_vec()).boxed()),
    ])
}

fn rows_of<S: Strategy<Value = f32>>(logit: fn() -> S) -> impl Strategy<Value = [Vec<f32>; 3]> {
    length().prop_flat_map(move |n| [vec(logit(), n), vec(logit(), n), vec(logit(), n)])
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![select(vec![1.0, -1.0, 0.5, 1e30]), -3f32..3.0]
}

fn follows_the_rules<L: Format>(rows: &[Vec<f32>; 3], alpha: f32) -> TestCaseResult {
    let [host, tuned, untuned] = rows;
    let host = narrow::<L>(host);
    let difference: Vec<f32> = tuned.iter().zip(untuned).map(|(t, u)| t - u).collect();
    let moved = |d: &f32| if alpha == 0.0 { 0.0 } else { alpha * d };
    let (expected, ignored): (Vec<L>, Vec<bool>) =
        host.iter().zip(&difference).map(|(&h, d)| naive(h, moved(d))).unzip();
    let ignored = Shift { ignored: ignored.into_iter().filter(|&i| i).count() };

    let (mut whole, mut taken) = (host.clone(), host.clone());
    prop_assert_eq!(shift(&mut whole, tuned, untuned, alpha).unwrap(), ignored);
    prop_assert_eq!(shift_by(&mut taken, &difference, alpha).unwrap(), ignored);
    prop_assert!(same_bits(&whole, &expected));
    prop_assert!(same_bits(&taken, &expected));
    for (before, after) in host.iter().zip(&whole) {
        let (before, after) = (before.wide(), after.wide());
        prop_assert!(
            !before.is_finite() || !(after.is_nan() || after == f32::INFINITY),
            "{before} -> {after}"
        );
        prop_assert!(before != f32::NEG_INFINITY || after == f32::NEG_INFINITY, "{before} -> {after}");
    }
    Ok(())
}

fn is_close_to_f64<L: Format>(rows: &[Vec<f32>; 3], alpha: f32) -> TestCaseResult {
    let [host, tuned, untuned] = rows;
    let host = narrow::<L>(host);
    let mut shifted = host.clone();
    shift(&mut shifted, tuned, untuned, alpha).unwrap();
    for (i, (h, got)) in host.iter().zip(&shifted).enumerate() {
        let (h, t, u) = (f64::from(h.wide()), f64::from(tuned[i]), f64::from(untuned[i]));
        let (exact, alpha) = (h + f64::from(alpha) * (t - u), f64::from(alpha).abs());
        let wide_error = (h.abs() + 3.0 * alpha * (t.abs() + u.abs())) * f32::ROUNDING;
        // The last term is for numbers too small to be normal in f16.
        let error = wide_error + exact.abs() * L::ROUNDING * 1.01 + 1e-7;
        prop_assert!((f64::from(got.wide()) - exact).abs() <= error, "{} instead of {exact}", got.wide());
    }
    Ok(())
}

fn stays_the_same<L: Format>(host: &[L], proxy: &[f32], alpha: f32) -> TestCaseResult {
    let (mut weightless, mut equal) = (host.to_vec(), host.to_vec());
    let other: Vec<f32> = proxy.iter().rev().copied().collect();
    prop_assert_eq!(shift(&mut weightless, proxy, &other, 0.0).unwrap(), Shift::default());
    shift(&mut equal, proxy, proxy, alpha).unwrap();
    prop_assert!(same_bits(&weightless, host));
    prop_assert!(same_bits(&equal, host));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn any_numbers_at_all_are_shifted_by_the_rules(rows in rows_of(any_logit), alpha in weight()) {
        follows_the_rules::<f32>(&rows, alpha)?;
        follows_the_rules::<f16>(&rows, alpha)?;
        follows_the_rules::<bf16>(&rows, alpha)?;
    }

    #[test]
    fn ordinary_logits_come_out_as_in_f64(rows in rows_of(|| -30f32..30.0), alpha in -3f32..3.0) {
        is_close_to_f64::<f32>(&rows, alpha)?;
        is_close_to_f64::<f16>(&rows, alpha)?;
        is_close_to_f64::<bf16>(&rows, alpha)?;
    }

    #[test]
    fn weight_zero_and_equal_proxies_leave_every_bit(
        host in vec(prop_oneof![any::<u32>(), any_logit().prop_map(f32::to_bits)], 0..if cfg!(miri) { 70 } else { 2100 }),
        fill in any_logit(),
        alpha in weight(),
    ) {
        let proxy: Vec<f32> = host.iter().map(|b| fill + (b % 7) as f32).collect();
        stays_the_same::<f32>(&host.iter().map(|&b| f32::from_bits(b)).collect::<Vec<_>>(), &proxy, alpha)?;
        stays_the_same::<f16>(&host.iter().map(|&b| f16::from_bits(b as u16)).collect::<Vec<_>>(), &proxy, alpha)?;
        stays_the_same::<bf16>(&host.iter().map(|&b| bf16::from_bits(b as u16)).collect::<Vec<_>>(), &proxy, alpha)?;
    }

    #[test]
    fn argmax_is_the_first_largest_number(
        row in vec(prop_oneof![
            8 => (-3i32..3).prop_map(|x| x as f32),
            1 => select(vec![f32::NAN, f32::NEG_INFINITY, -0.0]),
        ], 0..200),
    ) {
        let mut best: Option<usize> = None;
        for (i, x) in row.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
            if best.is_none_or(|b| *x > row[b]) {
                best = Some(i);
            }
        }
        prop_assert_eq!(argmax(&row), best.unwrap_or(0));
    }

    #[test]
    fn offsets_follow_each_token_to_its_place_in_either_proxy(
        (tuned, untuned) in (proxy_tokens(), proxy_tokens()),
        values in vec(-30f32..30.0, 2 * PROXY),
        padding in 0..5usize,
    ) {
        let host = vocabulary(&(0..HOST).collect::<Vec<_>>(), 3);
        let of = |tokens: &[usize]| vocabulary(tokens, padding);
        let (t, u) = (of(&tuned), of(&untuned));
        let map = |v: &Vocabulary| TokenMap::between(&host, v, |_| vec![]).unwrap();
        let (t_row, u_row) = (&values[..t.len()], &values[PROXY..][..u.len()]);
        let mut got = vec![f32::NAN; host.len()];
        offset(&mut got, (t_row, &map(&t)), (u_row, &map(&u))).unwrap();

        let place = |tokens: &[usize], i: usize| tokens.iter().position(|&t| t == i);
        for (i, got) in got.into_iter().enumerate() {
            let both = place(&tuned, i).zip(place(&untuned, i));
            prop_assert_eq!(got, both.map_or(0.0, |(t, u)| t_row[t] - u_row[u]), "token {}", i);
        }
    }
}

const HOST: usize = 40;
const PROXY: usize = HOST + 8;

/// Which host tokens a proxy has, in its own order.
fn proxy_tokens() -> impl Strategy<Value = Vec<usize>> {
    subsequence((0..HOST).collect::<Vec<_>>(), 1..=HOST).prop_shuffle()
}

fn vocabulary(tokens: &[usize], padding: usize) -> Vocabulary {
    let entry = |bytes: String, kind| Entry { bytes: bytes.into_bytes(), kind };
    let text = tokens.iter().map(|i| entry(format!("token {i}"), Kind::Text));
    let unused = (0..padding).map(|_| entry(String::new(), Kind::Unused));
    Vocabulary::new(text.chain(unused).collect())
}

fn shifted<L: Format>(host: f32, tuned: f32, untuned: f32) -> (f32, usize) {
    let mut row = [L::narrow(host)];
    let Shift { ignored } = shift(&mut row, &[tuned], &[untuned], 1.0).unwrap();
    (row[0].wide(), ignored)
}

fn masks_and_bad_shifts<L: Format>() {
    let inf = f32::INFINITY;
    assert_eq!(shifted::<L>(-inf, 9.0, 1.0), (-inf, 0), "masked stays masked");
    assert_eq!(shifted::<L>(-inf, inf, 1.0), (-inf, 1), "even against an infinite shift");
    assert_eq!(shifted::<L>(2.0, inf, inf), (2.0, 1), "inf - inf");
    assert_eq!(shifted::<L>(2.0, -inf, -inf), (2.0, 1), "both proxies masked");
    assert_eq!(shifted::<L>(2.0, f32::NAN, 0.0), (2.0, 1), "a proxy returned NaN");
    assert_eq!(shifted::<L>(2.0, inf, 0.0), (2.0, 1), "would become inf");
    assert_eq!(shifted::<L>(2.0, -inf, 0.0), (-inf, 0), "masked by the tuned proxy");
    assert_eq!(shifted::<L>(inf, 1.0, 0.0), (inf, 1));
    assert!(shifted::<L>(f32::NAN, 1.0, 0.0).0.is_nan());
}

#[test]
fn masks_stay_and_unusable_shifts_are_counted() {
    masks_and_bad_shifts::<f32>();
    masks_and_bad_shifts::<f16>();
    masks_and_bad_shifts::<bf16>();
}

#[test]
fn half_formats_saturate_where_f32_still_holds_the_sum() {
    assert_eq!(shifted::<f16>(60000.0, 60000.0, 0.0), (65504.0, 0));
    assert_eq!(shifted::<f16>(-60000.0, 0.0, 60000.0), (-65504.0, 0));
    assert_eq!(shifted::<f16>(1.0, 65518.5, 0.0), (65504.0, 0), "rounding up would give an infinity");
    let most = <bf16 as Format>::MAX;
    assert_eq!(shifted::<bf16>(most, 1e36, 0.0), (most, 0));
    assert_eq!(shifted::<bf16>(-most, 0.0, 1e36), (-most, 0));
    assert_eq!(
        shifted::<f32>(f32::MAX, f32::MAX, 0.0),
        (f32::MAX, 1),
        "f32 has no wider sum: left as it was"
    );
}

#[test]
fn one_odd_logit_in_a_plain_row_follows_the_rules() {
    // The last place of 1.0 in bf16 and in f16, halved: the sums are ties, to be rounded down and up.
    let (tie, fine_tie) = (1.0 / 256.0, 1.0 / 2048.0);
    let ties = [(1.0, tie), (1.0 + 2.0 * tie, tie), (1.0, fine_tie), (1.0 + 2.0 * fine_tie, fine_tie)];
    let zeros = [(-0.0, 0.0), (-0.0, -0.0), (0.0, 0.0), (0.0, -0.0), (1.0, -1.0)];
    // Rounded as numbers are, the first two would become zeros.
    let nans = [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001].map(|bits| (1.0, f32::from_bits(bits)));
    for (host, delta) in [&ties[..], &zeros, &nans, &[(f32::NEG_INFINITY, 1.0), (1.0, f32::MAX)]].concat() {
        for at in [0, 100, 255, 299] {
            let mut rows = [vec![1.0; 300], vec![2.0; 300], vec![1.5; 300]];
            [rows[0][at], rows[1][at], rows[2][at]] = [host, delta, 0.0];
            follows_the_rules::<f32>(&rows, 1.0).unwrap();
            follows_the_rules::<f16>(&rows, 1.0).unwrap();
            follows_the_rules::<bf16>(&rows, 1.0).unwrap();
        }
    }
}

#[test]
fn the_payload_of_a_nan_survives_any_shift_in_f32() {
    let odd = [0x7f80_0001, 0x7fc0_1234, 0xffff_ffff_u32];
    let mut row = odd.map(f32::from_bits);
    assert_eq!(shift(&mut row, &[1.0; 3], &[0.5; 3], 2.0).unwrap().ignored, 3);
    assert_eq!(row.map(f32::to_bits), odd);
}

fn refuses<L: Format>(tuned: usize, untuned: usize, wrong: usize) {
    let host = narrow::<L>(&[1.0, -2.0, 3.0]);
    let mut row = host.clone();
    let error = shift(&mut row, &vec![1.0; tuned], &vec![0.0; untuned], 1.0).unwrap_err();
    assert!(matches!(error, Error::Shape { got, expected: 3, .. } if got == wrong), "{error:?}");
    let message = error.to_string();
    assert!(message.contains(&format!("{wrong} logits")) && message.contains("expected 3"), "{message}");
    assert!(same_bits(&row, &host));
}

#[test]
fn unequal_lengths_are_refused_with_both_and_touch_nothing() {
    for (tuned, untuned, wrong) in [(2, 3, 2), (3, 4, 4), (0, 3, 0), (3, 2000, 2000)] {
        refuses::<f32>(tuned, untuned, wrong);
        refuses::<f16>(tuned, untuned, wrong);
        refuses::<bf16>(tuned, untuned, wrong);
    }
    let mut row = [1.0f32, 2.0];
    let error = shift_by(&mut row, &[1.0; 3], 1.0).unwrap_err();
    assert!(matches!(error, Error::Shape { got: 3, expected: 2, .. }), "{error:?}");
    assert_eq!(row, [1.0, 2.0]);
}

#[test]
fn an_offset_of_the_wrong_length_is_refused() {
    let map = TokenMap::identity(4);
    let (good, short) = ([1.0f32; 4], [1.0f32; 3]);
    let mut out = [0.0f32; 4];
    let error = offset(&mut out, (&short, &map), (&good, &map)).unwrap_err();
    assert!(matches!(error, Error::Shape { got: 3, expected: 4, .. }), "{error:?}");
    let error = offset(&mut out[..3], (&good, &map), (&good, &map)).unwrap_err();
    assert!(matches!(
        error,
        Error::Shape { got: 3, expected: 4, .. } | Error::Shape { got: 4, expected: 3, .. }
    ));
}

#[test]
fn tokens_that_a_proxy_lacks_have_no_offset() {
    let host = vocabulary(&(0..20).collect::<Vec<_>>(), 0);
    let proxy = vocabulary(&(0..19).rev().collect::<Vec<_>>(), 0);
    let map = TokenMap::between(&host, &proxy, |_| vec![]).unwrap();
    let row: Vec<f32> = (0..19).map(|x| x as f32).collect();
    assert_eq!(map.ids()[19], Token::MAX);
    let mut got = vec![7.0; 20];
    offset(&mut got, (&row, &map), (&[0.0; 19], &map)).unwrap();
    assert_eq!((got[0], got[18], got[19]), (18.0, 0.0, 0.0));
}
