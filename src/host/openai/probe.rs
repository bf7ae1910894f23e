//! What an API really does, seen from its answers to a few small requests.

use super::{Form, OpenAi, Options, Server, wire};
use crate::error::{Error, Result};
use crate::host::blackbox::{Ask, Choosing, Offers, Prompt, Seen, Written};
use serde_json::Value;

/// The text that it is looked at with: one whose next word is not certain.
const TEXT: &str = "One, two, three. The next word is";
/// Numbers of visible tokens that are asked for where the wanted one is refused: most give twenty, OpenAI's plain completions five.
const FEWER: [usize; 3] = [20, 5, 0];
/// How far two log-probabilities of one token in one text may lie apart: servers compute in batches.
const CLOSE: f32 = 0.1;

impl OpenAi {
    pub(super) async fn probe(&mut self, options: &Options) -> Result<()> {
        self.server = match self.http.get("models").await {
            Ok(models) => server(&models),
            // Not all have a list; who has none may still refuse the key, or not be there.
            Err(Error::Upstream { status: Some(404 | 405 | 501), .. }) => Server::Other,
            Err(error) => return Err(error),
        };
        let forms: &[Form] = match options.form {
            Form::Auto => &[Form::Completions, Form::Chat],
            Form::Completions => &[Form::Completions],
            Form::Chat => &[Form::Chat],
        };
        let mut refusal = None;
        for &form in forms {
            self.form = form;
            match self.first_answer(options.top).await {
                Ok((seen, top)) => {
                    self.note(&seen, top);
                    // mistral.rs takes a bias and leaves it out.
                    let biases = options.bias.0 > 0 && self.server != Server::MistralRs;
                    self.offers.bias = biases.then_some(options.bias);
                    return self.probe_echo(&seen).await;
                }
                // A chat model has no plain completions.
                Err(error @ Error::Upstream { status: Some(400 | 404 | 405 | 422 | 501), .. }) => {
                    refusal.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or_else(|| self.http.nonsense("it offers no completions", "look at --host-url")))
    }

    /// A first position, and how many tokens could be asked for there.
    async fn first_answer(&mut self, wanted: usize) -> Result<(Seen, usize)> {
        let mut refusal = None;
        for top in [wanted].into_iter().chain(FEWER.into_iter().filter(|&fewer| fewer < wanted)) {
            match self.answer(TEXT, &[], top).await {
                Ok(choice) if self.server != Server::MistralRs && wire::is_mistralrs(&choice) => {
                    self.server = Server::MistralRs;
                    return Ok((self.position(TEXT, &[], top).await?, top));
                }
                Ok(choice) => return Ok((self.first_position(&choice, top)?, top)),
                Err(error @ Error::Upstream { status: Some(400 | 422), .. }) => {
                    refusal.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or_else(|| self.http.nonsense("it gave no token", "see the server's log")))
    }

    /// The one position that follows a text.
    async fn position(&self, text: &str, bias: &[(u32, f32)], top: usize) -> Result<Seen> {
        self.first_position(&self.answer(text, bias, top).await?, top)
    }

    fn first_position(&self, choice: &Value, top: usize) -> Result<Seen> {
        let seen = wire::positions(choice, top.max(1)).into_iter().next();
        seen.ok_or_else(|| self.http.nonsense("its answer has no token in it", "see what is behind this URL"))
    }

    /// The choice of an answer with one token.
    async fn answer(&self, text: &str, bias: &[(u32, f32)], top: usize) -> Result<Value> {
        let (prompt, written) = (Prompt::Text(text.into()), Written::default());
        let ask = Ask { prompt: &prompt, written: &written, tokens: 1, bias, choosing: Choosing::default() };
        let body = self.body_with(&ask, false, top)?;
        let answer = self.http.post(self.path(), &body, (self.http.estimate(&body), 1)).await?;
        Ok(answer["choices"][0].clone())
    }

    fn note(&mut self, seen: &Seen, asked: usize) {
        let shown = seen.top.len();
        if shown < asked {
            tracing::debug!(asked, shown, "fewer tokens are visible than were asked for");
        }
        let all = seen.top.iter().filter(|c| !c.bytes.is_empty());
        self.shown = all.map(|c| (c.id, c.bytes.clone())).collect();
        let is_chat = self.form == Form::Chat;
        self.top = if shown == 0 { 0 } else { asked };
        self.offers = Offers {
            top: shown.min(asked),
            continues: !is_chat || [Server::LlamaCpp, Server::Vllm].contains(&self.server),
            by_ids: !is_chat && self.server == Server::LlamaCpp && seen.chosen.id.is_some(),
            ..Offers::default()
        };
    }

    /// Looks whether the tokens of a prompt are shown as well, and where their probabilities stand.
    async fn probe_echo(&mut self, first: &Seen) -> Result<()> {
        let can = self.form != Form::Chat && self.server != Server::LlamaCpp && self.offers.top > 1;
        let text = std::str::from_utf8(&first.chosen.bytes).unwrap_or_default();
        if !can || text.is_empty() {
            return Ok(());
        }
        let (prompt, written) = (Prompt::Text(TEXT.into()), Written::default());
        let ask =
            Ask { prompt: &prompt, written: &written, tokens: 1, bias: &[], choosing: Choosing::default() };
        let (body, start) = self.echo_body(&ask, text.as_bytes())?;
        let answer = match self.http.post(self.path(), &body, (self.http.estimate(&body), 1)).await {
            Ok(answer) => answer,
            Err(Error::Upstream { status: Some(400..=599), .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let fits = |lag: usize| {
            let seen = wire::echoed(&answer, start, lag, self.top);
            seen.and_then(|seen| seen.into_iter().next()).is_some_and(|seen| is_close(&seen, first))
        };
        if let Some(lag) = (0..=1).find(|&lag| fits(lag)) {
            (self.offers.reads, self.echo_lag) = (true, lag);
        }
        Ok(())
    }

    pub(super) async fn probe_bias(&mut self, token: u32) -> Result<()> {
        let Some((_, size)) = self.offers.bias else { return Ok(()) };
        let plain = self.position(TEXT, &[], self.top).await?;
        let biased = match self.position(TEXT, &[(token, size)], self.top).await {
            Ok(seen) => seen,
            Err(Error::Upstream { status: Some(400 | 422), .. }) => {
                self.offers.bias = None;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let obeys = biased.chosen.id.map_or(plain.chosen.bytes != biased.chosen.bytes, |id| id == token);
        if !obeys {
            tracing::warn!("the host takes logit_bias, but writes the same with it");
            self.offers.bias = None;
        }
        Ok(())
    }
}

fn is_close(a: &Seen, b: &Seen) -> bool {
    let same = |c: &&crate::host::blackbox::Candidate| {
        b.top.iter().any(|other| other.bytes == c.bytes && (other.logprob - c.logprob).abs() < CLOSE)
    };
    let equal = a.top.iter().filter(same).count();
    a.top.len() > 1 && equal * 10 >= a.top.len().min(b.top.len()) * 8
}

fn server(models: &Value) -> Server {
    let owners = models["data"].as_array().into_iter().flatten().filter_map(|m| m["owned_by"].as_str());
    owners.fold(Server::Other, |server, owner| match owner {
        "llamacpp" => Server::LlamaCpp,
        "vllm" => Server::Vllm,
        _ => server,
    })
}
