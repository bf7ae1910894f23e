//! Trios whose vocabularies differ in padding, added tokens or order: the same weights under altered vocabularies must
//! give the oracle's tokens.
#![cfg(feature = "eval")]

mod common;
#[path = "common/gguf.rs"]
mod gguf;

use assert_cmd::Command;
use common::{Case, cases, fixture_config, host_row, models, path, take_turns};
use gguf::{CONTROL, Gguf, NORMAL, Place, UNUSED, USER_DEFINED, new_ids};
use proxytune::combine::log_sum_exp;
use proxytune::config::{Config, Speculate};
use proxytune::decode::{Job, RunOptions};
use proxytune::eval::{Setup, coverage};
use proxytune::pair::{History, Runner};
use proxytune::vocab::TokenMap;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tempfile::TempDir;

/// A text of many tokens that is one token in vocabularies with it.
const PHRASE: &str = "import os\nimport sys\n";

fn old(count: usize) -> Vec<Place> {
    (0..count).map(Place::Old).collect()
}

/// The same tokens in an order that has none where it was.
fn shuffled(count: usize) -> Vec<Place> {
    (0..count).map(|i| Place::Old((i * 1001 + 7) % count)).collect()
}

fn new(name: &str, kind: u32) -> Place {
    Place::New(name.into(), kind)
}

fn padded(mut places: Vec<Place>, by: usize) -> Vec<Place> {
    places.extend((0..by).map(|i| new(&format!("[PAD{i}]"), UNUSED)));
    places
}

/// Tokens before and among the old ones, so that these stand elsewhere.
fn with_added(count: usize) -> Vec<Place> {
    let mut places = vec![new("<|tool|>", CONTROL), new(PHRASE, USER_DEFINED)];
    places.extend(old(count));
    places.insert(count / 2, new("zqzqzq", NORMAL));
    places
}

/// Where the tokens of an altered vocabulary of so many come from.
type Alter = fn(usize) -> Vec<Place>;

/// An altered trio in a folder.
struct Altered {
    folder: TempDir,
    config: Config,
    /// Where the old tokens of host, tuned and untuned proxy stand now; none where nothing was changed.
    ids: [Option<HashMap<usize, u32>>; 3],
}

impl Altered {
    /// `alter` makes a model's vocabulary from the number of its tokens; `None` leaves it.
    fn new(alter: [Option<Alter>; 3]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut config, mut ids) = (fixture_config(), [None, None, None]);
        let tuning = &mut config.proxy_tuning;
        let files = [&mut config.host.model, &mut tuning.tuned, &mut tuning.untuned];
        for ((file, alter), (which, ids)) in files.into_iter().zip(alter).zip(ids.iter_mut().enumerate()) {
            let Some(alter) = alter else { continue };
            let mut gguf = Gguf::read(file.as_ref().unwrap());
            let places = alter(gguf.vocab());
            gguf.revocab(&places);
            let path = folder.path().join(format!("{which}.gguf"));
            gguf.write(&path);
            (*file, *ids) = (Some(path), Some(new_ids(&places)));
        }
        Self { folder, config, ids }
    }

    fn of(&self, which: usize, tokens: &[u32]) -> Vec<u32> {
        match &self.ids[which] {
            Some(ids) => tokens.iter().map(|&t| ids[&(t as usize)]).collect(),
            None => tokens.to_vec(),
        }
    }

    fn history(&self, case: &Case) -> History {
        let own =
            (case.tuned_prompt_tokens != case.prompt_tokens).then(|| self.of(1, &case.tuned_prompt_tokens));
        History::new(self.of(0, &case.prompt_tokens), own)
    }

    fn assert_oracles_tokens(&self, what: &str) {
        let cases = cases();
        let models = models(&self.config, false);
        let maps = models.proxies.as_ref().unwrap().each_ref().map(|(_, map)| map.is_identity());
        assert!(maps.contains(&false), "{what}: nothing is to be mapped");
        for speculate in [Speculate::Off, Speculate::Tokens(3)] {
            let mut config = self.config.clone();
            config.proxy_tuning.speculate = speculate;
            let run = RunOptions { sequences: cases.len(), longest: 512, ..RunOptions::default() };
            let mut decoder = models.decoder(&config, run).unwrap();
            let job = |case: &Case| Job { history: self.history(case), ..case.job() };
            let outcomes = decoder
                .generate(cases.iter().map(job).collect(), false, &mut |_| ControlFlow::Continue(()))
                .unwrap();
            for (case, outcome) in cases.iter().zip(&outcomes) {
                assert_eq!(outcome.tokens, self.of(0, &case.tokens), "{what} {} {speculate:?}", case.name);
                assert_eq!(outcome.stats.unshifted, 0);
            }
            let accepted: usize = outcomes.iter().map(|o| o.stats.accepted).sum();
            assert_eq!(accepted > 0, speculate != Speculate::Off, "{what}");
        }
    }
}

#[test]
fn another_order_gives_the_oracles_tokens() {
    let _turn = take_turns();
    Altered::new([None, Some(shuffled), None]).assert_oracles_tokens("tuned proxy shuffled");
    Altered::new([Some(shuffled), None, None]).assert_oracles_tokens("host shuffled");
}

#[test]
fn padding_gives_the_oracles_tokens() {
    let _turn = take_turns();
    Altered::new([None, None, Some(|n| padded(old(n), 64))]).assert_oracles_tokens("untuned proxy padded");
    Altered::new([Some(|n| padded(old(n), 904)), None, None]).assert_oracles_tokens("host padded");
}

#[test]
fn added_tokens_give_the_oracles_tokens() {
    let _turn = take_turns();
    Altered::new([None, Some(with_added), None]).assert_oracles_tokens("tokens added to the tuned proxy");
    Altered::new([Some(with_added), None, None]).assert_oracles_tokens("tokens added to the host");
}

#[test]
fn three_models_of_which_no_two_agree_give_the_oracles_tokens() {
    let _turn = take_turns();
    let altered =
        Altered::new([Some(|n| padded(shuffled(n), 10)), Some(with_added), Some(|n| padded(old(n), 3))]);
    altered.assert_oracles_tokens("all of it");
}

/// A token that only the host has stands in a history as text that the proxies can spell, and gets no shift itself.
#[test]
fn a_token_that_only_the_host_has_reaches_the_proxies_as_text() {
    let _turn = take_turns();
    let altered = Altered::new([Some(with_added), None, None]);
    let with_phrase = models(&altered.config, false);
    let plain = models(&fixture_config(), false);
    let run = RunOptions { sequences: 2, longest: 128, ..RunOptions::default() };
    let offset = |models: &proxytune::decode::Models, config: &Config, history: Vec<u32>| {
        let runner = Runner::without_thread(models.pair(config, run).unwrap().unwrap());
        runner.sequence(History::new(history, None), 1.0).offset().unwrap().to_vec()
    };
    let before = plain.host.tokenize("# A program\n", false);
    let after = plain.host.tokenize("def main", false);
    let phrase = plain.host.tokenize(PHRASE, false);
    let spelt = offset(&plain, &fixture_config(), [&before[..], &phrase, &after].concat());
    let ours = [&altered.of(0, &before)[..], &[1], &altered.of(0, &after)].concat();
    assert_eq!(with_phrase.host.piece(1, true), PHRASE.as_bytes());
    let got = offset(&with_phrase, &altered.config, ours);
    for (token, expected) in spelt.iter().enumerate() {
        let place = altered.of(0, &[token as u32])[0] as usize;
        assert!((got[place] - expected).abs() < 1e-4, "token {token}: {} instead of {expected}", got[place]);
    }
    assert_eq!([got[0], got[1]], [0.0; 2], "no shift for what the proxies lack");
}

fn setup(altered: &Altered) -> (Setup, Vec<TokenMap>) {
    let mut models = models(&altered.config, false);
    let maps = models.proxies.take().unwrap().map(|(_, map)| map).to_vec();
    let setup = Setup { config: altered.config.clone(), models, direct: None, alphas: vec![] };
    (setup, maps)
}

#[test]
fn coverage_is_the_hosts_probability_of_tokens_that_both_proxies_have() {
    let _turn = take_turns();
    let altered = Altered::new([Some(with_added), None, Some(|n| padded(old(n), 8))]);
    let (setup, maps) = setup(&altered);
    let text = "import re\nThe answer is 42.";
    let tokens = setup.models.host.tokenize(text, false);
    let got = coverage(&setup, &maps, text, 512, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(got.tokens as usize, tokens.len() - 1);
    let added = [0, 1, 4096 / 2];
    let shares: Vec<f64> = (1..tokens.len())
        .map(|end| {
            let row = host_row(&setup.models, &History::new(tokens[..end].to_vec(), None));
            let sum = log_sum_exp(&row);
            1.0 - added.iter().map(|&t: &usize| (f64::from(row[t]) - sum).exp()).sum::<f64>()
        })
        .collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let least = shares.iter().copied().fold(1.0, f64::min);
    assert!((got.mean - mean).abs() < 1e-6 && (got.least - least).abs() < 1e-5, "{got:?} {mean} {least}");
    assert!(got.least < got.mean && got.mean < 1.0);
}

fn check(config: &Config, more: &[&str]) -> assert_cmd::assert::Assert {
    let name = |file: &Option<PathBuf>| file.as_ref().unwrap().to_str().unwrap().to_owned();
    let tuning = &config.proxy_tuning;
    let files = [name(&config.host.model), name(&tuning.tuned), name(&tuning.untuned)];
    let mut command = Command::cargo_bin("proxytune").unwrap();
    command.current_dir(path("")).args([
        "check",
        "--host",
        &files[0],
        "--tuned",
        &files[1],
        "--untuned",
        &files[2],
    ]);
    command.args(more).assert()
}

#[test]
fn check_says_how_much_of_a_text_is_covered() {
    let _turn = take_turns();
    let altered = Altered::new([Some(with_added), Some(shuffled), None]);
    let text = altered.folder.path().join("text.txt");
    std::fs::write(&text, "import re\n\n\ndef main():\n    return 1\n").unwrap();
    let flags = ["--text", text.to_str().unwrap(), "--format", "json"];
    let json = |config: &Config| -> serde_json::Value {
        serde_json::from_slice(&check(config, &flags).success().get_output().stdout).unwrap()
    };
    let covered = json(&altered.config)["coverage"].clone();
    let [mean, least] = ["mean", "least"].map(|field| covered[field].as_f64().unwrap());
    assert!(0.9 < least && least <= mean && mean < 1.0, "{covered}");
    assert!(covered["tokens"].as_u64().unwrap() > 5);
    assert_eq!(json(&fixture_config())["coverage"]["least"], 1.0);
    let shown = check(&altered.config, &flags[..2]).success().get_output().stdout.clone();
    assert!(String::from_utf8(shown).unwrap().contains("of the host's probability on this text"));
    check(&altered.config, &["--text", "missing.txt"]).code(2);
}
