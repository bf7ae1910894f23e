#!/usr/bin/env bash
# test-serve.sh: builds proxytune with its server, and runs tests/serve against it with the official openai client.
# TESTS names some of them, as pytest takes them, for instance TESTS="-k golden".
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-serve}
requirements=tests/serve/requirements.txt
if ! cmp -s "$requirements" "$cache/venv/requirements.txt"; then
    python3 -m venv --clear "$cache/venv"
    "$cache/venv/bin/pip" install -q --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$cache/venv/"
fi
SMOLLM2=$(scripts/smollm2.sh)
export SMOLLM2
cargo build --release --locked --features serve
export PROXYTUNE=$CARGO_TARGET_DIR/release/proxytune
# shellcheck disable=SC2086
exec "$cache/venv/bin/python" -m pytest -q -p no:cacheprovider tests/serve ${TESTS:-}
