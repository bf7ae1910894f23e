#!/usr/bin/env bash
# test-openai.sh: builds proxytune with mistral.rs's server and an unmodified llama-server, and runs tests/openai: these two and
# llama-cpp-python's server, which needs no build of its own, as black boxes. TESTS names some of them, as pytest takes them; RECORD=1 records anew what cargo's tests
# replay.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-openai}/venv
scripts/venv.sh "$venv" tests/openai/requirements.txt
LLAMA_BIN=$(scripts/llama-server.sh)
LLAMA_CPP_PYTHON=$(cd "$(scripts/llama-server.sh --source)/../.." && pwd)
export LLAMA_BIN LLAMA_CPP_PYTHON
SMOLLM2=$(scripts/smollm2.sh)
export SMOLLM2
cargo build --release --locked --features serve
export PROXYTUNE=$CARGO_TARGET_DIR/release/proxytune
# shellcheck disable=SC2086
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/openai ${TESTS:-}
