//! The small network that weighs a mixture.

use super::distributions::Distributions;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What the network looks at: entropy, and logarithm of the largest probability, of the host and of the tuned proxy.
pub type Features = [f32; 4];

impl Distributions {
    /// What a [`Network`] looks at.
    pub fn features(&self) -> Features {
        let Self { host, proxy, .. } = self;
        [host.entropy, proxy.entropy, host.log_top(), proxy.log_top()].map(|feature| feature as f32)
    }
}

/// One hidden layer between standardised features and a weight from 0 to 1:
/// `sigmoid(bias + output . tanh(hidden * [features, 1]))`.
///
/// The paper's entropy scalar looks at the two entropies, through three layers of 512 units. Sixteen, with the largest
/// probabilities beside the entropies, can be fitted on one core in seconds and cost a row next to nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Mean of each feature on the text that it was fitted on.
    pub mean: Features,
    /// Their standard deviations.
    pub deviation: Features,
    /// For each hidden unit the weights of the features, and its bias.
    pub hidden: Vec<[f32; 5]>,
    /// The weight of each hidden unit.
    pub output: Vec<f32>,
    /// The output's bias.
    pub bias: f32,
}

impl Network {
    /// Most hidden units that a file may have.
    const MOST_UNITS: usize = 256;

    /// Checks what a file may have got wrong.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the field.
    pub fn check(&self) -> Result<()> {
        let Self { mean, deviation, hidden, output, bias } = self;
        let (units, outputs) = (hidden.len(), output.len());
        if units > Self::MOST_UNITS || units != outputs {
            let given = format!("{units} units and {outputs} weights of them");
            let expected = format!("as many of one as of the other, at most {}", Self::MOST_UNITS);
            return Err(Error::invalid("network.hidden and network.output", given, expected));
        }
        if let Some(deviation) = deviation.iter().find(|&&d| !(d > 0.0 && d.is_finite())) {
            return Err(Error::invalid("network.deviation", deviation, "numbers above 0"));
        }
        let mut numbers = mean.iter().chain(hidden.iter().flatten()).chain(output).chain([bias]);
        match numbers.find(|number| !number.is_finite()) {
            Some(number) => Err(Error::invalid("network", number, "finite numbers")),
            None => Ok(()),
        }
    }

    /// The tuned proxy's weight, 0 to 1.
    pub fn weight(&self, both: &Distributions) -> f32 {
        self.weight_of(both.features())
    }

    /// The same by these features.
    pub fn weight_of(&self, features: Features) -> f32 {
        let features = self.standardised(features);
        let units = self.hidden.iter().zip(&self.output);
        sigmoid(
            self.bias + units.map(|(unit, weight)| weight * Self::activation(unit, &features)).sum::<f32>(),
        )
    }

    /// Features with mean 0 and deviation 1 over the text that it was fitted on; what is far beyond that is cut, as
    /// nothing was learnt of it.
    pub fn standardised(&self, features: Features) -> Features {
        const MOST: f32 = 5.0;
        std::array::from_fn(|i| ((features[i] - self.mean[i]) / self.deviation[i]).clamp(-MOST, MOST))
    }

    /// The value of one hidden unit.
    pub fn activation([weights @ .., bias]: &[f32; 5], features: &Features) -> f32 {
        (bias + weights.iter().zip(features).map(|(w, f)| w * f).sum::<f32>()).tanh()
    }
}

/// `1 / (1 + e^-x)`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
