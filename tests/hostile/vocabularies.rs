//! Token maps between vocabularies of any make.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proxytune::vocab::{Entry, Kind, Token, TokenMap, Vocabulary};
use std::time::{Duration, Instant};

fn entry() -> impl Strategy<Value = Entry> {
    let kind =
        prop_oneof![8 => Just(Kind::Text), 1 => select(&[Kind::Byte, Kind::Control, Kind::Unused][..])];
    // Few letters, so that vocabularies have much in common and many tokens twice.
    (vec(select(&b"ab\xff\0"[..]), 0..3), kind).prop_map(|(bytes, kind)| Entry { bytes, kind })
}

fn vocabulary() -> impl Strategy<Value = Vocabulary> {
    vec(entry(), 0..60).prop_map(Vocabulary::new)
}

proptest! {
    #[test]
    fn a_map_leads_to_equal_tokens_and_to_the_nearest_of_them(host in vocabulary(), proxy in vocabulary()) {
        let Ok(map) = TokenMap::between(&host, &proxy, |_| vec![0]) else { return Ok(()) };
        prop_assert_eq!((map.host_len(), map.proxy_len()), (host.len(), proxy.len()));
        for (id, &to) in map.ids().iter().enumerate() {
            let entry = &host.entries()[id];
            let equal = |(_, e): &(usize, &Entry)| *e == entry && e.kind != Kind::Unused;
            let places = proxy.entries().iter().enumerate().filter(equal).map(|(place, _)| place.abs_diff(id));
            match places.min() {
                Some(distance) => {
                    prop_assert_eq!(&proxy.entries()[to as usize], entry);
                    prop_assert_eq!((to as usize).abs_diff(id), distance);
                }
                None => prop_assert_eq!(to, TokenMap::NONE),
            }
        }
    }

    #[test]
    fn any_tokens_are_translated_into_the_proxys(host in vocabulary(), tokens in vec(any::<Token>(), 0..20)) {
        let map = TokenMap::between(&host, &host, |_| vec![0]);
        if let Ok(map) = map {
            let mut out = Vec::new();
            map.translate(&tokens, &mut out);
            prop_assert!(out.len() <= tokens.len());
            let _ = map.is_one_to_one(&tokens);
        }
    }
}

#[test]
fn a_vocabulary_of_equal_tokens_takes_no_quadratic_time() {
    let same = Vocabulary::new(vec![Entry { bytes: b"a".to_vec(), kind: Kind::Text }; 1 << 18]);
    let begin = Instant::now();
    assert!(TokenMap::between(&same, &same, |_| vec![]).unwrap().is_identity());
    // By looking at each of them for each of them it would be 69 thousand million steps: minutes.
    assert!(begin.elapsed() < Duration::from_secs(30));
}
