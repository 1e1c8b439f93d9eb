//! The sandbox (bubblewrap): no network, no shell, a read-only system, the cluster's own volume and socket folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Error;
use crate::cgroup::Group;
use crate::inner_network;
use crate::launch::{LAUNCHER, Launcher, ORDERS, Orders, SHORTAGE_LINK, Then};
use crate::places::{Owner, Places, give, is_root, make_folder, remove_folder};
use crate::postgres::{Ask, Postgres};
use crate::process::run_with;

/// Where the engine sees its volume.
pub(crate) const VOLUME: &str = "/volume";
/// Where the engine sees its socket folder.
pub(crate) const RUN: &str = "/run/chitin";
/// What the engine calls the OS user of its node; `pg_ident.conf` trusts this name.
pub(crate) const NODE: &str = "chitin-node";
const ENGINE: &str = "engine";
/// For a program to tell its version.
const ASKED_MAX: Duration = Duration::from_secs(20);

/// What runs inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The engine: no shell is there.
    Run,
    /// `initdb`, which starts its helpers through `/bin/sh`. No tenant's session runs then.
    Initialize,
    /// Nothing of PostgreSQL's: the launcher itself tries what must not be possible in there.
    Probe,
}

/// What can be written to inside.
pub(crate) const WRITABLE: &[&str] = &[VOLUME, RUN, "/tmp", "/dev/shm", "/dev"];
/// Devices that hold nothing and lead nowhere.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// One jail.
pub(crate) struct Jail<'a> {
    pub(crate) postgres: &'a Postgres,
    pub(crate) launcher: &'a Launcher,
    pub(crate) owner: Owner,
    pub(crate) base: &'a Path,
    pub(crate) run: &'a Path,
    /// A folder for the jail's own `/etc`, outside of the volume.
    pub(crate) etc: &'a Path,
    /// The control group that it is in from the first moment.
    pub(crate) group: Option<&'a Group>,
}

impl Jail<'_> {
    /// The command that runs one of PostgreSQL's programs inside.
    pub(crate) fn command(
        &self,
        purpose: Purpose,
        program: &str,
        arguments: &[&str],
    ) -> Result<Command, Error> {
        self.write_etc()?;
        let mut bwrap = Command::new("bwrap");
        bwrap.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        bwrap.args([
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]);
        bwrap.args(["--die-with-parent", "--new-session", "--hostname", "engine"]);
        if !is_root() {
            bwrap.arg("--unshare-user");
            bwrap.args(["--uid", &self.owner.uid.to_string(), "--gid", &self.owner.gid.to_string()]);
            // For the launcher, which gives them up.
            bwrap.args(["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]);
        }
        let libraries = libraries();
        // Its folder may hold more than these: everything that the machine has, or a shell.
        let programs = self.postgres.programs();
        let folders = self.postgres.folders();
        let all = libraries.iter().chain(&programs).map(PathBuf::as_path).chain(folders.iter().copied());
        // As root, bubblewrap keeps folders that it makes on the way to itself.
        for folder in above(all) {
            bwrap.args(["--perms", "0755", "--dir"]).arg(folder);
        }
        for folder in &libraries {
            bwrap.arg("--ro-bind").arg(folder).arg(folder);
        }
        for (link, target) in [("/lib", "usr/lib"), ("/lib64", "usr/lib64"), ("/lib32", "usr/lib32")] {
            if std::fs::read_link(link).is_ok() {
                bwrap.args(["--symlink", target, link]);
            }
        }
        for path in folders.into_iter().chain(programs.iter().map(PathBuf::as_path)) {
            bwrap.arg("--ro-bind").arg(path).arg(path);
        }
        // The time zones have a link to the machine's own, which PostgreSQL reads with them.
        for path in [
            "/usr/share/zoneinfo",
            "/etc/localtime",
            "/usr/lib/locale",
            "/usr/share/postgresql-common",
            "/etc/ld.so.cache",
        ] {
            bwrap.args(["--ro-bind-try", path, path]);
        }
        bwrap.arg("--ro-bind").arg(&self.launcher.program).arg(LAUNCHER);
        let mut executable = libraries.clone();
        executable.extend(programs);
        if purpose == Purpose::Initialize {
            let shell =
                Path::new("/bin/sh").canonicalize().map_err(Error::file("find", Path::new("/bin/sh")))?;
            bwrap.arg("--ro-bind").arg(shell).arg("/bin/sh");
            executable.push("/bin/sh".into());
        }
        for file in ["passwd", "group", "nsswitch.conf", "hosts"] {
            bwrap.arg("--ro-bind").arg(self.etc.join(file)).arg(Path::new("/etc").join(file));
        }
        // Not bubblewrap's own `/dev`: without root it takes away the right to change mounts afterwards.
        bwrap.args(["--proc", "/proc"]);
        // The first process inside is bubblewrap's own, without a filter. Without root it has the engine's user, and by its files
        // here whoever is inside could write to its memory.
        bwrap.args(["--perms", "0555", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1"]);
        // Names of keys, of the user that all engines share without root.
        for file in ["/proc/keys", "/proc/key-users"].into_iter().filter(|file| Path::new(file).exists()) {
            bwrap.args(["--ro-bind", "/dev/null", file]);
        }
        bwrap.args(["--perms", "0755", "--tmpfs", "/dev"]);
        for device in DEVICES {
            bwrap.args(["--dev-bind", device, device]);
        }
        for (link, target) in
            [("/dev/fd", ""), ("/dev/stdin", "/0"), ("/dev/stdout", "/1"), ("/dev/stderr", "/2")]
        {
            bwrap.args(["--symlink", &format!("/proc/self/fd{target}"), link]);
        }
        bwrap.args(["--symlink", "/proc/self/oom_score_adj", SHORTAGE_LINK]);
        bwrap.args(["--tmpfs", "/dev/shm", "--tmpfs", "/tmp"]);
        bwrap.args(["--chmod", "1777", "/tmp", "--chmod", "1777", "/dev/shm"]);
        bwrap.arg("--bind").arg(self.base).arg(VOLUME);
        bwrap.arg("--bind").arg(self.run).arg(RUN);
        // The root itself too: what is not listed above is not there and cannot be made.
        bwrap.args(["--remount-ro", "/", "--chdir", "/"]);
        bwrap.args([
            "--setenv",
            "PATH",
            "/nonexistent",
            "--setenv",
            "LC_ALL",
            "C.UTF-8",
            "--setenv",
            "TZ",
            "UTC",
        ]);
        bwrap.args(["--setenv", "PGSYSCONFDIR", "/nonexistent"]);
        let then = match purpose {
            Purpose::Run | Purpose::Initialize => Then::Become {
                program: self.postgres.bin.join(program),
                arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            },
            Purpose::Probe => Then::Probe,
        };
        let orders = Orders::Close {
            owner: Orders::owner(self.owner, is_root()),
            writable: WRITABLE.iter().map(PathBuf::from).collect(),
            executable,
            then,
        };
        bwrap.args(["--setenv", ORDERS, &orders.to_text()?, "--", LAUNCHER]).args(&self.launcher.arguments);
        let mut command = match self.group {
            None => bwrap,
            Some(group) => self.launcher.enter(group, &bwrap)?,
        };
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Two users are known inside: the engine, and the node that attaches sessions. Hosts are those that we name, none at
    /// first, and nobody is asked for others.
    fn write_etc(&self) -> Result<(), Error> {
        make_folder(self.etc, 0o755)?;
        let (node, Owner { uid, gid }) = (self.owner.node(), self.owner);
        let line = |name, uid| format!("{name}:x:{uid}:{gid}::/:/nonexistent\n");
        let passwd = if uid == node { line(NODE, node) } else { line(NODE, node) + &line(ENGINE, uid) };
        let (group, sources) = (format!("{ENGINE}:x:{gid}:\n"), "hosts: files\n".to_owned());
        for (name, text) in [("passwd", passwd), ("group", group), ("nsswitch.conf", sources)] {
            let path = self.etc.join(name);
            std::fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        inner_network::write_hosts(self.etc, &[])
    }
}

/// Runs programs of installations that are not known yet, in a sandbox of the same make as an engine's.
pub(crate) fn asking(places: Places, launcher: Launcher) -> Box<Ask> {
    Box::new(move |postgres, program, arguments| {
        let owner = Owner::of_templates();
        with_nothing_in_it(&places, owner, |[base, run, etc]| {
            let jail = Jail { postgres, launcher: &launcher, owner, base, run, etc, group: None };
            run_with(program, jail.command(Purpose::Run, program, arguments)?, &[], ASKED_MAX)
        })
    })
}

/// What a jail needs of folders, empty, for as long as this works with them: `volume`, `run` and `etc`.
pub(crate) fn with_nothing_in_it<T>(
    places: &Places,
    owner: Owner,
    work: impl FnOnce(&[PathBuf; 3]) -> Result<T, Error>,
) -> Result<T, Error> {
    let place = places.run_of_probe();
    let folders = ["volume", "run", "etc"].map(|name| place.join(name));
    let made =
        folders.iter().try_for_each(|folder| make_folder(folder, 0o700).and_then(|()| give(folder, owner)));
    let done = made.and_then(|()| work(&folders));
    remove_folder(&place)?;
    done
}

/// Checks that a jail can be made here at all.
pub(crate) fn probe() -> Result<String, String> {
    let version = Command::new("bwrap")
        .arg("--version")
        .output()
        .map_err(|cause| format!("bwrap cannot be started: {cause}"))?;
    let mut bwrap = Command::new("bwrap");
    bwrap.args([
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
    ]);
    if !is_root() {
        bwrap.arg("--unshare-user");
    }
    bwrap.args(["--proc", "/proc", "--", "/bin/true"]);
    let output = bwrap.output().map_err(|cause| cause.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&version.stdout).trim().to_owned())
}

/// The folders above these and above what every jail has, from the root down.
fn above<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeSet<&'a Path> {
    let fixed = ["/usr/share/zoneinfo", "/usr/lib/locale", "/etc/passwd", "/bin/sh", RUN];
    let all = paths.chain(fixed.into_iter().map(Path::new));
    all.flat_map(|path| path.ancestors().skip(1)).filter(|folder| folder.parent().is_some()).collect()
}

/// Folders of shared libraries, and no folder of programs: `/usr/lib` as a whole holds interpreters and shells.
pub(crate) fn libraries() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
            folders.push(entry.path());
        }
    }
    let lib64 = PathBuf::from("/usr/lib64");
    if lib64.is_dir() {
        folders.push(lib64);
    }
    folders
}
