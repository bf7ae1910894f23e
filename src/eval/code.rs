//! Functions that the models write, right when they pass their tests: pass@k as in HumanEval (Chen et al. 2021).

use super::Journal;
use super::answers::examples;
use super::bootstrap::Items;
use super::contain::{Cell, Ending};
use super::generation::{GenerationOptions, Prompt, Verdict, generate};
use super::metric::Metric;
use super::report::{Report, counted};
use super::setup::{Listen, Setup, check_alphas};
use super::task::Problem;
use crate::error::{Error, Result};

/// Has every column write the functions and runs their tests: pass@k for each of `ks`.
///
/// # Errors
/// When a prompt cannot be made, programs cannot be contained, a model or the journal fails;
/// [`Error::Interrupted`].
pub fn code(
    setup: &Setup,
    problems: &[Problem],
    cell: &Cell,
    ks: &[usize],
    options: &GenerationOptions,
    journal: &mut Journal,
    listen: &mut Listen<'_>,
) -> Result<Report> {
    check_alphas(&setup.alphas)?;
    check_ks(ks, options)?;
    // Better now than after the first hour of generation.
    let trial = cell.run("print('ready')")?;
    if trial.output != "ready\n" {
        let what = format!("a trial program ended with {}: {}", trial.how, trial.error);
        return Err(Error::engine(cell.python.display().to_string(), what));
    }
    let prompt = |p: &Problem| Prompt { text: p.prompt.clone(), framed: p.prompt.clone() };
    let prompts: Vec<Prompt> = problems.iter().map(prompt).collect();
    let judge = |texts: &[(usize, String)]| run_all(cell, problems, texts);
    let (verdicts, mut notes) = generate(setup, &prompts, options, &judge, journal, listen)?;
    let columns = setup.columns();
    let metric = |&k: &usize| {
        let of_item = |item: &Vec<Verdict>| pass_at(k, item.len(), item.iter().filter(|v| v.right).count());
        let mean = |of: &Vec<Vec<Verdict>>| of.iter().map(of_item).sum::<f64>() / of.len().max(1) as f64;
        let items = Items::alike(verdicts.iter().map(|of| of.iter().map(of_item).collect()).collect());
        let scores: Vec<f64> = verdicts.iter().map(mean).collect();
        Metric::new(&format!("pass@{k}"), false, &columns, &scores).over(&items)
    };
    let metrics: Vec<Metric> = ks.iter().map(metric).collect();
    let examples = examples(setup, &metrics[0], &verdicts, |i| (problems[i].prompt.clone(), String::new()));
    notes.push(how_contained(cell, &trial));
    let size =
        format!("{}, {} of each", counted(problems.len(), "problem"), counted(options.samples, "sample"));
    Ok(Report { task: "humaneval".into(), size, metrics, notes, examples, ..Report::default() })
}

fn check_ks(ks: &[usize], options: &GenerationOptions) -> Result<()> {
    let samples = options.samples;
    if samples == 0 {
        return Err(Error::invalid("--samples", 0, "at least 1"));
    }
    if samples > 1 && options.sampler.temperature == 0.0 {
        let given = format!("{samples} with temperature 0, where all samples are the same");
        return Err(Error::invalid("--samples", given, "1, or a --temperature such as 0.8 beside it"));
    }
    match ks.iter().find(|&&k| k == 0 || k > samples) {
        Some(k) => Err(Error::invalid("--k", k, format!("1 to the number of samples, {samples}"))),
        None => Ok(()),
    }
}

fn how_contained(cell: &Cell, trial: &Ending) -> String {
    let limits = &cell.limits;
    let network = match trial.network.as_str() {
        "namespace" => "a network namespace of their own and no sockets",
        _ => "no sockets (the system permits no network namespace; a seccomp filter forbids sockets)",
    };
    format!(
        "Generated programs ran for at most {} s, with at most {} MiB and {} processes, with {network}.",
        limits.time.as_secs(),
        limits.memory >> 20,
        limits.processes
    )
}

/// The chance that of `k` samples drawn from `n`, of which `right` pass, at least one passes.
fn pass_at(k: usize, n: usize, right: usize) -> f64 {
    if n - right < k {
        return 1.0;
    }
    1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// Runs the programs of a chunk, as many at once as there are cores.
fn run_all(cell: &Cell, problems: &[Problem], texts: &[(usize, String)]) -> Result<Vec<Verdict>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some((item, text)) = texts.get(index) else { return done };
            done.push((index, run(cell, &problems[*item], text)));
        }
    };
    let mut found: Vec<(usize, Result<Verdict>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
    });
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, verdict)| verdict).collect()
}

fn run(cell: &Cell, problem: &Problem, text: &str) -> Result<Verdict> {
    // Printed at the very end: a program that leaves early with code 0 has not passed.
    let seal = "proxytune: all tests passed";
    let Problem { test, entry_point, .. } = problem;
    let program = format!("{}\n\n{test}\n\ncheck({entry_point})\nprint({seal:?})\n", function(problem, text));
    let ending = cell.run(&program)?;
    let right = ending.how == "exit 0" && ending.output.trim_end().ends_with(seal);
    let why = match ending.how.as_str() {
        _ if right => String::new(),
        "time" => format!("ran longer than {} s", cell.limits.time.as_secs()),
        "memory" => format!("took more than {} MiB", cell.limits.memory >> 20),
        "exit 0" => "left before its tests were over".into(),
        how if ending.error.is_empty() => how.into(),
        _ => ending.error,
    };
    Ok(Verdict { text: text.into(), right, why })
}

/// The prompt and what follows it; of a chat model's answer the code, where it is fenced.
fn function(problem: &Problem, text: &str) -> String {
    let fenced = text.split_once("```").and_then(|(_, rest)| {
        let (_language, code) = rest.split_once('\n')?;
        Some(code.split("```").next().unwrap_or(code))
    });
    match fenced {
        // What the prompt imports may be needed either way.
        Some(code) if code.contains(&format!("def {}", problem.entry_point)) => {
            let imports =
                problem.prompt.lines().filter(|l| l.starts_with("import ") || l.starts_with("from "));
            imports.chain([code]).collect::<Vec<_>>().join("\n")
        }
        Some(code) => format!("{}{code}", problem.prompt),
        None => format!("{}{text}", problem.prompt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_share_of_draws_with_a_right_one() {
        for n in 1..8 {
            for right in 0..=n {
                for k in 1..=n {
                    // Subsets of k of n, as bits; the lowest `right` samples pass.
                    let draws: Vec<u32> = (0u32..1 << n).filter(|s| s.count_ones() as usize == k).collect();
                    let good = draws.iter().filter(|&s| s & ((1 << right) - 1) != 0).count();
                    let expected = good as f64 / draws.len() as f64;
                    assert!((pass_at(k, n, right) - expected).abs() < 1e-9, "{k} {n} {right}");
                }
            }
        }
    }

    #[test]
    fn a_chat_models_fenced_code_is_taken_out() {
        let problem = Problem {
            id: "x".into(),
            prompt: "import math\n\ndef f(x):\n".into(),
            entry_point: "f".into(),
            test: String::new(),
        };
        assert_eq!(function(&problem, "    return 1"), "import math\n\ndef f(x):\n    return 1");
        let whole = "Sure:\n```python\ndef f(x):\n    return 2\n```\nDone.";
        assert_eq!(function(&problem, whole), "import math\ndef f(x):\n    return 2\n");
        assert_eq!(function(&problem, "```\n    return 3\n```"), "import math\n\ndef f(x):\n    return 3\n");
    }
}
