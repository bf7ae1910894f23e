//! The `proxytune` program: proxy-tuning from the command line.

mod args;
mod bench;
mod check;
mod eval;
mod fit;
mod generate;
mod progress;
mod say;
mod serve;
#[cfg(feature = "mistralrs")]
mod session;
mod whole;

use args::{Cli, Command};
use clap::Parser;
use proxytune::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Set by the first SIGINT; whoever loops looks at it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn interrupted() -> bool {
    INTERRUPTED.load(Relaxed)
}

/// Threads for what waits on the network; models have threads of their own.
fn runtime() -> proxytune::Result<tokio::runtime::Runtime> {
    let failed = |e: std::io::Error| Error::engine("tokio", e.to_string());
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(code) = eval::contained() {
        return code;
    }
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(cli.log_filter()))
        .with_writer(std::io::stderr)
        // Where a line cannot be written, nor can that it could not.
        .log_internal_errors(false)
        .without_time()
        .with_target(false)
        .init();
    // The second one does not wait for a pass in progress.
    let on_interrupt = || {
        if INTERRUPTED.swap(true, Relaxed) {
            std::process::exit(130)
        }
    };
    if let Err(error) = ctrlc::set_handler(on_interrupt) {
        tracing::debug!(%error, "SIGINT will end the program at once");
    }
    let outcome = match &cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Check(args) => check::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Fit(args) => fit::run(args),
        Command::Serve(args) => serve::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(Error::Interrupted) => {
            crate::say::note!("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            let red = anstyle::AnsiColor::Red.on_default().bold();
            crate::say::note!("{red}error{red:#}: {error}");
            ExitCode::from(2)
        }
    }
}
