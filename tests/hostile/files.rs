//! Configurations, tasks, journals, tokenizers and model files.

use crate::mutate::mutated;
use proptest::prelude::*;
use proxytune::config::Config;
use proxytune::error::Result;
use std::path::{Path, PathBuf};

/// Hands broken bytes over as a file, and looks at the error: it must name the file or a key, and fit a terminal.
fn read<T>(bytes: &[u8], name: &str, read: impl FnOnce(&Path) -> Result<T>) -> Option<T> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    match read(&path) {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            let named = text.contains(name) || text.contains("got ");
            assert!(named && text.len() < 4096 + bytes.len(), "{text}");
            None
        }
    }
}

proptest! {
    #[test]
    fn a_configuration_is_read_or_refused(bytes in mutated("config")) {
        if let Some(config) = read(&bytes, "some.toml", Config::read) {
            let _ = config.check();
        }
        #[cfg(feature = "serve")]
        read(&bytes, "some.toml", proxytune::serve::ServeConfig::read);
    }

    #[test]
    #[cfg(feature = "eval")]
    fn a_task_is_read_or_refused(bytes in mutated("task")) {
        if let Some((_, items)) = read(&bytes, "some.jsonl", |path| proxytune::eval::read(path, None, None)) {
            prop_assert!(!items.is_empty());
        }
    }

    #[test]
    #[cfg(feature = "eval")]
    fn a_journal_goes_on_or_is_left_as_it_is(bytes in mutated("journal")) {
        use proxytune::eval::Journal;
        let header = serde_json::json!({ "task": "text", "models": [1, 2] });
        read(&bytes, "some.jsonl", |path| {
            let opened = Journal::open(path, &header, false);
            if opened.is_err() && !bytes.starts_with(b"{\"journal\":") {
                assert_eq!(std::fs::read(path).unwrap(), bytes, "a file that is not ours was touched");
            }
            opened
        });
    }

    #[test]
    #[cfg(feature = "tokenizers")]
    fn a_tokenizer_is_read_or_refused(bytes in mutated("tokenizer")) {
        read(&bytes, "tokenizer.json", proxytune::host::vocabulary::read);
    }
}

#[test]
#[cfg(feature = "tokenizers")]
fn a_token_beyond_any_vocabulary_is_refused_without_making_room_for_it() {
    let text = include_str!("corpus/tokenizer/bytes.json").replace("\"ab\":2", "\"ab\":4294967295");
    assert!(read(text.as_bytes(), "tokenizer.json", proxytune::host::vocabulary::read).is_none());
}

#[test]
#[cfg(feature = "eval")]
fn a_small_file_that_unpacks_to_more_than_memory_is_refused() {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..300 {
        packed.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 4 << 20);
    assert!(read(&packed, "some.jsonl.gz", proxytune::eval::read_text).is_none());
}

/// The head of a GGUF file says what follows, and how much of it. The parser is llama.cpp's; the program must end with an
/// answer and not by a signal, whatever the head says.
#[test]
#[cfg(feature = "cli")]
fn a_model_file_with_a_broken_head_is_refused_by_the_program() {
    use proptest::test_runner::{Config, TestRunner};
    let whole =
        std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-untuned.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    let edits = proptest::collection::vec((8..8192usize, any::<u8>()), 1..4);
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&edits, |edits| {
        let mut bytes = whole.clone();
        edits.iter().for_each(|&(at, byte)| bytes[at] = byte);
        std::fs::write(&path, &bytes).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_proxytune"))
            .args([
                "check",
                "--host",
                "models/tiny-host.gguf",
                "--tuned",
                "models/tiny-tuned.gguf",
                "--untuned",
            ])
            .arg(&path)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        prop_assert!(matches!(output.status.code(), Some(0..=2)), "{:?}: {said}", output.status);
        prop_assert!(!said.contains("panicked"), "{said}");
        Ok(())
    });
    ran.unwrap();
}
