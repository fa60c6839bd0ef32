//! Compiles the CUDA sources as C++.

fn main() {
    println!("cargo::rerun-if-changed=cpp");
    for entry in std::fs::read_dir("..").expect("the kernels' folder") {
        let path = entry.expect("a readable entry").path();
        if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).define("LOCKSTEP_EMULATION", None).file("cpp/kernels.cpp");
    build
        .include("..")
        .include("cpp")
        .warnings(true)
        .extra_warnings(true)
        .flag("-Wno-unknown-pragmas")
        .flag("-Wno-psabi");
    // Overflow, shifts out of range and misaligned accesses trap. Longjmp goes from stack to stack, which its fortified
    // version takes for an attack.
    build.flag("-fsanitize=undefined").flag("-fsanitize-undefined-trap-on-error").flag("-U_FORTIFY_SOURCE");
    if let Err(why) = build.try_compile("lockstep_emulation") {
        panic!("the CUDA kernels are tested as C++ on the CPU, which takes a C++ compiler (Debian: g++): {why}");
    }
}
