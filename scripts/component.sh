#!/usr/bin/env bash
# component.sh COMPONENT COMMAND: whether `cargo COMMAND` runs; adds the component through rustup where that helps.
set -euo pipefail
cargo "$2" --version >/dev/null 2>&1 && exit 0
if command -v rustup >/dev/null 2>&1 && rustup component add "$1" >&2; then
    exit 0
fi
echo "SKIPPED cargo $2: not installed (rustup component add $1, or Debian's rustfmt and rust-clippy)" >&2
exit 1
