//! Rules as files and flags name them.

use super::mixture::{Mixture, Weight};
use super::{Amateur, Contrastive, Network, ProxyTuning, Rule};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A rule's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleName {
    /// [`ProxyTuning`]
    #[default]
    ProxyTuning,
    /// [`Contrastive`]
    Contrastive,
    /// A [`Mixture`] of equal parts.
    Mean,
    /// A [`Mixture`] by a constant weight.
    Scalar,
    /// A [`Mixture`] weighed by a [`Network`].
    Network,
}

/// A rule with its parameters: a TOML file, or the table `[proxy_tuning.combine]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleOptions {
    /// Which one.
    pub rule: RuleName,
    /// Of contrastive decoding: [`Contrastive::MASK`] where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<f32>,
    /// Of contrastive decoding: the untuned proxy where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amateur: Option<Amateur>,
    /// Of `scalar`: the tuned proxy's share, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
    /// Of `network`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

impl From<RuleName> for RuleOptions {
    fn from(rule: RuleName) -> Self {
        Self { rule, ..Self::default() }
    }
}

impl RuleOptions {
    /// The rule.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a parameter that is missing, out of range or of another rule.
    pub fn rule(&self) -> Result<Arc<dyn Rule>> {
        self.refuse_foreign()?;
        let missing = |field: &str| {
            let expected = "a number, or the file that `proxytune fit` writes";
            Error::invalid(format!("combine.{field}"), "nothing", expected)
        };
        Ok(match self.rule {
            RuleName::ProxyTuning => Arc::new(ProxyTuning),
            RuleName::Contrastive => Arc::new(Contrastive::new(
                self.mask.unwrap_or(Contrastive::MASK),
                self.amateur.unwrap_or_default(),
            )?),
            RuleName::Mean => Arc::new(Mixture::new(Weight::Constant(0.5))?),
            RuleName::Scalar => {
                let weight = self.weight.ok_or_else(|| missing("weight"))?;
                Arc::new(Mixture::new(Weight::Constant(weight))?)
            }
            RuleName::Network => {
                let network = self.network.clone().ok_or_else(|| missing("network"))?;
                network.check()?;
                Arc::new(Mixture::new(Weight::Learned(network))?)
            }
        })
    }

    fn refuse_foreign(&self) -> Result<()> {
        use RuleName::{Contrastive, Network, Scalar};
        let given = [
            ("mask", self.mask.is_some(), Contrastive),
            ("amateur", self.amateur.is_some(), Contrastive),
            ("weight", self.weight.is_some(), Scalar),
            ("network", self.network.is_some(), Network),
        ];
        match given.into_iter().find(|&(_, given, of)| given && self.rule != of) {
            Some((field, _, of)) => {
                let given = format!("a value beside rule {:?}", self.rule).to_lowercase();
                let expected = format!("it with rule {of:?} alone").to_lowercase();
                Err(Error::invalid(format!("combine.{field}"), given, expected))
            }
            None => Ok(()),
        }
    }
}
