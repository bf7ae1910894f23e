#!/usr/bin/env bash
# coverage.sh: which lines of our own code the hostile input runs through: files, vocabularies, the planner and rows by cargo's
# tests, HTTP bodies by tests/serve/test_fuzz.py. Prints llvm-cov's table. Dependencies are those of any other build.
set -euo pipefail
cd "$(dirname "$0")/.."
rustup component add llvm-tools >&2
tools=$(dirname "$(find "$(rustc --print sysroot)" -name llvm-cov -type f | head -1)")
out=$CARGO_TARGET_DIR/coverage
rm -rf "$out"
mkdir -p "$out"
# Only crates of this workspace are compiled with counters.
printf '#!/bin/sh\nexec "$@" -C instrument-coverage\n' >"$out/rustc"
chmod +x "$out/rustc"
export RUSTC_WORKSPACE_WRAPPER=$out/rustc LLVM_PROFILE_FILE=$out/%p-%m.profraw
tests=(--test hostile --test plan --test pair --test requests)
objects=()
while read -r binary; do
    objects+=(--object "$binary")
done < <(cargo test --release --locked "${tests[@]}" --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
cargo test --release --locked "${tests[@]}" >&2

venv=${PROXYTUNE_CACHE_DIR:-$HOME/.cache/proxytune-serve}/venv
scripts/venv.sh "$venv" tests/serve/requirements.txt
cargo build --release --locked --features serve
SMOLLM2=$(scripts/smollm2.sh)
export SMOLLM2
cp "$CARGO_TARGET_DIR/release/proxytune" "$out/proxytune"
PROXYTUNE=$out/proxytune PROXYTUNE_FAULTS=$out/proxytune \
    "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/serve/test_fuzz.py >&2
"$tools/llvm-profdata" merge -sparse "$out"/*.profraw -o "$out/all.profdata"
"$tools/llvm-cov" report "$out/proxytune" "${objects[@]}" --instr-profile="$out/all.profdata" \
    --ignore-filename-regex='(/registry/|/rustc/|/rustlib/|/out/|src/bin/|tests/)'
