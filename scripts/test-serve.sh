#!/usr/bin/env bash
# test-serve.sh: builds proxytune with its server, and runs tests/serve against it with the official openai client.
# TESTS names some of them, as pytest takes them, for instance TESTS="-k golden".
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-serve}/venv
scripts/venv.sh "$venv" tests/serve/requirements.txt
SMOLLM2=$(scripts/smollm2.sh)
export SMOLLM2
release=$CARGO_TARGET_DIR/release
# Its proxies fail on command, for tests/serve/test_faults.py.
cargo build --release --locked --features serve,fault-injection
cp "$release/proxytune" "$release/proxytune-faults"
cargo build --release --locked --features serve
export PROXYTUNE=$release/proxytune PROXYTUNE_FAULTS=$release/proxytune-faults
# shellcheck disable=SC2086
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/serve ${TESTS:-}
