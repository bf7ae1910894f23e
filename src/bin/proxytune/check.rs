//! `proxytune check`: can these three models work together?

use crate::args::{Check, Format};
use crate::progress::{Progress, load};
use proxytune::Result;
use proxytune::backend::llama::{LlamaModel, LoadOptions};
use proxytune::config::{Config, ProxyTuning};
use proxytune::decode::{NAMES, model_path, token_map};
use proxytune::eval::{self, Coverage, Setup};
use proxytune::vocab::TokenMap;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tokens of the windows that a text is cut into.
const WINDOW: usize = 512;

/// One line of the table.
struct Row {
    name: &'static str,
    file: PathBuf,
    architecture: String,
    /// Whether it is a LoRA adapter over the untuned proxy; the weights are then the adapter's alone.
    lora: bool,
    vocabulary: usize,
    common: Option<usize>,
    tokenizer: String,
    template: bool,
    context: usize,
    weights: u64,
    kv_cache: u64,
}

pub fn run(args: &Check) -> Result<ExitCode> {
    let config = args.shared.config()?;
    args.shared.refuse_api()?;
    args.shared.refuse_auto()?;
    let tuning = &config.proxy_tuning;
    let text = args.text.as_deref().map(eval::read_text).transpose()?;
    let host = open(&config.host.model, "--host")?;
    let vocabulary = host.vocabulary();
    let mut rows = vec![row(NAMES[0], &host, None, &config)];
    let (mut maps, mut problems) = (Vec::new(), Vec::new());
    for (name, proxy) in proxies(tuning)? {
        let common = match token_map(&vocabulary, &proxy, name) {
            Ok(map) => {
                let common = map.common();
                maps.push(map);
                Some(common)
            }
            Err(error) => {
                problems.push(error.to_string());
                None
            }
        };
        rows.push(row(name, &proxy, common, &config));
    }
    if rows.iter().any(|r| r.tokenizer != rows[0].tokenizer) {
        problems.push(
            "the tokenizers differ: text is split by the host's, so the proxies may see splits they were not trained \
             on; prefer models of one family"
                .into(),
        );
    }
    let coverage = match (text, maps.len() == rows.len() - 1) {
        (Some(text), true) => Some(cover(&config, &maps, &text)?),
        _ => None,
    };
    match args.shared.format {
        Format::Text => {
            print_table(&rows, &problems);
            coverage.iter().for_each(print_coverage);
        }
        Format::Json => {
            let rows: Vec<_> = rows.iter().map(Row::json).collect();
            let coverage =
                coverage.map(|of| json!({ "tokens": of.tokens, "mean": of.mean, "least": of.least }));
            crate::say::outln!("{}", json!({ "models": rows, "problems": problems, "coverage": coverage }));
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The proxies that are named, or that the rule reads.
fn proxies(tuning: &ProxyTuning) -> Result<Vec<(&'static str, LlamaModel)>> {
    if let Some(adapter) = &tuning.tuned_lora {
        let models = open(&tuning.untuned, "--untuned")?.with_lora(adapter)?;
        return Ok(NAMES[1..].iter().copied().zip(models).collect());
    }
    let proxies = [(NAMES[1], &tuning.tuned, "--tuned"), (NAMES[2], &tuning.untuned, "--untuned")];
    let read = tuning.combine.rule()?.reads();
    let wanted = proxies.into_iter().zip(read).filter(|((_, path, _), is_read)| *is_read || path.is_some());
    wanted.map(|((name, path, flag), _)| Ok((name, open(path, flag)?))).collect()
}

/// What share of the host's probability on a text the proxies' vocabularies cover.
fn cover(config: &Config, maps: &[TokenMap], text: &str) -> Result<Coverage> {
    let models = load(config, true)?;
    let context = if config.host.ctx == 0 { models.host.trained_context() } else { config.host.ctx };
    let setup = Setup { config: config.clone(), models, direct: None, alphas: Vec::new() };
    let mut bar = Progress::new("{msg} {bar:30} {pos}/{len}  {left}");
    // A host may want a token at the beginning.
    let window = WINDOW.min(context.saturating_sub(1));
    eval::coverage(&setup, maps, text, window, &mut crate::eval::listen(&mut bar, "covering"))
}

fn print_coverage(coverage: &Coverage) {
    let Coverage { mean, least, tokens } = coverage;
    crate::say::outln!(
        "\nThe proxies know the tokens of {:.3} % of the host's probability on this text ({:.3} % where it is least, of \
         {tokens} positions).",
        100.0 * mean,
        100.0 * least
    );
}

fn open(path: &Option<PathBuf>, flag: &str) -> Result<LlamaModel> {
    let options = LoadOptions { vocab_only: true, ..LoadOptions::default() };
    LlamaModel::load(model_path(path, flag)?, options)
}

fn row(name: &'static str, model: &LlamaModel, common: Option<usize>, config: &Config) -> Row {
    let text = |key: &str| model.metadata(key).unwrap_or_else(|| "?".into());
    let architecture = text("general.architecture");
    let number =
        |key: &str| model.metadata(&format!("{architecture}.{key}")).and_then(|n| n.parse::<usize>().ok());
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let width = number("embedding_length").unwrap_or(0) / heads * kv_heads;
    let trained = number("context_length").unwrap_or(0);
    let (configured, slots) = match name {
        "host" => (config.host.ctx, 1),
        _ => (config.proxy_tuning.ctx, config.proxy_tuning.slots),
    };
    let context = if configured == 0 { trained } else { configured };
    Row {
        name,
        file: model.path().into(),
        vocabulary: model.vocab_len(),
        common,
        tokenizer: format!("{} ({})", text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")),
        template: model.chat_template().is_some(),
        context,
        weights: std::fs::metadata(model.path()).map_or(0, |m| m.len()),
        kv_cache: (2 * 2 * number("block_count").unwrap_or(0) * width * context * slots) as u64,
        lora: name == NAMES[1] && config.proxy_tuning.tuned_lora.is_some(),
        architecture,
    }
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "model": self.name, "file": self.file, "architecture": self.architecture, "lora": self.lora,
            "vocabulary": self.vocabulary, "common_tokens": self.common, "tokenizer": self.tokenizer,
            "chat_template": self.template, "context": self.context,
            "weights_bytes": self.weights, "kv_cache_bytes": self.kv_cache,
        })
    }

    fn cells(&self) -> [String; 9] {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let host = self.name == NAMES[0];
        let common = self.common.map_or_else(|| if host { "-" } else { "too few" }.into(), |n| n.to_string());
        [
            self.name.into(),
            if self.lora { format!("{} + LoRA", self.architecture) } else { self.architecture.clone() },
            self.vocabulary.to_string(),
            common,
            self.tokenizer.clone(),
            if self.template { "yes" } else { "no" }.into(),
            self.context.to_string(),
            mib(self.weights),
            mib(self.kv_cache),
        ]
    }
}

fn print_table(rows: &[Row], problems: &[String]) {
    let titles = [
        "model",
        "architecture",
        "vocabulary",
        "common tokens",
        "tokenizer",
        "template",
        "context",
        "weights",
        "KV cache",
    ];
    let mut lines = vec![titles.map(String::from)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, &w)| format!("{cell:<w$}")).collect();
        crate::say::outln!("{}", cells.join("  ").trim_end());
    }
    let (green, red) = (anstyle::AnsiColor::Green.on_default(), anstyle::AnsiColor::Red.on_default().bold());
    if problems.is_empty() {
        crate::say::outln!("\n{green}These models can work together.{green:#}");
    }
    for problem in problems {
        crate::say::outln!("\n{red}problem{red:#}: {problem}");
    }
}
