//! What is compared: each model by itself, and the host shifted by each alpha.

/// One of the things that are scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Column {
    /// The host alone.
    Host,
    /// The untuned proxy alone.
    Untuned,
    /// The tuned proxy alone.
    Tuned,
    /// The host tuned directly.
    Direct,
    /// The host, shifted by this alpha.
    Shifted(f32),
}

impl Column {
    /// All columns of an evaluation, in the order of every list of scores.
    pub fn all(direct: bool, alphas: &[f32]) -> Vec<Self> {
        let models = [Self::Host, Self::Untuned, Self::Tuned];
        let direct = direct.then_some(Self::Direct);
        models.into_iter().chain(direct).chain(alphas.iter().map(|&a| Self::Shifted(a))).collect()
    }

    /// Its name for people.
    pub fn name(self) -> String {
        match self {
            Self::Host => "host".into(),
            Self::Untuned => "untuned proxy".into(),
            Self::Tuned => "tuned proxy".into(),
            Self::Direct => "directly tuned".into(),
            Self::Shifted(alpha) => format!("shifted, alpha {alpha}"),
        }
    }

    /// Its name in result files.
    pub fn key(self) -> String {
        match self {
            Self::Host => "host".into(),
            Self::Untuned => "untuned".into(),
            Self::Tuned => "tuned".into(),
            Self::Direct => "direct".into(),
            Self::Shifted(alpha) => format!("alpha={alpha}"),
        }
    }
}
