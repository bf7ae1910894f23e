//! Runs a program that nobody has read: limits on time, memory, processes and files, and no network.
//!
//! Three processes: the evaluation starts a *keeper*, which watches time and memory and ends whatever is left; the keeper
//! starts the *inmate*, which gives up its rights and becomes the program. Both are this very executable, called with
//! [`KEEPER`] or [`INMATE`], so no code has to run between fork and exec.
//!
//! Where the system permits it, the program gets namespaces of its own: no network but a dead loopback, and a process
//! tree that dies with its first process. Without them the same limits hold by other means: sockets are forbidden by a
//! seccomp filter in any case, as are signals to other processes, and the keeper adopts and kills what outlives its parent.

mod inmate;
mod keeper;

pub use inmate::inmate;
pub use keeper::keeper;

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// First argument of the keeper's process.
pub const KEEPER: &str = "contained-keeper";
/// First argument of the inmate's process.
pub const INMATE: &str = "contained-inmate";

/// Whom a program runs as where we are root: nobody.
const NOBODY: u32 = 65534;

/// What a program may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Time on the clock; time on processors is held to the same.
    pub time: Duration,
    /// Bytes of memory, of all its processes together.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes of any file that it writes.
    pub file: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(10), memory: 1 << 30, processes: 32, file: 16 << 20 }
    }
}

/// How programs are run.
#[derive(Debug, Clone)]
pub struct Cell {
    /// This executable, or another that passes [`KEEPER`] and [`INMATE`] on to [`keeper`] and [`inmate`].
    pub launcher: PathBuf,
    /// The interpreter.
    pub python: PathBuf,
    /// What programs may use.
    pub limits: Limits,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// `exit 0`, `exit 1`, `signal 9`, `time`, `memory`.
    pub how: String,
    /// What it wrote to standard output, the last few kB.
    pub output: String,
    /// The last line that it wrote to standard error.
    pub error: String,
    /// How the network was kept away: `namespace`, or `seccomp`.
    pub network: String,
}

impl Cell {
    /// Runs a Python program to its end or its limits.
    ///
    /// # Errors
    /// When it cannot be contained or started at all. Whatever the program does is an [`Ending`].
    pub fn run(&self, program: &str) -> Result<Ending> {
        let failed = |e: std::io::Error| Error::engine("running code", format!("no place to run it ({e})"));
        let folder = tempfile::Builder::new().prefix("proxytune-").tempdir().map_err(failed)?;
        let file = folder.path().join("program.py");
        std::fs::write(&file, program).map_err(failed)?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).map_err(failed)?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).map_err(failed)?;
        }
        let Limits { time, memory, processes, file } = &self.limits;
        let limits = json!({
            "python": self.python, "folder": folder.path(), "time_ms": time.as_millis() as u64,
            "memory": memory, "processes": processes, "file": file,
        });
        let outcome = Command::new(&self.launcher)
            .args([OsString::from(KEEPER), limits.to_string().into()])
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        let said: Value = serde_json::from_slice(&outcome.stdout).unwrap_or_default();
        let text = |field: &str| said[field].as_str().map(String::from);
        match (text("how"), text("refused")) {
            (Some(how), None) => Ok(Ending {
                how,
                output: tail(&folder.path().join("stdout"), 4096),
                error: last_line(&tail(&folder.path().join("stderr"), 4096)),
                network: text("network").unwrap_or_default(),
            }),
            // The program found a way to end its keeper, which ended the program.
            (None, None) if outcome.status.code().is_none() => Ok(Ending {
                how: "signal".into(),
                output: String::new(),
                error: "its keeper was killed".into(),
                network: String::new(),
            }),
            (_, reason) => {
                let reason =
                    reason.unwrap_or_else(|| String::from_utf8_lossy(&outcome.stderr).trim().to_owned());
                Err(Error::engine("running code", format!("the program cannot be contained: {reason}")))
            }
        }
    }
}

fn last_line(text: &str) -> String {
    text.trim_end().lines().last().unwrap_or_default().chars().take(200).collect()
}

/// The end of a file that a stranger wrote.
fn tail(path: &Path, most: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// What keeper and inmate are told.
struct Orders(Value);

impl Orders {
    fn text(&self, field: &str) -> String {
        self.0[field].as_str().unwrap_or_default().to_owned()
    }

    fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or(0)
    }
}
