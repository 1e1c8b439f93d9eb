//! A folder of a room's test with engines in it: it goes with its test, and stays when the test fails.

use std::path::Path;
use std::process::Command;

/// The folder. Its name is short: a socket's path ends at 107 bytes.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("ce").tempdir().unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.0.disable_cleanup(true);
        let folder = self.path().display();
        eprintln!("what the test worked on is left in {folder}, and its engines' logs in {folder}/logs");
        // The logs lie in volumes that are locked when their server is gone.
        let keep = r#"mkdir "$0/logs"; n=0
            find "$0" -path '*/clusters/*/log/*' -type f 2>/dev/null |
                while read -r log; do n=$((n + 1)); cp "$log" "$0/logs/$n-${log##*/}"; done
            for words in /proc/[0-9]*/cmdline; do
                pid=${words#/proc/}; pid=${pid%/cmdline}
                tr '\0' ' ' <"$words" 2>/dev/null | grep -q "$0/.*clusters" && [ "$pid" != $$ ] && kill -9 "$pid"
            done
            cut -d' ' -f5 /proc/self/mountinfo | grep "^$0/" | sort -r | while read -r place; do umount -l "$place"; done"#;
        let _ = Command::new("sh").args(["-c", keep]).arg(self.path()).status();
    }
}
