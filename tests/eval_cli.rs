//! `proxytune eval` as its users meet it.
#![cfg(feature = "cli")]

mod common;
#[path = "common/gguf.rs"]
mod gguf;

use assert_cmd::Command;
use common::{path, take_turns};
use gguf::Gguf;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const TRIO: [&str; 6] = [
    "--host",
    "tests/fixtures/host-f32.gguf",
    "--tuned",
    "tests/fixtures/tuned-f32.gguf",
    "--untuned",
    "tests/fixtures/untuned-f32.gguf",
];

/// The program with a cache folder of its own.
fn eval(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("proxytune").unwrap();
    command.current_dir(path("")).env("XDG_CACHE_HOME", folder).arg("eval").args(TRIO).args(arguments);
    command.timeout(Duration::from_secs(300));
    command
}

fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    let output = eval(folder, &[arguments, &["--format", "json"]].concat()).assert().success();
    serde_json::from_slice(&output.get_output().stdout).unwrap()
}

/// Bad input: exit code 2, a message that says all of `said`, nothing on standard output.
fn refuses(folder: &Path, arguments: &[&str], said: &[&str]) {
    let mut assert = eval(folder, arguments).assert().code(2).stdout("").stderr(contains("panicked").not());
    for words in said {
        assert = assert.stderr(contains(*words));
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn lines(&self, name: &str, records: &[Value]) -> String {
        self.write(name, &records.iter().map(|r| format!("{r}\n")).collect::<String>())
    }

    fn text(&self, characters: usize) -> String {
        let whole = std::fs::read_to_string(path("models/heldout-code.txt")).unwrap();
        self.write("text.txt", &whole.chars().take(characters).collect::<String>())
    }
}

#[test]
fn a_text_gives_the_documented_json_and_a_page_and_leaves_no_journal() {
    let _turn = take_turns();
    let files = Files::new();
    let (text, page) = (files.text(3000), files.path("report.html"));
    let flags =
        ["--text", &text, "--alpha", "0.25,-1,2", "--direct", TRIO[3], "--report", page.to_str().unwrap()];
    let out = json_of(files.0.path(), &flags);
    assert_eq!((&out["task"], &out["unit"]), (&json!("text"), &json!("bits_per_byte")));
    for field in ["host", "untuned", "tuned", "direct", "best_alpha"] {
        assert!(out[field].is_number(), "{field}");
    }
    let shifted = out["shifted"].as_array().unwrap();
    assert_eq!(
        shifted.iter().map(|s| s["alpha"].clone()).collect::<Vec<_>>(),
        [json!(0.25), json!(-1.0), json!(2.0)]
    );
    assert!(shifted.iter().all(|s| s["score"].is_number() && s["gap_closed"].is_number()));
    assert_eq!(out["direct"], out["tuned"], "the tuned proxy stood in for a direct model");
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("</html>") && page.contains("by the tuned proxy"));
    assert!(page.matches("--warmth: ").count() > 20, "a text whose tokens show what the shift did");
    assert_eq!(std::fs::read_dir(files.path("proxytune/eval")).unwrap().count(), 0);
    eval(files.0.path(), &flags[..4]).assert().success().stdout(contains("shifted, alpha 0.25 (best)"));
}

#[test]
fn scores_and_gaps_have_intervals_around_them_the_same_each_time() {
    let _turn = take_turns();
    let files = Files::new();
    let text = files.text(6000);
    let flags = ["--text", &text, "--window", "64", "--alpha", "0.25,0.5", "--direct", TRIO[3]];
    let out = json_of(files.0.path(), &flags);
    let around = |interval: &Value, score: &Value| {
        let [low, high, score] = [&interval[0], &interval[1], score].map(|v| v.as_f64().unwrap());
        assert!(
            low < score && score < high && high - low < 0.5 * score.abs().max(1.0),
            "{low} {score} {high}"
        );
    };
    for model in ["host", "untuned", "tuned", "direct"] {
        around(&out["intervals"][model], &out[model]);
    }
    for shifted in out["shifted"].as_array().unwrap() {
        around(&shifted["interval"], &shifted["score"]);
        // A model that stands in for the direct one may not be better than the host in every draw.
        let gap = &shifted["gap_interval"];
        assert!(gap.is_null() || gap[0].as_f64() < gap[1].as_f64(), "{gap}");
    }
    assert_eq!((&out["intervals"]["level"], &out["intervals"]["resamples"]), (&json!(0.95), &json!(2000)));
    assert_eq!(json_of(files.0.path(), &flags), out);
    eval(files.0.path(), &flags).assert().success().stdout(contains("95 % interval").and(contains(" to ")));
    let short = json_of(files.0.path(), &["--text", &files.text(300), "--alpha", "1"]);
    assert_eq!((&short["intervals"], &short["shifted"][0]["interval"]), (&Value::Null, &Value::Null));
}

#[test]
fn alpha_auto_takes_the_best_of_the_calibration_text() {
    let _turn = take_turns();
    let files = Files::new();
    let text = files.text(2000);
    let out = json_of(
        files.0.path(),
        &["--text", &text, "--alpha", "auto", "--calibrate", "models/demo-prompts.txt"],
    );
    assert_eq!(out["shifted"].as_array().unwrap().len(), 1);
    assert_eq!(out["best_alpha"], out["calibration"]["best_alpha"]);
    refuses(files.0.path(), &["--text", &text, "--alpha", "auto"], &["--calibrate"]);
    refuses(files.0.path(), &["--text", &text, "--alpha", "1", "--calibrate", &text], &["--alpha auto"]);
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_where_it_was_and_ends_as_if_nothing_had_been() {
    let _turn = take_turns();
    let files = Files::new();
    let (text, journal) = (files.text(20_000), files.path("journal.jsonl"));
    let flags = ["--text", &text, "--window", "32", "--alpha", "0.5,1"];
    let with_journal = [&flags[..], &["--journal", journal.to_str().unwrap()]].concat();
    let lines = || std::fs::read(&journal).map_or(0, |b| b.iter().filter(|&&b| b == b'\n').count());
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("proxytune"))
        .current_dir(path(""))
        .arg("eval")
        .args(TRIO)
        .args(&with_journal)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while lines() < 4 {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let done = lines();
    assert!(done > 1);
    let said = eval(files.0.path(), &with_journal).assert().success().stderr(contains("going on with"));
    let resumed = json_of(files.0.path(), &with_journal);
    assert_eq!(resumed, json_of(files.0.path(), &flags));
    assert!(lines() >= done, "a journal that was asked for stays");
    drop(said);
    let other =
        [&["--text", &text, "--window", "64", "--journal"][..], &[journal.to_str().unwrap()]].concat();
    refuses(files.0.path(), &other, &["another evaluation", "settings"]);
}

#[test]
fn answers_are_right_when_they_match() {
    let _turn = take_turns();
    let files = Files::new();
    let host_says = |framed: &str, stop: &str| {
        let arguments =
            ["generate", "--no-proxy", "--host", TRIO[1], "--max-tokens", "12", "--stop", stop, "--prompt"];
        let mut command = Command::cargo_bin("proxytune").unwrap();
        let out = command.current_dir(path("")).args(arguments).arg(framed).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let questions = ["What is a file?", "What does open do?", "Who reads it?"];
    let answers = questions.map(|q| host_says(&format!("Q: {q}\nA:"), "\n"));
    // The last one cannot be met.
    let record = |i: usize, answer: &str| json!({ "question": questions[i], "question_id": i, "answer": { "value": answer, "aliases": ["or this"] } });
    let trivia = files
        .lines("trivia.jsonl", &[record(0, &answers[0]), record(1, &answers[1]), record(2, "no such words")]);
    let flags = ["--task", &trivia, "--max-tokens", "12", "--alpha", "0"];
    let out = json_of(files.0.path(), &flags);
    assert_eq!((&out["task"], &out["unit"]), (&json!("triviaqa"), &json!("accuracy")));
    assert!((out["host"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{out} {answers:?}");
    assert_eq!(out["shifted"][0]["score"], out["host"], "alpha 0 is the host");
    assert_eq!(out, json_of(files.0.path(), &flags), "the same twice");

    let everything = [&flags[..], &["--match", "(?s)^()"]].concat();
    assert_eq!(json_of(files.0.path(), &everything)["tuned"], 1.0, "an empty group is in every text");
    let gsm = files.lines("gsm.jsonl", &[json!({ "question": "1 + 1?", "answer": "It is 2.\n#### 2" })]);
    let out = json_of(files.0.path(), &["--task", &gsm, "--max-tokens", "8", "--limit", "1"]);
    assert_eq!((&out["task"], &out["shifted"][0]["alpha"]), (&json!("gsm8k"), &json!(1.0)));
}

#[test]
fn in_a_chat_each_model_reads_its_own_template() {
    let _turn = take_turns();
    let files = Files::new();
    let with_template = |name: &str, source: &str, template: &str| {
        let mut model = Gguf::read(&path(source));
        model.add_chat_template(template);
        model.write(&files.path(name));
        files.path(name).to_str().unwrap().to_owned()
    };
    let plain = "Q: {{ messages[0].content }}\nA:";
    let marked = "{{ messages[0].content }} {% for i in range(3) %}import {% endfor %}";
    let host = with_template("host.gguf", TRIO[1], plain);
    let tuned = with_template("tuned.gguf", TRIO[3], marked);
    let question = "What is a file?";
    let ask = json!({ "question": question, "answer": { "value": "no such words", "aliases": [] } });
    let ask = files.lines("ask.jsonl", &[ask]);
    let choices = json!({ "a name": 1, "a number": 0, "import": 0 });
    let choose = json!({ "question": question, "mc1_targets": choices, "mc2_targets": choices });
    let choose = files.lines("choose.jsonl", &[choose]);
    let journal = files.path("journal.jsonl");
    // What the tuned proxy and the direct model, the same weights, make of the questions: texts, then MC2.
    let results = |direct: &str| {
        let eval = |task: &str| {
            let models = ["--host", &host, "--tuned", &tuned, "--untuned", TRIO[5], "--direct", direct];
            let flags =
                ["--task", task, "--chat", "--alpha", "1", "--format", "json", "--fresh", "--journal"];
            let mut command = Command::cargo_bin("proxytune").unwrap();
            command.current_dir(path("")).arg("eval").args(models).args(flags).arg(&journal);
            let output = command.timeout(Duration::from_secs(300)).assert().success();
            serde_json::from_slice::<Value>(&output.get_output().stdout).unwrap()
        };
        eval(&ask);
        let lines = std::fs::read_to_string(&journal).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let scores = eval(&choose)["other_metrics"][0].clone();
        ["tuned", "direct"].map(|column| {
            let key = json!(format!("{column} item 0 sample 0"));
            let text = lines.iter().find(|line| line["key"] == key).unwrap()["item"]["text"].clone();
            (text, scores[column].clone())
        })
    };
    let [tuned_says, direct_says] = results(&tuned);
    assert_eq!(direct_says, tuned_says);
    let [_, by_plain] = results(&with_template("plain.gguf", TRIO[3], plain));
    assert!(by_plain.0 != tuned_says.0 && by_plain.1 != tuned_says.1, "{by_plain:?} {tuned_says:?}");
    assert_eq!(results(TRIO[3])[1], by_plain, "without a template: the host's");
}

#[cfg(target_os = "linux")]
#[test]
fn code_passes_when_its_tests_do() {
    let _turn = take_turns();
    let files = Files::new();
    // The function is whole already, and the models only add to its comment.
    let problem = |id: &str, expected: u32| {
        json!({ "task_id": id, "prompt": "def two():\n    return 2\n# ", "entry_point": "two",
                "canonical_solution": "", "test": format!("def check(candidate):\n    assert candidate() == {expected}\n") })
    };
    let mut packed = flate2_gz(&[problem("a", 2), problem("b", 3)]);
    let task = files.path("HumanEval.jsonl.gz");
    std::fs::write(&task, &packed).unwrap();
    let task = task.to_str().unwrap();
    let flags = [
        "--task",
        task,
        "--stop",
        "\n",
        "--max-tokens",
        "6",
        "--samples",
        "2",
        "--temperature",
        "1",
        "--k",
        "1,2",
    ];
    let out = json_of(files.0.path(), &flags);
    assert_eq!((&out["task"], &out["unit"]), (&json!("humaneval"), &json!("pass@1")));
    for field in ["host", "tuned", "untuned"] {
        assert_eq!(out[field], 0.5, "{field}");
    }
    assert_eq!(out["other_metrics"][0]["unit"], "pass@2");
    assert!(out["notes"][0].as_str().unwrap().contains("sockets"));
    refuses(files.0.path(), &["--task", task, "--samples", "2"], &["--temperature"]);
    refuses(files.0.path(), &["--task", task, "--k", "3"], &["--k", "number of samples, 1"]);
    packed.truncate(packed.len() / 2);
    std::fs::write(task, packed).unwrap();
    refuses(files.0.path(), &["--task", task], &["gzipped, but broken"]);
}

#[cfg(target_os = "linux")]
fn flate2_gz(records: &[Value]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    records.iter().for_each(|r| writeln!(encoder, "{r}").unwrap());
    encoder.finish().unwrap()
}

#[test]
fn task_files_that_are_broken_say_where() {
    let files = Files::new();
    let good = r#"{"question": "a?", "answer": "b"}"#;
    for (name, text, said) in [
        ("torn.jsonl", format!("{good}\n{good}\n{{\"question\": \"a"), &["line 3", "not JSON"][..]),
        ("missing.jsonl", format!("{good}\n{{\"question\": \"a?\"}}\n"), &["line 2", "`answer`", "missing"]),
        (
            "type.jsonl",
            format!("{good}\n{{\"question\": 5, \"answer\": \"b\"}}\n"),
            &["line 2", "`question`", "a number"],
        ),
        ("prose.txt", "Once upon a time\n".into(), &["line 1", "not JSON"]),
        (
            "other.json",
            r#"[{"text": "x", "label": 1}]"#.into(),
            &["no task that is known", "label", "truthfulqa has"],
        ),
        ("empty.jsonl", "\n\n".into(), &["is empty"]),
        (
            "mc.json",
            r#"[{"question": "a?", "mc1_targets": {"b": 1, "c": 1}, "mc2_targets": {"b": 1, "c": 0}}]"#
                .into(),
            &["record 1", "`mc1_targets`", "exactly one true choice"],
        ),
    ] {
        let file = files.write(name, &text);
        refuses(files.0.path(), &["--task", &file], &[&[name], said].concat());
    }
    refuses(files.0.path(), &["--task", "no/such.jsonl"], &["no/such.jsonl", "cannot be read"]);
    refuses(files.0.path(), &["--task", "models"], &["models", "cannot be read"]);
    let file = files.write("good.jsonl", good);
    refuses(files.0.path(), &["--task", &file, "--as", "humaneval"], &["`task_id`", "missing"]);
    refuses(files.0.path(), &["--task", &file, "--as", "mmlu"], &["--as", "truthfulqa"]);
    refuses(files.0.path(), &["--task", &file, "--match", "("], &["--match", "regular expression"]);
    refuses(files.0.path(), &["--task", &file, "--limit", "0"], &["--limit"]);
    refuses(files.0.path(), &["--task", &file, "--text", &file], &["--text"]);
    refuses(files.0.path(), &["--task", &file, "--chat"], &["chat template"]);
}

#[test]
fn files_that_cannot_be_written_are_refused_before_any_model_is_loaded() {
    let files = Files::new();
    let text = files.text(100);
    let missing = files.path("no/such/folder/report.html");
    let flags = ["--text", &text, "--host", "no-such-model.gguf", "--report", missing.to_str().unwrap()];
    let mut command = Command::cargo_bin("proxytune").unwrap();
    let assert =
        command.current_dir(path("")).env("XDG_CACHE_HOME", files.0.path()).arg("eval").args(flags).assert();
    assert.code(2).stderr(contains("report.html").and(contains("cannot be written")));
    let folder = files.0.path().to_str().unwrap();
    refuses(files.0.path(), &["--text", &text, "--report", folder], &["cannot be written"]);
    refuses(files.0.path(), &["--text", &text, "--journal", folder], &["journal"]);
    refuses(files.0.path(), &["--text", &text, "--journal", &text], &["not a journal", "left as it is"]);
    let page = files.path("new.html");
    refuses(
        files.0.path(),
        &["--text", &text, "--window", "1", "--report", page.to_str().unwrap()],
        &["--window"],
    );
    assert!(!page.exists(), "no empty page is left behind");
    assert_eq!(std::fs::read_dir(files.path("proxytune/eval")).unwrap().count(), 0, "nor a journal");
}

#[test]
fn weights_that_make_no_sense_are_refused() {
    let files = Files::new();
    let text = files.text(100);
    for alpha in ["nan", "much", "1,1", "1,inf"] {
        refuses(files.0.path(), &["--text", &text, "--alpha", alpha], &["--alpha"]);
    }
}
