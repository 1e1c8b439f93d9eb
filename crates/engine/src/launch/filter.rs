//! The system calls that an engine may make (seccomp, Linux 3.17 and newer). Every other does not exist for it.

use std::collections::BTreeMap;

use libc::{c_long, c_uint};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// A call that is permitted.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "tests ask why a call is permitted"))]
struct Permitted {
    number: c_long,
    name: &'static str,
    /// What PostgreSQL 14 to 18 need it for.
    reason: &'static str,
    need: Need,
}

/// How it is known that a call is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Any engine makes it; a test watches one.
    Always,
    /// Only some do, for the reason given.
    Sometimes,
}

macro_rules! permitted {
    ($($need:ident $reason:literal: $($name:ident)*;)*) => {
        &[$($(Permitted {
            number: libc::$name,
            name: stringify!($name),
            reason: $reason,
            need: Need::$need,
        },)*)*]
    };
}

/// What every machine has.
const PERMITTED: &[Permitted] = permitted! {
    Always "memory of the C library, shared buffers, JIT's code":
        SYS_mmap SYS_munmap SYS_mprotect SYS_brk;
    Sometimes "the C library's way to grow and give back, JIT's code":
        SYS_mremap SYS_madvise;
    Always "reading and writing files":
        SYS_openat SYS_close SYS_read SYS_write SYS_pread64 SYS_pwrite64 SYS_lseek SYS_pwritev;
    Sometimes "the same, as newer C libraries and versions do it":
        SYS_readv SYS_writev SYS_preadv SYS_close_range SYS_copy_file_range;
    Always "bringing files to the disk":
        SYS_fsync SYS_fdatasync SYS_sync_file_range;
    Sometimes "growing and cutting files, and telling the kernel what is read next":
        SYS_ftruncate SYS_truncate SYS_fallocate SYS_fadvise64;
    Always "looking at files":
        SYS_newfstatat SYS_getdents64 SYS_getcwd;
    Sometimes "the same, as other C libraries do it":
        SYS_fstat SYS_statx SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_statfs SYS_fstatfs;
    Sometimes "making, renaming and removing files and folders, by the names of other C libraries and machines":
        SYS_mkdirat SYS_renameat SYS_renameat2 SYS_linkat SYS_unlinkat SYS_symlinkat SYS_fchmod SYS_fchmodat SYS_umask;
    Sometimes "going to the data directory":
        SYS_chdir SYS_fchdir;
    Always "descriptors: of the log's collector, of children, of locks":
        SYS_fcntl SYS_pipe2 SYS_dup;
    Sometimes "the same by another name":
        SYS_dup3;
    Always "ending":
        SYS_exit_group SYS_wait4;
    Always "the first program's start":
        SYS_execve;
    Sometimes "ends of threads, and whose process it is":
        SYS_exit SYS_waitid SYS_getppid SYS_gettid SYS_setsid;
    Always "who it runs as, and that it does not run as root":
        SYS_geteuid;
    Sometimes "the same, asked by the C library and the dynamic linker":
        SYS_getuid SYS_getgid SYS_getegid SYS_getpid SYS_getgroups;
    Always "signals between the postmaster and its children":
        SYS_kill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn;
    Sometimes "the same: crashes, waiting, and stacks of signal handlers":
        SYS_tgkill SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_sigaltstack SYS_restart_syscall;
    Always "latches":
        SYS_epoll_create1 SYS_epoll_ctl SYS_signalfd4;
    Sometimes "the same as other machines and libpq wait":
        SYS_epoll_pwait SYS_ppoll SYS_pselect6;
    Always "timeouts of statements and locks":
        SYS_setitimer;
    Sometimes "sleeping, and clocks where the kernel shows none to programs":
        SYS_clock_nanosleep SYS_nanosleep SYS_clock_gettime SYS_clock_getres SYS_gettimeofday;
    Always "semaphores and locks":
        SYS_futex;
    Always "the small segment that keeps two postmasters from one data directory":
        SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl;
    Always "its socket, and the sessions on it":
        SYS_bind SYS_listen SYS_sendto SYS_recvfrom SYS_getsockname SYS_connect;
    Sometimes "sessions, and what libpq does for foreign servers and subscriptions":
        SYS_accept SYS_accept4 SYS_setsockopt SYS_getsockopt SYS_getpeername SYS_shutdown SYS_sendmsg SYS_recvmsg;
    Always "random numbers":
        SYS_getrandom;
    Always "limits of the stack and of descriptors":
        SYS_prlimit64;
    Sometimes "the same, and what VACUUM VERBOSE tells":
        SYS_getrlimit SYS_setrlimit SYS_getrusage;
    Always "what the C library does when a program or a thread begins":
        SYS_set_tid_address SYS_set_robust_list SYS_rseq;
    Sometimes "how many processors JIT's compiler finds, and giving way to others":
        SYS_sched_getaffinity SYS_sched_yield SYS_sysinfo SYS_uname;
};

/// What machines of this kind have beside that: older names of the same calls.
#[cfg(target_arch = "x86_64")]
const PERMITTED_HERE: &[Permitted] = permitted! {
    Always "older names of the same calls":
        SYS_access SYS_arch_prctl SYS_epoll_wait SYS_mkdir SYS_unlink SYS_rename;
    Sometimes "older names of the same calls, in some C libraries":
        SYS_open SYS_stat SYS_lstat SYS_readlink SYS_rmdir SYS_link SYS_symlink SYS_chmod SYS_getdents SYS_pipe SYS_dup2
        SYS_poll SYS_select SYS_pause SYS_alarm SYS_time SYS_vfork SYS_fork SYS_signalfd SYS_epoll_create;
};

/// What machines of this kind have beside that.
#[cfg(not(target_arch = "x86_64"))]
const PERMITTED_HERE: &[Permitted] = &[];

/// Namespaces that `clone` could make (clone(2)), `CLONE_NEWTIME` included.
const NEW_NAMESPACES: u64 = 0x7e02_0080;
/// The kind in `socket`'s second argument, without the flags beside it (socket(2)).
const SOCKET_KIND: u64 = 0xf;

/// Calls that are permitted with some arguments only; beside [`PERMITTED`].
fn with_arguments() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let whole =
        |index, operator, value| SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value);
    let number =
        |index, operator, value: u64| SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    let mut rules = BTreeMap::new();
    // Processes, but no namespaces. `clone3`, whose arguments cannot be looked at, does not exist: the C library falls back.
    let plain = whole(0, SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![plain])?]);
    // No netlink, no packets, nothing raw, and no protocol but TCP and UDP: the kernel loads a module for each other.
    let mut sockets = Vec::new();
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        for (kind, own) in [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)] {
            for protocol in [0, own] {
                sockets.push(SeccompRule::new(vec![
                    number(0, SeccompCmpOp::Eq, of(family))?,
                    number(1, SeccompCmpOp::MaskedEq(SOCKET_KIND), of(kind))?,
                    number(2, SeccompCmpOp::Eq, of(protocol))?,
                ])?);
            }
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    // Whether the log is a terminal; what FICLONE (PostgreSQL 18, `file_copy_method = clone`) shares.
    let requests = [c_uint::try_from(libc::TCGETS).unwrap_or_default(), 0x4004_9409];
    let requests: Result<Vec<_>, _> = requests
        .into_iter()
        .map(|request| SeccompRule::new(vec![number(1, SeccompCmpOp::Eq, request.into())?]))
        .collect();
    rules.insert(libc::SYS_ioctl, requests?);
    // That children end with the postmaster; names of threads.
    let options = [libc::PR_SET_PDEATHSIG, libc::PR_GET_PDEATHSIG, libc::PR_SET_NAME, libc::PR_GET_NAME];
    let options: Result<Vec<_>, _> = options
        .into_iter()
        .map(|option| SeccompRule::new(vec![number(0, SeccompCmpOp::Eq, of(option))?]))
        .collect();
    rules.insert(libc::SYS_prctl, options?);
    Ok(rules)
}

/// Constants of the C library that are never negative.
fn of(constant: libc::c_int) -> u64 {
    u64::try_from(constant).unwrap_or_default()
}

/// Every call that passes, whatever its arguments or with some.
pub(super) fn passing() -> Result<BTreeMap<i64, Vec<SeccompRule>>, String> {
    let mut rules = with_arguments().map_err(|cause| cause.to_string())?;
    for call in PERMITTED.iter().chain(PERMITTED_HERE) {
        rules.insert(call.number, Vec::new());
    }
    Ok(rules)
}

fn program() -> Result<BpfProgram, String> {
    let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(|cause| cause.to_string())?;
    // As on a kernel that does not have the call: programs fall back to one that they know.
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(passing()?, missing, SeccompAction::Allow, machine);
    filter.and_then(BpfProgram::try_from).map_err(|cause| cause.to_string())
}

/// From now on, for this thread and what it becomes.
pub(super) fn apply() -> Result<(), String> {
    seccompiler::apply_filter(&program()?).map_err(|cause| format!("the filter of system calls: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::places::is_root;
    use crate::postgres::tests::of_machine;
    use crate::skipped::skipped;

    #[test]
    fn each_call_is_permitted_once_and_with_a_reason() {
        let mut seen = HashSet::new();
        for call in PERMITTED.iter().chain(PERMITTED_HERE) {
            assert!(seen.insert(call.number), "{} is there twice", call.name);
            assert!(!call.reason.is_empty());
            assert!(!with_arguments().unwrap().contains_key(&call.number), "{}", call.name);
        }
        assert!(!program().unwrap().is_empty());
    }

    /// Every call that a process and its children make, by name.
    fn watched(folder: &Path, what: &str, program: &Path, arguments: &[&str]) -> Command {
        let mut watch = Command::new("strace");
        watch.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(folder.join(what));
        if is_root() {
            // PostgreSQL does not run as root.
            watch.args(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        }
        watch.arg(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        watch
    }

    #[test]
    fn every_permission_is_one_that_an_engine_needs() {
        if Command::new("strace").arg("--version").output().is_err() {
            return skipped("there is no strace");
        }
        let folder = crate::folder::Folder::new();
        let place = folder.path();
        let postgres = of_machine();
        let data = place.join("pg");
        for made in ["pg", "run"] {
            std::fs::create_dir(place.join(made)).unwrap();
            if is_root() {
                std::os::unix::fs::chown(place.join(made), Some(65_534), Some(65_534)).unwrap();
            }
            std::fs::set_permissions(place.join(made), Permissions::from_mode(0o700)).unwrap();
        }
        std::fs::set_permissions(place, Permissions::from_mode(0o755)).unwrap();
        let (data, run) = (data.to_str().unwrap(), place.join("run"));
        let initdb = ["-D", data, "-U", "chitin", "--auth=trust", "--no-instructions", "--locale=C.UTF-8"];
        assert!(watched(place, "initdb", &postgres.bin.join("initdb"), &initdb).status().unwrap().success());
        let sockets = format!("unix_socket_directories={}", run.display());
        let run_it = ["-D", data, "-c", "listen_addresses=", "-c", &sockets, "-c", "logging_collector=on"];
        let mut engine = watched(place, "postgres", &postgres.bin.join("postgres"), &run_it).spawn().unwrap();
        let psql = |sql: &str| {
            let mut psql = Command::new("psql");
            psql.arg("-h").arg(&run).args(["-U", "chitin", "-c", sql, "postgres"]);
            psql.output().unwrap().status.success()
        };
        while !psql("SELECT 1") {
            assert!(engine.try_wait().unwrap().is_none(), "it does not start");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(psql("CREATE TABLE t AS SELECT g FROM generate_series(1, 100000) g"));
        assert!(psql("CHECKPOINT") && psql("DROP TABLE t") && psql("SELECT pg_sleep(0.1)"));
        let postmaster = std::fs::read_to_string(place.join("pg/postmaster.pid")).unwrap();
        crate::process::signal(
            postmaster.lines().next().unwrap().parse().unwrap(),
            rustix::process::Signal::INT,
        );
        engine.wait().unwrap();

        let mut made = HashSet::new();
        for trace in ["initdb", "postgres"] {
            let text = std::fs::read_to_string(place.join(trace)).unwrap();
            let names = text.lines().filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('));
            made.extend(names.map(|(name, _)| format!("SYS_{name}")));
        }
        let all = || PERMITTED.iter().chain(PERMITTED_HERE);
        let idle: Vec<&str> = all()
            .filter(|call| call.need == Need::Always && !made.contains(call.name))
            .map(|call| call.name)
            .collect();
        assert!(idle.is_empty(), "permitted, and no engine makes it: {idle:?}");
        // What the engine did without the filter, and could not do with it: it did well without.
        let known: HashSet<&str> = all().map(|call| call.name).collect();
        let with_arguments = ["SYS_clone", "SYS_clone3", "SYS_socket", "SYS_ioctl", "SYS_prctl"];
        let of_setpriv = [
            "SYS_getresuid",
            "SYS_getresgid",
            "SYS_setresuid",
            "SYS_setresgid",
            "SYS_setgroups",
            "SYS_capget",
            "SYS_capset",
        ];
        let refused: Vec<&String> = made
            .iter()
            .filter(|name| name.starts_with("SYS_") && !known.contains(name.as_str()))
            .filter(|name| !with_arguments.contains(&name.as_str()) && !of_setpriv.contains(&name.as_str()))
            .filter(|name| {
                name.chars()
                    .skip(4)
                    .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
            })
            .collect();
        assert!(refused.is_empty(), "an engine makes it, and it is not permitted: {refused:?}");
    }

    #[test]
    fn what_opens_the_kernel_to_an_attacker_is_not_permitted() {
        let passing = passing().unwrap();
        for (name, number) in [
            ("unshare", libc::SYS_unshare),
            ("setns", libc::SYS_setns),
            ("clone3", libc::SYS_clone3),
            ("mount", libc::SYS_mount),
            ("umount2", libc::SYS_umount2),
            ("pivot_root", libc::SYS_pivot_root),
            ("chroot", libc::SYS_chroot),
            ("open_tree", libc::SYS_open_tree),
            ("move_mount", libc::SYS_move_mount),
            ("fsopen", libc::SYS_fsopen),
            ("keyctl", libc::SYS_keyctl),
            ("add_key", libc::SYS_add_key),
            ("request_key", libc::SYS_request_key),
            ("bpf", libc::SYS_bpf),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("io_uring_enter", libc::SYS_io_uring_enter),
            ("userfaultfd", libc::SYS_userfaultfd),
            ("perf_event_open", libc::SYS_perf_event_open),
            ("ptrace", libc::SYS_ptrace),
            ("process_vm_readv", libc::SYS_process_vm_readv),
            ("process_vm_writev", libc::SYS_process_vm_writev),
            ("pidfd_getfd", libc::SYS_pidfd_getfd),
            ("memfd_create", libc::SYS_memfd_create),
            ("execveat", libc::SYS_execveat),
            ("open_by_handle_at", libc::SYS_open_by_handle_at),
            ("personality", libc::SYS_personality),
            ("setuid", libc::SYS_setuid),
            ("setresuid", libc::SYS_setresuid),
            ("capset", libc::SYS_capset),
            ("init_module", libc::SYS_init_module),
            ("kexec_load", libc::SYS_kexec_load),
            ("seccomp", libc::SYS_seccomp),
        ] {
            assert!(!passing.contains_key(&number), "{name}");
        }
    }
}
