//! What is done, on disk as soon as it is done: an evaluation that was killed goes on where it stopped.
//!
//! A journal is a JSONL file. Its first line says what is evaluated; each further line holds one finished item. A last
//! line that was cut off by the kill is dropped.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How the file begins.
const BEGIN: &[u8] = b"{\"journal\":";

/// A line of the file but the first.
#[derive(serde::Deserialize)]
struct Item {
    key: String,
    item: Value,
}

/// Finished items, in memory and on disk.
#[derive(Debug)]
pub struct Journal {
    file: Option<(File, PathBuf)>,
    items: HashMap<String, Value>,
}

impl Journal {
    /// Keeps nothing on disk.
    pub fn none() -> Self {
        Self { file: None, items: HashMap::new() }
    }

    /// Opens or makes the journal of an evaluation that `header` describes in full: models, task, settings.
    /// `fresh` forgets what it holds, be it of this evaluation or another.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be written, is of another evaluation, is in use by another process, or is broken
    /// in the middle.
    pub fn open(path: &Path, header: &Value, fresh: bool) -> Result<Self> {
        let elsewhere = "give a path that can be written";
        let failed =
            |e: std::io::Error| Error::file(path, format!("cannot be used as a journal ({e})"), elsewhere);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let help = "wait for it, or give another --journal";
                return Err(Error::file(path, "another evaluation is writing this journal", help));
            }
            // File systems without locks are used without.
            Err(TryLockError::Error(error)) => tracing::debug!(%error, "the journal cannot be locked"),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let mut journal = Self { file: Some((file, path.into())), items: HashMap::new() };
        // Nothing of a file that is not ours is touched.
        if !bytes.starts_with(BEGIN) && !BEGIN.starts_with(&bytes) {
            return Err(foreign(path));
        }
        let whole = if fresh { 0 } else { whole };
        journal.cut(whole)?;
        if whole == 0 {
            journal.write(&json!({ "journal": header }))?;
        } else {
            journal.read(&bytes[..whole], header)?;
        }
        Ok(journal)
    }

    /// Items it holds.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it holds no items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// A finished item.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.items.get(key)
    }

    /// Writes a finished item down.
    ///
    /// # Errors
    /// [`Error::File`] when the disk is full, for instance. What was written before is kept.
    pub fn put(&mut self, key: String, item: Value) -> Result<()> {
        self.write(&json!({ "key": key, "item": item }))?;
        self.items.insert(key, item);
        Ok(())
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let help = "free some space and run the same command again: what was finished before is kept";
        // One call a line, so that a kill cuts off the last line at most.
        let written = file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|e| Error::file(path.as_path(), format!("cannot be written ({e})"), help))
    }

    /// Drops what follows the last whole line.
    fn cut(&mut self, len: usize) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let cut = file.set_len(len as u64).and_then(|()| file.seek(SeekFrom::End(0)));
        let failed = |e| Error::file(path.as_path(), format!("cannot be written ({e})"), "make it writable");
        cut.map(drop).map_err(failed)
    }

    fn read(&mut self, bytes: &[u8], header: &Value) -> Result<()> {
        let path = self.file.as_ref().map(|(_, path)| path.clone()).unwrap_or_default();
        for (number, line) in bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let broken = || {
                let what = format!("line {} is broken", number + 1);
                Error::file(&path, what, "delete that line, or the file to start anew")
            };
            let value: Value = serde_json::from_slice(line).map_err(|_| broken())?;
            if number == 0 {
                let found = value.get("journal").ok_or_else(|| foreign(&path))?;
                check_header(&path, found, header)?;
            } else {
                let Item { key, item } = serde_json::from_value(value).map_err(|_| broken())?;
                self.items.insert(key, item);
            }
        }
        Ok(())
    }
}

fn foreign(path: &Path) -> Error {
    Error::file(
        path,
        "is not a journal of an evaluation",
        "give another --journal; this file is left as it is",
    )
}

/// An evaluation is only gone on with if nothing about it has changed.
fn check_header(path: &Path, found: &Value, expected: &Value) -> Result<()> {
    let (Some(found), Some(expected)) = (found.as_object(), expected.as_object()) else {
        return Err(foreign(path));
    };
    for (key, value) in expected {
        let before = found.get(key).unwrap_or(&Value::Null);
        if before != value {
            let what = format!("it is of another evaluation: {key} was {before}, now {value}");
            return Err(Error::file(path, what, "give another --journal, or delete this one to start anew"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        (folder, path)
    }

    #[test]
    fn what_was_put_is_there_after_a_kill_and_a_torn_line_is_not() {
        let (_folder, path) = folder();
        let header = json!({ "task": "text", "seed": 1 });
        let mut journal = Journal::open(&path, &header, false).unwrap();
        journal.put("a".into(), json!(1)).unwrap();
        journal.put("b".into(), json!({ "x": [2] })).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&path, &header, false).unwrap();
            let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(journal.len(), lines.saturating_sub(1), "cut at {cut}");
            journal.put("c".into(), json!(3)).unwrap();
            drop(journal);
            assert_eq!(
                Journal::open(&path, &header, false).unwrap().get("c"),
                Some(&json!(3)),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn another_evaluation_a_foreign_file_and_a_broken_line_are_refused_and_left_alone() {
        let (_folder, path) = folder();
        drop(Journal::open(&path, &json!({ "seed": 1 }), false).unwrap());
        let error = Journal::open(&path, &json!({ "seed": 2 }), false).unwrap_err().to_string();
        assert!(error.contains("seed was 1, now 2"), "{error}");
        for foreign in ["my notes\n", "my notes", "my\nnotes", "{\"a\": 1}\n"] {
            std::fs::write(&path, foreign).unwrap();
            for fresh in [false, true] {
                let error = Journal::open(&path, &json!({ "seed": 1 }), fresh).unwrap_err().to_string();
                assert!(error.contains("not a journal"), "{error}");
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        for broken in ["broken", "7", "null", "[]", "{\"key\":1,\"item\":1}", "{\"key\":\"a\"}"] {
            let lines = format!("{{\"journal\":{{\"seed\":1}}}}\n{broken}\n{{\"key\":\"a\",\"item\":1}}\n");
            std::fs::write(&path, lines).unwrap();
            let error = Journal::open(&path, &json!({ "seed": 1 }), false).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{broken}: {error}");
        }
    }

    #[test]
    fn two_at_once_are_refused() {
        let (_folder, path) = folder();
        let _first = Journal::open(&path, &json!({}), false).unwrap();
        let error = Journal::open(&path, &json!({}), false).unwrap_err().to_string();
        assert!(error.contains("another evaluation"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said() {
        let mut journal = Journal { file: None, items: HashMap::new() };
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        journal.file = Some((full, "/dev/full".into()));
        let error = journal.put("a".into(), json!(1)).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("free some space"), "{error}");
    }
}
