#!/usr/bin/env bash
# llama-server.sh: builds an unmodified llama-server and llama-simple with shared libraries, for the plugin's tests, and
# prints their folder; with --source the folder of the sources, which are those of llama-cpp-python's source package.
# Kept outside the checkout; built once. LLAMA_CPP_PYTHON_VERSION names another release of that package.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}
cache=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-llama}
source=$cache/llama_cpp_python-$version/vendor/llama.cpp
build=$cache/build-$version-no-amx

result=$build/bin
[ "${1:-}" != --source ] || result=$source
if [ -e "$build/done" ] && [ -x "$build/bin/llama-server" ]; then
    echo "$result"
    exit 0
fi

mkdir -p "$cache"
# One build at a time; whoever comes second finds it done.
exec 9>"$cache/lock"
flock 9
if [ -e "$build/done" ]; then
    echo "$result"
    exit 0
fi

if [ ! -d "$source" ]; then
    # The package's own build backend has to be there for pip to read its metadata; without isolation pip does not
    # build cmake from source first.
    python3 -m venv "$cache/venv" >&2
    "$cache/venv/bin/pip" install -q --disable-pip-version-check scikit-build-core >&2
    "$cache/venv/bin/pip" download -q --disable-pip-version-check --no-deps --no-build-isolation \
        --no-binary llama-cpp-python -d "$cache" "llama-cpp-python==$version" >&2
    tar -xzf "$cache"/llama_cpp_python-"$version".tar.gz -C "$cache"
fi

# shellcheck source=scripts/no-amx.sh
source "$here/no-amx.sh"
cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF >&2
cmake --build "$build" --target llama-server llama-simple -j "${JOBS:-$(nproc)}" >&2
touch "$build/done"
echo "$result"
