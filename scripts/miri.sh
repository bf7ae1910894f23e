#!/usr/bin/env bash
# miri.sh: runs what needs no engine under Miri, which finds undefined behaviour and data races: combination, vocabularies, planner, pair,
# runner and sequences, then the sampler behind the C interface and the rows of the C++ one over proxies without a model.
# Needs a nightly toolchain and the component miri; says so where there is none. PROPTEST_CASES of each property, by default 4:
# Miri is some thousand times slower. CHECKS names some of core, pair, faces; LLAMA_DIR names headers as `make plugin` takes them.
set -euo pipefail
cd "$(dirname "$0")/.."
nightly=${NIGHTLY:-nightly}
if ! cargo "+$nightly" --version >/dev/null 2>&1; then
    echo "SKIPPED Miri: no toolchain $nightly (rustup toolchain install $nightly)" >&2
    exit 0
fi
if ! cargo "+$nightly" miri --version >/dev/null 2>&1 && ! rustup component add --toolchain "$nightly" miri rust-src; then
    echo "SKIPPED Miri: the component miri is not to be had for $nightly" >&2
    exit 0
fi
# Of its own, and without target-cpu=native: Miri knows few of a processor's own instructions.
export CARGO_TARGET_DIR=$CARGO_TARGET_DIR-miri RUSTFLAGS=""
export PROPTEST_CASES=${PROPTEST_CASES:-4} MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"

miri() { cargo "+$nightly" miri test --locked --no-default-features "$@"; }

# Chat templates are left out: those without an end take hours to come to theirs, and are not our code.
check_core() {
    miri --lib -- combine vocab backend pair
    miri --test combine --test plan
}

check_pair() { miri --test pair --test runner; }

check_faces() {
    LLAMA_DIR=${LLAMA_DIR:-$(scripts/llama-server.sh --source)}
    export LLAMA_DIR
    miri --features llama-linked --lib -- llama_sampler requests
    miri --features llama-linked --test requests
}

for check in ${CHECKS:-core pair faces}; do
    "check_$check"
done
