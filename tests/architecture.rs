//! The layers of the crate, held by reading its sources.

use std::fs;
use std::path::{Path, PathBuf};

/// A layer, what it may import besides itself, and what of that it may not.
type Layer = (&'static str, &'static [&'static str], &'static [&'static str]);

const LAYERS: &[Layer] = &[
    ("error", &["vocab"], &[]),
    ("vocab", &["error"], &[]),
    ("combine", &["error", "vocab"], &[]),
    ("config", &["error", "vocab", "combine"], &[]),
    ("prompt", &["error", "vocab"], &[]),
    ("recent", &[], &[]),
    ("backend", &["error", "vocab", "combine", "config"], &[]),
    ("pair", &["error", "vocab", "combine", "recent", "backend"], &["backend::llama"]),
    ("decode", &["error", "vocab", "combine", "config", "recent", "prompt", "backend", "pair", "host"], &[]),
    ("eval", &["error", "vocab", "combine", "config", "prompt", "backend", "pair", "decode", "host"], &[]),
    ("host", &["error", "vocab", "combine", "config", "prompt", "backend", "pair", "decode"], &[]),
    ("serve", &["error", "vocab", "config", "prompt", "backend", "decode", "host"], &[]),
];
/// Programs and bindings: the library knows nothing of them.
const OUTERMOST: &[&str] = &["bin", "serve", "bindings"];
/// The engine's API, and what stands before it in a host's process.
const UNSAFE_IN: &[&str] =
    &["src/backend/llama/", "src/host/llama_sampler/ffi.rs", "src/host/llama_sampler/hooks.rs"];
const MOST_LINES: usize = 400;

struct Import {
    line: usize,
    /// From the crate's root, without `crate::`.
    path: String,
}

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("src")];
    let mut files = Vec::<PathBuf>::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string().replace('\\', "/");
    files.into_iter().map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

/// The text without line comments and without the unit tests at its end, line by line.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let bare = |line: &str| match line.find("//") {
        Some(at) if !line[..at].ends_with(':') => format!("{}\n", &line[..at]),
        _ => format!("{line}\n"),
    };
    before_tests.lines().map(bare).collect()
}

/// Names of the modules around a file's items.
fn modules(file: &str) -> Vec<&str> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').filter(|part| !["mod", "lib", "main"].contains(part)).collect()
}

/// Every path into the crate, be it in a `use` or in an expression.
fn imports(file: &str, text: &str) -> Vec<Import> {
    let text = code(text);
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' {
                continue;
            }
            let mut base = if start == "crate::" { vec![] } else { modules(file) };
            let mut rest = &text[at..];
            while let Some(inner) = rest.strip_prefix("super::") {
                base.pop();
                rest = inner;
            }
            let rest = rest.trim_start_matches("crate::");
            let line = text[..at].lines().count().max(1);
            let mut leaves = Vec::new();
            expand(&base.join("::"), rest, &mut leaves);
            found.extend(leaves.into_iter().map(|path| Import { line, path }));
        }
    }
    found
}

/// Adds each path of the use tree that `text` begins with, and returns what follows the tree.
fn expand<'a>(base: &str, text: &'a str, paths: &mut Vec<String>) -> &'a str {
    let join = |name: &str| if base.is_empty() { name.to_owned() } else { format!("{base}::{name}") };
    let text = text.trim_start();
    let Some(mut rest) = text.strip_prefix('{') else {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let path =
            if name.is_empty() || name == "self" || name == "*" { base.to_owned() } else { join(name) };
        return match rest.strip_prefix("::") {
            Some(inner) if !inner.starts_with('<') => expand(&path, inner, paths),
            _ => {
                paths.push(path);
                rest
            }
        };
    };
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return rest;
        } else if let Some(after) = rest.strip_prefix('}') {
            return after;
        } else if let Some(next) = rest.strip_prefix(',') {
            rest = next;
        } else if let Some(renamed) = rest.strip_prefix("as ") {
            rest = renamed.trim_start_matches(|c: char| c.is_whitespace() || c.is_alphanumeric() || c == '_');
        } else {
            let after = expand(base, rest, paths);
            rest = if after.len() < rest.len() { after } else { "" };
        }
    }
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Why a file may not import `path`.
fn objection(file: &str, path: &str) -> Option<String> {
    // What the root exports again.
    let target = if ["Error", "Result"].contains(&path) { "error" } else { path };
    let own = *modules(file).first()?;
    if let Some(outer) = OUTERMOST.iter().find(|o| **o != own && is_within(target, o)) {
        return Some(format!("nothing in the library imports {outer}"));
    }
    let (_, allowed, except) = LAYERS.iter().find(|(name, ..)| *name == own)?;
    if let Some(banned) = except.iter().find(|b| is_within(target, b)) {
        return Some(format!("{own} must not know {banned}"));
    }
    let is_allowed = is_within(target, own) || allowed.iter().any(|a| is_within(target, a));
    (!is_allowed).then(|| format!("{own} imports only {}", allowed.join(", ")))
}

fn violations(file: &str, text: &str) -> Vec<String> {
    if file.starts_with("src/bin/") || file == "src/lib.rs" {
        return Vec::new();
    }
    let say = |i: &Import, why| format!("{file}:{}: imports crate::{}, but {why}", i.line, i.path);
    imports(file, text).iter().filter_map(|i| objection(file, &i.path).map(|why| say(i, why))).collect()
}

fn unsafe_lines(file: &str, text: &str) -> Vec<String> {
    let is_unsafe = |line: &str| {
        line.match_indices("unsafe").any(|(at, word)| {
            let ends = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            ends(line[..at].chars().next_back()) && line[at + word.len()..].starts_with([' ', '{'])
        })
    };
    let code = code(text);
    let allowed = UNSAFE_IN.iter().any(|place| file.starts_with(place));
    let lines = code.lines().enumerate().filter(|(_, line)| !allowed && is_unsafe(line));
    let places = UNSAFE_IN.join(", ");
    lines
        .map(|(i, line)| format!("{file}:{}: `{}`: unsafe code only in {places}", i + 1, line.trim()))
        .collect()
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn modules_import_only_from_the_layers_below() {
    assert_none(sources().iter().flat_map(|(file, text)| violations(file, text)).collect());
}

#[test]
fn unsafe_code_stays_at_the_engine() {
    assert_none(sources().iter().flat_map(|(file, text)| unsafe_lines(file, text)).collect());
}

#[test]
fn no_source_file_grows_beyond_a_sitting() {
    let lines = |text: &str| text.lines().count();
    let long = sources().into_iter().filter(|(_, text)| lines(text) >= MOST_LINES);
    let say =
        |(file, text): (String, String)| format!("{file}: {} lines, fewer than {MOST_LINES}", lines(&text));
    assert_none(long.map(say).collect());
}

#[test]
fn the_reader_sees_every_form_of_import() {
    let found = |file, text| imports(file, text).into_iter().map(|i| (i.line, i.path)).collect::<Vec<_>>();
    let text = "// use crate::serve;\nuse crate::{\n    backend::{self, llama::Engine as E, Span},\n    Error,\n};\n\
                fn f() { super::super::config::load(); $crate::x!() }\n#[cfg(test)]\nmod tests { use crate::bin; }";
    let expected = [
        (2, "backend"),
        (2, "backend::llama::Engine"),
        (2, "backend::Span"),
        (2, "Error"),
        (6, "x"),
        (6, "config::load"),
    ];
    assert_eq!(found("src/pair/plan.rs", text), expected.map(|(line, path)| (line, path.to_owned())));
}

#[test]
fn a_breach_is_named_with_file_line_import_and_rule() {
    let breach = |file, text| violations(file, text).join("; ");
    assert_eq!(
        breach("src/pair/lane.rs", "\nuse crate::{backend::{Span, llama::Engine}, Error};"),
        "src/pair/lane.rs:2: imports crate::backend::llama::Engine, but pair must not know backend::llama"
    );
    assert_eq!(
        breach("src/combine.rs", "use super::pair::History;"),
        "src/combine.rs:1: imports crate::pair::History, but combine imports only error, vocab"
    );
    assert_eq!(
        breach("src/pair/mod.rs", "use crate::eval::Scorer;"),
        "src/pair/mod.rs:1: imports crate::eval::Scorer, but pair imports only error, vocab, combine, recent, backend"
    );
    assert_eq!(
        breach("src/later/mod.rs", "use crate::serve::Server;"),
        "src/later/mod.rs:1: imports crate::serve::Server, but nothing in the library imports serve"
    );
    assert_eq!(
        breach("src/pair/mod.rs", "use super::backend::Span; use crate::pair::plan; use crate::Result;"),
        ""
    );
    let line =
        unsafe_lines("src/combine.rs", "#![deny(unsafe_op_in_unsafe_fn)]\nlet x = unsafe { f() };").join("");
    assert!(
        line.starts_with(
            "src/combine.rs:2: `let x = unsafe { f() };`: unsafe code only in src/backend/llama/"
        )
    );
}
