#!/usr/bin/env bash
# test-python.sh: lints the Python package, installs it as a user does, into a virtual environment, and runs its own tests.
# Those with torch, transformers, llama-cpp-python and vLLM are skipped where these are missing: see `make test-vllm`.
# TESTS names some of them, as pytest's -k takes them.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/component.sh clippy clippy && cargo clippy --release --locked -p proxytune-python --all-targets -- -D warnings
venv=$CARGO_TARGET_DIR/python-venv
scripts/venv.sh "$venv" bindings/python/tests/requirements-alone.txt
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall ./bindings/python
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider bindings/python/tests ${TESTS:+-k "$TESTS"}
