//! What starts engines in the sandboxes of tests: the test program itself, as the one test below.

use engine::Launcher;

/// This program, called so that it is the launcher.
pub fn launcher() -> Launcher {
    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
    let test = format!("{module}::starts_engines");
    let arguments = ["--exact", &test, "--ignored", "--nocapture"];
    Launcher {
        program: std::env::current_exe().expect("this program"),
        arguments: arguments.map(str::to_owned).to_vec(),
    }
}

#[test]
#[ignore = "started by the engines of the tests beside it"]
fn starts_engines() {
    if let Some(code) = engine::launch_if_asked() {
        // An engine that could not become one.
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
    }
}
