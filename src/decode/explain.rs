//! What the shift did at one position: probabilities before and after it, and which proxy moved them.

use crate::combine::{UNKNOWN, log_sum_exp_of_numbers};
use crate::vocab::Token;

/// Most candidates of a position, before the shift and after it: whole vocabularies are never kept.
pub const MOST_CANDIDATES: usize = 20;

/// What the shift did at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// The token chosen.
    pub token: Token,
    /// The host's most likely token before the shift.
    pub host_top: Token,
    /// The most likely token after it.
    pub top: Token,
    /// Where they were asked for: probabilities of the chosen token, at temperature 1.
    pub probabilities: Option<Probabilities>,
    /// Where they were asked for: the likeliest tokens after the shift, then those before it that are not among them.
    pub candidates: Vec<Candidate>,
}

impl Position {
    /// Whether the shift changed the most likely token.
    pub fn is_shifted(&self) -> bool {
        self.host_top != self.top
    }

    /// Fills in what is to be said of it.
    pub(super) fn explain(&mut self, rows: &Rows<'_>, count: usize) {
        let (probabilities, candidates) = explain(rows, self.token, count);
        self.probabilities = Some(probabilities);
        self.candidates = candidates;
    }
}

/// How likely the chosen token was to each model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probabilities {
    /// To the host.
    pub host: f32,
    /// After the shift.
    pub shifted: f32,
    /// To the tuned and to the untuned proxy, NaN to one that the rule does not read; `None` without proxies, or for a token
    /// that one lacks.
    pub proxies: Option<[f32; 2]>,
    /// How much the shift changed the choice: the total variation between the distributions before and after it, 0 to 1.
    /// In so many of all draws, and in no fewer, the token has to be another one.
    pub change: f32,
}

/// A token that was among the likeliest before the shift or after it. Probabilities are at temperature 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: Token,
    /// To the host.
    pub host: f32,
    /// After the shift.
    pub shifted: f32,
    /// As [`Probabilities::proxies`].
    pub proxies: Option<[f32; 2]>,
    /// Whose doing the difference is; `None` where there is none to speak of.
    pub moved_by: Option<Mover>,
}

/// The proxy that moved a token.
///
/// Its shift `ln t - ln u` is what the tuned proxy has above the host, `ln t - ln h`, and what the untuned one has below it,
/// `ln h - ln u`. The larger of the two moved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mover {
    /// What tuning has taught stands out against the host as well.
    Tuned,
    /// The host and the tuned proxy are of one mind, and the untuned one of another.
    Untuned,
}

impl Mover {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tuned => "tuned",
            Self::Untuned => "untuned",
        }
    }
}

/// A change of less than this factor is none to speak of.
const NOTABLE: f32 = 1.01;

/// A row of logits as a distribution.
struct Distribution<'a> {
    row: &'a [f32],
    log_sum: f64,
}

impl<'a> Distribution<'a> {
    fn new(row: &'a [f32]) -> Self {
        Self { row, log_sum: log_sum_exp_of_numbers(row) }
    }

    fn of(&self, token: usize) -> f32 {
        let logit = self.row.get(token).copied().unwrap_or(f32::NEG_INFINITY);
        let p = (f64::from(logit) - self.log_sum).exp() as f32;
        // A row without any token to choose, or NaN.
        if p.is_nan() { 0.0 } else { p }
    }

    /// The likeliest tokens, in that order.
    fn top(&self, count: usize) -> Vec<usize> {
        let mut top: Vec<usize> = Vec::with_capacity(count + 1);
        for (token, &logit) in self.row.iter().enumerate() {
            let least = top.last().filter(|_| top.len() == count);
            if logit == f32::NEG_INFINITY || logit.is_nan() || least.is_some_and(|&t| logit <= self.row[t]) {
                continue;
            }
            let place = top.partition_point(|&t| self.row[t] >= logit);
            top.insert(place, token);
            top.truncate(count);
        }
        top
    }
}

/// What all models say at one position, over the host's vocabulary.
pub(crate) struct Rows<'a> {
    /// Its logits.
    pub host: &'a [f32],
    /// The same after the shift.
    pub shifted: &'a [f32],
    /// The proxies' log-probabilities, as [`Pair::append_log_probabilities`](crate::pair::Pair::append_log_probabilities) has them.
    pub proxies: Option<&'a [f32]>,
}

/// What there is to say of a position at which `token` was chosen, with at most `count` candidates of each distribution.
pub(crate) fn explain(rows: &Rows<'_>, token: Token, count: usize) -> (Probabilities, Vec<Candidate>) {
    let [host, shifted] = [rows.host, rows.shifted].map(Distribution::new);
    let candidate = |token: usize| {
        let of_proxies = rows.proxies.and_then(|of| {
            let (tuned, untuned) = of.split_at(of.len() / 2);
            let probability = |of: &[f32]| of.get(token).filter(|p| **p != UNKNOWN).map(|p| p.exp());
            Some([probability(tuned)?, probability(untuned)?])
        });
        let (p_host, p) = (host.of(token), shifted.of(token));
        // Where one of the two did not run, there is no telling.
        let both = of_proxies.filter(|of| of.iter().all(|p| !p.is_nan()));
        let moved_by = both.and_then(|of| mover(p_host, p, of));
        Candidate { token: token as Token, host: p_host, shifted: p, proxies: of_proxies, moved_by }
    };
    let change = (0..rows.host.len()).map(|i| f64::from((host.of(i) - shifted.of(i)).max(0.0))).sum::<f64>();
    let of_chosen = candidate(token as usize);
    let probabilities = Probabilities {
        host: of_chosen.host,
        shifted: of_chosen.shifted,
        proxies: of_chosen.proxies,
        change: change.min(1.0) as f32,
    };
    let count = count.min(MOST_CANDIDATES);
    let mut tokens = if count == 0 { Vec::new() } else { shifted.top(count) };
    let before = if count == 0 { Vec::new() } else { host.top(count) };
    tokens.extend(before.into_iter().filter(|t| !tokens.contains(t)).collect::<Vec<_>>());
    (probabilities, tokens.into_iter().map(candidate).collect())
}

fn mover(host: f32, shifted: f32, [tuned, untuned]: [f32; 2]) -> Option<Mover> {
    let ratio = shifted.max(f32::MIN_POSITIVE) / host.max(f32::MIN_POSITIVE);
    if (1.0 / NOTABLE..=NOTABLE).contains(&ratio) {
        return None;
    }
    let [host, tuned, untuned] = [host, tuned, untuned].map(|p| p.max(f32::MIN_POSITIVE).ln());
    Some(if (tuned - host).abs() >= (host - untuned).abs() { Mover::Tuned } else { Mover::Untuned })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [f32; 4] = [0.4, 0.3, 0.2, 0.1];
    const TUNED: [f32; 4] = [0.1, 0.1, 0.2, 0.6];
    const UNTUNED: [f32; 4] = [0.4, 0.025, 0.2, 0.375];

    fn logs(of: [f32; 4]) -> Vec<f32> {
        // Logits are known up to a constant.
        of.iter().map(|p| p.ln() + 7.0).collect()
    }

    fn explained(count: usize) -> (Probabilities, Vec<Candidate>) {
        let [host, tuned, untuned] = [HOST, TUNED, UNTUNED].map(logs);
        let shifted: Vec<f32> = (0..4).map(|i| host[i] + tuned[i] - untuned[i]).collect();
        let proxies: Vec<f32> = TUNED.iter().chain(&UNTUNED).map(|p| p.ln()).collect();
        explain(&Rows { host: &host, shifted: &shifted, proxies: Some(&proxies) }, 3, count)
    }

    #[test]
    fn probabilities_change_and_mover_are_those_of_the_definition() {
        // h * t / u: 0.1, 1.2, 0.2, 0.16, of 1.66.
        let (p, candidates) = explained(4);
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(p.host, 0.1);
        close(p.shifted, 0.16 / 1.66);
        close(p.proxies.unwrap()[0], 0.6);
        close(p.change, 1.2 / 1.66 - 0.3);
        let order: Vec<Token> = candidates.iter().map(|c| c.token).collect();
        assert_eq!(order, [1, 2, 3, 0]);
        // Token 1: tuned a third of the host, untuned a twelfth of it. Token 0: tuned a quarter, untuned the same.
        assert_eq!(candidates[0].moved_by, Some(Mover::Untuned));
        assert_eq!(candidates[3].moved_by, Some(Mover::Tuned));
    }

    #[test]
    fn candidates_are_the_likeliest_before_and_after_and_no_more() {
        let tokens = |count| explained(count).1.iter().map(|c| c.token).collect::<Vec<_>>();
        assert!(tokens(0).is_empty());
        assert_eq!(tokens(1), [1, 0]);
        assert_eq!(tokens(2), [1, 2, 0]);
        let row: Vec<f32> = (0..100).map(|i| i as f32 * 0.01).collect();
        let rows = Rows { host: &row, shifted: &row, proxies: None };
        let (p, candidates) = explain(&rows, 5, 1000);
        assert_eq!((candidates.len(), p.change, candidates[0].moved_by), (MOST_CANDIDATES, 0.0, None));
    }

    #[test]
    fn tokens_that_a_proxy_lacks_and_rows_without_numbers_are_no_trouble() {
        let host = [1.0, f32::NAN, f32::NEG_INFINITY];
        let proxies = [-1.3, -0.3, UNKNOWN, -1.3, -0.3, -5.0];
        let rows = Rows { host: &host, shifted: &host, proxies: Some(&proxies) };
        let (p, candidates) = explain(&rows, 2, 3);
        assert_eq!((p.host, p.shifted, p.proxies, p.change), (0.0, 0.0, None, 0.0));
        assert_eq!(candidates.iter().map(|c| c.token).collect::<Vec<_>>(), [0]);
        let nothing = [f32::NEG_INFINITY; 2];
        let (p, candidates) = explain(&Rows { host: &nothing, shifted: &nothing, proxies: None }, 0, 3);
        assert_eq!((p.host, candidates.len()), (0.0, 0));
    }
}
