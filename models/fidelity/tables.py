"""What `proxytune eval` says of the experiments, as the tables of docs/fidelity.md."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tasks import MODELS, TASKS

DOCS = MODELS.parent / "docs"
ALPHAS = "0.25,0.375,0.5,0.75,1,1.25,1.5,2"
LONGER = ", proxy tuned longer"
NAMES = {"untuned": "untuned proxy", "tuned": "tuned proxy", "host": "host", "direct": "directly tuned"}


@dataclass
class Experiment:
    """What is compared, and the results once they are there."""

    name: str
    title: str  # of its own table; empty: it has none
    models: dict[str, Path]  # host, tuned, untuned, direct
    flags: list[str]
    sources: dict[str, Path]  # calibration, test
    results: dict | None = None  # of the test
    alpha: float = 0.0  # the best of the calibration
    texts: dict | None = None  # {column: [(text, is right)]} of the test, where models write
    plot: str = ""


def experiments_in(cache: Path) -> list[Experiment]:
    shipped = {name: MODELS / f"tiny-{name}.gguf" for name in ("host", "tuned", "untuned", "direct")}
    texts = {"calibration": MODELS / "calibration-code.txt", "test": MODELS / "heldout-code.txt"}
    found = [Experiment("code", "Domain adaptation: Python code, bits per byte (lower is better)", shipped, [], texts)]
    titles = {
        "arithmetic": "Right or wrong: sums of three-digit numbers, accuracy",
        "completion": "Another format: the rest of a word by chat, accuracy",
    }
    for task in TASKS.values():
        models = shipped | {name: cache / f"{task.name}-{name}.gguf" for name in ("tuned", "direct")}
        if task.chat:
            models["host"] = cache / f"{task.name}-host.gguf"
        sources = {split: cache / f"{task.name}-{split}.jsonl" for split in task.sizes}
        longer = models | {"tuned": cache / f"{task.name}-longer.gguf"}
        found.append(Experiment(task.name, titles[task.name], models, task.flags, sources))
        found.append(Experiment(task.name + LONGER, "", longer, task.flags, sources))
    return found


def evaluate(program: Path, of: Experiment, cache: Path) -> None:
    """Chooses alpha on the calibration file, then scores the test file over the grid."""
    calibration = run(program, of, "calibration", cache)
    of.alpha = calibration["best_alpha"]
    of.results = run(program, of, "test", cache)
    if of.flags:
        of.texts = journal(stem(of, "test", cache).with_suffix(".journal"))
    page = stem(of, "test", cache).with_suffix(".html").read_text()
    of.plot = plain(re.search(r"<svg.*?</svg>", page, re.S).group())


def plain(svg: str) -> str:
    """For pages that may be dark: on white, without the grid's lines in white."""
    svg = re.sub(r'<line [^>]*stroke="#FFFFFF"[^>]*/>\n', "", svg)
    return svg.replace("\n", '\n<rect width="100%" height="100%" fill="#fff"/>\n', 1)


def stem(of: Experiment, split: str, cache: Path) -> Path:
    return cache / f"{of.name.replace(', ', '-').replace(' ', '-')}-{split}"


def run(program: Path, of: Experiment, split: str, cache: Path) -> dict:
    source = of.sources[split]
    command = [program, "eval", "--task" if of.flags else "--text", source, *of.flags, "--alpha", ALPHAS]
    command += [part for name, path in of.models.items() for part in (f"--{name}", path)]
    command += ["--format", "json", "--report", stem(of, split, cache).with_suffix(".html")]
    journal = stem(of, split, cache).with_suffix(".journal")
    command += ["--journal", journal]
    if journal.exists() and any(path.stat().st_mtime > journal.stat().st_mtime for path in of.models.values()):
        command.append("--fresh")  # it is of models that are no more
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def journal(path: Path) -> dict:
    texts = {}
    for line in path.read_text().splitlines()[1:]:
        record = json.loads(line)
        column, _, place = record["key"].partition(" item ")
        texts.setdefault(column, {})[int(place.split()[0])] = (record["item"]["text"], record["item"]["right"])
    return {column: [of_item for _, of_item in sorted(items.items())] for column, items in texts.items()}


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def score(of: Experiment, value: float) -> str:
    return f"{value:.3f}" if of.results["unit"] == "bits_per_byte" else f"{100 * value:.1f} %"


def between(ends, form) -> str:
    return "" if ends is None else f"{form(ends[0])} to {form(ends[1])}"


def shifted(of: Experiment, alpha: float) -> dict:
    return next(s for s in of.results["shifted"] if s["alpha"] == alpha)


def gap(of: Experiment, value: float) -> float:
    host, direct = of.results["host"], of.results["direct"]
    return (value - host) / (direct - host)


def tables(experiments: list[Experiment]) -> str:
    main = [of for of in experiments if of.title]
    parts = [summary(experiments, main)]
    for of in main:
        parts += [table(of), breakdown(of)] if of.texts else [table(of)]
    return "\n".join(parts)


def summary(experiments: list[Experiment], main: list[Experiment]) -> str:
    lines = ["| | host | tuned proxy | shifted | directly tuned | alpha | gap closed | 95 % interval | by the tuned proxy alone | best of the curve |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for of in experiments:
        chosen, results = shifted(of, of.alpha), of.results
        best = shifted(of, results["best_alpha"])
        scores = " | ".join(score(of, v) for v in (results["host"], results["tuned"], chosen["score"], results["direct"]))
        lines.append(f"| {of.name} | {scores} | {of.alpha:g} | {percent(chosen['gap_closed'])} | "
                     f"{between(chosen['gap_interval'], percent)} | {percent(gap(of, results['tuned']))} | "
                     f"{percent(best['gap_closed'])} at {best['alpha']:g} |")
    closed = {of.name: shifted(of, of.alpha)["gap_closed"] for of in experiments}
    same = [closed[of.name] for of in main]
    longer = [closed.get(f"{of.name}{LONGER}", closed[of.name]) for of in main]
    lines += ["", f"Gap closed on average of {', '.join(of.name for of in main)}: **{percent(sum(same) / len(same))}** (the paper: 88 %). With "
              f"the proxies tuned longer: {percent(sum(longer) / len(longer))}."]
    return "\n".join(lines) + "\n"


def table(of: Experiment) -> str:
    results = of.results
    lines = [f"### {of.title}", "", f"{results['size']}.", "", f"![{of.name}: score against alpha](fidelity-{of.name}.svg)", "",
             "| | score | 95 % interval | gap closed | 95 % interval |", "| --- | --- | --- | --- | --- |"]

    def row(name: str, value: float, ends, closed="", closed_ends=""):
        lines.append(f"| {name} | {score(of, value)} | {between(ends, lambda v: score(of, v))} | {closed} | {closed_ends} |")

    for name in ("untuned", "tuned", "host"):
        row(NAMES[name], results[name], results["intervals"][name])
    for s in results["shifted"]:
        mark = " (chosen on the calibration file)" if s["alpha"] == of.alpha else ""
        row(f"shifted, alpha {s['alpha']:g}{mark}", s["score"], s["interval"], percent(s["gap_closed"]), between(s["gap_interval"], percent))
    row(NAMES["direct"], results["direct"], results["intervals"]["direct"])
    return "\n".join(lines) + "\n"


def breakdown(of: Experiment) -> str:
    """Where the right answers come from."""
    tuned, key = of.texts["tuned"], f"alpha={of.alpha:g}"
    lines = ["Where the right answers come from:", ""]
    if of.name == "completion":
        answers = [json.loads(line)["answer"]["value"] for line in of.sources["test"].read_text().splitlines()]
        lines += ["| | the word is right | and the text ends there |", "| --- | --- | --- |"]
        for column in ("host", "tuned", key, "direct"):
            texts = of.texts[column]
            begun = sum(bool(re.match(rf"{re.escape(a)}(?![a-z])", text)) for (text, _), a in zip(texts, answers))
            right = sum(is_right for _, is_right in texts)
            name = NAMES.get(column, f"shifted, alpha {of.alpha:g}")
            lines.append(f"| {name} | {percent(begun / len(texts))} | {percent(right / len(texts))} |")
        lines.append("")
    for is_right, said in ((True, "right"), (False, "wrong")):
        places = [i for i, (_, right) in enumerate(tuned) if right == is_right]
        shares = {c: percent(sum(of.texts[c][i][1] for i in places) / max(1, len(places))) for c in (key, "direct")}
        lines.append(f"- Of the {len(places)} questions that the tuned proxy gets {said}, the shifted host gets {shares[key]} right, the "
                     f"directly tuned one {shares['direct']}.")
    return "\n".join(lines) + "\n"


def write(text: str, experiments: list[Experiment]) -> None:
    """Puts tables and plots into docs/."""
    page = DOCS / "fidelity.md"
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + begin + "\n" + text + "\n" + end + rest.partition(end)[2])
    for of in filter(lambda of: of.title, experiments):
        (DOCS / f"fidelity-{of.name}.svg").write_text(of.plot + "\n")
