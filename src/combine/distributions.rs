//! The host's and a proxy's distribution at one position.

use super::Logit;
use super::softmax::{BLOCK, exp, max, sum_exp};

/// A softmax by its sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Softmax {
    /// The largest logit.
    pub max: f32,
    /// `ln(sum(exp(row)))`: what logits exceed log-probabilities by.
    pub log_sum: f64,
    /// Entropy in nats.
    pub entropy: f64,
}

impl Softmax {
    /// Logarithm of the largest probability.
    pub fn log_top(&self) -> f64 {
        f64::from(self.max) - self.log_sum
    }
}

/// Both distributions, over the tokens that the host allows, that is, those whose logit is not -inf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distributions {
    /// The host's.
    pub host: Softmax,
    /// The proxy's, over the tokens that it knows.
    pub proxy: Softmax,
    /// Logarithm of the host's probability of all tokens that the proxy knows.
    pub log_known: f64,
}

impl Distributions {
    /// `advice`: the proxy's logits in the host's order, [`UNKNOWN`](super::UNKNOWN) for tokens that it lacks. NaN
    /// counts as a logit of -inf in the host's row, as lacking in the proxy's.
    ///
    /// `None` where there is nothing to combine: a row that holds +inf, or no token that the host allows and the proxy
    /// gives any probability.
    pub fn of<L: Logit>(host: &[L], advice: &[f32]) -> Option<Self> {
        let mut most = [f32::NEG_INFINITY; 3];
        pieces(host, advice, |parts| {
            for (most, part) in most.iter_mut().zip(parts) {
                *most = most.max(max(part));
            }
        });
        if !most.iter().all(|max| max.is_finite()) {
            return None;
        }
        let [host_max, _, proxy_max] = most;
        let (mut sums, mut known) = ([Sums::default(); 2], 0.0);
        pieces(host, advice, |[host, known_to_proxy, proxy]| {
            sums[0].add(host, host_max);
            sums[1].add(proxy, proxy_max);
            known += f64::from(sum_exp(known_to_proxy, host_max));
        });
        Some(Self {
            host: sums[0].softmax(host_max),
            proxy: sums[1].softmax(proxy_max),
            log_known: known.ln() - sums[0].sum.ln(),
        })
    }

    /// Log-probabilities of a token to the host and to the proxy, from its logits; as everywhere here, one that the proxy
    /// lacks is as likely to it as to the host.
    pub fn log_probabilities(&self, host: f32, proxy: f32) -> [f64; 2] {
        let own = f64::from(host) - self.host.log_sum;
        let other = f64::from(proxy) - self.proxy.log_sum + self.log_known;
        [own, if proxy < f32::INFINITY { other } else { own }]
    }

    /// What to subtract from the proxy's logits for its log-probabilities, where the tokens that it lacks keep the
    /// host's probability and the others share the rest.
    pub(super) fn proxy_sum(&self) -> f32 {
        (self.proxy.log_sum - self.log_known) as f32
    }
}

/// Sums of `exp(x - max)` and of its product with `x - max`.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    sum: f64,
    moment: f64,
}

impl Sums {
    fn add(&mut self, part: &[f32], max: f32) {
        const LANES: usize = 16;
        let (mut sums, mut moments) = ([0.0; LANES], [0.0; LANES]);
        let mut take = |lane: usize, x: f32| {
            let below = (x - max).max(-87.0);
            let weight = exp(below);
            sums[lane] += weight;
            moments[lane] += weight * below;
        };
        let (blocks, rest) = part.as_chunks::<LANES>();
        for block in blocks {
            (0..LANES).for_each(|lane| take(lane, block[lane]));
        }
        rest.iter().enumerate().for_each(|(lane, &x)| take(lane, x));
        self.sum += f64::from(sums.iter().sum::<f32>());
        self.moment += f64::from(moments.iter().sum::<f32>());
    }

    fn softmax(self, max: f32) -> Softmax {
        let log = self.sum.ln();
        Softmax { max, log_sum: f64::from(max) + log, entropy: log - self.moment / self.sum }
    }
}

/// Both rows piece by piece: the host's logits, those of them that the proxy knows, and the proxy's; -inf elsewhere.
fn pieces<L: Logit>(host: &[L], advice: &[f32], mut visit: impl FnMut([&[f32]; 3])) {
    const NOTHING: f32 = f32::NEG_INFINITY;
    let mut parts = [[NOTHING; BLOCK]; 3];
    L::read(host, |at, wide| {
        for (wide, advice) in wide.chunks(BLOCK).zip(advice[at..].chunks(BLOCK)) {
            let len = wide.len();
            let [hosts, known, proxies] = &mut parts;
            for i in 0..len {
                let (h, a) = (wide[i], advice[i]);
                // False for NaN as well.
                let (is_known, is_allowed) = (a < f32::INFINITY, h > NOTHING);
                hosts[i] = if is_allowed { h } else { NOTHING };
                known[i] = if is_known { hosts[i] } else { NOTHING };
                proxies[i] = if is_known & is_allowed { a } else { NOTHING };
            }
            visit(parts.each_ref().map(|part| &part[..len]));
        }
    });
}
