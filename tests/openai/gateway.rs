//! The gateway in front of a host that misbehaves.

use super::fake::{Fake, Reply};
use super::{COMPLETIONS, advisers, event, events, options, well};
use proxytune::config::{Server, Speculate};
use proxytune::host::blackbox::{Ids, Way};
use proxytune::host::openai::{Limits, OpenAi, Options};
use proxytune::serve::gateway::{Backing, Defaults, Gateway};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// A gateway that listens, as its URL.
async fn gateway(fake: &Fake, limits: Limits) -> String {
    let host = OpenAi::connect(Options { limits, ..options(fake) }).await.unwrap();
    let backing = Backing { completions: Some(host), chat: None, advisers: advisers(), ids: Ids::Unknown };
    let gateway = Gateway::bind(&Server { port: 0, ..Server::default() }).await.unwrap();
    let url = format!("http://{}", gateway.address());
    let speculate = Speculate::Tokens(3);
    let defaults = Defaults { alpha: 0.01, way: Way::Reweigh, speculate, ..Defaults::default() };
    tokio::spawn(gateway.serve(backing, defaults, std::future::pending()));
    url
}

fn request(url: &str, tokens: usize, stream: bool) -> reqwest::RequestBuilder {
    let body =
        json!({ "prompt": "It is", "max_tokens": tokens, "temperature": 0, "stream": stream, "model": "m" });
    Client::new().post(format!("{url}{COMPLETIONS}")).body(body.to_string())
}

/// A metric by its name and labels; 0 where there is none yet.
async fn metric(url: &str, name: &str) -> f64 {
    let text = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("proxytune_{name} ")));
    line.map_or(0.0, |value| value.parse().unwrap())
}

async fn json_of(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// Waits until it holds.
async fn soon<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_and_paid_and_what_failed_is_counted() {
    let mut busy = Reply::new(429, r#"{"error":{"message":"slow down"}}"#);
    busy.headers += "retry-after: 0\r\n";
    let fake = well(vec![busy, events(&[" a", " b", " c", " d"])]).await;
    let limits = Limits { price: Some([1e6, 1e6]), ..Limits::default() };
    let url = gateway(&fake, limits).await;
    assert_eq!(metric(&url, "upstream_requests_total").await, 2.0, "it was looked at");
    let answer = request(&url, 4, false).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = json_of(answer).await;
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["proxy_tuning"]["calls"]),
        (&json!(" a b c d"), &json!(1))
    );
    let expected = [
        ("requests_total{route=\"completions\",status=\"200\"}", 1.0),
        ("generated_tokens_total", 4.0),
        ("upstream_requests_total", 4.0),
        ("upstream_retries_total", 1.0),
        ("upstream_calls_per_token", 0.25),
        ("upstream_failures_total{kind=\"429\"}", 1.0),
        // Of the echo that was tried when it was looked at.
        ("upstream_failures_total{kind=\"400\"}", 1.0),
        ("running_sequences", 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(metric(&url, name).await, value, "{name}");
    }
    // Token by token at one unit each.
    let tokens = [
        metric(&url, "upstream_prompt_tokens_total").await,
        metric(&url, "upstream_completion_tokens_total").await,
    ];
    assert!(
        tokens[1] >= 5.0 && (metric(&url, "upstream_cost_total").await - tokens[0] - tokens[1]).abs() < 1e-9
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_the_host_and_nothing_more_is_asked_of_it() {
    let hangs = Reply { hangs: true, ..Reply::events(&[event(" a", None), event(" b", None)]) };
    for stream in [true, false] {
        let fake = well(vec![hangs.clone()]).await;
        let url = gateway(&fake, Limits::default()).await;
        let request = request(&url, 20, stream);
        if stream {
            let mut answer = request.send().await.unwrap();
            let first = answer.chunk().await.unwrap().unwrap();
            assert!(String::from_utf8_lossy(&first).contains(" a"));
        } else {
            let waiting = tokio::spawn(request.send());
            soon("tokens come", async || metric(&url, "generated_tokens_total").await == 2.0).await;
            waiting.abort();
        }
        soon("the host is left alone", async || *fake.left.lock().unwrap() == 1).await;
        soon("its place is free", async || metric(&url, "running_sequences").await == 0.0).await;
        assert_eq!(metric(&url, "lost_clients_total{reason=\"Gone\"}").await, 1.0);
        let asked = fake.asked(COMPLETIONS);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(fake.asked(COMPLETIONS), asked, "stream: {stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_host_come_with_their_status_before_and_within_a_stream() {
    for (status, passed) in [(400, 400), (401, 401), (404, 404), (429, 429), (503, 503), (302, 502)] {
        let body = r#"{"error":{"message":"as I said"}}"#;
        let mut reply = Reply::new(status, body);
        reply.headers += "retry-after: 0\r\n";
        let fake = well(vec![reply]).await;
        let url = gateway(&fake, Limits::default()).await;
        for stream in [false, true] {
            let answer = request(&url, 2, stream).send().await.unwrap();
            assert_eq!(answer.status(), passed, "{status}");
            let error = json_of(answer).await["error"].take();
            assert!(error["message"].as_str().unwrap().contains("as I said"), "{error}");
            assert_eq!(error["code"], "upstream");
        }
        let name = format!("requests_total{{route=\"completions\",status=\"{passed}\"}}");
        assert_eq!(metric(&url, &name).await, 2.0);
    }
    // A good beginning, then refusals for good.
    let cut = Reply { missing: 10, ..Reply::events(&[event(" a", None)]) };
    let fake = well(vec![cut, Reply::new(401, r#"{"error":{"message":"no longer"}}"#)]).await;
    let url = gateway(&fake, Limits::default()).await;
    let answer = request(&url, 4, true).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    assert!(text.contains(" a") && text.contains("no longer") && !text.contains("[DONE]"), "{text}");
    assert_eq!(metric(&url, "upstream_failures_total{kind=\"lost\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_or_is_gone_is_a_bad_gateway() {
    let hangs = Reply { hangs: true, ..Reply::events(&[]) };
    let fake = well(vec![hangs]).await;
    let url = gateway(&fake, Limits::default()).await;
    let answer = request(&url, 2, false).send().await.unwrap();
    assert_eq!(answer.status(), 502);
    assert!(metric(&url, "upstream_failures_total{kind=\"silent\"}").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_used_up_is_a_refusal_and_nothing_is_sent() {
    let fake = well(vec![events(&[" a"])]).await;
    let url = gateway(&fake, Limits { requests: Some(3), ..Limits::default() }).await;
    assert_eq!(request(&url, 1, false).send().await.unwrap().status(), 200);
    let asked = fake.asked(COMPLETIONS);
    for stream in [false, true] {
        let answer = request(&url, 1, stream).send().await.unwrap();
        assert_eq!(answer.status(), 429);
        assert_eq!(json_of(answer).await["error"]["code"], "budget_exhausted");
    }
    assert_eq!(fake.asked(COMPLETIONS), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_at_once_get_what_they_would_get_alone() {
    let (fake, _) = super::vllm::vllm().await;
    let url = gateway(&fake, Limits::default()).await;
    let ask = |prompt: String| {
        let body =
            json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0, "proxy_tuning": { "alpha": 1 } });
        let request = Client::new().post(format!("{url}{COMPLETIONS}")).body(body.to_string());
        async move { json_of(request.send().await.unwrap()).await["choices"][0]["text"].take() }
    };
    let prompts = (0..6).map(|i| format!("The file number {i} is"));
    let mut alone = Vec::new();
    for prompt in prompts.clone() {
        alone.push(ask(prompt).await);
    }
    assert!(alone.iter().all(|text| text.as_str().is_some_and(|text| !text.is_empty())), "{alone:?}");
    let together: Vec<_> = prompts.map(|prompt| tokio::spawn(ask(prompt))).collect();
    for (expected, task) in alone.iter().zip(together) {
        assert_eq!(*expected, task.await.unwrap());
    }
}
