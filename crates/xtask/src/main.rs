//! Tasks of the workspace itself: `cargo xtask layers`, `cargo xtask vm`.

mod layers;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((task, [])) if task == "layers" => layers::check(),
        Some((task, filters)) if task == "vm" => vm::run(filters),
        _ => {
            eprintln!(
                "usage: cargo xtask layers | cargo xtask vm [TEST-FILE[:NAME]]... | cargo xtask vm reboot | cargo xtask vm cut [TIMES]"
            );
            ExitCode::from(2)
        }
    }
}
