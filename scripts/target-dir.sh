#!/usr/bin/env bash
# target-dir.sh DIR: keeps compiled code from running on a processor that it was not compiled for.
#
# .cargo/config.toml builds for the very processor at hand. DIR may be a cache that moves between machines; there the
# old code would die of an illegal instruction. So DIR notes its processor and what is asked of compilers, and when
# either is another its builds are thrown away.
set -euo pipefail
dir=$1
cd "$(dirname "$0")/.."
stamp=$dir/.cpu

cpu() {
    uname -sm
    if [ -r /proc/cpuinfo ]; then
        # x86 says flags, Arm says Features.
        grep -m 1 -E '^(flags|Features)[[:space:]]*:' /proc/cpuinfo | tr ' ' '\n' | sort || true
    else
        sysctl -n machdep.cpu.brand_string machdep.cpu.features machdep.cpu.leaf7_features 2>/dev/null || true
    fi
}

mkdir -p "$dir"
now=$({ cpu && cat .cargo/config.toml; } | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ] && exit 0
if [ -d "$dir/release" ] || [ -d "$dir/debug" ]; then
    echo "$dir was built for another processor or with other settings: building anew" >&2
    rm -rf "$dir/release" "$dir/debug"
fi
echo "$now" >"$stamp"
