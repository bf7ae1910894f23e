# To be sourced: compiles llama.cpp without AMX, by the flags that .cargo/config.toml has for it.
if [ "$(uname -m)" = x86_64 ]; then
    no_amx=$(sed -n 's/^CFLAGS_x86_64_unknown_linux_gnu = "\(.*\)"$/\1/p' "$(dirname "${BASH_SOURCE[0]}")/../.cargo/config.toml")
    export CFLAGS="${CFLAGS:-} $no_amx" CXXFLAGS="${CXXFLAGS:-} $no_amx"
fi
