//! The C++ half of the bridge; `bench` adds what the benches call. The public class is compiled by CMake.

fn main() {
    const INCLUDE: &str = "../../include";
    const CLASS: &str = "src/logits_processor.cc";
    const CALLS: &str = "benches/calls.cc";
    let mut build = cxx_build::bridge("src/lib.rs");
    build.include(INCLUDE).std("c++17");
    if std::env::var_os("CARGO_FEATURE_BENCH").is_some() {
        build.file(CLASS).file(CALLS);
    }
    build.compile("proxytune-bridge");
    for path in ["src/lib.rs", CLASS, CALLS, INCLUDE] {
        println!("cargo:rerun-if-changed={path}");
    }
}
