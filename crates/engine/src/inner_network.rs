//! An engine's own network: a loopback that leads nowhere, where we may listen and give listeners names.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use model::ClusterId;
use rustix::fs::OFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::host::blocking;
use crate::places::is_root;
use crate::process::children;
use crate::{Error, Host, Run};

impl Host {
    /// The present run of the engine.
    pub fn run(&self, id: ClusterId) -> Option<Run> {
        self.running(id).ok().map(|running| running.run)
    }

    /// Whether we can listen in engines' own networks.
    pub fn can_listen_inside(&self) -> bool {
        is_root()
    }

    /// Listens in the engine's own network, which leads nowhere else. Whoever holds a listener must drop it when the run
    /// ends: it holds that network. One result for each address; [`Error::Asleep`] if the run has ended.
    pub async fn listen_inside(
        &self,
        id: ClusterId,
        run: Run,
        addresses: Vec<SocketAddrV4>,
    ) -> Result<Vec<io::Result<TcpListener>>, Error> {
        let running = self.running(id)?;
        if running.run != run {
            return Err(Error::Asleep);
        }
        let jailer = running.jailer;
        let refused =
            |cause: io::Error| Error::Refused(format!("the engine's own network cannot be entered: {cause}"));
        blocking(move || listen(of(jailer)?, addresses).map_err(refused)).await
    }

    /// Gives addresses of the engine's own network names, in place of those before. None is left when the engine stops.
    pub async fn name_inside(&self, id: ClusterId, names: Vec<(String, Ipv4Addr)>) -> Result<(), Error> {
        self.running(id)?;
        let etc = self.etc(id);
        blocking(move || write_hosts(&etc, &names)).await
    }
}

/// Opens the network namespace of what runs under a jailer. Fails rather than give our own.
fn of(jailer: u32) -> Result<OwnedFd, Error> {
    // The jailer itself stays outside; its child is the first process inside.
    let inside = children(jailer).first().copied().ok_or(Error::Asleep)?;
    let path = format!("/proc/{inside}/ns/net");
    let failed = |cause: rustix::io::Errno| Error::file("open", Path::new(&path))(cause.into());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).map_err(failed)?;
    // A number that was given to somebody else meanwhile would have shown here: the jailer lives, and so its child does.
    if children(jailer).first() != Some(&inside) || is_ours(&namespace)? {
        return Err(Error::Asleep);
    }
    Ok(namespace)
}

fn is_ours(namespace: &OwnedFd) -> Result<bool, Error> {
    let path = Path::new("/proc/self/ns/net");
    let own = rustix::fs::stat(path).map_err(|cause| Error::file("look at", path)(cause.into()))?;
    let theirs = rustix::fs::fstat(namespace).map_err(|cause| Error::file("look at", path)(cause.into()))?;
    Ok((own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino))
}

/// Listens inside, on a thread that enters and never comes back: what it opens belongs to that network, and nothing else of
/// ours ever runs there.
fn listen(namespace: OwnedFd, addresses: Vec<SocketAddrV4>) -> io::Result<Vec<io::Result<TcpListener>>> {
    let enter = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(addresses.into_iter().map(listen_at).collect())
    };
    let thread = std::thread::Builder::new().name("inner-network".to_owned()).stack_size(128 * 1024);
    thread.spawn(enter)?.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
}

fn listen_at(address: SocketAddrV4) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Writes the jail's `/etc/hosts`, in place: the jail sees this very file. Whoever reads at that moment finds fewer names.
pub(crate) fn write_hosts(etc: &Path, names: &[(String, Ipv4Addr)]) -> Result<(), Error> {
    let mut text = String::new();
    for (name, address) in names {
        // Infallible: the target is a string.
        let _ = writeln!(text, "{address} {name}");
    }
    let path = etc.join("hosts");
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(Error::file("write", &path))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn our_own_network_is_never_taken_for_an_engine_s() {
        let mut sleep = Command::new("sleep").arg("30").stdin(Stdio::null()).spawn().unwrap();
        // `sleep` is a child of ours, in our own network.
        assert!(matches!(of(std::process::id()), Err(Error::Asleep)));
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        assert!(matches!(of(u32::MAX), Err(Error::Asleep)));
    }

    #[test]
    fn what_listens_inside_is_not_heard_outside() {
        if !is_root() {
            return crate::skipped::skipped("only root enters an engine's network");
        }
        let mut bwrap = Command::new("bwrap");
        bwrap.args(["--unshare-net", "--unshare-pid", "--die-with-parent", "--ro-bind", "/", "/"]);
        let mut jailer = bwrap.args(["--proc", "/proc", "--", "sleep", "30"]).spawn().unwrap();
        let namespace = loop {
            match of(jailer.id()) {
                Ok(namespace) => break namespace,
                Err(cause) => assert!(jailer.try_wait().unwrap().is_none(), "{cause}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 64, 0, 1), 5432);
        let mut listening = listen(namespace.try_clone().unwrap(), vec![address, address]).unwrap();
        assert!(listening[1].is_err(), "the address is taken by the first");
        let first = listening.remove(0).unwrap();
        assert_eq!(first.local_addr().unwrap(), address.into());
        assert!(std::net::TcpStream::connect(address).is_err(), "our own network hears nothing of it");
        let reach = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            loop {
                match std::net::TcpStream::connect(address) {
                    // bubblewrap brings the loopback up a moment after the namespace is there.
                    Err(down) if down.kind() == io::ErrorKind::NetworkUnreachable => {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    other => return other.map(drop),
                }
            }
        };
        std::thread::spawn(reach).join().unwrap().unwrap();
        jailer.kill().unwrap();
        jailer.wait().unwrap();
    }
}
