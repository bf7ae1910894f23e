//! The network of a mixture, fitted by Adam (Kingma and Ba 2015).

use super::Sample;
use crate::combine::{Features, Network, sigmoid};
use crate::decode::accept::Dice;
use crate::error::{Error, Result};
use crate::eval::setup::{Listen, Progress};

const UNITS: usize = 16;
/// Of each unit its bias besides.
const INPUTS: usize = 4;
/// All hidden units, their weights, the output's bias.
const PARAMETERS: usize = UNITS * (INPUTS + 1) + UNITS + 1;
const EPOCHS: usize = 60;
const BATCH: usize = 512;
const RATE: f64 = 0.01;

/// The network that costs the held-out samples least, of those that the epochs end with. The first of them is the
/// constant weight `scalar`.
pub(super) fn fit(
    seen: &[Sample],
    held_out: &[Sample],
    scalar: f64,
    listen: &mut Listen<'_>,
) -> Result<Network> {
    let mut dice = Dice::new(Some(0));
    let mut network = start(seen, scalar, &mut dice);
    let inputs: Vec<(Features, f64)> =
        seen.iter().map(|sample| (network.standardised(sample.features), sample.gain())).collect();
    let cost = |network: &Network| -> f64 {
        held_out.iter().map(|sample| sample.nats(network.weight_of(sample.features).into())).sum()
    };
    let mut best = (cost(&network), network.clone());
    let mut adam = Adam::default();
    let mut order: Vec<usize> = (0..seen.len()).collect();
    for epoch in 0..EPOCHS {
        for i in (1..order.len()).rev() {
            order.swap(i, (dice.roll() * (i + 1) as f64) as usize);
        }
        let rate = RATE * (1.0 - epoch as f64 / EPOCHS as f64);
        for batch in order.chunks(BATCH) {
            let mut gradient = [0.0; PARAMETERS];
            batch.iter().for_each(|&i| add_gradient(&network, &inputs[i], &mut gradient));
            gradient.iter_mut().for_each(|g| *g /= batch.len() as f64);
            let steps = adam.steps(&gradient, rate);
            parameters(&mut network).zip(steps).for_each(|(parameter, step)| *parameter += step as f32);
        }
        let cost = cost(&network);
        if cost < best.0 {
            best = (cost, network.clone());
        }
        if listen(Progress { done: epoch as u64 + 1, total: EPOCHS as u64, unit: "epochs" }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(best.1)
}

/// A network whose output is the constant weight, whatever it sees.
fn start(samples: &[Sample], scalar: f64, dice: &mut Dice) -> Network {
    let count = samples.len() as f64;
    let mean_of = |value: &dyn Fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / count;
    let means: [f64; INPUTS] = std::array::from_fn(|i| mean_of(&|s| s.features[i].into()));
    let deviation = std::array::from_fn(|i| {
        let variance = mean_of(&|s| (f64::from(s.features[i]) - means[i]).powi(2));
        if variance > 0.0 { variance.sqrt() as f32 } else { 1.0 }
    });
    let mut uniform = || (2.0 * dice.roll() - 1.0) as f32;
    let within = scalar.clamp(0.01, 0.99);
    Network {
        mean: means.map(|mean| mean as f32),
        deviation,
        hidden: (0..UNITS).map(|_| std::array::from_fn(|_| uniform())).collect(),
        output: vec![0.0; UNITS],
        bias: (within / (1.0 - within)).ln() as f32,
    }
}

/// All that is fitted, in the order of a gradient.
fn parameters(network: &mut Network) -> impl Iterator<Item = &mut f32> {
    network.hidden.iter_mut().flatten().chain(&mut network.output).chain([&mut network.bias])
}

/// Adds the slope of one sample's cost in all parameters.
fn add_gradient(network: &Network, (features, gain): &(Features, f64), gradient: &mut [f64; PARAMETERS]) {
    let units: [f32; UNITS] = std::array::from_fn(|u| Network::activation(&network.hidden[u], features));
    let sum: f32 = units.iter().zip(&network.output).map(|(unit, weight)| unit * weight).sum();
    let weight = f64::from(sigmoid(network.bias + sum));
    let slope = -gain / (1.0 + weight * gain) * weight * (1.0 - weight);
    for u in 0..UNITS {
        let (unit, output) = (f64::from(units[u]), f64::from(network.output[u]));
        let of_unit = slope * output * (1.0 - unit * unit);
        let at = u * (INPUTS + 1);
        for (g, feature) in gradient[at..].iter_mut().zip(features) {
            *g += of_unit * f64::from(*feature);
        }
        gradient[at + INPUTS] += of_unit;
        gradient[UNITS * (INPUTS + 1) + u] += slope * unit;
    }
    gradient[PARAMETERS - 1] += slope;
}

/// Running means of gradients and of their squares.
struct Adam {
    count: i32,
    mean: [f64; PARAMETERS],
    square: [f64; PARAMETERS],
}

impl Default for Adam {
    fn default() -> Self {
        Self { count: 0, mean: [0.0; PARAMETERS], square: [0.0; PARAMETERS] }
    }
}

impl Adam {
    fn steps(&mut self, gradient: &[f64; PARAMETERS], rate: f64) -> [f64; PARAMETERS] {
        const DECAY: [f64; 2] = [0.9, 0.999];
        self.count += 1;
        let [first, second] = DECAY.map(|decay| 1.0 - decay.powi(self.count));
        std::array::from_fn(|i| {
            self.mean[i] += (1.0 - DECAY[0]) * (gradient[i] - self.mean[i]);
            self.square[i] += (1.0 - DECAY[1]) * (gradient[i] * gradient[i] - self.square[i]);
            -rate * (self.mean[i] / first) / ((self.square[i] / second).sqrt() + 1e-8)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    /// Where the host is unsure the tuned proxy is right, elsewhere the host is.
    fn samples(count: usize) -> Vec<Sample> {
        let mut dice = Dice::new(Some(1));
        let sample = |_| {
            let unsure = dice.roll() < 0.4;
            let (entropy, log_p) = if unsure { (4.0, [0.05f64, 0.6]) } else { (0.5, [0.7, 0.1]) };
            let features = [entropy, 2.0, -entropy, -1.0 + dice.roll() as f32];
            Sample { features, log_p: log_p.map(f64::ln) }
        };
        (0..count).map(sample).collect()
    }

    #[test]
    fn a_network_learns_when_to_listen_to_the_tuned_proxy() {
        let (seen, held_out) = (samples(3000), samples(500));
        let scalar = super::super::best_weight(&seen);
        let network = fit(&seen, &held_out, scalar, &mut |_| ControlFlow::Continue(())).unwrap();
        network.check().unwrap();
        let [unsure, sure] = [4.0, 0.5].map(|h| network.weight_of([h, 2.0, -h, -0.5]));
        assert!(unsure > 0.95 && sure < 0.05, "{unsure} {sure}");
        let cost = |weight: &dyn Fn(&Sample) -> f64| held_out.iter().map(|s| s.nats(weight(s))).sum::<f64>();
        assert!(cost(&|s| network.weight_of(s.features).into()) < 0.8 * cost(&|_| scalar));
    }

    #[test]
    fn gradients_are_the_slopes_of_the_cost() {
        let mut dice = Dice::new(Some(2));
        let mut network = start(&samples(50), 0.3, &mut dice);
        network.output.iter_mut().for_each(|weight| *weight = dice.roll() as f32 - 0.5);
        let sample = samples(1)[0];
        let mut gradient = [0.0; PARAMETERS];
        add_gradient(&network, &(network.standardised(sample.features), sample.gain()), &mut gradient);
        for (i, &computed) in gradient.iter().enumerate() {
            const STEP: f32 = 1e-2;
            let cost = |by: f32| {
                let mut moved = network.clone();
                parameters(&mut moved).nth(i).into_iter().for_each(|parameter| *parameter += by);
                sample.nats(moved.weight_of(sample.features).into())
            };
            let slope = (cost(STEP) - cost(-STEP)) / (2.0 * f64::from(STEP));
            assert!((slope - computed).abs() < 1e-3, "parameter {i}: {slope} {computed}");
        }
    }

    #[test]
    fn a_run_that_is_stopped_ends_at_once() {
        let stopped = fit(&samples(600), &samples(10), 0.5, &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }
}
