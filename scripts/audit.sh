#!/usr/bin/env bash
# audit.sh: holds all dependencies against deny.toml with cargo-deny, and Cargo.lock as a whole, accelerators included, against
# the RustSec database with cargo-audit. Both are installed where they are missing.
# Licences, banned crates and sources must pass. Known vulnerabilities too, where the database can be fetched; else ADVISORY_DB
# may name a copy of it.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${PROXYTUNE_TOOLS_DIR:-$HOME/.cache/proxytune-tools}

# installed NAME VERSION: the program's path.
installed() {
    local program=$tools/bin/$1
    if [ "$("$program" --version 2>/dev/null)" != "$1 $2" ]; then
        # Unoptimised, since it runs for a second and compiles for a minute.
        CARGO_TARGET_DIR=$tools/build cargo install -q --debug --locked --force --root "$tools" "$1@$2" >&2
        rm -rf "$tools/build"
    fi
    echo "$program"
}

deny=$(installed cargo-deny 0.20.2)
"$deny" --log-level warn --workspace --locked check licenses bans sources
if [ -z "${ADVISORY_DB:-}" ]; then
    if ! fetched=$("$deny" --log-level warn --workspace --locked fetch db 2>&1); then
        echo "SKIPPED known vulnerabilities: the RustSec database cannot be fetched (${fetched##*$'\n'})" >&2
        exit 0
    fi
    "$deny" --log-level warn --workspace --locked check advisories
    ADVISORY_DB=$(echo "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/advisory-db-*/)
fi
audit=$(installed cargo-audit 0.22.2)
# Crates without a maintainer are told and pass, as in deny.toml.
"$audit" audit --no-fetch --stale --db "$ADVISORY_DB"
