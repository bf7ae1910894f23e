"""proxytune beside its peers, on the same models and threads, in one run: `make bench-peers` prepares all of it.

    python benches/peers [PROXYTUNE] [--trio shipped,smollm2,random] [--rounds 5] [--models DIR] [--out DIR]

The paper's algorithm in transformers (float32 and bfloat16), llama.cpp and mistral.rs naively, proxytune with and without
drafts, and each engine's host alone. One sequence, greedy, all on as many threads as there are cores. Everyone takes a
turn in each round, so that a machine that drifts drifts for all; medians over rounds. Writes peers.md and peers.svg.
mistral.rs takes part where the program was built with it (make build FEATURES=serve).
"""

import argparse
import gc
import os
import platform
import statistics
import sys
from pathlib import Path

import torch
from chart import svg, table
from engines import Program, Transformers, has_mistralrs, prompt_tokens
from trios import PROMPT, TRIOS

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache" / "proxytune-target"))
MODELS = Path.home() / ".cache" / "proxytune-peers" / "models"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default=str(TARGET / "release" / "proxytune"))
    parser.add_argument("--trio", default=",".join(TRIOS), help=f"some of {', '.join(TRIOS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder for models with random weights (0.8 GB)")
    parser.add_argument("--out", type=Path, default=TARGET, help="folder for peers.md and peers.svg")
    chosen = parser.parse_args()
    chosen.trio = chosen.trio.split(",")
    if unknown := set(chosen.trio) - set(TRIOS):
        parser.error(f"--trio: got {', '.join(unknown)}, expected some of {', '.join(TRIOS)}")
    if chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    return chosen


def measure(name: str, options: argparse.Namespace, engines: list[str]) -> tuple[str, list[tuple[str, str, float]]]:
    trio = TRIOS[name](options.models)
    prompt_file = options.out / "peers-prompt.txt"
    prompt_file.write_text(PROMPT.replace("\n", "\\n"))
    prompt = prompt_tokens(options.program, trio)
    peers = [Transformers(trio, prompt, dtype) for dtype in (torch.float32, torch.bfloat16)]
    peers += [Program(options.program, trio, engine, prompt_file) for engine in engines]
    rounds = []
    for number in range(options.rounds + 1):  # the first warms up
        print(f"{trio.title}: round {number} of {options.rounds}", file=sys.stderr, flush=True)
        turns = [peers[(number + turn) % len(peers)] for turn in range(len(peers))]
        rounds.append({(peer.name, way): rate for peer in turns for way, rate in peer.measure().items()})
    order = [key for peer in peers for key in rounds[0] if key[0] == peer.name]
    rows = [(*key, statistics.median(rates[key] for rates in rounds[1:])) for key in order]
    del peers
    gc.collect()
    return trio.title, rows


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(os.cpu_count() or 1)
    engines = ["llama", "mistralrs"] if has_mistralrs(options.program) else ["llama"]
    if len(engines) == 1:
        print("this program has no mistral.rs in it: make build FEATURES=serve", file=sys.stderr)
    note = f"{os.cpu_count()} threads, {platform.machine()}, medians of {options.rounds} rounds."
    figures = {}
    for name in options.trio:
        title, rows = measure(name, options, engines)
        figures[title] = rows
        # After each trio, so that a run that is cut short leaves something.
        (options.out / "peers.md").write_text(f"{note}\n\n{table(figures)}")
        (options.out / "peers.svg").write_text(svg(figures, note))
    print((options.out / "peers.md").read_text())
    print(f"{options.out / 'peers.md'} {options.out / 'peers.svg'}", file=sys.stderr)


if __name__ == "__main__":
    main()
