//! Whom the kernel ends first when the machine's memory is used up (proc(5): `oom_score_adj`).
//!
//! Chitin's own value is the lowest; whatever it starts inherits that. An engine's first process has one that is higher, since
//! with it all of its sessions end, and its sessions have the highest: so the session that took the memory is the one that goes.
//! What a session may take back for itself is no more than its engine's first process has, so that is little below the sessions'.
//! The last step is PostgreSQL's own, by the environment (PostgreSQL 15 manual, 19.4.4), without a value there: 0.

use std::path::Path;

/// What Chitin gives itself, where the kernel lets it: nearly never.
const OURS: i32 = -900;
/// What engines have above a Chitin that is not protected: as if they took so many thousandths of the memory more.
const ABOVE: i32 = 300;
const OF_THIS_PROCESS: &str = "/proc/self/oom_score_adj";

/// What this process has.
///
/// # Errors
///
/// The kernel does not say it.
pub(crate) fn of_this_process() -> std::io::Result<i32> {
    of(Path::new(OF_THIS_PROCESS))
}

pub(crate) fn of(file: &Path) -> std::io::Result<i32> {
    let text = std::fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| std::io::Error::other("no number"))
}

/// Protects this program, and what it starts. Does nothing where it is protected better already.
///
/// # Errors
///
/// The kernel does not allow it, which takes `CAP_SYS_RESOURCE`.
pub fn protect_in_shortage() -> std::io::Result<()> {
    if of_this_process()? <= OURS {
        return Ok(());
    }
    std::fs::write(OF_THIS_PROCESS, OURS.to_string())
}

/// Where a sandbox has a link to the file of whoever opens it. Short, since variables take part of the place that titles have.
pub(crate) const LINK: &str = "/o";
/// What makes PostgreSQL give each of its processes but the first 0.
pub(super) const VARIABLE: (&str, &str) = ("PG_OOM_ADJUST_FILE", LINK);

/// What an engine's first process, and what its sessions have.
pub(super) struct Shares {
    first: i32,
    sessions: i32,
}

impl Shares {
    /// Where Chitin is not below 0 the others cannot be told apart: a session may only take 0, which would be better than what it
    /// has. Nor without root: the kernel then lets whoever is inside take back what Chitin has.
    fn above(ours: i32, is_root: bool) -> Self {
        if ours < 0 && is_root {
            return Self { first: ours / 9, sessions: 0 };
        }
        let all = (ours.max(0) + ABOVE).min(1_000);
        Self { first: all, sessions: all }
    }

    /// Takes the share of an engine's first process. To be called as whoever may not lower it again.
    pub(super) fn take(is_root: bool) -> std::io::Result<Self> {
        let shares = Self::above(of_this_process()?, is_root);
        std::fs::write(OF_THIS_PROCESS, shares.first.to_string())?;
        Ok(shares)
    }

    /// Whether sessions say by themselves that they go first.
    pub(super) fn are_split(&self) -> bool {
        self.first < self.sessions
    }

    /// What makes PostgreSQL give its sessions theirs.
    pub(super) fn environment(&self) -> Option<(&'static str, &'static str)> {
        self.are_split().then_some(VARIABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_before_engines_and_engines_before_chitin() {
        for (ours, first, sessions) in
            [(-900, -100, 0), (-1_000, -111, 0), (0, 300, 300), (900, 1_000, 1_000)]
        {
            let shares = Shares::above(ours, true);
            assert_eq!((shares.first, shares.sessions), (first, sessions), "{ours}");
            assert_eq!(shares.environment().is_some(), ours < 0);
        }
        let rootless = Shares::above(-900, false);
        assert_eq!((rootless.first, rootless.sessions), (300, 300));
    }
}
