"""proxytune beside the paper's algorithm in transformers (float32), on the same models and threads, in one run.

    pip install -r tests/oracle/requirements.txt
    python benches/peers.py [PROXYTUNE]     the program; default: the one that `make build` makes

transformers computes with the weights dequantised, proxytune as they are: in float32 for the fixtures of the tests, quantised
for the trio that is shipped. Greedy, one sequence. Rounds alternate, so that a machine that drifts drifts for both; medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))
from oracle import ROLES, host_alone, load_model, load_tokenizer, proxy_tuned  # noqa: E402

TRIOS = {
    "float32 fixtures": "tests/fixtures/{}-f32.gguf",
    "shipped trio": "models/tiny-{}.gguf",
}
PROMPT = "def read_lines(path):\n    "
STEPS = 96
WAYS = {"host": "host alone", "lockstep": "proxy-tuned", "speculative": "with drafts"}


def paths(pattern: str) -> dict[str, Path]:
    return {role: ROOT / pattern.format(role) for role in ROLES}


def transformers_rates(trio: dict, prompt: list[int]) -> dict[str, float]:
    """{way: tokens/s}"""
    rates = {}
    ways = {
        "host alone": lambda: list(host_alone(trio["host"], prompt, STEPS)),
        "proxy-tuned": lambda: list(proxy_tuned(trio, prompt, prompt, 1.0, STEPS)),
    }
    for name, run in ways.items():
        begin = time.perf_counter()
        run()
        rates[name] = STEPS / (time.perf_counter() - begin)
    return rates | {"with drafts": rates["proxy-tuned"]}


def proxytune_rates(program: str, pattern: str, prompt_file: Path) -> dict[str, float]:
    """{way: tokens/s}"""
    models = [argument for role, path in paths(pattern).items() for argument in (f"--{role}", str(path))]
    options = ["--sequences", "1", "--rounds", "5", "--tokens", str(STEPS), "--prompt-file", str(prompt_file)]
    command = [program, "bench", "--format", "json", *models, *options]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"]
    return {WAYS[row["mode"]]: row["tokens_per_s"] for row in rows if row["mode"] in WAYS}


def main() -> None:
    target = Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache" / "proxytune-target"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default=str(target / "release" / "proxytune"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prompt_file = target / "peers-prompt.txt"
    prompt_file.write_text(PROMPT.replace("\n", "\\n"))
    print(f"{'':<18} {'tokens/s':<12} {'transformers':>12} {'proxytune':>10} {'times':>6}")
    for name, pattern in TRIOS.items():
        trio = {role: load_model(path) for role, path in paths(pattern).items()}
        prompt = load_tokenizer(paths(pattern)["host"]).encode(PROMPT).ids
        transformers_rates(trio, prompt)  # warms up
        rounds = []
        for number in range(arguments.rounds):
            rates = transformers_rates(trio, prompt), proxytune_rates(arguments.program, pattern, prompt_file)
            rounds.append(rates)
            print(f"{name}: round {number + 1} of {arguments.rounds}", end="\r", file=sys.stderr, flush=True)
        for way in WAYS.values():
            theirs, ours = (statistics.median(rates[who][way] for rates in rounds) for who in (0, 1))
            print(f"{name:<18} {way:<12} {theirs:>12.1f} {ours:>10.1f} {ours / theirs:>6.1f}")
    print(f"{torch.get_num_threads()} threads, medians of {arguments.rounds} rounds")


if __name__ == "__main__":
    main()
