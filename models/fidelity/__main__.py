"""The paper's tables in small: `make fidelity` prepares all of it.

    python models/fidelity [PROXYTUNE] [--cache DIR] [--write]

Makes the questions, tunes a proxy and a host on each task (resuming where it was stopped), lets `proxytune eval` score
them, and prints the tables; --write also puts them into docs/fidelity.md, with the plots beside it.
"""

import argparse
import json
import os
import sys
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache" / "proxytune-target"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", type=Path, default=TARGET / "release" / "proxytune")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "proxytune-fidelity")
    parser.add_argument("--write", action="store_true", help="renew docs/fidelity.md's tables and plots")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.cache.mkdir(parents=True, exist_ok=True)
    # The recipe reads this as it is loaded; its vocabulary lies there.
    os.environ["PROXYTUNE_CACHE"] = str(options.cache)
    sys.path.append(str(MODELS / "recipe"))
    import export_gguf
    import tokenizer
    from tables import evaluate, experiments_in, tables, write
    from tasks import PLAIN, TASKS
    from tune import RUNS, tune

    tokenizer.restore(MODELS / "tiny-host.gguf")
    for task in TASKS.values():
        for split, records in task.questions(tokenizer.load()).items():
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (options.cache / f"{task.name}-{split}.jsonl").write_text("".join(lines))
    for name in RUNS:
        tune(name, options.cache / f"{name}.gguf")
    # The host as shipped, but for a template: its prompt is the user's text.
    host = options.cache / "completion-host.gguf"
    if not host.exists():
        arch, net = export_gguf.read_model(MODELS / "tiny-host.gguf")
        export_gguf.write_gguf(host, arch, net.state_dict(), True, "The host with a plain template.", PLAIN)
    experiments = experiments_in(options.cache)
    for experiment in experiments:
        evaluate(options.program, experiment, options.cache)
    text = tables(experiments)
    print(text)
    if options.write:
        write(text, experiments)


if __name__ == "__main__":
    main()
