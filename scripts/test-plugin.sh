#!/usr/bin/env bash
# test-plugin.sh MAKE: builds llama-server and the plugin for it, lints the plugin, and runs tests/plugin.
# TESTS names some of them, as python's unittest takes them, for instance TESTS="test_plugin.Greedy test_faults"; what only others
# need is not built.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=${TESTS:-test_plugin test_chat test_example test_faults}
LLAMA_BIN=$(scripts/llama-server.sh)
LLAMA_DIR=$(scripts/llama-server.sh --source)
export LLAMA_BIN LLAMA_DIR
release=$CARGO_TARGET_DIR/release
if [[ $tests == *test_faults* ]]; then
    # Its proxies fail on command.
    cargo build --release --locked -p proxytune-llama --features fault-injection
    cp "$release/libproxytune_llama.so" "$release/libproxytune_llama_faults.so"
    export PROXYTUNE_PLUGIN_FAULTS=$release/libproxytune_llama_faults.so
fi
if [[ $tests == *test_example* ]]; then
    # For programs that link llama.cpp and the plugin statically.
    LLAMA_SHARED=$(scripts/llama-prefix.sh shared)
    LLAMA_STATIC=$(scripts/llama-prefix.sh static)
    export LLAMA_SHARED LLAMA_STATIC
    LLAMA_DIR="$LLAMA_STATIC" cargo rustc --release --locked -p proxytune-llama --no-default-features --features linked \
        --crate-type staticlib
    cp "$release/libproxytune_llama.a" "$release/libproxytune_llama_linked.a"
    export PROXYTUNE_PLUGIN_STATIC=$release/libproxytune_llama_linked.a
fi
if [[ $tests == *test_chat* ]]; then
    PROXYTUNE_SMOLLM2=$(scripts/smollm2.sh)
    export PROXYTUNE_SMOLLM2
fi
"$1" plugin LLAMA_DIR="$LLAMA_DIR"
scripts/component.sh clippy clippy && cargo clippy --release --locked -p proxytune-llama -- -D warnings
export PROXYTUNE_PLUGIN=$release/libproxytune_llama.so
cd tests/plugin
# shellcheck disable=SC2086
exec python3 -m unittest -v $tests
