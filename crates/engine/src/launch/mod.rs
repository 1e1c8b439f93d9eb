//! The first program in a sandbox, and where engines have control groups the last one outside: takes away what bubblewrap
//! cannot, and becomes PostgreSQL.
//!
//! Chitin starts itself inside, since on the way from bubblewrap to PostgreSQL more is to be given up than other programs know
//! of: `noexec` on all that can be written to, the program's own file, the operator's keyring, root's user, every capability,
//! what Landlock and the filter of system calls forbid. Whatever cannot be given up ends the start.

mod filter;
mod probe;
mod rights;
mod shortage;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

pub(crate) use probe::{Attempt, Found};
pub(crate) use shortage::LINK as SHORTAGE_LINK;
pub use shortage::protect_in_shortage;
pub(crate) use shortage::{of as shortage_score, of_this_process as own_shortage_score};

use shortage::Shares;

use crate::cgroup::Group;
use crate::places::Owner;
use crate::{Error, syscall};

/// Carries the orders. Arguments are for the programs that stand in for this one in tests.
pub(crate) const ORDERS: &str = "CHITIN_LAUNCH";
/// Where a sandbox has this program, until it has started.
pub(crate) const LAUNCHER: &str = "/launcher";

/// The folder of PostgreSQL's programs in their own names: what a program is called takes part of the place that its title has.
const HERE: &str = "./";
/// All variables that PostgreSQL's programs have. They take part of that place too.
const VARIABLES: [(&str, &str); 2] = [("LC_ALL", "C.UTF-8"), ("PGSYSCONFDIR", "/")];

/// Bytes of the arguments and variables of an engine, which are the place for the titles of its processes
/// (PostgreSQL's `ps_status.c`). The last one's end is not written to.
#[cfg(test)]
pub(crate) fn title_bytes(arguments: &[&str]) -> usize {
    let words = arguments.iter().map(|argument| argument.len() + 1).sum::<usize>();
    let all = VARIABLES.iter().chain([&shortage::VARIABLE]);
    let variables = all.map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
    HERE.len() + "postgres".len() + 1 + words + variables - 1
}

/// The program that stands between bubblewrap and PostgreSQL, and is the companion; it calls [`launch_if_asked`] first.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Its file.
    pub program: PathBuf,
    /// What it is called with.
    pub arguments: Vec<String>,
}

impl Launcher {
    /// This program itself.
    ///
    /// # Errors
    ///
    /// Where the kernel does not say which that is.
    pub fn this_program() -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(Error::file("find", Path::new("/proc/self/exe")))?;
        Ok(Self { program, arguments: Vec::new() })
    }

    /// The same command, run in a control group from its first moment on.
    pub(crate) fn enter(&self, group: &Group, command: &Command) -> Result<Command, Error> {
        let orders = Orders::Enter {
            entrance: group.entrance(),
            program: command.get_program().to_owned(),
            arguments: command.get_args().map(ToOwned::to_owned).collect(),
        };
        let mut entering = Command::new(&self.program);
        entering.args(&self.arguments).env_clear();
        entering.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        entering.env(ORDERS, orders.to_text()?);
        Ok(entering)
    }
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Orders {
    /// Outside of the sandbox: enter a control group, and become bubblewrap.
    Enter {
        /// The file by which the group is entered.
        entrance: PathBuf,
        /// bubblewrap.
        program: OsString,
        /// Its arguments.
        arguments: Vec<OsString>,
    },
    /// Inside: give up what is not needed, and become something else.
    Close {
        /// Whom to become; nobody else where we are not root.
        owner: Option<(u32, u32)>,
        /// Folders that are written to.
        writable: Vec<PathBuf>,
        /// Files and folders whose programs may be started.
        executable: Vec<PathBuf>,
        /// What comes after.
        then: Then,
    },
}

/// What comes after.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Then {
    /// A program of PostgreSQL's.
    Become {
        /// Its file.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
    /// Tries what must not be possible here, and says what was.
    Probe,
}

impl Orders {
    /// As the launcher reads them.
    pub(crate) fn to_text(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|cause| Error::Unready(cause.to_string()))
    }

    pub(crate) fn owner(owner: Owner, is_root: bool) -> Option<(u32, u32)> {
        is_root.then_some((owner.uid, owner.gid))
    }
}

/// Carries out the orders, where there are any: to be called first by a [`Launcher`]. Returns where there are none. What is
/// asked for may also be the companion, which locks volumes when the program that started it ends.
pub fn launch_if_asked() -> Option<ExitCode> {
    if let Some(code) = crate::companion::serve_if_asked() {
        return Some(code);
    }
    let orders = std::env::var(ORDERS).ok()?;
    match launch(&orders) {
        Ok(code) => Some(code),
        Err(reason) => {
            #[expect(clippy::print_stderr, reason = "the log of an engine that does not start")]
            {
                eprintln!("the sandbox could not be closed: {reason}");
            }
            Some(ExitCode::FAILURE)
        }
    }
}

fn launch(orders: &str) -> Result<ExitCode, String> {
    let orders: Orders = serde_json::from_str(orders)
        .map_err(|cause| format!("another version of Chitin asks for it ({cause}); restart Chitin"))?;
    let (owner, writable, executable, then) = match orders {
        Orders::Enter { entrance, program, arguments } => return enter(&entrance, &program, &arguments),
        Orders::Close { owner, writable, executable, then } => (owner, writable, executable, then),
    };
    for folder in &writable {
        forbid_programs(folder).map_err(|cause| format!("noexec on {}: {cause}", folder.display()))?;
    }
    // What Chitin itself was started with by a shell or a container's runtime may lead out of here.
    syscall::close_on_exec().map_err(|cause| format!("closing descriptors: {cause}"))?;
    // This file goes on running, and nobody finds it any more.
    unmount(LAUNCHER, UnmountFlags::DETACH).map_err(|cause| format!("unmounting {LAUNCHER}: {cause}"))?;
    // While it may be lowered: what the kernel takes for the lowest from now on is what was written here.
    let shares = Shares::take(owner.is_some())
        .map_err(|cause| format!("its place in a shortage of memory: {cause}"))?;
    syscall::leave_session_keyring().map_err(|cause| format!("leaving the keyring: {cause}"))?;
    give_up_privileges(owner).map_err(|cause| format!("giving up privileges: {cause}"))?;
    rights::restrict(&executable, &writable, shares.are_split())?;
    filter::apply()?;
    match then {
        Then::Become { program, arguments } => {
            let (Some(folder), Some(name)) = (program.parent(), program.file_name()) else {
                return Err(format!("{} is no program", program.display()));
            };
            let mut called = OsString::from(HERE);
            called.push(name);
            let mut command = Command::new(&program);
            command.arg0(called).args(arguments).current_dir(folder).env_clear().envs(VARIABLES);
            command.envs(shares.environment());
            Err(format!("starting {}: {}", program.display(), command.exec()))
        }
        Then::Probe => probe::run(&writable),
    }
}

fn enter(entrance: &Path, program: &OsStr, arguments: &[OsString]) -> Result<ExitCode, String> {
    std::fs::write(entrance, "0").map_err(|cause| format!("entering {}: {cause}", entrance.display()))?;
    let cause = Command::new(program).args(arguments).env_remove(ORDERS).exec();
    Err(format!("starting {}: {cause}", program.display()))
}

/// Adds to what the mount has, since what it was mounted with may not be taken off in a user namespace.
fn forbid_programs(folder: &Path) -> rustix::io::Result<()> {
    let has = statvfs(folder)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    for (is, flag) in [
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(is) {
            flags |= flag;
        }
    }
    mount_remount(folder, flags, "")
}

fn give_up_privileges(owner: Option<(u32, u32)>) -> rustix::io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not have.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(other) => return Err(other),
        }
    }
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
