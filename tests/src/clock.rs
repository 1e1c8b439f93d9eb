//! A clock that a test sets, for the programs that it starts (`tests/faults/clock.c`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use crate::command::run;

/// The time of day of some programs, ahead of the machine's by what was set last.
#[derive(Clone, Debug)]
pub struct Clock {
    folder: Arc<tempfile::TempDir>,
}

impl Clock {
    /// A clock that is ahead by so many seconds.
    pub fn ahead(seconds: i64) -> Self {
        let clock = Self { folder: Arc::new(tempfile::tempdir().expect("a temporary directory")) };
        clock.set(seconds);
        clock
    }

    /// Sets it, for programs that run as well: ahead of the machine's clock by so many seconds.
    pub fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.offset());
        // In place and in one step, because programs have it mapped.
        file.expect("a scratch file").write_all_at(&seconds.to_ne_bytes(), 0).expect("it is written");
    }

    /// Gives a program this clock.
    pub fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", library()).env("CHITIN_TEST_CLOCK", self.offset());
    }

    fn offset(&self) -> PathBuf {
        self.folder.path().join("ahead")
    }
}

/// The library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/clock.c");
        run(Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&path)
            .arg(source))
        .ok();
        (folder, path)
    });
    path
}
