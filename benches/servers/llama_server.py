"""llama_server.py [HOST.gguf TUNED.gguf UNTUNED.gguf]: an unmodified llama-server alone and with the plugin, each with
and without the tuned proxy as its draft model, for 1 and for 8 requests at once; `make bench-plugin` prepares all of it.

Tokens/s as the server counts them, from the first token of a text to its last; the first token as a client waits for
it, on a prompt that no cache has seen. The floor is a step of llama-server alone and a bare pass of each proxy for as many
sequences, by llama.cpp's own llama-batched-bench; that of a first token, the same with as many tokens of prompt. All servers take their turn in each round; medians over rounds.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/plugin"))

import harness  # noqa: E402

PROMPTS = (ROOT / "models/demo-prompts.txt").read_text().replace("\\n", "\n").splitlines()
# As a user starts it; the tests' servers compute in float32 throughout.
PLAIN = ["-ctk", "f16", "-ctv", "f16", "-fa", "auto"]
SPECULATIVE = ["--spec-type", "draft-simple", "--spec-draft-n-max", 3]


def parse(parser):
    """The options, with three models among them."""
    shipped = [ROOT / f"models/tiny-{role}.gguf" for role in ("host", "tuned", "untuned")]
    parser.add_argument("models", nargs="*", default=shipped, type=Path)
    options = parser.parse_args()
    if len(options.models) != 3:
        parser.error(f"got {len(options.models)} models, expected three: host, tuned, untuned")
    options.models = [path.resolve() for path in options.models]
    return options


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8], help="at once (1,8)")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=0.5)
    return parse(parser)


def prompt(number):
    """One that no cache has seen under another number."""
    return f"# {number}\n{PROMPTS[number % len(PROMPTS)]}"


def body(number, tokens):
    return {"prompt": prompt(number), "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}


def first_token(server, numbers):
    """What a client waits for a text of one token, in milliseconds, and the tokens of all prompts."""

    def wait(number):
        begin = time.perf_counter()
        answer = server.post("/completion", body(number, 1))
        return 1e3 * (time.perf_counter() - begin), answer["timings"]["prompt_n"]

    waits, tokens = zip(*harness.at_once([lambda n=n: wait(n) for n in numbers]))
    return statistics.median(waits), sum(tokens)


def measure(server, numbers, tokens):
    first, read = first_token(server, [10_000 + n for n in numbers])
    answers = harness.at_once([lambda n=n: server.post("/completion", body(n, tokens)) for n in numbers])
    timings = [answer["timings"] for answer in answers]
    # The first token came with the prompt.
    step = statistics.mean(t["predicted_ms"] / (t["predicted_n"] - 1) for t in timings)
    drafts = [sum(t.get(key, 0) for t in timings) for key in ("draft_n", "draft_n_accepted")]
    return {"step_ms": step, "first_ms": first, "prompt": read, "drafted": drafts[0], "accepted": drafts[1]}


def bare_ms(path, requests, tokens):
    """Milliseconds of a bare pass of a model over one token of each sequence, in the same llama.cpp on as many threads, and those of
    a token of prompts."""
    command = [harness.BIN / "llama-batched-bench", "-m", path, "-c", 1024 * requests, "-npp", 32, "-ntg", tokens]
    # Twice, since now and then it ends before its last line is out.
    command += ["-npl", f"{requests},{requests}", "-t", os.cpu_count(), "--output-format", "jsonl"]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{' '.join(map(str, command))}: expected a line of figures, got:\n{done.stdout}{done.stderr}")
    figures = json.loads(lines[0])
    return 1e3 * figures["t_tg"] / figures["tg"], 1e3 * figures["t_pp"] / (figures["pp"] * requests)


def rounds(options, servers):
    """Per number of requests: what each server did in each round, and what the bare passes of both proxies
    took."""
    results = {requests: {mode: [] for mode in servers} for requests in options.requests}
    bare = {requests: [] for requests in options.requests}
    for number in range(options.rounds + 1):  # the first warms up
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        for requests in options.requests:
            begin = 100 * number + 10 * requests
            order = list(servers)
            turn = number % len(order)
            for mode in order[turn:] + order[:turn]:
                results[requests][mode].append(measure(servers[mode], range(begin, begin + requests), options.tokens))
            both = (bare_ms(path, requests, options.tokens) for path in options.models[1:])
            bare[requests].append([sum(times) for times in zip(*both)])
    return results, bare


def main():
    options = arguments()
    host, tuned, untuned = options.models
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = harness.write_config(folder, tuned, untuned, alpha=options.alpha)
        start = lambda config, *more: stack.enter_context(  # noqa: E731
            harness.Server(config, *PLAIN, *more, slots=max(options.requests), model=host)
        )
        drafts = ["-md", tuned, *SPECULATIVE]
        servers = {
            "alone": start(None),
            "alone, drafts": start(None, *drafts),
            "plugin": start(config),
            "plugin, drafts": start(config, *drafts),
        }
        results, bare = rounds(options, servers)
    print(f"{'requests':>8}  {'llama-server':<14} {'tokens/s':>8} {'of floor':>9} {'of host':>8} {'first token, ms':>16} "
          f"{'of floor':>9} {'accepted':>9}")
    for requests in options.requests:
        median = lambda mode, key: statistics.median(r[key] for r in results[requests][mode][1:])  # noqa: E731
        total = lambda mode, key: sum(r[key] for r in results[requests][mode][1:])  # noqa: E731
        alone = median("alone", "step_ms")
        bare_step, bare_token = (statistics.median(times) for times in zip(*bare[requests][1:]))
        floor = alone + bare_step
        first_alone = median("alone", "first_ms")
        first_floor = first_alone + bare_token * median("alone", "prompt")
        for mode in servers:
            step = median(mode, "step_ms")
            by_itself = mode.startswith("alone")
            of_floor = 100 * (alone if by_itself else floor) / step
            first = median(mode, "first_ms")
            first_of_floor = 100 * (first_alone if by_itself else first_floor) / first
            drafted = total(mode, "drafted")
            share = f"{100 * total(mode, 'accepted') / drafted:.0f} %" if drafted else ""
            print(f"{requests:>8}  {mode:<14} {1e3 * requests / step:>8.0f} {of_floor:>7.0f} % {100 * alone / step:>6.0f} % "
                  f"{first:>16.1f} {first_of_floor:>7.0f} % {share:>9}")


if __name__ == "__main__":
    main()
