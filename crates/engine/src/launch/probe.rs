//! What must not be possible inside, tried from inside: in a sandbox of identical make in which nothing else ever runs.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

use super::filter;
use crate::syscall;

/// Calls after the newest that is known are those of the future.
const CALLS: std::ops::Range<i64> = 0..600;

/// `uretprobe` and `uprobe`: the kernel's own way back from a probe that it set (Linux 6.11), which no filter is asked about and
/// which ends everybody else who calls it.
#[cfg(target_arch = "x86_64")]
const OF_THE_KERNEL: std::ops::RangeInclusive<i64> = 335..=336;
/// There are none here.
#[cfg(not(target_arch = "x86_64"))]
const OF_THE_KERNEL: std::ops::RangeInclusive<i64> = -1..=-1;

/// One kind of thing that was tried.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) what: String,
    /// Of what was tried, what went through; empty where the sandbox holds.
    pub(crate) possible: Vec<String>,
    /// How much was tried.
    pub(crate) tried: usize,
}

/// Everything that was tried.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) attempts: Vec<Attempt>,
}

pub(super) fn run(writable: &[PathBuf]) -> Result<ExitCode, String> {
    let attempts = vec![calls()?, namespaces(), sockets(), programs(writable), others(), keyrings()];
    let said = serde_json::to_string(&Found { attempts }).map_err(|cause| cause.to_string())?;
    #[expect(clippy::print_stdout, reason = "the answer")]
    {
        println!("{said}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Each call that is not permitted, with arguments that are all zero.
fn calls() -> Result<Attempt, String> {
    let passing = filter::passing()?;
    let is_forbidden = |number: &i64| !passing.contains_key(number) && !OF_THE_KERNEL.contains(number);
    let forbidden: Vec<i64> = CALLS.filter(is_forbidden).collect();
    let exists = |number: &&i64| syscall::attempt(**number, [0, 0, 0]) != Err(libc::ENOSYS);
    let possible = forbidden.iter().filter(exists).map(|number| format!("call {number}")).collect();
    Ok(Attempt { what: "system calls that are not permitted".to_owned(), possible, tried: forbidden.len() })
}

/// Namespaces by the one call that is permitted with other arguments.
fn namespaces() -> Attempt {
    let all = [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("network", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    // With `CLONE_THREAD` and nothing that it needs beside it: no kernel makes a process of that, whatever else it thinks of it.
    let is_open =
        |flag: i32| syscall::attempt(libc::SYS_clone, [flag | libc::CLONE_THREAD, 0, 0]) != Err(libc::ENOSYS);
    let possible =
        all.iter().filter(|(_, flag)| is_open(*flag)).map(|(name, _)| (*name).to_owned()).collect();
    Attempt { what: "new namespaces".to_owned(), possible, tried: all.len() }
}

fn sockets() -> Attempt {
    let all = [
        ("netlink", [libc::AF_NETLINK, libc::SOCK_RAW, 0]),
        ("packet", [libc::AF_PACKET, libc::SOCK_RAW, 0]),
        ("raw", [libc::AF_INET, libc::SOCK_RAW, 0]),
        ("vsock", [libc::AF_VSOCK, libc::SOCK_STREAM, 0]),
        ("kernel crypto", [libc::AF_ALG, libc::SOCK_SEQPACKET, 0]),
        ("SCTP", [libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP]),
        ("MPTCP", [libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP]),
        ("UDPLITE", [libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE]),
        ("L2TP", [libc::AF_INET, libc::SOCK_DGRAM, 115]),
        ("ping", [libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP]),
    ];
    let is_open = |arguments| syscall::attempt(libc::SYS_socket, arguments) != Err(libc::ENOSYS);
    let possible =
        all.iter().filter(|(_, arguments)| is_open(*arguments)).map(|(name, _)| (*name).to_owned()).collect();
    Attempt { what: "sockets of other families and protocols".to_owned(), possible, tried: all.len() }
}

/// Other processes, by what `/proc` has of them: bubblewrap's own is there beside this one, and has no filter.
fn others() -> Attempt {
    let own = std::process::id().to_string();
    let listed = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut others: Vec<String> = listed
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| *name != own && name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    // Whether it is listed or not.
    others.push("1".to_owned());
    let mut paths: Vec<String> = Vec::new();
    for other in others {
        let all = [
            "mem",
            "task/1/mem",
            "maps",
            "environ",
            "fd",
            "root",
            "cwd",
            "ns/pid",
            "syscall",
            "oom_score_adj",
        ];
        paths.extend(all.map(|name| format!("/proc/{other}/{name}")));
    }
    let open =
        |path: &str, writes: bool| std::fs::OpenOptions::new().read(true).write(writes).open(path).is_ok();
    let mut possible: Vec<String> =
        paths.iter().filter(|path| open(path, true) || open(path, false)).cloned().collect();
    if !open("/proc/self/status", false) {
        // Then nothing was found out.
        possible.push("what was tried fails on this very process too".to_owned());
    }
    Attempt {
        what: "way to the memory and files of other processes".to_owned(),
        possible,
        tried: paths.len(),
    }
}

/// Keys of the kernel's: those that came with a session, those of the user, and their names.
fn keyrings() -> Attempt {
    // keyctl(2): to get a keyring, make one for the session, add, describe, link and search; the session's and the user's.
    let mut calls: Vec<(String, libc::c_long, [libc::c_int; 3])> = Vec::new();
    for keyring in [-3, -4, -5] {
        for operation in [0, 1, 3, 6, 8, 9, 10, 11] {
            let name = format!("keyctl {operation} on keyring {keyring}");
            calls.push((name, libc::SYS_keyctl, [operation, keyring, 0]));
        }
    }
    calls.push(("add_key".to_owned(), libc::SYS_add_key, [0, 0, 0]));
    calls.push(("request_key".to_owned(), libc::SYS_request_key, [0, 0, 0]));
    let tried = calls.len() + 2;
    let mut possible: Vec<String> = calls
        .into_iter()
        .filter(|(_, number, arguments)| syscall::attempt(*number, *arguments) != Err(libc::ENOSYS))
        .map(|(name, ..)| name)
        .collect();
    let is_told = |path: &&str| std::fs::read(path).is_ok_and(|text| !text.is_empty());
    possible.extend(
        ["/proc/keys", "/proc/key-users"].iter().filter(|path| is_told(path)).map(|path| (*path).to_owned()),
    );
    Attempt { what: "keys of the kernel's keyrings".to_owned(), possible, tried }
}

/// Programs that were brought along.
fn programs(writable: &[PathBuf]) -> Attempt {
    let possible = writable.iter().filter_map(|folder| runs(folder).err()).collect();
    Attempt { what: "programs in folders that can be written to".to_owned(), possible, tried: writable.len() }
}

/// An error where something written there could be started, or could not even be tried.
fn runs(folder: &Path) -> Result<(), String> {
    let program = folder.join(".chitin-probe");
    let written = std::fs::write(&program, "no program")
        .and_then(|()| std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)));
    let started = Command::new(&program).spawn();
    let _ = std::fs::remove_file(&program);
    match (written, started) {
        // Not writable is not startable.
        (Err(closed), _) if closed.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        (Ok(()), Err(refused)) if refused.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        (Err(other), _) | (Ok(()), Err(other)) => Err(format!("{}: {other}", folder.display())),
        (Ok(()), Ok(mut child)) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(folder.display().to_string())
        }
    }
}
