//! Says that a test of a room cannot be tried on this machine. libtest has no word for that: what returns has passed. So the
//! name and the reason go to the file that `CHITIN_TESTS_SKIPPED` names, a line each, which `./test` counts and shows.

use std::io::Write;
use std::panic::Location;

/// Writes down that this test, or a part of it that the reason names, was not tried. Whoever calls it returns.
#[track_caller]
pub fn skipped(reason: &str) {
    let place = Location::caller().to_string();
    let thread = std::thread::current();
    // libtest names a test's thread after it; a test that runs alone has none of its own.
    let test = thread.name().filter(|name| *name != "main").unwrap_or(&place);
    // The file is one program's, so the test's own name says enough there.
    let Some(path) = std::env::var_os("CHITIN_TESTS_SKIPPED") else {
        // Not by a macro, whose output libtest keeps to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED {}: {test}: {reason}", env!("CARGO_CRATE_NAME"));
        return;
    };
    let line = format!("{test}\t{reason}\n");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    // Silence would look like success.
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("CHITIN_TESTS_SKIPPED names a file");
}
