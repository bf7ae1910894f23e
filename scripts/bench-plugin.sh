#!/usr/bin/env bash
# bench-plugin.sh MAKE [ARGUMENT...]: builds llama-server, llama.cpp's own bench and the plugin, and runs llama-server-bench.py.
set -euo pipefail
cd "$(dirname "$0")/.."
LLAMA_BIN=$(scripts/llama-server.sh)
export LLAMA_BIN
cmake --build "$(dirname "$LLAMA_BIN")" --target llama-batched-bench -j "${JOBS:-$(nproc)}" >&2
"$1" plugin LLAMA_DIR="$(scripts/llama-server.sh --source)"
PROXYTUNE_PLUGIN=$CARGO_TARGET_DIR/release/libproxytune_llama.so exec python3 scripts/llama-server-bench.py "${@:2}"
