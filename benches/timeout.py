"""What a time limit costs that nobody exceeds: `proxytune bench` with and without --proxy-timeout, in turn.

    python benches/timeout.py [--rounds 10] [PROXYTUNE]     the program; default: the one that `make build` makes

One line for each number of sequences: tokens/s of lockstep decoding without drafts, medians over the rounds, and how often the limit
was the slower of a pair. Pairs run back to back, the order alternating, so that a machine that drifts drifts for both.
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIOS = {"shipped trio": "models/tiny-{}.gguf", "float32 fixtures": "tests/fixtures/{}-f32.gguf"}
SEQUENCES = (1, 4, 16)
# Well above any pass.
LIMIT = "60"


def speeds(program, files, limit):
    """Tokens/s by number of sequences."""
    command = [program, "bench", "--rounds", "2", "--speculate", "off", "--format", "json", "--alpha", "0.5"]
    command += ["--prompt-file", ROOT / "models/demo-prompts.txt", "--proxy-timeout", limit]
    command += ["--sequences", ",".join(map(str, SEQUENCES))]
    for name in ("host", "tuned", "untuned"):
        command += [f"--{name}", ROOT / files.format(name)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {row["sequences"]: row["tokens_per_s"] for row in json.loads(done.stdout)["rows"] if row["mode"] == "lockstep"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    target = Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache/proxytune-target"))
    parser.add_argument("program", nargs="?", type=Path, default=target / "release/proxytune")
    args = parser.parse_args()
    print("| models | sequences | tokens/s without | with a limit | of it | slower in |\n| --- | --- | --- | --- | --- | --- |")
    for name, files in TRIOS.items():
        pairs = []
        for i in range(args.rounds):
            limits = ("0", LIMIT) if i % 2 == 0 else (LIMIT, "0")
            both = {limit: speeds(args.program, files, limit) for limit in limits}
            pairs.append((both["0"], both[LIMIT]))
        for count in SEQUENCES:
            free, limited = ([pair[at][count] for pair in pairs] for at in (0, 1))
            share = statistics.median(b / a for a, b in zip(free, limited))
            slower = sum(b < a for a, b in zip(free, limited))
            cells = [name, count, f"{statistics.median(free):.0f}", f"{statistics.median(limited):.0f}", f"{100 * share:.0f} %"]
            print("| " + " | ".join(map(str, [*cells, f"{slower} of {args.rounds}"])) + " |", flush=True)


if __name__ == "__main__":
    main()
