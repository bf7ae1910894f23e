//! Flags of `proxytune fit`.

use super::{Format, Trio};
use clap::{Args, ValueEnum};
use proxytune::eval::FitKind;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  proxytune fit --host big.gguf --tuned small-tuned.gguf --text of-the-domain.txt --out mixture.toml
  proxytune eval --host big.gguf --tuned small-tuned.gguf --untuned small.gguf --combine mixture.toml --text other.txt";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Fit {
    #[command(flatten)]
    pub trio: Trio,
    /// A text like those that will be written; not one that is scored later
    #[arg(long, value_name = "F")]
    pub text: PathBuf,
    /// Where the mixture is written
    #[arg(long, value_name = "F.toml")]
    pub out: PathBuf,
    /// What is fitted
    #[arg(long, value_enum, default_value_t = Kind::Network)]
    pub rule: Kind,
    /// Tokens of the windows that the text is cut into
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub window: usize,
    /// How results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// One weight of the tuned proxy for all positions
    Scalar,
    /// A small network that weighs it at each position, by how sure both models are
    Network,
}

impl From<Kind> for FitKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Scalar => Self::Scalar,
            Kind::Network => Self::Network,
        }
    }
}
