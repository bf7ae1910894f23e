#!/usr/bin/env bash
# test-plugin.sh MAKE: builds llama-server and the plugin for it, lints the plugin, and runs tests/plugin.
# TESTS names some of them, as python's unittest takes them, for instance TESTS=Greedy.
set -euo pipefail
cd "$(dirname "$0")/.."
LLAMA_BIN=$(scripts/llama-server.sh)
LLAMA_DIR=$(scripts/llama-server.sh --source)
export LLAMA_BIN LLAMA_DIR
"$1" plugin LLAMA_DIR="$LLAMA_DIR"
scripts/component.sh clippy clippy && cargo clippy --release --locked -p proxytune-llama -- -D warnings
export PROXYTUNE_PLUGIN=$CARGO_TARGET_DIR/release/libproxytune_llama.so
# shellcheck disable=SC2086
exec python3 tests/plugin/test_plugin.py ${TESTS:-}
