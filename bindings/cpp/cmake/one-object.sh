#!/usr/bin/env bash
# one-object.sh OUT CLASS.o CORE.a SYMBOLS: links the public class and what it needs of the core into one object file, in
# which all symbols are local but the public ones, those that match the patterns in SYMBOLS. The llama.cpp and the Rust
# inside must meet neither another llama.cpp nor another Rust in a program. LD, NM and OBJCOPY are GNU's.
set -euo pipefail
out=$1 class=$2 core=$3 symbols=$4

# What the class defines is what is kept; sections that nothing of it leads to are dropped.
mapfile -t roots < <("$NM" --extern-only --defined-only --format=just-symbols "$class" | sed 's/^/--undefined=/')
"$LD" -r --force-group-allocation --gc-sections "${roots[@]}" -o "$out" "$class" "$core"

# Bitcode that Rust's own library brings along is of no use, and binutils' plugins choke on it.
"$OBJCOPY" --remove-section=.llvmbc --remove-section=.llvmcmd "$out"

# Symbols that are one to a process, such as constants in inline functions, cannot be made local. Another name keeps
# them from becoming one with those of another llama.cpp.
"$NM" "$out" | awk '$2 == "u" { print $3, "proxytune_" $3 }' >"$out.unique"
"$OBJCOPY" --redefine-syms="$out.unique" --wildcard --keep-global-symbols="$symbols" "$out"
