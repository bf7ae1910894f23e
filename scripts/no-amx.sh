# To be sourced: compiles llama.cpp without AMX, as .cargo/config.toml does and for its reason.
if [ "$(uname -m)" = x86_64 ]; then
    export CFLAGS="${CFLAGS:-} -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    export CXXFLAGS="${CXXFLAGS:-} -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
fi
