//! How the configuration names a rule: by name, by a file, or as a table with its parameters.

use super::read_toml;
use crate::combine::{Rule, RuleName, RuleOptions};
use crate::error::Result;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// `combine` in `[proxy_tuning]`, and `--combine`.
#[derive(Debug, Clone, PartialEq)]
pub enum Combine {
    /// A rule with its parameters.
    Rule(RuleOptions),
    /// A TOML file with them.
    File(PathBuf),
}

impl Default for Combine {
    fn default() -> Self {
        Self::Rule(RuleOptions::default())
    }
}

impl Combine {
    /// The rule, read from its file where it has one.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a file that cannot be read, [`Error::Invalid`](crate::Error::Invalid)
    /// for a parameter that is missing, out of range or of another rule.
    pub fn rule(&self) -> Result<Arc<dyn Rule>> {
        self.options()?.rule()
    }

    /// The rule's parameters, read from its file where it has one.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a file that cannot be read.
    pub fn options(&self) -> Result<RuleOptions> {
        match self {
            Self::Rule(options) => Ok(options.clone()),
            Self::File(path) => read_toml(path),
        }
    }
}

/// A rule's name, else the path of a file.
impl FromStr for Combine {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let name = RuleName::deserialize(StrDeserializer::<serde::de::value::Error>::new(text));
        Ok(name.map_or_else(|_| Self::File(text.into()), |name| Self::Rule(name.into())))
    }
}

impl<'de> Deserialize<'de> for Combine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct TextOrTable;

        impl<'de> Visitor<'de> for TextOrTable {
            type Value = Combine;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rule's name, the path of a file, or a table with `rule`")
            }

            fn visit_str<E: Error>(self, text: &str) -> std::result::Result<Combine, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> std::result::Result<Combine, A::Error> {
                RuleOptions::deserialize(MapAccessDeserializer::new(table)).map(Combine::Rule)
            }
        }

        deserializer.deserialize_any(TextOrTable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::file::parse;

    fn of(text: &str) -> std::result::Result<Combine, String> {
        let parsed = parse::<Config>(&format!("[proxy_tuning]\n{text}\n"));
        parsed.map(|config| config.proxy_tuning.combine).map_err(|(what, help)| format!("{what}; {help}"))
    }

    #[test]
    fn a_rule_is_a_name_a_file_or_a_table() {
        let named = |rule| Combine::Rule(RuleOptions::from(rule));
        assert_eq!(of("").unwrap(), named(RuleName::ProxyTuning));
        assert_eq!(of("combine = 'contrastive'").unwrap(), named(RuleName::Contrastive));
        assert_eq!(of("combine = 'fitted.toml'").unwrap(), Combine::File("fitted.toml".into()));
        let table = of("combine = { rule = 'scalar', weight = 0.25 }").unwrap();
        assert_eq!(table, Combine::Rule(RuleOptions { weight: Some(0.25), ..RuleName::Scalar.into() }));
        assert!(table.rule().unwrap().to_string().contains("0.25 * p(tuned)"));
        assert_eq!("mean".parse(), Ok(named(RuleName::Mean)));
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_named() {
        let unknown = of("[proxy_tuning.combine]\nrule = 'contrastive'\nmsak = 0.2").unwrap_err();
        assert!(unknown.contains("msak") && unknown.contains("did you mean `mask`?"), "{unknown}");
        let refused = |table: &str| of(table).unwrap().rule().unwrap_err().to_string();
        assert!(refused("combine = 'scalar'").contains("proxytune fit"));
        assert!(refused("combine = { rule = 'scalar', weight = 1.5 }").contains("0 to 1"));
        assert!(refused("combine = { rule = 'contrastive', mask = -0.1 }").contains("0 to 1"));
        assert!(refused("combine = { rule = 'mean', mask = 0.1 }").contains("rule contrastive alone"));
        assert!(refused("combine = 'nowhere.toml'").contains("nowhere.toml: cannot be read"));
        let network = "{ mean = [0, 0, 0, 0], deviation = [1, 1, 0, 1], hidden = [], output = [], bias = 0 }";
        assert!(
            refused(&format!("combine = {{ rule = 'network', network = {network} }}")).contains("above 0")
        );
    }
}
