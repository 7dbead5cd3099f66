//! Compiles the program of the bundled `hello-world` image: static, without a C library, a few kilobytes.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=bundled/hello.rs");
    let variable = |name: &str| std::env::var_os(name).expect("cargo sets it for build scripts");
    let output = PathBuf::from(variable("OUT_DIR")).join("hello");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=hello", "-Copt-level=s", "-Cpanic=abort"])
        .args(["-Crelocation-model=static", "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .args(["-Clink-arg=-no-pie", "-Clink-arg=-Wl,--build-id=none,-n", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"])
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(&output)
        .arg("bundled/hello.rs")
        .status()
        .expect("rustc runs: it is compiling this");
    assert!(status.success(), "the program of the hello-world image did not compile");
}
