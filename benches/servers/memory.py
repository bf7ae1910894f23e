"""What the proxies need of memory beside their weights and KV caches: an unmodified llama-server with and without the plugin.

    make bench-memory [BENCH="--slots 16"] [MODELS="HOST TUNED UNTUNED"]     GGUF files; default: the shipped trio

Each server answers as many requests at once as it has slots, twice; its peak of resident memory is what the kernel says (VmHWM). Weights
and KV caches are those that `proxytune check` prints.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import llama_server
from llama_server import harness

CONTEXT = 1024


def peak(config, host, slots):
    """Peak of resident memory of a server with all slots at work, in MiB."""
    with harness.Server(config, slots=slots, model=host, context=CONTEXT) as server:
        for _ in range(2):
            prompts = map(llama_server.prompt, range(slots))
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
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--program", type=Path, required=True, help="proxytune, which says how large weights and caches are")
    args = llama_server.parse(parser)
    host, tuned, untuned = args.models
    with tempfile.TemporaryDirectory() as folder:
        config = harness.write_config(folder, tuned, untuned, ctx=CONTEXT, slots=args.slots)
        alone, plugin = (peak(which, host, args.slots) for which in (None, config))
        weights, caches = weights_and_caches(args.program, config, host)
    print(f"{args.slots} slots of {CONTEXT} tokens, MiB: llama-server {alone:.0f}, with the plugin {plugin:.0f}; of the difference "
          f"weights {weights:.1f}, KV caches {caches:.1f}, the rest {plugin - alone - weights - caches:.1f}")


if __name__ == "__main__":
    main()
