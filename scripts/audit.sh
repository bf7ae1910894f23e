#!/usr/bin/env bash
# audit.sh: holds all dependencies against deny.toml with cargo-deny, which is installed where it is missing.
# Licences, banned crates and sources must pass. Known vulnerabilities too, where the RustSec database can be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
tools=${PROXYTUNE_TOOLS_DIR:-$HOME/.cache/proxytune-tools}
deny=$tools/bin/cargo-deny
if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $version" ]; then
    # Unoptimised, since it runs for a second and compiles for a minute.
    CARGO_TARGET_DIR=$tools/build cargo install -q --debug --locked --force --root "$tools" "cargo-deny@$version"
    rm -rf "$tools/build"
fi
"$deny" --log-level warn --workspace --locked check licenses bans sources
if fetched=$("$deny" --log-level warn --workspace --locked fetch db 2>&1); then
    "$deny" --log-level warn --workspace --locked check --disable-fetch advisories
else
    echo "SKIPPED known vulnerabilities: the RustSec database cannot be fetched (${fetched##*$'\n'})" >&2
fi
