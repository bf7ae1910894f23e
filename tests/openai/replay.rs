//! Answers of real servers, replayed: what `RECORD=1 scripts/test-openai.sh` has kept.

use super::fake::{Fake, Reply};
use super::{advisers, job, options};
use proxytune::config::Speculate;
use proxytune::host::blackbox::{BlackBox, Draft, Ids, Job, Prompt, generate};
use proxytune::host::openai::{OpenAi, Options};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;

async fn replay(server: &str) -> (Fake, String) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/recorded").join(format!("{server}.json"));
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (text, exchanges) = (recorded["text"].as_str().unwrap().to_owned(), recorded["exchanges"].clone());
    let fake = Fake::start(move |path, body| {
        let same = |e: &&Value| e["path"] == path && (e["body"] == *body || path == "/v1/models");
        let Some(exchange) = exchanges.as_array().unwrap().iter().find(same) else {
            return Reply::new(418, &format!("never asked of the real one: {path} {body}"));
        };
        let mut reply =
            Reply::new(exchange["status"].as_u64().unwrap() as u16, exchange["answer"].as_str().unwrap());
        reply.headers = format!("content-type: {}\r\n", exchange["type"].as_str().unwrap());
        // Not as the server cut it: in the middle of lines and characters.
        reply.cut(1009)
    })
    .await;
    (fake, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_real_servers_said_is_read_as_it_was() {
    // What it calls its model; whether it takes numbers for a text, shows numbers, shows a prompt's log-probabilities; who drafts.
    let cases = [
        ("llama-server", "host", [true, true, false], Draft::Host),
        ("llama-cpp-python", "host", [false, false, true], Draft::Tuned),
        ("mistral.rs", "default", [false, true, false], Draft::Host),
    ];
    for (server, model, [by_ids, numbers, reads], draft) in cases {
        let (fake, text) = replay(server).await;
        let options = Options { model: model.into(), top: 8, ..options(&fake) };
        let mut host = OpenAi::connect(options).await.unwrap();
        let ids = host.match_ids(&advisers());
        let offers = host.offers();
        assert_eq!((offers.top, offers.by_ids, offers.reads), (8, by_ids, reads), "{server}");
        assert_eq!(ids == Ids::Same, numbers, "{server}");
        for (speculate, draft) in [(Speculate::Off, Draft::Off), (Speculate::Tokens(4), draft)] {
            let prompt = Prompt::Text("The file is".into());
            let job = Job { prompt, alpha: 1.0, speculate, ..job(12) };
            let outcome = generate(&host, Some(&advisers()), &ids, job, &mut |_| ControlFlow::Continue(()))
                .await
                .unwrap();
            assert_eq!(outcome.text, text, "{server} {speculate:?}");
            assert_eq!((outcome.stats.tokens, outcome.stats.draft, outcome.stats.unshifted), (12, draft, 0));
        }
    }
}
