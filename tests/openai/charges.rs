//! Storms, silence and lost answers: what has come is kept, and what is paid is counted, once.

use super::fake::{Fake, Reply};
use super::{COMPLETIONS, advisers, event, events, job, options, run, upstream, well, whole};
use proxytune::host::blackbox::{BlackBox, Ids, Job, Outcome, generate};
use proxytune::host::openai::{Failure, Limits, OpenAi, Options};
use proxytune::{Error, Result};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn busy(status: u16, after: &str) -> Reply {
    let mut reply = Reply::new(status, r#"{"error":{"message":"slow down"}}"#);
    reply.headers += &format!("retry-after: {after}\r\n");
    reply
}

fn dropped(texts: &[&str]) -> Reply {
    let events: Vec<String> = texts.iter().map(|text| event(text, None)).collect();
    Reply { missing: 100, ..Reply::events(&events) }
}

async fn write(host: &OpenAi, job: Job) -> Result<Outcome> {
    generate(host, Some(&advisers()), &Ids::Unknown, job, &mut |_| ControlFlow::Continue(())).await
}

/// The texts that were asked for, with the number of tokens wanted of each.
fn asked(fake: &Fake) -> Vec<(String, u64)> {
    let streams = |body: &serde_json::Value| body["stream"] == true;
    let requests = fake.requests.lock().unwrap();
    let asked = requests.iter().filter(|(_, body)| streams(body));
    asked.map(|(_, b)| (b["prompt"].as_str().unwrap().into(), b["max_tokens"].as_u64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_in_the_middle_of_a_text_is_waited_out_and_no_token_is_paid_twice() {
    let storm = [busy(429, "1"), busy(503, "0"), busy(429, "0"), busy(529, "0")];
    let replies = [&[dropped(&[" a", " b"])], &storm[..], &[events(&[" c", " d"])]].concat();
    let fake = well(replies).await;
    let host = OpenAi::connect(Options { retries: 5, ..options(&fake) }).await.unwrap();
    let (before, began) = (host.spent(), Instant::now());
    let outcome = write(&host, job(4)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "it was told to wait");
    assert_eq!((outcome.text.as_str(), outcome.stats.resumed), (" a b c d", 1));
    let spent = host.spent();
    assert_eq!((spent.retries - before.retries, spent.completion_tokens - before.completion_tokens), (4, 4));
    // All that came after the first answer was asked for what was still missing.
    let asked = asked(&fake);
    assert_eq!(asked[0], ("It is".into(), 4));
    assert!(asked[1..].iter().all(|one| *one == ("It is a b".into(), 2)) && asked.len() == 6, "{asked:?}");
    let failures = host.failures();
    for (kind, times) in [(Failure::Status(429), 2), (Failure::Status(503), 1), (Failure::Lost, 1)] {
        assert!(failures.contains(&(kind, times)), "{failures:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_within_a_stream_is_gone_on_from_and_one_that_stays_is_told() {
    let error = r#"{"error":{"message":"out of memory","code":500}}"#.to_owned();
    let broken = Reply::events(&[event(" a", None), error.clone()]);
    let outcome = run(&well(vec![broken, events(&[" b", " c"])]).await, job(3)).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.stats.resumed), (" a b c", 1));
    let fake = well(vec![Reply::events(&[error])]).await;
    let (_, text) = upstream(&run(&fake, job(3)).await.unwrap_err());
    assert!(text.contains("out of memory"), "{text}");
    assert_eq!(asked(&fake).len(), 5, "calls in a row without a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_given_up_and_counts_as_paid() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4];
            stream.read_exact(&mut head).await.unwrap();
            if &head == b"GET " {
                let none = b"HTTP/1.1 404 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(none).await.unwrap();
            }
            held.push(stream);
        }
    });
    let began = Instant::now();
    let connect = |cost: Option<f64>| {
        let limits = Limits { price: Some([0.0, 1e6]), cost, requests: None };
        let timeout = Duration::from_millis(300);
        OpenAi::connect(Options {
            url: url.clone(),
            model: "m".into(),
            timeout,
            retries: 1,
            limits,
            ..Options::default()
        })
    };
    let (status, text) = upstream(&connect(None).await.unwrap_err());
    assert!(
        status.is_none() && text.contains("no answer within 0.3 s") && text.contains("--host-timeout"),
        "{text}"
    );
    // It may have charged for what it never sent: there is nothing left for another try.
    let error = connect(Some(1.0)).await.unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_off_is_paid_and_counted_and_keeps_to_the_budget() {
    let mut first = true;
    let script = move |path: &str, body: &serde_json::Value| match path {
        COMPLETIONS if body["echo"] == true => Reply::new(400, "{}"),
        COMPLETIONS if std::mem::take(&mut first) => Reply { missing: 9, ..whole(" a") },
        COMPLETIONS => whole(" a"),
        _ => Reply::new(404, "{}"),
    };
    let fake = Fake::start(script).await;
    let limits = Limits { price: Some([0.0, 1e6]), cost: Some(2.0), requests: None };
    // Two tokens are paid, the one that was lost and the one that came; a third would be too much.
    let error = OpenAi::connect(Options { limits, ..options(&fake) }).await.unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    assert_eq!(fake.asked(COMPLETIONS), 2);
}
