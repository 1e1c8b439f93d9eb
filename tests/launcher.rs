//! What tests give a host of engines: a launcher, which is the test program itself as the one test below, and a record.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use engine::{Launcher, VolumeRecord};
use model::{Checkpoint, ClusterId, Template, VolumeId};

/// A record that knows of no volume and permits every one: for tests whose subject is something else.
#[derive(Debug, Default)]
struct Nothing(Mutex<HashMap<u32, Template>>);

impl VolumeRecord for Nothing {
    fn check(&self, _: ClusterId, _: VolumeId) -> Result<(), String> {
        Ok(())
    }

    fn major(&self, _: ClusterId) -> Result<Option<u32>, String> {
        Ok(None)
    }

    fn checkpoint(&self, _: ClusterId) -> Option<Checkpoint> {
        None
    }

    fn template(&self, major: u32) -> Result<Option<Template>, String> {
        Ok(self.0.lock().map_err(|cause| cause.to_string())?.get(&major).cloned())
    }

    fn keep_template(&self, major: u32, template: &Template) -> Result<(), String> {
        self.0.lock().map_err(|cause| cause.to_string())?.insert(major, template.clone());
        Ok(())
    }
}

/// A record of nothing.
pub fn no_record() -> Arc<dyn VolumeRecord> {
    Arc::new(Nothing::default())
}

/// Folders of PostgreSQL beside the system's, as `chitin start` is told of them.
pub fn postgres() -> Vec<PathBuf> {
    let all = std::env::var("CHITIN_POSTGRES").unwrap_or_default();
    all.split(',').filter(|folder| !folder.is_empty()).map(PathBuf::from).collect()
}

/// The major version that tests run on, if it is to be another than the newest.
pub fn default_major() -> Option<u32> {
    std::env::var("CHITIN_DEFAULT_VERSION").ok()?.parse().ok()
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
