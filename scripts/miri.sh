#!/usr/bin/env bash
# miri.sh: runs the core under Miri, which finds undefined behaviour, and the core and the rows of the C++ interface under
# AddressSanitizer. Both need a nightly toolchain; says so where there is none. CASES of each property, by default 4: Miri is slow.
set -euo pipefail
cd "$(dirname "$0")/.."
nightly=${NIGHTLY:-nightly}
if ! cargo "+$nightly" --version >/dev/null 2>&1; then
    echo "SKIPPED Miri: no toolchain $nightly (rustup toolchain install $nightly)" >&2
    exit 0
fi
# Of its own, and without target-cpu=native: Miri knows few of a processor's own instructions.
export CARGO_TARGET_DIR=$CARGO_TARGET_DIR-miri RUSTFLAGS=""
export PROPTEST_CASES=${CASES:-4} MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
core=(--locked --no-default-features)
if cargo "+$nightly" miri --version >/dev/null 2>&1 || rustup component add --toolchain "$nightly" miri rust-src; then
    cargo "+$nightly" miri test "${core[@]}" --lib --test combine --test plan
    cargo "+$nightly" miri test "${core[@]}" --test pair --test requests -- ${MIRI_TESTS:-}
else
    echo "SKIPPED Miri: the component miri is not to be had for $nightly" >&2
fi
