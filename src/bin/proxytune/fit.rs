//! `proxytune fit`: a mixture of host and tuned proxy, fitted on a text.

use crate::args::fit::Fit;
use crate::args::{Engine, Format};
use crate::progress::{Progress, load};
use crate::whole::Whole;
use proxytune::combine::{RuleName, RuleOptions};
use proxytune::config::Combine;
use proxytune::eval::{self, Setup};
use proxytune::{Error, Result};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: &Fit) -> Result<ExitCode> {
    if args.trio.engine() != Engine::Llama {
        return Err(Error::invalid(
            "--engine",
            "another than llama",
            "llama: this command needs the host's file",
        ));
    }
    let mut config = args.trio.config()?;
    // The tuned proxy alone is looked at, whatever the configuration does with it elsewhere.
    config.proxy_tuning.combine = Combine::Rule(RuleName::Mean.into());
    config.proxy_tuning.alpha = 1.0;
    let text = eval::read_text(&args.text)?;
    // Minutes of work must not end at a wrong path.
    let file = Whole::at(&args.out).map_err(|e| unwritable(&args.out, &e))?;
    let models = load(&config, false)?;
    let setup = Setup { config, models, direct: None, alphas: Vec::new() };
    let mut bar = Progress::new("{msg} {bar:30} {pos}/{len}  {left}");
    let fit = eval::fit(
        &setup,
        args.rule.into(),
        &text,
        args.window,
        &mut crate::eval::listen(&mut bar, "fitting"),
    );
    bar.clear();
    let fit = fit?;
    let page = page(&fit, &args.text)?;
    file.write(page.as_bytes()).map_err(|e| unwritable(&args.out, &e))?;
    show(args, &fit);
    Ok(ExitCode::SUCCESS)
}

fn unwritable(out: &Path, error: &std::io::Error) -> Error {
    Error::file(out, format!("cannot be written ({error})"), "give --out a path that can be written")
}

/// The file: a comment that says where it came from, then the rule.
fn page(fit: &eval::Fit, text: &Path) -> Result<String> {
    let rule = toml::to_string(&fit.rule).map_err(|e| Error::engine("toml", e.to_string()))?;
    let name = text.file_name().map(|name| name.to_string_lossy().replace(char::is_control, " "));
    let [tokens, held_out] = fit.tokens;
    Ok(format!(
        "# Fitted by proxytune {} on {}: {tokens} tokens, {held_out} held out.\n{rule}",
        env!("CARGO_PKG_VERSION"),
        name.unwrap_or_default()
    ))
}

fn show(args: &Fit, fit: &eval::Fit) {
    let [tokens, held_out] = fit.tokens;
    if args.format == Format::Json {
        let scores: serde_json::Map<_, _> =
            fit.bits_per_byte.iter().map(|&(name, bits)| (name.replace(' ', "_"), json!(bits))).collect();
        let RuleOptions { rule, weight, .. } = &fit.rule;
        crate::say::outln!(
            "{}",
            json!({
                "rule": rule, "weight": weight, "tokens": tokens, "held_out_tokens": held_out,
                "bits_per_byte": scores, "file": args.out,
            })
        );
        return;
    }
    let dim = anstyle::Style::new().dimmed();
    crate::say::outln!("{dim}bits per byte, on {held_out} tokens held out{dim:#}");
    for (name, bits) in &fit.bits_per_byte {
        crate::say::outln!("{name:<12} {bits:.3}");
    }
    let weight = fit.rule.weight.map(|weight| format!(", the tuned proxy's weight {weight:.3}"));
    crate::say::outln!(
        "\nfitted on {tokens} tokens{1}\nuse it with --combine {0}",
        args.out.display(),
        weight.unwrap_or_default(),
    );
}
