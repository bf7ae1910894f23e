"""What the proxies need of memory beside their weights and KV caches: an unmodified llama-server with and without the plugin.

    python benches/memory.py [--slots 16] [--program PROXYTUNE] [HOST TUNED UNTUNED]     GGUF files; default: the shipped trio

Each server answers as many requests at once as it has slots, twice; its peak of resident memory is what the kernel says (VmHWM). Weights
and KV caches are those that `proxytune check` prints. LLAMA_BIN and PROXYTUNE_PLUGIN say where llama-server and the plugin are;
`make bench-plugin` builds both.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/plugin"))

import harness  # noqa: E402

CONTEXT = 1024
PROMPTS = (ROOT / "models/demo-prompts.txt").read_text().replace("\\n", "\n").splitlines()


def peak(config, host, slots):
    """Peak of resident memory of a server with all slots at work, in MiB."""
    with harness.Server(config, slots=slots, model=host, context=CONTEXT) as server:
        for _ in range(2):
            prompts = [f"# {slot}\n{PROMPTS[slot % len(PROMPTS)]}" for slot in range(slots)]
            harness.at_once([lambda p=p: server.complete(p, n_predict=64, ignore_eos=True) for p in prompts])
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def weights_and_caches(program, config, host):
    """Of both proxies, in MiB."""
    command = [program, "check", "--config", config, "--host", host, "--format", "json"]
    models = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["models"]
    return [sum(model[key] for model in models[1:]) / 2**20 for key in ("weights_bytes", "kv_cache_bytes")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache/proxytune-target"))
    shipped = [ROOT / f"models/tiny-{role}.gguf" for role in ("host", "tuned", "untuned")]
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--program", type=Path, default=target / "release/proxytune")
    parser.add_argument("models", nargs="*", default=shipped, type=Path)
    args = parser.parse_args()
    if len(args.models) != 3:
        parser.error(f"got {len(args.models)} models, expected three: host, tuned, untuned")
    host, tuned, untuned = (path.resolve() for path in args.models)
    with tempfile.TemporaryDirectory() as folder:
        config = harness.write_config(folder, tuned, untuned, ctx=CONTEXT, slots=args.slots)
        alone, plugin = (peak(which, host, args.slots) for which in (None, config))
        weights, caches = weights_and_caches(args.program, config, host)
    print(f"{args.slots} slots of {CONTEXT} tokens, MiB: llama-server {alone:.0f}, with the plugin {plugin:.0f}; of the difference "
          f"weights {weights:.1f}, KV caches {caches:.1f}, the rest {plugin - alone - weights - caches:.1f}")


if __name__ == "__main__":
    main()
