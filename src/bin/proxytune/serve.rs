//! `proxytune serve`.

use crate::args::serve::Serve;
use proxytune::Result;
use proxytune::serve::{serve, signal};
use std::process::ExitCode;

pub fn run(args: &Serve) -> Result<ExitCode> {
    let config = args.config()?;
    anstream::eprintln!("loading the models");
    serve(config, signal(), |address| anstream::eprintln!("listening on http://{address}"))?;
    Ok(ExitCode::SUCCESS)
}
