//! What tests give a host of engines: a launcher, which is the test program itself as the one test below, and a record.

use std::sync::Arc;

use engine::{Launcher, VolumeRecord};
use model::{Checkpoint, ClusterId, VolumeId};

/// A record that knows nothing and permits everything: for tests whose subject is something else.
#[derive(Debug)]
struct Nothing;

impl VolumeRecord for Nothing {
    fn check(&self, _: ClusterId, _: VolumeId) -> Result<(), String> {
        Ok(())
    }

    fn checkpoint(&self, _: ClusterId) -> Option<Checkpoint> {
        None
    }
}

/// A record of nothing.
pub fn no_record() -> Arc<dyn VolumeRecord> {
    Arc::new(Nothing)
}

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
