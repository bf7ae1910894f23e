//! Mixtures fitted on a text (CombLM: Ormazabal et al. 2023, section 3): the tuned proxy's weight, constant or by a small
//! network, under which host and tuned proxy together predict the text best.
//!
//! Both models run over the text once. What is kept of a position are six numbers, so that the fitting itself takes
//! seconds. Every tenth window is held out: its bits per byte are what is reported, and what a network is chosen by.

mod network;

use super::setup::{Listen, Progress, Setup};
use super::sweep::{Scorer, Seat};
use super::table::{Measure, Scratch, Table, Unit};
use super::text::{Windows, scored_bytes};
use crate::combine::{Distributions, Features, Mixture, Rule, RuleName, RuleOptions, Weight};
use crate::decode::NAMES;
use crate::error::{Error, Result};
use crate::vocab::TokenMap;

/// One window of so many is held out.
const HELD_OUT: usize = 10;

/// What is to be fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FitKind {
    /// One weight for all positions.
    Scalar,
    /// A network that sees both distributions.
    Network,
}

/// A fitted mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The rule, to be written to a file.
    pub rule: RuleOptions,
    /// Tokens that it was fitted on, and tokens held out.
    pub tokens: [usize; 2],
    /// Bits per byte of the text held out: name and value, of each model alone and of mixtures up to the one fitted.
    pub bits_per_byte: Vec<(&'static str, f64)>,
}

/// What is known of one position.
#[derive(Debug, Clone, Copy)]
struct Sample {
    features: Features,
    /// Log-probabilities of the token that came, to host and tuned proxy.
    log_p: [f64; 2],
}

impl Sample {
    /// How much more likely the token was to the tuned proxy, less 1.
    fn gain(&self) -> f64 {
        // Beyond that a weight of any size says all there is to say.
        const MOST: f64 = 1e30;
        let [host, tuned] = self.log_p;
        (tuned - host).exp().min(MOST) - 1.0
    }

    /// What the token costs a mixture with this weight, in nats.
    fn nats(&self, weight: f64) -> f64 {
        -self.log_p[0] - (weight * self.gain()).ln_1p()
    }
}

/// Fits a mixture of the host and the tuned proxy on a text, in windows of `window` tokens.
///
/// # Errors
/// [`Error::Invalid`] for a text of less than two windows, else as [`text`](super::text()).
pub fn fit(setup: &Setup, kind: FitKind, text: &str, window: usize, listen: &mut Listen<'_>) -> Result<Fit> {
    let windows = Windows::cut(setup, text, window)?;
    let count = windows.passages.len();
    if count < 2 {
        let given = format!("{count} window of {window} tokens");
        return Err(Error::invalid("text", given, "two at least, one to hold out; or a smaller --window"));
    }
    let is_held_out =
        |passage: usize| passage % HELD_OUT == HELD_OUT - 1 || count < HELD_OUT && passage + 1 == count;
    let samples = samples(setup, &windows, is_held_out, listen)?;
    let [seen, held_out] = &samples;
    if seen.is_empty() || held_out.is_empty() {
        return Err(Error::engine("fit", "at no position do both models give probabilities"));
    }
    let host = &setup.models.host;
    let bytes: usize =
        (0..count).filter(|&i| is_held_out(i)).map(|i| scored_bytes(host, &windows.passages[i])).sum();
    let bits = |weight: &dyn Fn(&Sample) -> f64| {
        let nats: f64 = held_out.iter().map(|sample| sample.nats(weight(sample))).sum();
        nats / std::f64::consts::LN_2 / bytes.max(1) as f64
    };
    let scalar = best_weight(seen);
    let mut bits_per_byte = vec![
        ("host", bits(&|_| 0.0)),
        ("tuned proxy", bits(&|_| 1.0)),
        ("mean", bits(&|_| 0.5)),
        ("scalar", bits(&|_| scalar)),
    ];
    let rule = match kind {
        FitKind::Scalar => RuleOptions { weight: Some(scalar as f32), ..RuleName::Scalar.into() },
        FitKind::Network => {
            let network = network::fit(seen, held_out, scalar, listen)?;
            bits_per_byte.push(("network", bits(&|sample| network.weight_of(sample.features).into())));
            RuleOptions { network: Some(network), ..RuleName::Network.into() }
        }
    };
    Ok(Fit { rule, tokens: [seen.len(), held_out.len()], bits_per_byte })
}

/// The samples of the text that is fitted on, and of that held out.
fn samples(
    setup: &Setup,
    windows: &Windows,
    is_held_out: impl Fn(usize) -> bool,
    listen: &mut Listen<'_>,
) -> Result<[Vec<Sample>; 2]> {
    let Some([(tuned, map), _]) = &setup.models.proxies else {
        return Err(Error::invalid("fit", "a host alone", "a host and a tuned proxy"));
    };
    let ctx = setup.config.proxy_tuning.ctx;
    let seats = vec![
        Seat::host(&setup.config, &setup.models),
        Seat { name: NAMES[1], model: tuned, map: map.clone(), ctx },
    ];
    let mut scorer = Scorer::over(&setup.config, seats, windows.longest)?;
    let total = windows.passages.iter().map(|p| p.generated().len() as u64).sum();
    let (mixture, no_map) = (Mixture::new(Weight::Constant(0.5))?, TokenMap::identity(0));
    let mut samples = [Vec::new(), Vec::new()];
    let mut each = |passage: usize, values: &[f64]| {
        if let &[a, b, c, d, host, tuned] = values
            && values.iter().all(|value| value.is_finite())
        {
            let features = [a, b, c, d].map(|feature| feature as f32);
            samples[usize::from(is_held_out(passage))].push(Sample { features, log_p: [host, tuned] });
        }
    };
    let measure = Look { mixture, no_map };
    scorer.run(&windows.passages, &measure, &mut each, &mut |_, _| Ok(()), &mut |scored| {
        listen(Progress { done: scored as u64, total, unit: "tokens" })
    })?;
    Ok(samples)
}

/// Features of both distributions, and what each thought of the token that came.
struct Look {
    mixture: Mixture,
    no_map: TokenMap,
}

impl Measure for Look {
    fn width(&self) -> usize {
        6
    }

    fn reads(&self, _: usize) -> bool {
        true
    }

    fn measure(
        &self,
        table: &Table<'_>,
        unit: Unit,
        values: &mut [f64],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (host, tuned) = (table.row(unit, 0)?, table.row(unit, 1)?);
        let advice = &mut scratch[0];
        advice.resize(host.len(), 0.0);
        self.mixture.advise(advice, [(tuned, &table.sides[1].map), (&[], &self.no_map)])?;
        let Some(both) = Distributions::of(host, advice) else {
            values.fill(f64::NAN);
            return Ok(());
        };
        let target = table.target(unit);
        let (features, log_p) = values.split_at_mut(4);
        features.iter_mut().zip(both.features()).for_each(|(value, feature)| *value = feature.into());
        log_p.copy_from_slice(&both.log_probabilities(host[target], advice[target]));
        Ok(())
    }
}

/// The constant weight that costs the samples least. The cost is convex in it, so its slope has one zero.
fn best_weight(samples: &[Sample]) -> f64 {
    let slope = |weight: f64| -> f64 {
        samples.iter().map(Sample::gain).map(|gain| gain / (1.0 + weight * gain)).sum()
    };
    let (mut less, mut more) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = 0.5 * (less + more);
        if slope(middle) > 0.0 { less = middle } else { more = middle }
    }
    0.5 * (less + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(host: f64, tuned: f64) -> Sample {
        Sample { features: [0.0; 4], log_p: [host.ln(), tuned.ln()] }
    }

    #[test]
    fn the_constant_weight_is_where_the_cost_is_least() {
        // Half of the tokens are sure to one model, half to the other: equal parts.
        let even = [sample(0.9, 0.1), sample(0.1, 0.9)].repeat(50);
        assert!((best_weight(&even) - 0.5).abs() < 1e-9);
        assert!(best_weight(&[sample(0.5, 0.2)]) < 1e-9);
        assert!(best_weight(&[sample(0.2, 0.5)]) > 1.0 - 1e-9);
        let mixed = [sample(0.9, 0.1), sample(0.1, 0.9), sample(0.2, 0.6), sample(1e-300, 0.3)];
        let cost = |weight: f64| mixed.iter().map(|s| s.nats(weight)).sum::<f64>();
        let best = best_weight(&mixed);
        assert!(
            (0.1..0.99).contains(&best) && cost(best) < cost(best - 0.01) && cost(best) < cost(best + 0.01)
        );
    }

    #[test]
    fn a_mixture_costs_what_its_definition_says() {
        let sample = sample(0.25, 0.75);
        for weight in [0.0, 0.3, 1.0] {
            let p: f64 = (1.0 - weight) * 0.25 + weight * 0.75;
            assert!((sample.nats(weight) + p.ln()).abs() < 1e-12);
        }
    }
}
