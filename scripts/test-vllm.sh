#!/usr/bin/env bash
# test-vllm.sh [--bench]: the Python package in vLLM, transformers and llama-cpp-python, held against the golden files; with
# --bench tokens/s of vLLM instead. Installs all three once, several GB. TESTS names some tests, as pytest's -k takes them.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/vllm-env.sh)
checkpoints=$(dirname "$venv")
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall ./bindings/python

# checkpoint GGUF NAME: written once, and again when the file has changed.
checkpoint() {
    local folder=$checkpoints/$2
    [ "$folder/model.safetensors" -nt "$1" ] || "$venv/bin/python" scripts/vllm-checkpoint.py "$1" "$folder" >&2
    echo "$folder"
}

if [ "${1:-}" = --bench ]; then
    host=$(checkpoint models/tiny-host.gguf tiny-host)
    exec "$venv/bin/python" benches/servers/vllm_serve.py "$host" models/tiny-tuned.gguf models/tiny-untuned.gguf
fi

PROXYTUNE_VLLM_MODEL=$(checkpoint tests/fixtures/host-f32.gguf fixture-host)
LLAMA_CPP_LIB_PATH=$(scripts/llama-server.sh)
export PROXYTUNE_VLLM_MODEL LLAMA_CPP_LIB_PATH
# The bindings alone: the library is llama-server's.
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" "$venv/bin/pip" install -q --disable-pip-version-check llama-cpp-python==0.3.36
exec "$venv/bin/python" -m pytest -q bindings/python/tests ${TESTS:+-k "$TESTS"}
