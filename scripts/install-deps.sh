#!/usr/bin/env bash
# Makes sure that there is what the build needs: cmake, g++, make, pkg-config and libclang for llama.cpp and its
# bindings, Python for the tests, and a recent enough Rust. Silent when nothing is missing; installs on Debian and its
# kin, says what to do elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }

# bindgen needs the library and the headers that come with the compiler, which the bare runtime package lacks.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    [ "$(uname)" = Darwin ] && xcode-select -p >/dev/null 2>&1 && return 0
    ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1 || /sbin/ldconfig -p 2>/dev/null | grep 'libclang.*\.so' >/dev/null ||
        return 1
    compgen -G '/usr/lib*/llvm-*/lib*/clang/*/include/stddef.h' >/dev/null ||
        compgen -G '/usr/lib*/clang/*/include/stddef.h' >/dev/null
}

# What dpkg-based systems call what is missing.
missing=()
have cmake || missing+=(cmake)
have g++ || have clang++ || missing+=(g++)
have make || missing+=(make)
have pkg-config || missing+=(pkg-config)
have_libclang || missing+=(libclang-dev)
# Tests run programs as `eval` runs generated code, on Linux only.
[ "$(uname)" != Linux ] || [ -x /usr/bin/python3 ] || missing+=(python3)

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt_install() {
    if [ "$(id -u)" -ne 0 ] && ! have sudo; then
        echo "Missing: $*. Install as root: apt-get install $*" >&2
        exit 1
    fi
    echo "Installing $*" >&2
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

if [ ${#missing[@]} -gt 0 ]; then
    if have apt-get; then
        apt_install "${missing[@]}"
    elif [ "$(uname)" = Darwin ]; then
        echo "Missing: ${missing[*]}. Install: xcode-select --install; brew install cmake pkg-config" >&2
        exit 1
    else
        echo "Missing: ${missing[*]} (Debian's names). Install them with your package manager, then try again." >&2
        exit 1
    fi
fi

# The newest Rust that any locked dependency asks for; Cargo.toml's rust-version goes first where it is set.
minimum=$(sed -n 's/^rust-version *= *"\(.*\)".*/\1/p' Cargo.toml)
minimum=${minimum:-1.95}

at_least() { [ "$(printf '%s\n%s\n' "$minimum" "$1" | sort -V | head -n 1)" = "$minimum" ]; }
rust_version() { rustc --version 2>/dev/null | awk '{ print $2 }'; }

found=$(rust_version || true)
if have cargo && [ -n "$found" ] && at_least "$found"; then
    exit 0
fi

if ! have cargo && have apt-cache; then
    candidate=$(apt-cache policy cargo | awk '/Candidate:/ { print $2 }')
    if [ -n "$candidate" ] && [ "$candidate" != "(none)" ] && at_least "${candidate%%[+~-]*}"; then
        apt_install cargo rustc rustfmt rust-clippy
        exit 0
    fi
fi

cat >&2 <<EOF
proxytune needs Rust $minimum or newer; found: ${found:-none}.
With rustup:        rustup update stable
Without, see https://rustup.rs:
                    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y
Then run make again.
EOF
exit 1
