#!/usr/bin/env bash
# load.sh: many clients at once, against `proxytune serve` and a llama-server with the plugin, beside their engines alone.
# MINUTES of load in all, 20 by default; CLIENTS, by default 1,16,64,256. Leaves load.md and load.svg in the target directory. Arguments go
# to load.py, for instance --minutes 1.
# The plugin is built by `make plugin`, which PLUGIN names.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-load}/venv
scripts/venv.sh "$venv" tests/load/requirements.txt
llama_bin=$(scripts/llama-server.sh)
cargo build --release --locked --features serve
exec "$venv/bin/python" tests/load/load.py --minutes "${MINUTES:-20}" --clients "${CLIENTS:-1,16,64,256}" \
    --proxytune "$CARGO_TARGET_DIR/release/proxytune" --llama-bin "$llama_bin" --plugin "$PLUGIN" --out "$CARGO_TARGET_DIR" "$@"
