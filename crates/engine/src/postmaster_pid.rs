//! PostgreSQL's `postmaster.pid`: where the engine says how far it is (src/include/miscadmin.h, `LOCK_FILE_LINE_PM_STATUS`).

use std::path::Path;

use crate::inside::Inside;

/// The eighth line.
const STATUS_LINE: usize = 7;

/// Whether the engine says that it takes sessions. It is its own word: what it does not do after that is noticed elsewhere.
pub(crate) fn is_ready(base: &Path) -> bool {
    let text = Inside::open(base, "pg").ok().and_then(|data| data.read("postmaster.pid"));
    text.is_some_and(|text| says_ready(&text))
}

fn says_ready(text: &str) -> bool {
    text.lines().nth(STATUS_LINE).is_some_and(|status| status.trim_end() == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_in_its_line_counts() {
        let text =
            |status: &str| format!("2\n/volume/pg\n1764500000\n5432\n/run/chitin\n\n  408976  0\n{status}");
        assert!(says_ready(&text("ready   \n")) && says_ready(&text("ready")));
        for status in ["", "starting\n", "stopping\n", "standby \n", "read", "\nready"] {
            assert!(!says_ready(&text(status)), "{status:?}");
        }
        assert!(!says_ready("ready") && !says_ready(""));
    }

    #[test]
    fn no_link_is_followed_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let (base, data) = (folder.path(), folder.path().join("pg"));
        std::fs::create_dir(&data).unwrap();
        assert!(!is_ready(base));
        std::fs::write(base.join("elsewhere"), "\n".repeat(STATUS_LINE) + "ready").unwrap();
        std::os::unix::fs::symlink("../elsewhere", data.join("postmaster.pid")).unwrap();
        assert!(!is_ready(base));
        std::fs::rename(base.join("elsewhere"), data.join("postmaster.pid")).unwrap();
        assert!(is_ready(base));
    }
}
