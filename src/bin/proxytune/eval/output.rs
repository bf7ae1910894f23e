//! Files that an evaluation writes: its report, and the journal that it goes on from.

use super::Task;
use crate::args::eval::Eval;
use crate::whole::Whole;
use proxytune::config::Config;
use proxytune::eval::{Journal, Report};
use proxytune::{Error, Result};
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The report's file, looked at before the work starts, so that hours of it cannot end at a wrong path.
pub struct ReportFile {
    path: PathBuf,
    file: Whole,
}

impl ReportFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = Whole::at(path).map_err(|e| {
            Error::file(path, format!("cannot be written ({e})"), "give --report a path that can be written")
        })?;
        Ok(Self { path: path.into(), file })
    }

    pub fn write(self, report: &Report) -> Result<()> {
        let page = proxytune::eval::html(report)?;
        let help = "free some space and run the same command again: all results are kept";
        let written = self.file.write(page.as_bytes());
        written.map_err(|e| Error::file(&self.path, format!("cannot be written ({e})"), help))
    }
}

/// A journal, and whether it is to stay.
pub struct Kept {
    pub journal: Journal,
    path: Option<PathBuf>,
    is_ours: bool,
    is_over: bool,
}

impl Kept {
    /// Where it is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// All results are out: a journal that nobody asked for goes.
    pub fn finish(mut self) {
        self.is_over = true;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let is_useless = self.is_over || self.journal.is_empty();
        if let Some(path) = self.path.as_ref().filter(|_| self.is_ours && is_useless) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens the journal that was asked for, else one in the cache folder; a run without a cache folder goes without.
pub fn open_journal(args: &Eval, config: &Config, task: &Task) -> Result<Kept> {
    let header = header(args, config, task)?;
    let path = args
        .journal
        .clone()
        .or_else(|| Some(cache()?.join(format!("{:016x}.jsonl", hash(header.to_string())))));
    let Some(path) = path else {
        return Ok(Kept { journal: Journal::none(), path: None, is_ours: true, is_over: false });
    };
    let is_ours = args.journal.is_none();
    if is_ours {
        let _ = path.parent().map(std::fs::create_dir_all);
    }
    let opened = Journal::open(&path, &header, args.fresh);
    match opened {
        Ok(journal) => {
            if !journal.is_empty() {
                crate::say::note!("going on with {} results of {}", journal.len(), path.display());
            }
            Ok(Kept { journal, path: Some(path), is_ours, is_over: false })
        }
        Err(error) if is_ours => {
            tracing::warn!(%error, "going on without a journal: a kill would lose what is done");
            Ok(Kept { journal: Journal::none(), path: None, is_ours, is_over: false })
        }
        Err(error) => Err(error),
    }
}

fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let root = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(root.join("proxytune").join("eval"))
}

/// All that results depend on, but for alphas: those are told apart within.
fn header(args: &Eval, config: &Config, task: &Task) -> Result<Value> {
    let tuning = &config.proxy_tuning;
    let models = [
        config.host.model.as_deref(),
        tuning.tuned_file(),
        tuning.untuned.as_deref(),
        args.direct.as_deref(),
    ];
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "task": task.kind().name(),
        "content": format!("{:016x}", task.hash()),
        "models": models.map(|path| path.map(identity)),
        "settings": args.settings()?,
        "combine": tuning.combine.options()?,
        "control": format!("{:?}", tuning.control()),
        "context": [config.host.ctx, tuning.ctx],
        "skip_above": tuning.skip_above,
        "tuned_prompt": [Some(&tuning.tuned_prompt.template), tuning.tuned_prompt.system.as_ref()],
    }))
}

/// A model file without reading it all.
fn identity(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let meta = std::fs::metadata(path).ok();
    let time = meta.as_ref().and_then(|m| m.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok());
    let (bytes, time) = (meta.map_or(0, |m| m.len()), time.map_or(0, |t| t.as_millis()));
    format!("{} of {bytes} bytes, changed {time}", full.display())
}

/// A hash that is the same in every run of one build.
pub fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
