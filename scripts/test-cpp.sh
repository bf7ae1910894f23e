#!/usr/bin/env bash
# test-cpp.sh: builds the C++ library, runs its tests plainly and under sanitizers, and links programs against what was
# installed, from an empty folder. CHECKS names some of plain, address, thread, faults, install and cargo; default: all.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
# Called by make, cmake would otherwise tell of every folder.
unset MAKEFLAGS

apt_install() {
    echo "Installing $*" >&2
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}
missing=()
[ -e /usr/include/doctest/doctest.h ] || missing+=(doctest-dev)
[ -e /usr/include/nlohmann/json.hpp ] || missing+=(nlohmann-json3-dev)
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"

# shellcheck source=scripts/no-amx.sh
source scripts/no-amx.sh
llama_bin=$(scripts/llama-server.sh)
llama_source=$(scripts/llama-server.sh --source)
builds=${CPP_BUILD_DIR:-$CARGO_TARGET_DIR/cpp}
jobs=${JOBS:-$(nproc)}

say() { printf '\n== %s\n' "$*"; }

# build NAME OPTION...: with tests, into $builds/NAME.
build() {
    # One made from another checkout would be refused.
    rm -f "$builds/$1/CMakeCache.txt"
    cmake -S bindings/cpp -B "$builds/$1" -DPROXYTUNE_TESTS=ON -DLLAMA_SOURCE_DIR="$llama_source" \
        -DLLAMA_LIB_DIR="$llama_bin" "${@:2}" >/dev/null
    cmake --build "$builds/$1" -j "$jobs" | grep -v '^\[' || [ "${PIPESTATUS[0]}" -eq 0 ]
}

check_plain() {
    say "tests"
    build plain
    "$builds/plain/tests/tests"
}

# The public class, the tests and the example are instrumented; the core in Rust, the llama.cpp inside it and the host's
# are not, but their allocations are seen.
check_address() {
    say "tests under AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer"
    build address -DPROXYTUNE_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1
    UBSAN_OPTIONS=halt_on_error=1 "$builds/address/tests/tests"
}

# What is not instrumented synchronises by means that ThreadSanitizer does not see: its accesses are left out.
check_thread() {
    say "tests under ThreadSanitizer"
    build thread -DPROXYTUNE_SANITIZE=thread -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1
    TSAN_OPTIONS="halt_on_error=1 suppressions=$repository/bindings/cpp/tests/thread.supp" "$builds/thread/tests/tests"
}

# A core whose proxies fail on command, under the sanitizers; leaks are those of passes that hang. Freed memory is not held back for
# long, since the tests look at how much there is.
check_faults() {
    say "proxies that fail, hang and are slow"
    build faults -DPROXYTUNE_FEATURES=fault-injection -DPROXYTUNE_SANITIZE=address,undefined \
        -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1
    UBSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=1 "$builds/faults/tests/faults"
}

check_install() {
    say "an installed library, from an empty folder"
    build plain
    local prefix empty
    empty=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$empty'" RETURN
    prefix=$empty/prefix
    cmake --install "$builds/plain" --prefix "$prefix" >/dev/null
    (cd "$empty" && consume "$prefix")
}

# Whatever way a program was linked, it says the same.
consume() {
    local prefix=$1 consumer=$repository/bindings/cpp/tests/consumer
    local trio=("$repository"/tests/fixtures/{tuned,untuned,host}-f32.gguf)
    local first="" said
    export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib:$llama_bin

    # Nothing shows but what the header declares.
    local shared=$prefix/lib/libproxytune.so object=$PWD/one.o
    local ours='(LogitsProcessor|5Error|PROXYTUNE_0)'
    nm -D --defined-only "$shared" | awk '{ print $3 }' >shared.txt
    ar p "$prefix/lib/libproxytune.a" >"$object"
    nm --extern-only --defined-only "$object" | awk '$2 != "u" { print $3 }' >static.txt
    if grep -vE "$ours" shared.txt static.txt; then
        echo "these symbols must not be seen" >&2
        return 1
    fi
    nm "$object" | awk '$2 == "u" && $3 !~ /^proxytune_/' | grep . && return 1
    objdump -p "$shared" | grep 'SONAME *libproxytune.so.0.1' >/dev/null
    [ "$(wc -l <shared.txt)" -gt 20 ]

    cmake -S "$consumer" -B cmake -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
    cmake --build cmake -j "$jobs" >/dev/null
    local llama=(-DWITH_LLAMA -I"$llama_source/include" -I"$llama_source/ggml/include")
    local libllama=(-L"$llama_bin" -lllama -lggml -lggml-base)
    local main=$consumer/main.cc
    # shellcheck disable=SC2046
    {
        c++ -std=c++17 -o by_pkg_config "$main" $(pkg-config --cflags --libs proxytune)
        c++ -std=c++17 -o by_pkg_config_static "$main" $(pkg-config --cflags --libs proxytune-static)
        c++ -std=c++17 "${llama[@]}" -o beside_llama "$main" $(pkg-config --cflags --libs proxytune) "${libllama[@]}"
        c++ -std=c++17 "${llama[@]}" -o beside_llama_static "$main" \
            $(pkg-config --cflags --libs proxytune-static) "${libllama[@]}"
    }
    for program in cmake/with_proxytune cmake/with_static by_pkg_config by_pkg_config_static beside_llama \
        beside_llama_static; do
        said=$("./$program" "${trio[@]}")
        printf '%-24s %s\n' "$program" "${said//$'\n'/; }"
        [ "$said" = "${first:=$said}" ]
    done
    [[ $first == *"request: got 2, expected a request that was added"* ]]
}

check_cargo() {
    say "the crate: lints, unit tests, allocations"
    scripts/component.sh clippy clippy &&
        cargo clippy --release --locked -p proxytune-cpp --all-targets --features bench -- -D warnings
    cargo test --release --locked -p proxytune-cpp --lib
    cargo bench --locked -p proxytune-cpp --features bench --bench ffi -- --test
}

for check in ${CHECKS:-plain install address thread faults cargo}; do
    "check_$check"
done
