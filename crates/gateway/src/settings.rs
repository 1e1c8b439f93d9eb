//! The gateway's bounds. Every wait has one, and every count.

use std::time::Duration;

/// What the operator may set; the defaults are right for one machine.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the first byte until the client is signed in. Somebody unknown gets no longer.
    pub sign_in_max: Duration,
    /// For a person to sign in with the browser, once the client has been told where.
    pub browser_max: Duration,
    /// Passwords in clear that are checked at a time: each costs thousands of hashes.
    pub clear_checks_max: usize,
    /// For a sleeping cluster to answer.
    pub wake_max: Duration,
    /// For a running engine to accept a session.
    pub attach_max: Duration,
    /// A session whose client has to move next and does nothing ends after this; none means never. Time in which the engine
    /// works is none of it; a result that is not taken, and rows of a COPY that do not come, are.
    pub idle_max: Option<Duration>,
    /// A session whose client takes nothing of what the engine has for it ends after this.
    pub unread_max: Duration,
    /// For a session that must end to come to a message boundary.
    pub cut_max: Duration,
    /// For open sessions to finish what they are doing when the program stops; one that waits for its client gets
    /// [`Self::cut_max`].
    pub drain_max: Duration,
    /// Sessions of all clusters together. No cluster has more of them than are left.
    pub sessions_max: usize,
    /// Connections that are not signed in yet, at each door outside of private networks, and at all doors inside of them
    /// together.
    pub unauthenticated_max: usize,
    /// Of these, at the doors inside one private network.
    pub unauthenticated_per_network_max: usize,
    /// Cancel requests of one cluster at work at a time; more are dropped, as PostgreSQL allows.
    pub cancels_per_cluster_max: usize,
    /// Who was looked up is answered so long after the question, whether there is an engine that had to be asked or not. A
    /// constant: to be more than an engine takes on a busy machine, and no more than people notice.
    pub lookup_levelled: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sign_in_max: Duration::from_secs(10),
            browser_max: Duration::from_secs(120),
            clear_checks_max: 2,
            wake_max: Duration::from_secs(60),
            attach_max: Duration::from_secs(10),
            idle_max: None,
            unread_max: Duration::from_secs(45),
            cut_max: Duration::from_secs(1),
            drain_max: Duration::from_secs(10),
            sessions_max: usize::MAX,
            unauthenticated_max: 16_384,
            unauthenticated_per_network_max: 1_024,
            cancels_per_cluster_max: 16,
            lookup_levelled: Duration::from_millis(20),
        }
    }
}
