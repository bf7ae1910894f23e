//! The program as its users meet it: output, messages and exit codes.
#![cfg(feature = "cli")]

mod common;

use assert_cmd::Command;
use common::{cases, path, take_turns};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn proxytune(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("proxytune").unwrap();
    command.current_dir(path("")).args(arguments).timeout(std::time::Duration::from_secs(120));
    command
}

const TRIO: [&str; 6] = [
    "--host",
    "tests/fixtures/host-f32.gguf",
    "--tuned",
    "tests/fixtures/tuned-f32.gguf",
    "--untuned",
    "tests/fixtures/untuned-f32.gguf",
];

fn with_trio<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command], &TRIO[..], more].concat()
}

fn json(arguments: &[&str]) -> Value {
    let output = proxytune(arguments).assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

/// Bad input: exit code 2, a message that says all of `said`, nothing on standard output, no backtrace.
fn refuses(arguments: &[&str], said: &[&str]) {
    let mut assert = proxytune(arguments).assert().code(2).stdout("").stderr(contains("panicked").not());
    for words in said {
        assert = assert.stderr(contains(*words));
    }
}

#[test]
fn json_holds_the_oracles_tokens_and_every_documented_field() {
    let _turn = take_turns();
    let case = cases().into_iter().find(|c| c.name == "code-17").unwrap();
    let ids = case.prompt_tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let out = json(&with_trio(
        "generate",
        &["--tokens", &ids, "--max-tokens", "40", "--format", "json", "--explain"],
    ));
    let tokens: Vec<u32> =
        out["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
    assert_eq!(tokens, case.tokens[..tokens.len()]);
    assert!(["stop", "length"].contains(&out["finish_reason"].as_str().unwrap()));
    for field in [
        "prompt_tokens",
        "tokens",
        "prefill_ms",
        "decode_ms",
        "tokens_per_s",
        "host_ms",
        "tuned_ms",
        "untuned_ms",
        "combine_ms",
        "steps",
        "drafted",
        "accepted",
        "shifted",
    ] {
        assert!(out["stats"][field].is_number(), "{field}");
    }
    for position in out["positions"].as_array().unwrap() {
        assert_eq!(position["token"], position["top"], "greedy");
        for field in ["p_host", "p", "p_tuned", "p_untuned", "change"] {
            assert!((0.0..=1.0).contains(&position[field].as_f64().unwrap()), "{field}");
        }
    }
}

#[test]
fn a_prompt_gives_the_same_text_by_flag_file_and_standard_input() {
    let _turn = take_turns();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "import os").unwrap();
    let rest = ["--max-tokens", "12"];
    let by_flag = proxytune(&with_trio("generate", &[&["--prompt", "import os"], &rest[..]].concat()))
        .output()
        .unwrap();
    let name = file.path().to_str().unwrap();
    let by_file =
        proxytune(&with_trio("generate", &[&["--prompt-file", name], &rest[..]].concat())).output().unwrap();
    let mut command = proxytune(&with_trio("generate", &[&["--prompt-file", "-"], &rest[..]].concat()));
    let by_stdin = command.write_stdin("import os").output().unwrap();
    assert!(by_flag.status.success() && !by_flag.stdout.is_empty());
    assert_eq!(by_flag.stdout, by_file.stdout);
    assert_eq!(by_flag.stdout, by_stdin.stdout);
}

#[test]
fn a_seed_fixes_a_sampled_text_and_a_stop_string_ends_it() {
    let _turn = take_turns();
    let sampled = |more: &[&str]| {
        let flags = [
            "--prompt",
            "def",
            "--temperature",
            "1",
            "--top-k",
            "50",
            "--max-tokens",
            "40",
            "--format",
            "json",
        ];
        json(&with_trio("generate", &[&flags[..], more].concat()))
    };
    let first = sampled(&["--seed", "7"]);
    assert_eq!(first["tokens"], sampled(&["--seed", "7"])["tokens"]);
    assert_ne!(first["tokens"], sampled(&["--seed", "8"])["tokens"]);
    let text = first["text"].as_str().unwrap();
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(3).collect();
    let stopped = sampled(&["--seed", "7", "--stop", &stop]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
}

#[test]
fn check_knows_a_trio_that_works_and_explains_one_that_does_not() {
    let _turn = take_turns();
    proxytune(&with_trio("check", &[])).assert().success().stdout(contains("can work together"));
    let out = json(&with_trio("check", &["--format", "json"]));
    assert_eq!(out["models"][1]["common_tokens"], 4096);
    assert_eq!(out["problems"].as_array().unwrap().len(), 0);
}

#[test]
fn the_configuration_file_names_the_models_and_flags_win() {
    let _turn = take_turns();
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[host]\nmodel = 'tests/fixtures/host-f32.gguf'\n[proxy_tuning]\nalpha = 0.0\n\
                tuned = 'tests/fixtures/tuned-f32.gguf'\nuntuned = 'tests/fixtures/untuned-f32.gguf'\n";
    std::fs::write(file.path(), text).unwrap();
    let run = |more: &[&str]| {
        let flags = [
            "generate",
            "--config",
            file.path().to_str().unwrap(),
            "--prompt",
            "import os",
            "--format",
            "json",
        ];
        json(&[&flags[..], &["--max-tokens", "24"], more].concat())
    };
    assert_eq!(run(&[])["stats"]["shifted"], 0);
    assert_eq!(run(&[])["tokens"], run(&["--no-proxy"])["tokens"]);
    assert_ne!(run(&["--alpha", "2"])["stats"]["shifted"], 0);

    std::fs::write(file.path(), text.replace("alpha", "alhpa")).unwrap();
    let config = file.path().to_str().unwrap();
    refuses(&["generate", "--config", config, "--prompt", "x"], &["line 4", "did you mean `alpha`?", config]);
}

#[test]
fn model_files_that_are_missing_foreign_or_cut_off_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = std::fs::read(path("tests/fixtures/tuned-f32.gguf")).unwrap();
    let foreign = file("foreign.gguf", b"PK\x03\x04 something else");
    let empty = file("empty.gguf", b"");
    let short = file("short.gguf", &whole[..whole.len() / 2]);
    let header = file("header.gguf", &whole[..64]);
    for (model, said) in [
        ("no/such.gguf", "no such file"),
        ("models", "is a directory"),
        (foreign.as_str(), "not a GGUF file"),
        (empty.as_str(), "not a GGUF file"),
        (short.as_str(), "llama.cpp cannot load it"),
        (header.as_str(), "llama.cpp cannot load it"),
    ] {
        let flags = ["generate", "--prompt", "x", "--host", model, "--tuned", TRIO[3], "--untuned", TRIO[5]];
        refuses(&flags, &[model, said]);
    }
    refuses(&["generate", "--prompt", "x", "--host", TRIO[1]], &["--tuned", "path of a GGUF file"]);
}

#[test]
fn prompts_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.txt");
    std::fs::write(&broken, b"caf\xe9").unwrap();
    let long = folder.path().join("long.txt");
    std::fs::write(&long, "word ".repeat(5000)).unwrap();
    let (broken, long) = (broken.to_str().unwrap(), long.to_str().unwrap());
    refuses(&with_trio("generate", &["--prompt", ""]), &["prompt", "empty"]);
    refuses(&with_trio("generate", &["--prompt-file", broken]), &[broken, "not UTF-8 at offset 3"]);
    refuses(&with_trio("generate", &["--prompt-file", "no/such.txt"]), &["no/such.txt"]);
    refuses(&with_trio("generate", &["--prompt-file", long]), &["do not fit its context", "--ctx"]);
    refuses(&with_trio("generate", &["--tokens", "1,999999"]), &["--tokens", "999999", "4096"]);
    refuses(&with_trio("generate", &["--prompt", "x", "--chat"]), &["no chat template"]);
    refuses(&["generate", "--host", TRIO[1]], &["--prompt"]);
}

#[test]
fn values_that_make_no_sense_are_refused_with_their_flag() {
    for (flag, value) in [
        ("--alpha", "nan"),
        ("--alpha", "inf"),
        ("--alpha", "much"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--min-p", "2"),
        ("--max-tokens", "0"),
        ("--threads", "99999"),
        ("--speculate", "perhaps"),
        ("--repeat-penalty", "0"),
    ] {
        refuses(&with_trio("generate", &["--prompt", "x", flag, value]), &[flag]);
    }
}

#[test]
fn a_host_behind_an_api_needs_its_flags_and_excludes_what_needs_its_file() {
    // Nobody listens there: all but one of these are refused before anybody is asked.
    let url = "http://127.0.0.1:9";
    fn with<'a>(rest: &[&'a str]) -> Vec<&'a str> {
        let flags =
            ["generate", "--engine", "openai", "--prompt", "x", "--tuned", "tests/fixtures/tuned-f32.gguf"];
        let untuned = ["--untuned", "tests/fixtures/untuned-f32.gguf"];
        flags.into_iter().chain(untuned).chain(rest.iter().copied()).collect()
    }
    refuses(&with(&["--host-model", "m"]), &["--host-url"]);
    refuses(&with(&["--host-url", url]), &["--host-model"]);
    refuses(&with(&["--host-url", "ftp://x", "--host-model", "m"]), &["--host-url", "ftp://x"]);
    refuses(&with(&["--host-url", url, "--host-model", "m", "--max-cost", "1"]), &["--max-cost", "--price"]);
    refuses(
        &with(&["--host-url", url, "--host-model", "m", "--host", "x.gguf"]),
        &["--host", "--host-vocab"],
    );
    refuses(&with(&["--host-url", url, "--host-model", "m", "--host-timeout", "0"]), &["--host-timeout"]);
    refuses(&with(&["--host-url", url, "--host-model", "m", "--host-retries", "0"]), &["cannot be reached"]);
    refuses(&with_trio("bench", &["--engine", "openai"]), &["--engine"]);
    #[cfg(not(feature = "serve"))]
    refuses(&with_trio("serve", &[]), &["serve", "--engine openai"]);
}

#[test]
fn explain_tells_the_likeliest_tokens_before_and_after_and_who_moved_them() {
    let _turn = take_turns();
    let prompt = ["--prompt", "import os", "--max-tokens", "12"];
    let flags = [&prompt[..], &["--format", "json", "--explain", "--explain-top", "3"]].concat();
    let out = json(&with_trio("generate", &flags));
    let mut movers = std::collections::BTreeSet::new();
    for position in out["positions"].as_array().unwrap() {
        let candidates = position["candidates"].as_array().unwrap();
        assert!((3..=6).contains(&candidates.len()), "{position}");
        assert_eq!(candidates[0]["token"], position["top"]);
        assert_eq!(candidates[0]["p"], position["p"]);
        let number = |c: &Value, field: &str| c[field].as_f64().unwrap();
        assert!(candidates.windows(2).take(2).all(|c| number(&c[0], "p") >= number(&c[1], "p")));
        assert!(candidates.iter().any(|c| c["token"] == position["host_top"]));
        for c in candidates {
            // h * t / u up to one factor for all: whoever is moved against the first is moved by the proxies.
            let ratio = |c: &Value| {
                number(c, "p") * number(c, "p_untuned") / number(c, "p_host") / number(c, "p_tuned")
            };
            assert!((ratio(c) / ratio(&candidates[0]) - 1.0).abs() < 1e-2, "{c}");
            movers.extend(c["moved_by"].as_str().map(String::from));
        }
    }
    assert!(movers.iter().all(|m| m == "tuned" || m == "untuned") && !movers.is_empty(), "{movers:?}");
    let table = [&prompt[..], &["--explain", "--explain-top", "2"]].concat();
    proxytune(&with_trio("generate", &table))
        .assert()
        .success()
        .stdout(contains("% of the choice").and(contains(" -> ")).and(contains("by the tuned proxy")))
        .stderr(contains("how much the shift changed the choice"));
    refuses(
        &with_trio("generate", &[&prompt[..], &["--explain", "--explain-top", "21"]].concat()),
        &["--explain-top", "20"],
    );
}

#[test]
fn schedules_and_guards_are_flags_and_keys() {
    let _turn = take_turns();
    let prompt = ["--prompt", "import os", "--max-tokens", "12", "--format", "json"];
    let with = |more: &[&str]| json(&with_trio("generate", &[&prompt[..], more].concat()));
    let (plain, stopped) = (with(&[]), with(&["--alpha-schedule", "stop:3"]));
    assert_eq!(plain["stats"]["left_to_host"], 0);
    let tokens = stopped["tokens"].as_array().unwrap();
    assert_eq!(stopped["stats"]["left_to_host"], tokens.len() - 3);
    assert_eq!(tokens[..3], plain["tokens"].as_array().unwrap()[..3]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[proxy_tuning]\nalpha_schedule = 'stop:3'\nshift_cap = 50.0\nrepetition_guard = 4\n";
    std::fs::write(file.path(), text).unwrap();
    let config = ["--config", file.path().to_str().unwrap()];
    assert_eq!(with(&config)["tokens"], stopped["tokens"]);
    assert_eq!(with(&[&config[..], &["--alpha-schedule", "constant"]].concat())["tokens"], plain["tokens"]);
    assert_ne!(with(&["--shift-cap", "0.5", "--alpha", "2"])["tokens"], with(&["--alpha", "2"])["tokens"]);
    for (flag, value, expected) in [
        ("--alpha-schedule", "cosine:3", "warm-up:N"),
        ("--shift-cap", "-1", "0 for no cap"),
        ("--repetition-guard", "1", "0 for no guard"),
    ] {
        refuses(&with_trio("generate", &["--prompt", "x", flag, value]), &[flag, expected]);
    }
    std::fs::write(file.path(), "[proxy_tuning]\nalpha_schedule = 'often'\n").unwrap();
    refuses(&with_trio("generate", &["--prompt", "x", config[0], config[1]]), &["line 2", "warm-up:N"]);
}

#[test]
fn alpha_auto_is_the_best_on_the_calibration_text() {
    let _turn = take_turns();
    let file = tempfile::NamedTempFile::new().unwrap();
    let code = std::fs::read_to_string(path("models/calibration-code.txt")).unwrap();
    std::fs::write(file.path(), code.chars().take(4000).collect::<String>()).unwrap();
    let text = file.path().to_str().unwrap();
    let auto = ["--alpha", "auto", "--calibrate", text];
    let flags = ["--prompt", "import os", "--max-tokens", "8", "--format", "json"];
    let out = json(&with_trio("generate", &[&flags[..], &auto].concat()));
    let scored = json(&with_trio(
        "eval",
        &["--text", text, "--alpha", "auto", "--calibrate", text, "--format", "json"],
    ));
    assert_eq!(out["alpha"], scored["best_alpha"]);
    let by_hand = out["alpha"].to_string();
    let same = json(&with_trio("generate", &[&flags[..], &["--alpha", &by_hand]].concat()));
    assert_eq!(out["tokens"], same["tokens"]);
    refuses(&with_trio("generate", &["--prompt", "x", "--alpha", "auto"]), &["--alpha", "--calibrate"]);
    refuses(
        &with_trio("generate", &["--prompt", "x", "--calibrate", text]),
        &["--calibrate", "--alpha auto"],
    );
    refuses(&with_trio("check", &["--alpha", "auto"]), &["--alpha", "a number"]);
}

#[test]
fn a_negative_alpha_turns_the_shift_round() {
    let _turn = take_turns();
    let with_alpha = |alpha: &str| {
        let flags = ["--prompt", "import os", "--alpha", alpha, "--max-tokens", "16", "--format", "json"];
        json(&with_trio("generate", &flags))["tokens"].clone()
    };
    assert_ne!(with_alpha("-2"), with_alpha("2"));
}

#[test]
fn a_context_that_memory_cannot_hold_is_refused_before_it_is_touched() {
    refuses(&with_trio("generate", &["--prompt", "x", "--ctx", "60000000"]), &["KV cache", "--ctx"]);
}

/// A copy of a model whose tokens spell other words: letters turned by 13 places, lengths as they were.
fn with_other_words(model: &str) -> tempfile::NamedTempFile {
    let mut bytes = std::fs::read(path(model)).unwrap();
    let find = |bytes: &[u8], key: &str| bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap();
    let from = find(&bytes, "tokenizer.ggml.tokens") + "tokenizer.ggml.tokens".len();
    let to = from + find(&bytes[from..], "tokenizer.ggml.");
    for letter in bytes[from..to - 8].iter_mut().filter(|b| b.is_ascii_lowercase()) {
        *letter = b'a' + (*letter - b'a' + 13) % 26;
    }
    let copy = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    std::fs::write(copy.path(), bytes).unwrap();
    copy
}

#[test]
fn proxies_of_another_vocabulary_are_refused_and_check_says_what_to_do() {
    let _turn = take_turns();
    let stranger = with_other_words(TRIO[3]);
    let trio = ["--host", TRIO[1], "--tuned", stranger.path().to_str().unwrap(), "--untuned", TRIO[5]];
    let said = contains("tuned proxy").and(contains("same tokenizer"));
    proxytune(&[&["check"], &trio[..]].concat()).assert().code(1).stdout(said);
    refuses(
        &[&["generate", "--prompt", "x"], &trio[..]].concat(),
        &["vocabularies do not match", "same tokenizer"],
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_cleanly() {
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("never-written");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Waits for its prompt, so that the signal comes in time whatever the machine.
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("proxytune"))
        .current_dir(path(""))
        .args(with_trio("generate", &["--max-tokens", "400", "--format", "json", "--prompt-file"]))
        .arg(&fifo)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut prompt = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    std::io::Write::write_all(&mut prompt, b"import os").unwrap();
    drop(prompt);
    let status = child.wait().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(output.stdout.is_empty(), "nothing half-written");
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "interrupted");
}

/// What a program ends with whose outputs go to these.
#[cfg(target_os = "linux")]
fn end_of(args: &[&str], stdout: std::process::Stdio, stderr: std::process::Stdio) -> std::process::Output {
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("proxytune"))
        .current_dir(path(""))
        .args(args)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap();
    // A reader who has gone away, where it is a pipe.
    drop(child.stdout.take());
    child.wait_with_output().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_for_results_and_nothing_for_notes() {
    use std::process::Stdio;
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let generate = with_trio("generate", &["--prompt", "import os", "--max-tokens", "4"]);
    let json = [&generate[..], &["--format", "json"]].concat();
    let _turn = take_turns();
    for args in [&with_trio("check", &[]), &generate, &json] {
        let ended = end_of(args, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("No space left on device") && !said.contains("panicked"), "{said}");

        let ended = end_of(args, Stdio::piped(), Stdio::piped());
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && !said.contains("panicked"), "{said}");

        let ended = end_of(args, Stdio::null(), full());
        assert!(ended.status.success(), "{args:?}");
    }
}
