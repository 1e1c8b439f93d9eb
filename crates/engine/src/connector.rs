//! The only way to an engine's socket: it leads to this run of this engine, or nowhere.
//!
//! The socket lies in a folder that the engine owns, and an engine that was taken over can put anything in its place: a link
//! to another cluster's socket, for instance, so that whoever signs in here is let in there. So nothing below the folder is
//! found by its path, no link is followed, and whoever answers must be a process of this run's sandbox. As root it is proven
//! from the other side too: each engine knows an OS user of its own as the node, and refuses what was meant for another.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{FileType, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Uid;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::inside::Inside;
use crate::own_database::Maintenance;
use crate::places::Owner;
use crate::process;

/// PostgreSQL's name for the socket of its default port.
pub(crate) const SOCKET: &str = ".s.PGSQL.5432";
/// For an engine that starts no more sessions than it can take up to take up one more.
const BACKLOG_MAX: Duration = Duration::from_secs(5);
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// Opens connections to one run of one engine.
#[derive(Debug)]
pub struct Connector {
    /// The folder that the engine was given for its socket, held since before it ran.
    folder: Inside,
    /// The OS user that answers.
    user: u32,
    /// The OS user that asks.
    node: u32,
    /// The process that holds the sandbox.
    sandbox: u32,
    namespace: OnceLock<Namespace>,
    maintenance: Maintenance,
}

/// What the kernel calls a namespace (namespaces(7)): two are the same where device and inode are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Namespace {
    device: u64,
    inode: u64,
}

impl Connector {
    /// From the folder as it was made, still empty.
    pub(crate) fn new(folder: Inside, owner: Owner, sandbox: u32) -> Self {
        Self {
            folder,
            user: owner.uid,
            node: owner.node(),
            sandbox,
            namespace: OnceLock::new(),
            maintenance: Maintenance::default(),
        }
    }

    /// Where our own sessions with this run are.
    pub(crate) fn maintenance(&self) -> &Maintenance {
        &self.maintenance
    }

    /// The OS user that the engine runs as.
    pub(crate) fn user(&self) -> u32 {
        self.user
    }

    /// Leads to what this very process listens at.
    #[cfg(test)]
    pub(crate) fn to_this_process(folder: &std::path::Path) -> Self {
        let (user, sandbox) = (rustix::process::geteuid().as_raw(), std::process::id());
        let namespace = OnceLock::from(namespace_of(sandbox).unwrap());
        let maintenance = Maintenance::default();
        Self { folder: Inside::at(folder).unwrap(), user, node: user, sandbox, namespace, maintenance }
    }

    /// An open connection to the engine, on which nothing was said yet.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` where the socket is none or whoever answers is not of this run; any other where the engine does
    /// not answer.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        self.connect_as(self.node).await
    }

    /// The same as another engine's node, as what was led astray would come. Without root there is one for all.
    pub(crate) async fn connect_as_another(&self) -> io::Result<UnixStream> {
        self.connect_as(self.node ^ 1).await
    }

    async fn connect_as(&self, node: u32) -> io::Result<UnixStream> {
        let deadline = Instant::now() + BACKLOG_MAX;
        loop {
            match self.try_connect(node) {
                // Others wait to be taken up.
                Err(full) if full.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    sleep(BACKLOG_PAUSE).await;
                }
                // With words of ours: the kernel's own refusal only means that the engine is not that far yet.
                Err(wrong)
                    if wrong.kind() == io::ErrorKind::PermissionDenied && wrong.get_ref().is_some() =>
                {
                    let uid = self.user;
                    tracing::error!(uid, %wrong, "an engine may have been taken over: stop it with chitin cluster sleep NAME --force");
                    return Err(wrong);
                }
                connected => return connected,
            }
        }
    }

    fn try_connect(&self, node: u32) -> io::Result<UnixStream> {
        let namespace = self.namespace()?;
        let socket = self.socket()?;
        // What was opened is what is connected to: this link of the kernel's leads to it and nowhere else.
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        {
            let _node = AsNode::take(node)?;
            rustix::net::connect(&stream, &address)?;
        }
        let stream = UnixStream::from_std(stream.into())?;
        let peer = stream.peer_cred()?;
        // The user alone says little: without root all engines have one, and so have two clouds of one machine.
        if peer.uid() != self.user {
            return Err(not_its_own("another user answers at it"));
        }
        // Whoever gets the number of a process that ended between the two questions is in the sandbox, or is refused.
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        let Some(pid) = pid else {
            return Err(not_its_own("a process that cannot be seen from here answers at it"));
        };
        if namespace_of(pid)? != namespace {
            return Err(not_its_own("a process outside of its sandbox answers at it"));
        }
        Ok(stream)
    }

    /// The socket, opened by the name that it has in the folder that we hold, without following a link.
    fn socket(&self) -> io::Result<OwnedFd> {
        // Opened as a link, one shows as one below.
        let socket = self.folder.opened(OsStr::new(SOCKET), OFlags::PATH | OFlags::NOFOLLOW)?;
        let found = rustix::fs::fstat(&socket)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket || found.st_uid != self.user {
            return Err(not_its_own("it is a link, or something else that is no socket of the engine's"));
        }
        Ok(socket)
    }

    /// The namespace of processes that came with this run. It is there before the engine is.
    fn namespace(&self) -> io::Result<Namespace> {
        if let Some(known) = self.namespace.get() {
            return Ok(*known);
        }
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the engine's sandbox is not there");
        let first = *process::children(self.sandbox).first().ok_or_else(gone)?;
        let found = namespace_of(first)?;
        if found == namespace_of(std::process::id())? {
            // Still on its way into the sandbox.
            return Err(gone());
        }
        Ok(*self.namespace.get_or_init(|| found))
    }
}

fn namespace_of(pid: u32) -> io::Result<Namespace> {
    let found = rustix::fs::stat(format!("/proc/{pid}/ns/pid"))?;
    Ok(Namespace { device: found.st_dev, inode: found.st_ino })
}

fn not_its_own(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("the engine's socket was refused: {reason}"))
}

/// This thread as the node that one engine knows, while it lives: `peer` asks for the user of whoever connects.
struct AsNode {
    is_taken: bool,
    /// Must be dropped by the thread that made it.
    _here: std::marker::PhantomData<*const ()>,
}

impl AsNode {
    fn take(node: u32) -> io::Result<Self> {
        let (own, node) = (rustix::process::geteuid(), Uid::from_raw(node));
        if node != own {
            rustix::thread::set_thread_res_uid(None, node, None)?;
        }
        Ok(Self { is_taken: node != own, _here: std::marker::PhantomData })
    }
}

impl Drop for AsNode {
    fn drop(&mut self) {
        if self.is_taken && rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).is_err() {
            // A thread that stays somebody else would do everything that comes after as that user.
            std::process::abort();
        }
    }
}
