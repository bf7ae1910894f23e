//! The shift as `logit_bias`: the host adds it to its own logits and samples from the shifted distribution itself.

use super::{Advice, Advisers};
use crate::vocab::{Entry, Token, Vocabulary};
use std::collections::HashMap;

/// Where the tuned proxy's tokens stand in the host's vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// At the same places.
    Same,
    /// At these.
    Map(HashMap<Token, Token>),
    /// Not known: nothing can be biased.
    Unknown,
}

impl Ids {
    /// Matches tokens by bytes and kind with a host's vocabulary.
    pub fn of(advisers: &Advisers, host: &Vocabulary) -> Self {
        let mut places: HashMap<&Entry, Token> = HashMap::with_capacity(host.len());
        for (id, entry) in host.entries().iter().enumerate() {
            places.entry(entry).or_insert(id as Token);
        }
        let own = advisers.tuned().vocabulary();
        let pairs = own.entries().iter().enumerate();
        Self::Map(pairs.filter_map(|(id, entry)| Some((id as Token, *places.get(entry)?))).collect())
    }

    /// Where one of them stands.
    pub fn get(&self, token: Token) -> Option<Token> {
        match self {
            Self::Same => Some(token),
            Self::Map(map) => map.get(&token).copied(),
            Self::Unknown => None,
        }
    }
}

/// What is sent with one call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Biases {
    /// By the host's token.
    pub list: Vec<(Token, f32)>,
    /// Probability, to the tuned or to the untuned proxy, whichever has more of it, of all tokens whose own shift was left out.
    pub left_out: f64,
    /// Biases that were cut to the largest that the host takes.
    pub cut: usize,
}

impl Biases {
    /// The shift of the `count` tokens that matter most: the likeliest ones to either proxy. All others get one shift in
    /// common, the mean of theirs; biases are sent relative to it, so that those others need none.
    pub fn new(advice: &Advice, alpha: f32, ids: &Ids, count: usize, size: f32) -> Self {
        let weight = |token: usize| advice.tuned[token].max(advice.untuned[token]);
        let mut order: Vec<usize> = (0..advice.delta.len())
            .filter(|&t| ids.get(t as Token).is_some() && weight(t) > f32::NEG_INFINITY)
            .collect();
        let heavier = |a: &usize, b: &usize| weight(*b).total_cmp(&weight(*a)).then(a.cmp(b));
        if order.len() > count {
            order.select_nth_unstable_by(count, heavier);
            order.truncate(count);
        }
        order.sort_unstable_by(heavier);
        let mut is_sent = vec![false; advice.delta.len()];
        order.iter().for_each(|&t| is_sent[t] = true);
        let others = || (0..advice.delta.len()).filter(|&t| !is_sent[t]);
        let mass = |of: &[f32]| others().map(|t| f64::from(of[t]).exp()).sum::<f64>();
        let [tuned, untuned] = [mass(&advice.tuned), mass(&advice.untuned)];
        let shifted: f64 = others()
            .map(|t| f64::from(advice.untuned[t] + alpha * advice.delta[t]).exp())
            .filter(|m| m.is_finite())
            .sum();
        let common = if untuned > 0.0 && shifted > 0.0 { (shifted / untuned).ln() as f32 } else { 0.0 };
        let mut cut = 0;
        let bias = |&token: &usize| {
            let bias = alpha * advice.delta[token] - common;
            cut += usize::from(bias.abs() > size);
            Some((ids.get(token as Token)?, bias.clamp(-size, size)))
        };
        let list = order.iter().filter_map(bias).filter(|&(_, bias)| bias != 0.0).collect();
        Self { list, left_out: tuned.max(untuned).min(1.0), cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(tuned: &[f32], untuned: &[f32]) -> Advice {
        let [tuned, untuned] = [tuned, untuned].map(|p| p.iter().map(|p| p.ln()).collect::<Vec<f32>>());
        let delta = tuned.iter().zip(&untuned).map(|(t, u)| t - u).collect();
        Advice { delta, tuned, untuned }
    }

    #[test]
    fn those_that_matter_are_sent_relative_to_the_mean_of_the_rest() {
        let advice = advice(&[0.5, 0.3, 0.15, 0.05], &[0.3, 0.6, 0.05, 0.05]);
        let biases = Biases::new(&advice, 1.0, &Ids::Same, 2, 100.0);
        assert!((biases.left_out - 0.2).abs() < 1e-6);
        // Tokens 2 and 3 have 0.2 of the tuned and 0.1 of the untuned proxy: a factor of two in common.
        let expected = [(1, 0.3f32 / 0.6 / 2.0), (0, 0.5 / 0.3 / 2.0)];
        assert_eq!(biases.list.len(), 2);
        for ((token, bias), (id, factor)) in biases.list.iter().zip(expected) {
            assert!(*token == id && (bias - factor.ln()).abs() < 1e-5, "{biases:?}");
        }
    }

    #[test]
    fn biases_stay_within_the_limits_and_what_is_cut_is_counted() {
        let advice = advice(&[0.998, 0.001, 0.001], &[1e-6, 0.5, 0.5]);
        let biases = Biases::new(&advice, 1.0, &Ids::Same, 3, 5.0);
        assert_eq!((biases.cut, biases.list.len(), biases.left_out), (3, 3, 0.0));
        assert!(biases.list.iter().all(|(_, bias)| bias.abs() == 5.0));
        let map = Ids::Map([(1, 70)].into());
        assert_eq!(
            Biases::new(&advice, 1.0, &map, 3, 100.0).list.iter().map(|b| b.0).collect::<Vec<_>>(),
            [70]
        );
        assert!(Biases::new(&advice, 1.0, &Ids::Unknown, 3, 100.0).list.is_empty());
    }
}
