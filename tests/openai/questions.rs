//! `eval` over an API: questions in the form in which RealTime QA is published, and files that are not.
#![cfg(feature = "cli")]

use super::fake::{Fake, Reply};
use super::{COMPLETIONS, events, well};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A run of the program against a host at `url`: exit code, what it printed, what it said.
async fn proxytune(url: &str, cache: &Path, command: &[&str]) -> (i32, String, String) {
    let mut run = assert_cmd::Command::cargo_bin("proxytune").unwrap();
    run.env("XDG_CACHE_HOME", cache).args(command);
    run.args([
        "--engine",
        "openai",
        "--host-url",
        url,
        "--host-model",
        "m",
        "--threads",
        "1",
        "--host-retries",
        "0",
    ]);
    run.arg("--tuned").arg(root("tests/fixtures/tuned-f32.gguf"));
    run.arg("--untuned").arg(root("tests/fixtures/untuned-f32.gguf"));
    let done = tokio::task::spawn_blocking(move || run.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

/// A host that likes the first choice best.
async fn likes_the_first() -> Fake {
    let token =
        |text: &str, logprob: f32| json!({ "token": text, "bytes": text.as_bytes(), "logprob": logprob });
    let letters = [(" A", -0.9), (" B", -1.1), (" C", -1.3), (" D", -5.0)];
    let mut position = token(" A", -0.9);
    position["top_logprobs"] = letters.map(|(text, logprob)| token(text, logprob)).into_iter().collect();
    let choice = json!({ "text": " A", "logprobs": { "content": [position] }, "finish_reason": "length" });
    let answer = json!({ "choices": [choice] }).to_string();
    Fake::start(move |path, body| match path {
        COMPLETIONS if body["stream"] == true => Reply::events(&[answer.clone(), "[DONE]".into()]),
        COMPLETIONS => Reply::new(200, &answer),
        _ => Reply::new(404, "{}"),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_as_published_is_scored_host_against_shifted_and_nothing_is_paid_twice() {
    let folder = tempfile::tempdir().unwrap();
    let fake = likes_the_first().await;
    let task = root("tests/openai/realtimeqa.jsonl");
    let text = std::fs::read_to_string(&task).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = records.iter().filter(|r| r["answer"] == json!(["0"])).count();
    let run = ["eval", "--task", task.to_str().unwrap(), "--alpha", "0,1", "--format", "json"];
    let (code, out, err) =
        proxytune(&fake.url(), folder.path(), &[&run[..], &["--max-requests", "5"]].concat()).await;
    assert!(code == 2 && out.is_empty() && err.contains("--max-requests"), "{err}");
    assert_eq!(fake.asked(COMPLETIONS), 5);
    let (code, out, err) = proxytune(&fake.url(), folder.path(), &run).await;
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let share = |value: &Value| value.as_f64().unwrap() * records.len() as f64;
    assert_eq!((&report["task"], &report["unit"]), (&json!("realtimeqa"), &json!("accuracy")), "{report}");
    assert!((share(&report["host"]) - first as f64).abs() < 1e-6, "{report}");
    assert_eq!(report["shifted"][0]["score"], report["host"], "alpha 0 is the host");
    assert_eq!(report["shifted"].as_array().unwrap().len(), 2);
    // Each question once, besides what looked at the API each time.
    let asks = |r: &Value| r["question_sentence"].as_str().unwrap().to_owned();
    let sent: Vec<String> = {
        let requests = fake.requests.lock().unwrap();
        requests.iter().filter_map(|(_, body)| body["prompt"].as_str().map(String::from)).collect()
    };
    for record in &records {
        let times = sent.iter().filter(|prompt| prompt.contains(&asks(record))).count();
        assert_eq!(times, 1, "{}", asks(record));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_shape_names_line_and_field_and_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let fake = likes_the_first().await;
    let good = json!({ "question_id": "20310704_0", "question_sentence": "Which?", "choices": ["x", "y"], "answer": ["0"] });
    let with = |key: &str, value: Value| {
        let mut record = good.clone();
        record[key] = value;
        format!("{good}\n{record}\n")
    };
    let without = |key: &str| {
        let mut record = good.clone();
        record.as_object_mut().unwrap().remove(key);
        format!("{good}\n{record}\n")
    };
    let cases = [
        (without("choices"), ["line 2", "`choices`"]),
        (without("answer"), ["line 2", "`answer`"]),
        (without("question_sentence"), ["line 2", "`question_sentence`"]),
        (with("choices", json!(["x"])), ["line 2", "`choices`"]),
        (with("choices", json!(["x", 2])), ["line 2", "`choices`"]),
        (with("answer", json!(["2"])), ["line 2", "`answer`"]),
        (with("answer", json!(["x"])), ["line 2", "`answer`"]),
        (format!("{good}\n{{\"question_sen"), ["line 2", "not JSON"]),
        (
            "{\"question_id\": \"20310704_0\", \"prediction\": [\"0\"]}\n".into(),
            ["no task that is known", "question_sentence"],
        ),
        // A task, but none that an API shows enough for.
        ("{\"question\": \"a?\", \"answer\": \"b\"}\n".into(), ["--engine", "realtimeqa"]),
    ];
    for (at, (text, said)) in cases.into_iter().enumerate() {
        let file = folder.path().join(format!("{at}.jsonl"));
        std::fs::write(&file, &text).unwrap();
        let (code, out, err) =
            proxytune(&fake.url(), folder.path(), &["eval", "--task", file.to_str().unwrap()]).await;
        assert!(code == 2 && out.is_empty() && said.iter().all(|words| err.contains(words)), "{text}: {err}");
    }
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_followed_by_what_it_took() {
    let folder = tempfile::tempdir().unwrap();
    for (speculate, figures) in
        [("off", "4 calls (1.00 a token, drafts: off)"), ("3", "1 calls (0.25 a token, drafts: host)")]
    {
        let one = |text: &str| events(&[text]);
        let replies = match speculate {
            "off" => vec![one(" a"), one(" b"), one(" c"), one(" d")],
            _ => vec![events(&[" a", " b", " c", " d"])],
        };
        let fake = well(replies).await;
        let command = [
            "generate",
            "--prompt",
            "It is",
            "--max-tokens",
            "4",
            "--alpha",
            "0.01",
            "--speculate",
            speculate,
            "--price",
            "1,2",
        ];
        let (code, out, err) = proxytune(&fake.url(), folder.path(), &command).await;
        assert_eq!((code, out.as_str()), (0, " a b c d\n"), "{err}");
        assert!(
            err.contains("4 tokens by reweigh") && err.contains(figures) && err.contains("cost"),
            "{err}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paid_is_shown_also_where_the_host_fails_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let cut = Reply { missing: 10, ..events(&[" a", " b"]) };
    for format in ["text", "json"] {
        let fake = well(vec![cut.clone(), Reply::new(401, r#"{"error":{"message":"no longer"}}"#)]).await;
        let command =
            ["generate", "--prompt", "It is", "--max-tokens", "4", "--alpha", "0.01", "--format", format];
        let (code, out, err) = proxytune(&fake.url(), folder.path(), &command).await;
        assert!(code == 2 && err.contains("status 401: no longer"), "{err}");
        match format {
            "text" => assert_eq!(out, " a b\n"),
            _ => assert!(out.is_empty() && err.contains("the text up to here: \" a b\""), "{out} {err}"),
        }
    }
}
