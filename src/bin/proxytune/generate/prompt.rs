//! The prompt, as it was given and as each model reads it.

use crate::args::{Generate, Prompt};
use proxytune::backend::llama::LlamaModel;
use proxytune::config::Config;
use proxytune::decode::TunedPrompts;
use proxytune::pair::History;
use proxytune::prompt::{Message, render};
use proxytune::{Error, Result};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The prompt's text; `None` where it was given in tokens.
pub fn read_prompt(prompt: &Prompt) -> Result<Option<String>> {
    let Some(path) = &prompt.source.prompt_file else { return Ok(prompt.source.prompt.clone()) };
    let name = format!("--prompt-file {}", path.display());
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes = bytes.map_err(|e| Error::invalid(&name, e, "a file that can be read"))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::invalid(&name, format!("a byte that is not UTF-8 at offset {at}"), "text in UTF-8")
    })?;
    Ok(Some(text))
}

/// Each model's own form of the prompt. `tuned`: the tuned proxy, where there is one.
pub fn history(
    args: &Generate,
    config: &Config,
    host: &LlamaModel,
    tuned: Option<&Arc<LlamaModel>>,
    text: Option<&str>,
) -> Result<History> {
    let Some(text) = text else {
        let tokens = args.prompt.source.tokens.clone().unwrap_or_default();
        return Ok(History::new(tokens, None));
    };
    if text.is_empty() {
        return Err(Error::invalid("prompt", "an empty text", "at least one character"));
    }
    let (template, message) = (host.chat_template(), Message::new("user", text));
    let prompt = if args.prompt.chat {
        let template = template.as_ref().ok_or_else(|| {
            let given = format!("the host {}, which carries no chat template", host.path().display());
            Error::invalid("--chat", given, "chat models; or leave --chat out")
        })?;
        host.tokenize(&render(template, std::slice::from_ref(&message), &host.bos_eos_text())?, true)
    } else {
        host.tokenize(text, true)
    };
    let system = args.prompt.tuned_system.as_deref();
    let own = |tuned: &Arc<LlamaModel>| {
        let own = &config.proxy_tuning;
        let prompts = TunedPrompts::new(tuned.clone(), template.as_deref(), own)?;
        if args.prompt.chat { prompts.chat(vec![message], system) } else { prompts.text(text, system, true) }
    };
    Ok(History::new(prompt, tuned.map(own).transpose()?.flatten()))
}
