//! The operator's way to the API on this machine: a Unix socket in a folder that only the cloud's own user enters, where no
//! crowd of strangers can be. It replaces the way in and nothing else: TLS and the API key are asked for as everywhere.
//!
//! Where engines run as the cloud's own user, the folder's mode keeps none of them out; so a process in another pid or user
//! namespace, as theirs are, is refused as well.

use std::ffi::OsString;
use std::fs::{DirBuilder, read_link};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use api::{OPERATOR_FOLDER, OPERATOR_SOCKET};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, chmodat, fchmod, fstat, open, unlinkat};
use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};

/// Why there is no such socket.
#[derive(Debug, thiserror::Error)]
#[error("the operator's socket in {} cannot be opened: {reason}", folder.display())]
pub struct Unusable {
    folder: PathBuf,
    reason: String,
}

/// Why a connection was not accepted.
#[derive(Debug)]
pub enum NotAccepted {
    /// It is of somebody who is not the operator.
    Refused(String),
    /// Nothing can be accepted at the moment.
    Failed(io::Error),
}

/// The socket, open; gone from its folder when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    folder: OwnedFd,
    own: Namespaces,
}

/// The namespaces that tell an engine from the operator, as the kernel names them.
#[derive(Debug, PartialEq, Eq)]
struct Namespaces {
    pid: OsString,
    user: OsString,
}

impl Socket {
    /// Opens it in the data directory, which must be this program's alone by now. Must be called inside a runtime.
    pub fn open(data: &Path) -> Result<Self, Unusable> {
        let path = data.join(OPERATOR_FOLDER);
        let unusable = |reason: String| Unusable { folder: path.clone(), reason };
        let failed = |cause: io::Error| unusable(cause.to_string());
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(failed(cause)),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = open(&path, flags, Mode::empty()).map_err(|cause| failed(cause.into()))?;
        let owner = fstat(&folder).map_err(|cause| failed(cause.into()))?.st_uid;
        if owner != geteuid().as_raw() {
            return Err(unusable(format!("it belongs to another user (uid {owner}); remove it")));
        }
        fchmod(&folder, Mode::RWXU).map_err(|cause| failed(cause.into()))?;
        // One whose program was killed.
        match unlinkat(&folder, OPERATOR_SOCKET, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(cause) => return Err(failed(cause.into())),
        }
        let own = Namespaces::own().map_err(unusable)?;
        // Through the descriptor: the path in `sockaddr_un` has 107 bytes, and the folder's own may be longer.
        let short = format!("/proc/self/fd/{}/{OPERATOR_SOCKET}", folder.as_raw_fd());
        let listener = UnixListener::bind(short).map_err(failed)?;
        let socket = Self { listener, folder, own };
        let mode = Mode::RUSR | Mode::WUSR;
        chmodat(&socket.folder, OPERATOR_SOCKET, mode, AtFlags::empty())
            .map_err(|cause| failed(cause.into()))?;
        Ok(socket)
    }

    /// The next connection, if it is the operator's.
    pub async fn accept(&self) -> Result<UnixStream, NotAccepted> {
        let (stream, _) = self.listener.accept().await.map_err(NotAccepted::Failed)?;
        self.judge(&stream).map_err(NotAccepted::Refused)?;
        Ok(stream)
    }

    /// Whether the peer is the cloud's own user, and where the cloud is. What cannot be read is refused.
    fn judge(&self, stream: &UnixStream) -> Result<(), String> {
        let peer = stream.peer_cred().map_err(|cause| format!("its process is not known: {cause}"))?;
        let own_user = geteuid().as_raw();
        if peer.uid() != own_user && peer.uid() != 0 {
            return Err(format!("it is of another user (uid {})", peer.uid()));
        }
        let Some(pid) = peer.pid().filter(|pid| *pid > 0) else {
            return Err("its process is in a pid namespace that is not seen from here".to_owned());
        };
        let held = match getsockopt(stream, PeerPidfd) {
            Ok(held) => Some(held),
            // Before Linux 6.5 the number alone tells the process.
            Err(Errno::ENOPROTOOPT) => None,
            Err(cause) => return Err(format!("its process (pid {pid}) cannot be held: {cause}")),
        };
        let seen = Namespaces::of(&pid.to_string())
            .map_err(|cause| format!("the namespaces of its process (pid {pid}) cannot be read: {cause}"))?;
        // One that lives still has not left its number to another meanwhile.
        if held.is_some_and(|held| !is_alive(&held)) {
            return Err(format!("its process (pid {pid}) has ended"));
        }
        if seen == self.own {
            Ok(())
        } else {
            Err(format!("its process (pid {pid}) is in another pid or user namespace"))
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The next start removes what is left.
        let _ = unlinkat(&self.folder, OPERATOR_SOCKET, AtFlags::empty());
    }
}

impl Namespaces {
    fn of(process: &str) -> io::Result<Self> {
        let name = |kind| read_link(format!("/proc/{process}/ns/{kind}")).map(PathBuf::into_os_string);
        Ok(Self { pid: name("pid")?, user: name("user")? })
    }

    fn own() -> Result<Self, String> {
        // With another namespace's /proc, a peer's number would be looked up among other processes.
        let number = read_link("/proc/self").map_err(|cause| format!("/proc cannot be read: {cause}"))?;
        if number.as_os_str() != std::process::id().to_string().as_str() {
            return Err(
                "/proc is of another pid namespace than this program; mount one of its own (unshare --mount-proc)"
                    .to_owned(),
            );
        }
        Self::of("self").map_err(|cause| format!("this program's namespaces cannot be read: {cause}"))
    }
}

/// A pidfd can be read once its process has ended.
fn is_alive(process: &OwnedFd) -> bool {
    let mut look = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// A connection by the short way, as the commands make it.
    async fn connect(data: &Path) -> io::Result<UnixStream> {
        let folder = std::fs::File::open(data.join(OPERATOR_FOLDER))?;
        UnixStream::connect(format!("/proc/self/fd/{}/{OPERATOR_SOCKET}", folder.as_raw_fd())).await
    }

    #[tokio::test]
    async fn the_socket_is_the_owner_s_alone_also_where_its_path_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(data.join(OPERATOR_FOLDER)).unwrap();
        // Open to others, and with what a program that was killed left.
        std::fs::set_permissions(data.join(OPERATOR_FOLDER), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(data.join(OPERATOR_FOLDER).join(OPERATOR_SOCKET), "").unwrap();
        let socket = Socket::open(&data).unwrap();
        let path = data.join(OPERATOR_FOLDER).join(OPERATOR_SOCKET);
        assert_eq!((mode(&data.join(OPERATOR_FOLDER)), mode(&path)), (0o700, 0o600));
        let (connected, accepted) = tokio::join!(connect(&data), socket.accept());
        assert!(connected.is_ok() && accepted.is_ok(), "{accepted:?}");
        drop(socket);
        assert!(!path.exists() && connect(&data).await.is_err());
    }

    #[tokio::test]
    async fn a_folder_that_leads_elsewhere_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
        for path in [&data, &elsewhere] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, data.join(OPERATOR_FOLDER)).unwrap();
        let refused = Socket::open(&data).unwrap_err().to_string();
        assert!(refused.contains(&data.display().to_string()), "{refused}");
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_process_in_another_pid_or_user_namespace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket::open(folder.path()).unwrap();
        let path = folder.path().join(OPERATOR_FOLDER).join(OPERATOR_SOCKET);
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.recv(1)";
        let is_root = geteuid().is_root();
        let elsewhere: [&[&str]; 3] = [
            &["--pid", "--fork", "--kill-child"],
            &["--user", "--map-root-user", "--pid", "--fork", "--kill-child"],
            &["--user", "--map-root-user"],
        ];
        for flags in elsewhere.into_iter().filter(|flags| is_root || flags.contains(&"--user")) {
            let mut command = Command::new("unshare");
            command.args(flags).args(["python3", "-c", script]).arg(&path);
            let mut child = command.stdin(Stdio::null()).spawn().unwrap();
            let accepted = timeout(Duration::from_secs(20), socket.accept()).await.expect("it connects");
            assert!(matches!(accepted, Err(NotAccepted::Refused(_))), "{flags:?}: {accepted:?}");
            child.wait().unwrap();
        }
        // The same without a namespace of its own comes in.
        let mut child = Command::new("python3").args(["-c", script]).arg(&path).spawn().unwrap();
        let mut accepted = timeout(Duration::from_secs(20), socket.accept()).await.unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_process_that_left_is_not_taken_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket::open(folder.path()).unwrap();
        let path = folder.path().join(OPERATOR_FOLDER).join(OPERATOR_SOCKET);
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])";
        // It is gone before the connection is accepted.
        assert!(Command::new("python3").args(["-c", script]).arg(&path).status().unwrap().success());
        assert!(matches!(socket.accept().await, Err(NotAccepted::Refused(_))));
    }
}
