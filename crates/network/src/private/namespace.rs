//! A network namespace that only we hold: no name, no mount, so that it is gone when we are, whatever way we end.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags, fstatfs, openat};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Failure;
use super::netlink::Netlink;

/// For what is done inside a namespace on a thread of its own.
const THREAD_MAX: Duration = Duration::from_secs(10);
/// Connections that wait to be taken from a listener; the kernel's own usual bound.
const BACKLOG_MAX: i32 = 4096;
/// The network of the thread that opens it.
const OWN: &str = "/proc/thread-self/ns/net";
/// Where `ip netns` keeps names, below the root.
const NAMES: &str = "run/netns";
/// File system type of a namespace's file (`linux/magic.h`).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What makes a network quiet: it forwards nothing, believes nobody about routes, speaks ARP only of the link's own
/// addresses, and takes packets over a link only from addresses that it would answer over that link. Without IPv6 in
/// the kernel there is nothing to set there.
const QUIET: [(&str, &str); 26] = [
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/default/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/conf/default/arp_announce", "2"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv4/conf/default/proxy_arp", "0"),
    ("ipv4/conf/all/accept_local", "0"),
    ("ipv4/conf/default/accept_local", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv6/conf/default/forwarding", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];

/// A network namespace, held by a descriptor.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// Makes an empty one, quiet from the first moment.
    pub(crate) async fn make() -> io::Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            for (name, value) in QUIET {
                set(name, value)?;
            }
            File::open(OWN).map(Self)
        })
        .await
    }

    /// Opens the machine's own, from a thread that never was in another.
    pub(crate) fn of_machine() -> io::Result<Self> {
        File::open(OWN).map(Self)
    }

    /// Opens one that has a name on this machine (`ip netns`), as the root shows it.
    pub(crate) fn named(root: &File, name: &str) -> Result<Self, Failure> {
        let is_name =
            (1..=255).contains(&name.len()) && !name.contains(['/', '\0']) && !name.starts_with('.');
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = || openat(root, Path::new(NAMES).join(name), flags, Mode::empty()).ok();
        let found = is_name.then(open).flatten();
        // Seen without its mount, a name is an empty file that leads nowhere.
        let is_namespace = |file: &OwnedFd| fstatfs(file).is_ok_and(|system| system.f_type == NSFS_MAGIC);
        found.filter(is_namespace).map(|file| Self(file.into())).ok_or_else(|| {
            Failure(format!(
                "there is no network namespace named '{name}' on this machine; `ip netns add {name}` makes it, \
                 and the peering follows by itself"
            ))
        })
    }

    /// The descriptor, for requests to the kernel that name a namespace by it.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Does something inside. What it opens stays inside, wherever it is used later.
    pub(crate) async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.0.try_clone()?;
        on_thread(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
        .await
    }

    /// Spares a new link the wait for others who may have its IPv6 addresses already; for links that have two ends only.
    /// Where the value cannot be set, the first client waits two seconds.
    pub(crate) async fn skip_wait(&self, link: &str) -> io::Result<()> {
        let name = format!("ipv6/conf/{link}/accept_dad");
        self.inside(move || set(&name, "0")).await
    }

    /// Opens a way to ask the kernel about what is inside.
    pub(crate) async fn netlink(&self) -> io::Result<Netlink> {
        self.inside(Netlink::open).await
    }

    /// Listens inside on every address, IPv6 and IPv4.
    pub(crate) async fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.inside(move || {
            let six = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP));
            let (socket, address): (Socket, SocketAddr) = if let Ok(six) = six {
                six.set_only_v6(false)?;
                (six, (Ipv6Addr::UNSPECIFIED, port).into())
            } else {
                // A kernel without IPv6.
                let four = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                (four, (Ipv4Addr::UNSPECIFIED, port).into())
            };
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG_MAX)?;
            Ok(socket.into())
        })
        .await
    }
}

/// Does something on a thread of its own, which then ends: a thread that has been in another network must never come
/// back to carry anybody's sessions.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let runtime = Handle::current();
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new().name("private network".to_owned()).spawn(move || {
        let _entered = runtime.enter();
        let _ = answer.send(work());
    })?;
    match timeout(THREAD_MAX, answered).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(io::Error::other("the thread inside the network broke off")),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Sets a value of the thread's own network, unless it has it already: in containers `/proc/sys` is often read-only.
fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    match std::fs::read_to_string(&path) {
        Ok(known) if known.trim() == value => Ok(()),
        Err(absent) if absent.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => Ok(()),
        Ok(_) | Err(_) => std::fs::write(&path, value)
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()))),
    }
}
