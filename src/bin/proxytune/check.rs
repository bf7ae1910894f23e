//! `proxytune check`: can these three models work together?

use crate::args::{Check, Format};
use proxytune::Result;
use proxytune::backend::llama::{LlamaModel, LoadOptions};
use proxytune::config::Config;
use proxytune::decode::{NAMES, model_path, token_map};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// One line of the table.
struct Row {
    name: &'static str,
    file: PathBuf,
    architecture: String,
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
    let host = open(&config.host.model, "--host")?;
    let tuned = open(&tuning.tuned, "--tuned")?;
    let untuned = open(&tuning.untuned, "--untuned")?;
    let vocabulary = host.vocabulary();
    let mut rows = vec![row(NAMES[0], &host, None, &config)];
    let mut problems = Vec::new();
    for (name, proxy) in [(NAMES[1], &tuned), (NAMES[2], &untuned)] {
        let common = match token_map(&vocabulary, proxy, name) {
            Ok(map) => Some(map.common()),
            Err(error) => {
                problems.push(error.to_string());
                None
            }
        };
        rows.push(row(name, proxy, common, &config));
    }
    if rows.iter().any(|r| r.tokenizer != rows[0].tokenizer) {
        problems.push(
            "the tokenizers differ: text is split by the host's, so the proxies may see splits they were not trained \
             on; prefer models of one family"
                .into(),
        );
    }
    match args.shared.format {
        Format::Text => print_table(&rows, &problems),
        Format::Json => {
            let rows: Vec<_> = rows.iter().map(Row::json).collect();
            anstream::println!("{}", json!({ "models": rows, "problems": problems }));
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
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
        architecture,
    }
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "model": self.name, "file": self.file, "architecture": self.architecture,
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
            self.architecture.clone(),
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
        anstream::println!("{}", cells.join("  ").trim_end());
    }
    let (green, red) = (anstyle::AnsiColor::Green.on_default(), anstyle::AnsiColor::Red.on_default().bold());
    if problems.is_empty() {
        anstream::println!("\n{green}These models can work together.{green:#}");
    }
    for problem in problems {
        anstream::println!("\n{red}problem{red:#}: {problem}");
    }
}
