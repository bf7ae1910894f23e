//! A stand-in for vLLM: a model in this process, behind an API of the forms and limits that vLLM documents.

use super::fake::{Fake, Reply};
use super::{COMPLETIONS, advisers, options};
use proxytune::backend::llama::{LlamaModel, LoadOptions};
use proxytune::config::Speculate;
use proxytune::host::blackbox::{
    Ask, BlackBox, Choosing, Draft, Ids, Job, Local, Outcome, Prompt, Seen, Way, Written, generate,
};
use proxytune::host::openai::{Form, OpenAi, Options};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

const CHAT: &str = "/v1/chat/completions";
/// `--max-logprobs`, as it is unless something else is said.
const MOST_LOGPROBS: u64 = 20;
const MOST_BIASES: usize = 300;
const TOKENS: usize = 20;
const PROMPTS: [&str; 3] = ["The file is", "# 你好 €€ naïve ", "def open(name):\n"];

fn host() -> Arc<LlamaModel> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host-f32.gguf");
    Arc::new(LlamaModel::load(&path, LoadOptions::default()).unwrap())
}

struct Vllm {
    model: Arc<LlamaModel>,
    local: Local,
}

impl Vllm {
    /// What stands after the tokens `before` and a biased row.
    fn position(&self, before: &[u32], top: usize, bias: &[(u32, f32)]) -> Seen {
        // One token's text is that token again.
        let prompt = Prompt::Text(String::from_utf8(self.model.piece(before[0], false)).unwrap());
        let written = Written { bytes: Vec::new(), ids: Some(before[1..].to_vec()) };
        let ask = Ask { prompt: &prompt, written: &written, tokens: 1, bias, choosing: Choosing::default() };
        let next = async { self.local.write(ask).await.unwrap().next().await.unwrap().unwrap() };
        let mut seen = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(next));
        seen.top.truncate(top);
        seen
    }

    fn text(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| self.model.piece(t, false)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn answer(&self, path: &str, body: &Value) -> Reply {
        let is_chat = path == CHAT;
        match path {
            "/v1/models" => {
                return Reply::new(200, r#"{"object":"list","data":[{"id":"m","owned_by":"vllm"}]}"#);
            }
            COMPLETIONS | CHAT => {}
            _ => return Reply::new(404, r#"{"detail":"Not Found"}"#),
        }
        let top = body[if is_chat { "top_logprobs" } else { "logprobs" }].as_u64();
        if let Some(asked) = top.filter(|&asked| asked > MOST_LOGPROBS) {
            return refusal(&format!(
                "Requested sample logprobs of {asked}, which is greater than max allowed: 20"
            ));
        }
        let mut bias: Vec<(u32, f32)> = Vec::new();
        for (token, value) in body["logit_bias"].as_object().into_iter().flatten() {
            let token = token.parse().unwrap();
            if token as usize >= self.model.vocab_len() {
                return refusal(&format!("token_id {token} in logit_bias contains out-of-vocab token id"));
            }
            bias.push((token, (value.as_f64().unwrap() as f32).clamp(-100.0, 100.0)));
        }
        if bias.len() > MOST_BIASES {
            return refusal("too many tokens in logit_bias");
        }
        let text = if is_chat { conversation(body) } else { body["prompt"].as_str().unwrap().to_owned() };
        let mut tokens = self.model.tokenize(&text, true);
        let asked = tokens.len();
        let most = body["max_tokens"].as_u64().unwrap() as usize;
        let shown = top.unwrap_or(0) as usize;
        let written: Vec<Seen> = (0..most)
            .map(|_| {
                let seen = self.position(&tokens, shown, &bias);
                tokens.push(seen.chosen.id.unwrap());
                seen
            })
            .collect();
        let usage =
            json!({ "prompt_tokens": asked, "completion_tokens": most, "total_tokens": tokens.len() });
        let logprobs = |seen: &[Seen]| match top {
            None => Value::Null,
            Some(_) if is_chat => json!({ "content": seen.iter().map(content).collect::<Vec<_>>() }),
            Some(_) => lists(seen.iter().map(Some)),
        };
        if body["stream"] == true {
            let mut sent = 0;
            let mut events: Vec<String> = (0..most)
                .map(|at| {
                    // Text is held back until a character is whole.
                    let whole = self.text(&tokens[asked..=asked + at]);
                    let whole = whole.trim_end_matches(char::REPLACEMENT_CHARACTER);
                    let delta = whole[sent.min(whole.len())..].to_owned();
                    sent = whole.len().max(sent);
                    let finish = if at + 1 == most { json!("length") } else { Value::Null };
                    let mut choice = json!({ "index": 0, "logprobs": logprobs(&written[at..=at]),
                                             "finish_reason": finish, "stop_reason": null });
                    choice[if is_chat { "delta" } else { "text" }] =
                        if is_chat { json!({ "content": delta }) } else { json!(delta) };
                    json!({ "id": "x", "choices": [choice] }).to_string()
                })
                .collect();
            events.push("[DONE]".into());
            return Reply::events(&events);
        }
        let mut choice = json!({ "index": 0, "logprobs": logprobs(&written), "finish_reason": "length",
                                 "stop_reason": null, "prompt_logprobs": null });
        let own = self.text(&tokens[asked..]);
        if is_chat {
            choice["message"] = json!({ "role": "assistant", "content": own });
        } else {
            choice["text"] = json!(own);
        }
        if body["echo"] == true {
            let prompt: Vec<Seen> = (1..asked)
                .map(|at| {
                    let mut seen = self.position(&tokens[..at], shown, &[]);
                    let piece = self.model.piece(tokens[at], false);
                    let known = seen.top.iter().find(|c| c.bytes == piece);
                    seen.chosen = proxytune::host::blackbox::Candidate {
                        bytes: piece,
                        id: Some(tokens[at]),
                        logprob: known.map_or(-30.0, |c| c.logprob),
                        control: false,
                    };
                    seen
                })
                .collect();
            let mut all = lists([None].into_iter().chain(prompt.iter().chain(&written).map(Some)));
            all["tokens"][0] = json!(self.text(&tokens[..1]));
            choice["logprobs"] = all;
            choice["text"] = json!(format!("{text}{own}"));
        }
        Reply::new(200, &json!({ "id": "x", "choices": [choice], "usage": usage }).to_string())
    }
}

fn refusal(what: &str) -> Reply {
    Reply::new(
        400,
        &json!({ "error": { "message": what, "type": "BadRequestError", "param": null, "code": 400 } })
            .to_string(),
    )
}

/// A template without marks of its own, as the proxies of the tests have none: a last answer is continued where that is asked for.
fn conversation(body: &Value) -> String {
    let messages = body["messages"].as_array().unwrap();
    let text = |m: &Value| m["content"].as_str().unwrap().to_owned();
    match messages.split_last() {
        Some((last, before)) if last["role"] == "assistant" => {
            assert!(
                body["continue_final_message"] == true && body["add_generation_prompt"] == false,
                "{body}"
            );
            before.iter().map(text).collect::<Vec<_>>().join("\n\n") + &text(last)
        }
        _ => messages.iter().map(text).collect::<Vec<_>>().join("\n\n"),
    }
}

fn decoded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A token in the form of chat: `bytes` are those of its text, which may be no longer its own.
fn content(seen: &Seen) -> Value {
    let one = |bytes: &[u8], logprob: f32| json!({ "token": decoded(bytes), "logprob": logprob, "bytes": decoded(bytes).as_bytes() });
    let mut token = one(&seen.chosen.bytes, seen.chosen.logprob);
    token["top_logprobs"] = seen.top.iter().map(|c| one(&c.bytes, c.logprob)).collect();
    token
}

/// Tokens in the form of completions; the first of an echo has no probabilities.
fn lists<'a>(seen: impl Iterator<Item = Option<&'a Seen>>) -> Value {
    let (mut tokens, mut own, mut tops) = (Vec::new(), Vec::new(), Vec::new());
    for seen in seen {
        tokens.push(json!(seen.map_or_else(String::new, |s| decoded(&s.chosen.bytes))));
        own.push(seen.map_or(Value::Null, |s| json!(s.chosen.logprob)));
        let top =
            |s: &Seen| s.top.iter().map(|c| (decoded(&c.bytes), json!(c.logprob))).collect::<Map<_, _>>();
        tops.push(seen.map_or(Value::Null, |s| Value::Object(top(s))));
    }
    json!({ "text_offset": [], "token_logprobs": own, "tokens": tokens, "top_logprobs": tops })
}

pub async fn vllm() -> (Fake, Arc<LlamaModel>) {
    let model = host();
    let vllm = Vllm { model: model.clone(), local: Local::new(model.clone(), 1024, 1, 4096).unwrap() };
    (Fake::start(move |path, body| vllm.answer(path, body)).await, model)
}

fn job(prompt: Prompt, way: Way, speculate: Speculate) -> Job {
    Job { prompt, way, speculate, alpha: 1.0, ..super::job(TOKENS) }
}

async fn run(host: &dyn BlackBox, ids: &Ids, job: Job) -> Outcome {
    generate(host, Some(&advisers()), ids, job, &mut |_| ControlFlow::Continue(())).await.unwrap()
}

/// The same by the model itself, of which as much is visible.
async fn here(model: &Arc<LlamaModel>, prompt: &str, way: Way) -> Outcome {
    let local = Local::new(model.clone(), 1024, 1, 20).unwrap().offering(|offers| {
        offers.by_ids = false;
        offers.bias = Some((300, 100.0));
    });
    run(&local, &Ids::Same, job(Prompt::Text(prompt.into()), way, Speculate::Off)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_are_re_weighed_and_drafts_verified_by_an_echo() {
    let (fake, model) = vllm().await;
    let host = OpenAi::connect(Options { top: 50, ..options(&fake) }).await.unwrap();
    assert_eq!((host.form(), host.offers().top), (Form::Completions, 20), "50 were refused");
    assert!(host.offers().reads && host.offers().continues);
    let (mut calls, mut tokens) = ([0, 0], 0);
    for prompt in PROMPTS {
        let expected = here(&model, prompt, Way::Reweigh).await;
        let cases = [(Speculate::Off, Draft::Off), (Speculate::Tokens(4), Draft::Tuned)];
        for (at, (speculate, draft)) in cases.into_iter().enumerate() {
            let job = job(Prompt::Text(prompt.into()), Way::Reweigh, speculate);
            let outcome = run(&host, &Ids::Unknown, job).await;
            assert_eq!(outcome.text, expected.text, "{prompt} {speculate:?}");
            assert_eq!((outcome.stats.draft, outcome.stats.unshifted), (draft, 0));
            calls[at] += outcome.stats.calls;
        }
        tokens += TOKENS;
    }
    println!("completions: {tokens} tokens in {} calls, with drafts in {}", calls[0], calls[1]);
    assert!(calls[0] == tokens && calls[1] < tokens, "{calls:?}");
    let most =
        fake.requests.lock().unwrap().iter().filter_map(|(_, b)| b["logprobs"].as_u64()).collect::<Vec<_>>();
    assert_eq!(
        most.iter().filter(|&&asked| asked > 20).count(),
        1,
        "a number that was refused is not asked for again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_goes_on_because_it_is_told_to() {
    let (fake, model) = vllm().await;
    let host = OpenAi::connect(Options { form: Form::Chat, ..options(&fake) }).await.unwrap();
    assert!(host.form() == Form::Chat && host.offers().continues && !host.offers().reads);
    for prompt in PROMPTS {
        let expected = here(&model, prompt, Way::Reweigh).await.text;
        for speculate in [Speculate::Off, Speculate::Tokens(4)] {
            let job = job(Prompt::Text(prompt.into()), Way::Reweigh, speculate);
            let outcome = run(&host, &Ids::Unknown, job).await;
            assert_eq!(outcome.text, expected, "{prompt} {speculate:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_bias_its_limits_are_kept_and_the_text_is_the_local_one() {
    let (fake, model) = vllm().await;
    let mut host = OpenAi::connect(options(&fake)).await.unwrap();
    let ids = Ids::of(&advisers(), &model.vocabulary());
    host.check_bias(&ids, &advisers()).await.unwrap();
    assert_eq!(host.offers().bias, Some((300, 100.0)), "it obeys one");
    // Ends of prompts that no token of the answer runs into.
    for prompt in [PROMPTS[0], "It is"] {
        let expected = here(&model, prompt, Way::Bias).await.text;
        let outcome = run(&host, &ids, job(Prompt::Text(prompt.into()), Way::Bias, Speculate::Off)).await;
        assert_eq!((outcome.text, outcome.stats.unshifted), (expected, 0), "{prompt}");
    }
    let sizes = |body: &Value| body["logit_bias"].as_object().map(Map::len);
    let sizes: Vec<usize> =
        fake.requests.lock().unwrap().iter().filter_map(|(_, body)| sizes(body)).collect();
    assert!(sizes.len() > TOKENS && sizes.iter().all(|&n| n <= MOST_BIASES), "{sizes:?}");
    let asks_for_more = fake.requests.lock().unwrap().iter().any(|(_, b)| sizes_and_logprobs(b));
    assert!(!asks_for_more, "what else there was is not asked for by bias");
}

fn sizes_and_logprobs(body: &Value) -> bool {
    body["stream"] == true && body["logit_bias"].is_object() && !body["logprobs"].is_null()
}
