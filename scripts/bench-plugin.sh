#!/usr/bin/env bash
# bench-plugin.sh MAKE NAME [ARGUMENT...]: builds llama-server, llama.cpp's own bench and the plugin, and runs benches/servers/NAME.py.
# `random` as the last argument stands for a trio with random weights (0.8 GB), kept outside the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=("${@:3}")
if [ ${#arguments[@]} -gt 0 ] && [ "${arguments[-1]}" = random ]; then
    cache=${PROXYTUNE_CACHE_DIR:-$HOME/.cache}/proxytune-random
    scripts/venv.sh "$cache/venv" benches/models/requirements.txt
    "$cache/venv/bin/python" benches/models/random_trio.py "$cache" >&2
    unset 'arguments[-1]'
    arguments+=("$cache"/{host,tuned,untuned}.gguf)
fi
LLAMA_BIN=$(scripts/llama-server.sh)
export LLAMA_BIN
cmake --build "$(dirname "$LLAMA_BIN")" --target llama-batched-bench -j "${JOBS:-$(nproc)}" >&2
"$1" plugin LLAMA_DIR="$(scripts/llama-server.sh --source)"
PROXYTUNE_PLUGIN=$CARGO_TARGET_DIR/release/libproxytune_llama.so exec python3 "benches/servers/$2.py" "${arguments[@]}"
