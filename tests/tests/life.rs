//! x
fn main() -> std::process::ExitCode { house::runner::run(vec![], vec![]) }
