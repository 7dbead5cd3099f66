use clap::Parser;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(dhow_runtime::command::Runtime::parse_from(args).main());
}
