#!/usr/bin/env python3
"""llama-server-bench.py [HOST.gguf TUNED.gguf UNTUNED.gguf]: an unmodified llama-server alone, with the plugin, and with the
plugin and the tuned proxy as its draft model, for 1 and for 8 requests at once; `make bench-plugin` prepares all of it.

Tokens/s as the server counts them, from the first token of a text to its last; the first token as a client waits for
it, on a prompt that no cache has seen. The floor is a step of llama-server alone and a bare pass of each proxy for as many
sequences: each repeated alone (of floor), and after one another, as a step needs them (of bare). All servers take
their turn in each round; medians over rounds.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/plugin"))

import harness  # noqa: E402

REQUESTS = (1, 8)
PROMPTS = (ROOT / "models/demo-prompts.txt").read_text().replace("\\n", "\n").splitlines()
# As a user starts it; the tests' servers compute in float32 throughout.
PLAIN = ["-ctk", "f16", "-ctv", "f16", "-fa", "auto"]
SPECULATIVE = ["--spec-type", "draft-simple", "--spec-draft-n-max", 3]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = [ROOT / f"models/tiny-{role}.gguf" for role in ("host", "tuned", "untuned")]
    parser.add_argument("models", nargs="*", default=shipped, type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=0.5)
    options = parser.parse_args()
    if len(options.models) != 3:
        parser.error(f"got {len(options.models)} models, expected three: host, tuned, untuned")
    return options


def body(number, tokens):
    """A request; `number` makes its prompt one that no cache has seen."""
    prompt = f"# {number}\n{PROMPTS[number % len(PROMPTS)]}"
    return {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}


def first_token_ms(server, numbers):
    """What a client waits for a text of one token."""

    def wait(number):
        begin = time.perf_counter()
        server.post("/completion", body(number, 1))
        return 1e3 * (time.perf_counter() - begin)

    return statistics.median(harness.at_once([lambda n=n: wait(n) for n in numbers]))


def measure(server, numbers, tokens):
    first = first_token_ms(server, [10_000 + n for n in numbers])
    answers = harness.at_once([lambda n=n: server.post("/completion", body(n, tokens)) for n in numbers])
    timings = [answer["timings"] for answer in answers]
    # The first token came with the prompt.
    step = statistics.mean(t["predicted_ms"] / (t["predicted_n"] - 1) for t in timings)
    drafts = [sum(t.get(key, 0) for t in timings) for key in ("draft_n", "draft_n_accepted")]
    return {"step_ms": step, "first_ms": first, "drafted": drafts[0], "accepted": drafts[1]}


def bare_ms(options, requests):
    """Milliseconds that a pass of both proxies takes: each repeated alone, and after one another as in a step."""
    program = Path(os.environ["CARGO_TARGET_DIR"]) / "release/proxytune"
    command = [program, "bench", "--format", "json", "--sequences", str(requests), "--rounds", "2"]
    command += ["--tokens", str(options.tokens), "--prompt-file", str(ROOT / "models/demo-prompts.txt")]
    for role, path in zip(("host", "tuned", "untuned"), options.models, strict=True):
        command += [f"--{role}", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    rows = {row["mode"]: row for row in json.loads(done.stdout)["rows"]}
    in_turn = [1e3 * requests / rows[mode]["in_turn_tokens_per_s"] for mode in ("lockstep", "host")]
    return rows["lockstep"]["tuned_ms"] + rows["lockstep"]["untuned_ms"], in_turn[0] - in_turn[1]


def rounds(options, servers):
    """Per number of requests: what each server did in each round, and the floors' proxies."""
    results = {requests: {mode: [] for mode in servers} for requests in REQUESTS}
    bare = {requests: [] for requests in REQUESTS}
    for number in range(options.rounds + 1):  # the first warms up
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        for requests in REQUESTS:
            begin = 100 * number + 10 * requests
            order = list(servers)
            turn = number % len(order)
            for mode in order[turn:] + order[:turn]:
                results[requests][mode].append(measure(servers[mode], range(begin, begin + requests), options.tokens))
            bare[requests].append(bare_ms(options, requests))
    return results, bare


def main():
    options = arguments()
    host, tuned, untuned = (path.resolve() for path in options.models)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = harness.write_config(folder, tuned, untuned, alpha=options.alpha)
        start = lambda config, *more: stack.enter_context(  # noqa: E731
            harness.Server(config, *PLAIN, *more, slots=max(REQUESTS), model=host)
        )
        servers = {"alone": start(None), "plugin": start(config), "plugin, drafts": start(config, "-md", tuned, *SPECULATIVE)}
        results, bare = rounds(options, servers)
    print(f"{'requests':>8}  {'llama-server':<14} {'tokens/s':>8} {'of floor':>9} {'of bare':>8} {'of host':>8} "
          f"{'first token, ms':>16} {'accepted':>9}")
    for requests in REQUESTS:
        median = lambda mode, key: statistics.median(r[key] for r in results[requests][mode][1:])  # noqa: E731
        alone = median("alone", "step_ms")
        floors = [alone + statistics.median(times[i] for times in bare[requests][1:]) for i in range(2)]
        for mode in servers:
            step = median(mode, "step_ms")
            shares = [100 * floor / step for floor in (floors if mode != "alone" else [alone] * 2) + [alone]]
            drafted = sum(r["drafted"] for r in results[requests][mode][1:])
            accepted = sum(r["accepted"] for r in results[requests][mode][1:])
            share = f"{100 * accepted / drafted:.0f} %" if drafted else ""
            print(f"{requests:>8}  {mode:<14} {1e3 * requests / step:>8.0f} {shares[0]:>7.0f} % {shares[1]:>6.0f} % "
                  f"{shares[2]:>6.0f} % {median(mode, 'first_ms'):>16.1f} {share:>9}")


if __name__ == "__main__":
    main()
