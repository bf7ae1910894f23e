#!/usr/bin/env bash
# llama-prefix.sh shared|static: installs the llama.cpp of llama-server.sh, libraries, headers and CMake package, into a prefix
# outside the checkout, and prints that. The shared libraries are llama-server's own; static ones are built once (about two minutes on two cores).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
kind=${1:-}
[[ $kind =~ ^(shared|static)$ ]] || { echo "llama-prefix.sh: got '$kind', expected shared or static" >&2; exit 2; }
shared=$(dirname "$("$here/llama-server.sh")")
source=$("$here/llama-server.sh" --source)
prefix=$shared-$kind
if [ ! -e "$prefix/done" ]; then
    exec 9>"$prefix.lock"
    flock 9
fi
if [ ! -e "$prefix/done" ]; then
    rm -rf "$prefix"
    if [ "$kind" = shared ]; then
        # Not the programs, of which only some were built.
        cmake -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LOCAL_ONLY=1 -P "$shared/cmake_install.cmake" >/dev/null
        cmake -DCMAKE_INSTALL_PREFIX="$prefix" -P "$shared/ggml/cmake_install.cmake" >/dev/null
    else
        # shellcheck source=scripts/no-amx.sh
        source "$here/no-amx.sh"
        cmake -S "$source" -B "$prefix.build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" \
            -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF >&2
        cmake --build "$prefix.build" -j "${JOBS:-$(nproc)}" >&2
        cmake --install "$prefix.build" >/dev/null
        rm -rf "$prefix.build"
    fi
    touch "$prefix/done"
fi
echo "$prefix"
