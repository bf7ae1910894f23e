//! `proxytune bench`
use crate::args::Bench;
use proxytune::Result;
use std::process::ExitCode;
pub fn run(_args: &Bench) -> Result<ExitCode> { todo!() }
