//! A host behind an API that misbehaves in every way: a clear error or a recovery, never an unshifted answer in silence.
#![cfg(feature = "openai")]

mod charges;
mod fake;
mod gateway;
mod questions;
mod replay;
mod vllm;

use fake::{Fake, Reply, in_order};
use proxytune::backend::llama::SamplerOptions;
use proxytune::config::{Config, Control, OnError, Speculate};
use proxytune::host::blackbox::{Advisers, BlackBox, Finish, Ids, Job, Outcome, Prompt, Way, generate};
use proxytune::host::openai::{Form, Key, Limits, OpenAi, Options};
use proxytune::{Error, Result};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const COMPLETIONS: &str = "/v1/completions";

fn advisers() -> Arc<Advisers> {
    static ADVISERS: OnceLock<Arc<Advisers>> = OnceLock::new();
    let load = || {
        let path = |name| Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name));
        let mut config = Config::default();
        config.proxy_tuning.tuned = path("tuned-f32.gguf");
        config.proxy_tuning.untuned = path("untuned-f32.gguf");
        config.proxy_tuning.threads = 1;
        Arc::new(Advisers::load(config, 8, 256).unwrap())
    };
    ADVISERS.get_or_init(load).clone()
}

fn options(fake: &Fake) -> Options {
    Options {
        url: fake.url(),
        model: "m".into(),
        timeout: Duration::from_millis(1500),
        retries: 2,
        ..Options::default()
    }
}

fn job(max_tokens: usize) -> Job {
    Job {
        prompt: Prompt::Text("It is".into()),
        tuned_system: None,
        alpha: 0.01,
        control: Control::default(),
        sampler: SamplerOptions::default(),
        max_tokens,
        stops: Vec::new(),
        way: Way::Auto,
        speculate: Speculate::Tokens(3),
        on_error: OnError::Stop,
    }
}

/// A position in the form of chat: the token, far ahead of another one.
fn content(text: &str) -> Value {
    let token =
        |text: &str, logprob: f32| json!({ "token": text, "bytes": text.as_bytes(), "logprob": logprob });
    let mut position = token(text, -0.01);
    position["top_logprobs"] = json!([token(text, -0.01), token(" no", -6.0)]);
    position
}

fn event(text: &str, finish: Option<&str>) -> String {
    json!({ "choices": [{ "index": 0, "text": text, "logprobs": { "content": [content(text)] }, "finish_reason": finish }] }).to_string()
}

fn whole(text: &str) -> Reply {
    Reply::new(200, &event(text, Some("length")))
}

fn events(texts: &[&str]) -> Reply {
    let mut events: Vec<String> = texts.iter().map(|text| event(text, None)).collect();
    events.push("[DONE]".into());
    Reply::events(&events)
}

/// A server that is well while it is looked at; then it answers streams as it is told.
async fn well(replies: Vec<Reply>) -> Fake {
    let mut next = in_order(replies);
    Fake::start(move |path, body| match (path, body["stream"].as_bool()) {
        ("/v1/models", _) => Reply::new(404, "{}"),
        (COMPLETIONS, Some(true)) => next(),
        (COMPLETIONS, _) if body["echo"] == true => Reply::new(400, r#"{"error":{"message":"no echo"}}"#),
        _ => whole(" a"),
    })
    .await
}

async fn run(fake: &Fake, job: Job) -> Result<Outcome> {
    let host = OpenAi::connect(options(fake)).await?;
    generate(&host, Some(&advisers()), &Ids::Unknown, job, &mut |_| ControlFlow::Continue(())).await
}

fn upstream(error: &Error) -> (Option<u16>, String) {
    match error {
        Error::Upstream { status, .. } => (*status, error.to_string()),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_comes_out_whole_wherever_its_bytes_are_cut() {
    for size in [1, 7, 64] {
        let reply = events(&[" a", " €", " b", " c"]).cut(size);
        let outcome = run(&well(vec![reply]).await, job(4)).await.unwrap();
        assert_eq!((outcome.text.as_str(), outcome.stats.calls), (" a € b c", 1), "pieces of {size}");
        assert_eq!(outcome.finish, Finish::Length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_a_missing_model_say_what_to_do_and_are_not_tried_again() {
    for (status, help) in [(401, "--host-key-env"), (403, "--host-key-env")] {
        let fake =
            Fake::start(move |_, _| Reply::new(status, r#"{"error":{"message":"bad key sk-secret"}}"#)).await;
        let options = Options { key: Key::new("sk-secret"), ..options(&fake) };
        let (said, text) = upstream(&OpenAi::connect(options).await.unwrap_err());
        assert!(said == Some(status) && text.contains(help) && text.contains("bad key ***"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(fake.requests.lock().unwrap().len(), 1);
        assert!(fake.heads.lock().unwrap()[0].contains("Bearer sk-secret"), "the key goes to the API");
    }
    let fake = Fake::start(|_, _| Reply::new(404, r#"{"error":{"message":"no model m"}}"#)).await;
    let (said, text) = upstream(&OpenAi::connect(options(&fake)).await.unwrap_err());
    assert!(said == Some(404) && text.contains("--host-model") && text.contains("no model m"), "{text}");
}

/// The program's most talkative log has neither the key nor what carries it.
#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread")]
async fn the_most_talkative_log_has_no_key() {
    let fake = well(vec![events(&[" a", " b"])]).await;
    let url = fake.url();
    let run = move || {
        let fixture = |name| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let mut command = assert_cmd::Command::cargo_bin("proxytune").unwrap();
        command.args(["generate", "-vv", "--engine", "openai", "--host-url", &url, "--host-model", "m"]);
        command.args(["--prompt", "It is", "--max-tokens", "2", "--threads", "1", "--tuned"]);
        command.arg(fixture("tuned-f32.gguf")).arg("--untuned").arg(fixture("untuned-f32.gguf"));
        command.envs([("OPENAI_API_KEY", "sk-secret"), ("PROXYTUNE_LOG", "trace"), ("RUST_LOG", "trace")]);
        command.output().unwrap()
    };
    let done = tokio::task::spawn_blocking(run).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("TRACE"), "{said}");
    assert!(fake.heads.lock().unwrap().iter().any(|head| head.contains("Bearer sk-secret")));
    assert!(!said.contains("sk-secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shows_no_log_probabilities_is_refused_and_fewer_tokens_are_used_and_counted() {
    let fake = Fake::start(|path, _| match path {
        "/v1/models" => Reply::new(404, ""),
        _ => Reply::new(200, r#"{"choices":[{"text":" a","finish_reason":"length"}]}"#),
    })
    .await;
    let error = run(&fake, job(2)).await.unwrap_err().to_string();
    assert!(error.contains("--way") && error.contains("no log-probabilities"), "{error}");

    // Two are shown where twenty are asked for.
    let fake = well(vec![events(&[" a", " b"])]).await;
    let outcome = run(&fake, job(2)).await.unwrap();
    assert_eq!(outcome.stats.fewest_visible, 2);
    assert!(outcome.stats.mean(outcome.stats.visible) < 1.0);

    // It shows them when it is looked at, and later no more.
    let fake = well(vec![Reply::events(&[r#"{"choices":[{"text":" a"}]}"#.into(), "[DONE]".into()])]).await;
    let error = run(&fake, job(2)).await.unwrap_err().to_string();
    assert!(error.contains("showed no log-probabilities"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_gives_five_is_asked_for_five() {
    let fake = Fake::start(|path, body| match (path, body["logprobs"].as_u64()) {
        ("/v1/models", _) => Reply::new(404, ""),
        (_, Some(6..)) => Reply::new(400, r#"{"error":{"message":"logprobs: at most 5"}}"#),
        (_, Some(5)) if body["stream"] == true => events(&[" a", " b"]),
        _ => whole(" a"),
    })
    .await;
    assert_eq!(run(&fake, job(2)).await.unwrap().text, " a b");
}

#[tokio::test(flavor = "multi_thread")]
async fn storms_are_waited_out_as_long_as_was_asked_for_and_no_longer() {
    let busy = |status: u16, after: &str| {
        let mut reply = Reply::new(status, r#"{"error":{"message":"slow down"}}"#);
        reply.headers += &format!("retry-after: {after}\r\n");
        reply
    };
    let fake = well(vec![busy(429, "0"), busy(503, "0"), events(&[" a", " b"])]).await;
    let outcome = run(&fake, job(2)).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.spent.retries), (" a b", 2));

    for status in [429, 503] {
        let fake = well(vec![busy(status, "0")]).await;
        let (said, text) = upstream(&run(&fake, job(2)).await.unwrap_err());
        assert!(said == Some(status) && text.contains("slow down"), "{text}");
        // One try and two more, besides two requests that looked at it.
        assert_eq!(fake.asked(COMPLETIONS), 2 + 3);
    }

    let before = std::time::Instant::now();
    let fake = well(vec![busy(429, "100000")]).await;
    assert_eq!(upstream(&run(&fake, job(2)).await.unwrap_err()).0, Some(429));
    assert!(before.elapsed() < Duration::from_secs(60), "nobody waits for a day");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_drops_keeps_what_had_come_and_pays_for_it_once() {
    let dropped = Reply { missing: 100, ..Reply::events(&[event(" a", None), event(" b", None)]) };
    let fake = well(vec![dropped, events(&[" c", " d"])]).await;
    let outcome = run(&fake, job(4)).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.stats.resumed), (" a b c d", 1));
    let requests = fake.requests.lock().unwrap();
    let last = &requests.last().unwrap().1;
    assert_eq!((last["prompt"].as_str(), last["max_tokens"].as_u64()), (Some("It is a b"), Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_truncated_json_end_in_an_error_or_a_recovery() {
    let broken = Reply::events(&[event(" a", None), "{\"choices\":[{\"te".into()]);
    let outcome = run(&well(vec![broken.clone(), events(&[" b", " c"])]).await, job(3)).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.stats.resumed), (" a b c", 1));

    let hopeless = Reply::events(&["{\"choices\":".into()]);
    let (_, text) = upstream(&run(&well(vec![hopeless]).await, job(2)).await.unwrap_err());
    assert!(text.contains("not JSON"), "{text}");

    for body in ["<html>hello</html>", "{\"choices\":[{", "", "[]", "{\"choices\":[]}"] {
        let body = body.to_owned();
        let fake = Fake::start(move |_, _| Reply::new(200, &body)).await;
        upstream(&OpenAi::connect(options(&fake)).await.unwrap_err());
    }
    let cut = Fake::start(|_, _| Reply { missing: 9, ..Reply::new(200, "{\"data\":[") }).await;
    let (_, text) = upstream(&OpenAi::connect(options(&cut)).await.unwrap_err());
    assert!(text.contains("connection was lost"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_given_up() {
    let hangs = Reply { hangs: true, ..Reply::events(&[event(" a", None)]) };
    let fake = well(vec![hangs, events(&[" b"])]).await;
    let outcome = run(&fake, job(2)).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.stats.resumed), (" a b", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_an_error_that_says_so() {
    let fake = Fake::start(|_, _| whole("a")).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    let options = Options { url: format!("http://{free}"), retries: 1, ..options(&fake) };
    let (status, text) = upstream(&OpenAi::connect(options).await.unwrap_err());
    assert!(status.is_none() && text.contains("cannot be reached"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_ends_a_text_and_never_goes_beyond() {
    let fake = well(vec![events(&[" a"])]).await;
    // Three to look at it: the list, a position, an echo that is refused; the list is free.
    let limits = Limits { requests: Some(5), ..Limits::default() };
    let host = OpenAi::connect(Options { limits, ..options(&fake) }).await.unwrap();
    let one = Job { speculate: Speculate::Off, ..job(20) };
    let run = |job| async {
        let advisers = advisers();
        generate(&host, Some(&advisers), &Ids::Unknown, job, &mut |_| ControlFlow::Continue(())).await
    };
    let outcome = run(one.clone()).await.unwrap();
    assert_eq!((outcome.finish, outcome.spent.requests), (Finish::Budget, 5));
    assert_eq!(fake.asked(COMPLETIONS), 5);
    assert!(matches!(run(one).await, Err(Error::Budget { .. })), "not even one token");
    assert_eq!(fake.asked(COMPLETIONS), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_leaves_closes_the_connection() {
    let hangs = Reply { hangs: true, ..Reply::events(&[event(" a", None), event(" b", None)]) };
    let fake = well(vec![hangs]).await;
    let host = OpenAi::connect(options(&fake)).await.unwrap();
    let outcome =
        generate(&host, Some(&advisers()), &Ids::Unknown, job(20), &mut |_| ControlFlow::Break(())).await;
    assert_eq!(outcome.unwrap().finish, Finish::Interrupted);
    for _ in 0..200 {
        if *fake.left.lock().unwrap() == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server still waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_the_proxies_lack_are_spelt_in_several_and_counted() {
    let texts = [" 你好吗", " naïveté", " ξένος", " b"];
    let outcome = run(&well(vec![events(&texts)]).await, job(4)).await.unwrap();
    assert_eq!(outcome.text, texts.concat());
    let stats = outcome.stats;
    assert_eq!((stats.spelt, stats.unreadable, stats.unshifted), (3, 0, 0), "{stats:?}");
    assert!((stats.coverage() - 1.0).abs() < 1e-9);
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_is_spoken_where_there_are_no_completions_and_answers_with_one_token() {
    let fake = Fake::start(|path, body| match path {
        "/v1/models" => Reply::new(200, r#"{"data":[{"id":"m","owned_by":"someone"}]}"#),
        COMPLETIONS => Reply::new(404, r#"{"error":{"message":"this is a chat model"}}"#),
        _ if body["stream"] == true => {
            let mut value: Value = serde_json::from_str(&event(" a", Some("length"))).unwrap();
            value["choices"][0]["delta"] = json!({ "content": " a" });
            Reply::events(&[value.to_string(), "[DONE]".into()])
        }
        _ => whole(" a"),
    })
    .await;
    let host = OpenAi::connect(options(&fake)).await.unwrap();
    assert!(host.form() == Form::Chat && !host.offers().continues && host.offers().top == 2);
    let outcome = run(&fake, job(1)).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.stats.way), (" a", Way::Reweigh));
    let error = run(&fake, job(2)).await.unwrap_err().to_string();
    assert!(error.contains("--host-api completions"), "{error}");
    let (_, body) = fake.requests.lock().unwrap().last().cloned().unwrap();
    assert_eq!(
        (&body["messages"][0]["content"], &body["top_logprobs"]),
        (&json!("One, two, three. The next word is"), &json!(20))
    );
}
