//! What the kernel says of a running engine: nothing here is read from our own settings.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::Capability;
use crate::cgroup::Group;
use crate::connector::Connector;
use crate::inside::is_there_below;
use crate::jail::WRITABLE;
use crate::launch::{Attempt, Found, own_shortage_score, shortage_score};
use crate::places::is_root;
use crate::process::{self, children, family};

/// One claim about a running engine, with what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// What is claimed.
    pub claim: String,
    /// Whether the kernel bears it out; `None` where this machine cannot give it.
    pub is_proven: Option<bool>,
    /// What was seen.
    pub evidence: String,
}

/// For an engine to open or refuse a session.
const SESSION_MAX: Duration = Duration::from_secs(5);

/// Programs with which somebody inside could do more.
const SHELLS: &[&str] =
    &["bin/sh", "bin/bash", "bin/dash", "usr/bin/sh", "usr/bin/bash", "usr/bin/perl", "usr/bin/python3"];

pub(crate) fn of(jailer: u32, group: Option<&Group>) -> Vec<Evidence> {
    let postmaster = children(jailer).first().and_then(|init| children(*init).first().copied());
    let Some(postmaster) = postmaster else {
        return vec![claim("the engine's process can be looked at", false, "it was not found".to_owned())];
    };
    let process = Path::new("/proc").join(postmaster.to_string());
    vec![
        own_user(&process),
        own_namespaces(&process),
        no_network(&process),
        no_shell(&process),
        read_only(&process),
        no_privileges(&process),
        filtered(&process),
        no_programs(&process),
        limits(jailer, group),
        shortage(postmaster),
    ]
}

/// What a probe in a sandbox of the same make found possible.
pub(crate) fn of_probe(said: &str) -> Vec<Evidence> {
    let found = said.lines().find_map(|line| serde_json::from_str::<Found>(line).ok());
    let Some(found) = found else {
        return vec![claim(
            "a sandbox of the same make was attacked from inside",
            false,
            "no answer".to_owned(),
        )];
    };
    let row = |attempt: Attempt| {
        let Attempt { what, possible, tried } = attempt;
        let evidence = match possible.as_slice() {
            [] => format!("{tried} tried inside a sandbox of the same make, none possible"),
            [first, ..] => format!("{} of {tried} possible, for instance {first}", possible.len()),
        };
        claim(&format!("the sandbox permits no {what}"), possible.is_empty(), evidence)
    };
    found.attempts.into_iter().map(row).collect()
}

/// Comes to the engine's socket as its own node, and as another's.
pub(crate) async fn own_socket(connector: &Connector) -> Evidence {
    let text = "only this engine answers at its socket, and it lets in no other engine's sessions";
    if let Err(cause) = connector.connect().await {
        return claim(text, false, cause.to_string());
    }
    if !is_root() {
        let evidence =
            "a process of its sandbox answers; without root every engine has the same node".to_owned();
        return Evidence { claim: text.to_owned(), is_proven: None, evidence };
    }
    let mut config = tokio_postgres::Config::new();
    config.user(model::INTERNAL_ROLE).dbname("postgres");
    let opened = timeout(SESSION_MAX, async {
        let stream = connector.connect_as_another().await.map_err(|cause| cause.to_string())?;
        let Err(refused) = config.connect_raw(stream, tokio_postgres::NoTls).await else {
            return Ok("it opened a session for another engine's node".to_owned());
        };
        let code = refused.code().map(|code| code.code().to_owned());
        code.filter(|code| code == "28000").ok_or_else(|| refused.to_string())
    });
    match opened.await {
        Ok(Ok(code)) if code == "28000" => {
            claim(text, true, "a process of its sandbox answers; another engine's node: 28000".to_owned())
        }
        Ok(Ok(other) | Err(other)) => claim(text, false, other),
        Err(_) => claim(text, false, "it does not answer".to_owned()),
    }
}

/// What the companion answered, and what the kernel says of it.
pub(crate) fn companion(answered: &Result<u32, String>) -> Evidence {
    let text = "if Chitin is killed, a process of its own locks the cluster's volume";
    let pid = match answered {
        Ok(pid) => *pid,
        Err(reason) => return claim(text, false, format!("no companion answers: {reason}")),
    };
    let process = Path::new("/proc").join(pid.to_string());
    let own_session = |pid: &str| process::stat(pid, 3)?.parse::<u32>().ok();
    let (ours, theirs) = (own_session("self"), own_session(&pid.to_string()));
    let ignored = status(&process, "SigIgn:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    // SIGHUP, SIGINT and SIGTERM are signals 1, 2 and 15.
    let ending: u64 = 1 | 1 << 1 | 1 << 14;
    let is_apart = theirs.is_some() && theirs != ours && ignored.is_some_and(|mask| mask & ending == ending);
    let score = std::fs::read_to_string(process.join("oom_score_adj")).unwrap_or_default();
    claim(
        text,
        is_apart,
        format!(
            "process {pid} knows of the volume; its session {} is not ours, it ignores signals {:x}, oom_score_adj {}",
            theirs.unwrap_or_default(),
            ignored.unwrap_or_default(),
            score.trim()
        ),
    )
}

fn claim(text: &str, is_proven: bool, evidence: String) -> Evidence {
    Evidence { claim: text.to_owned(), is_proven: Some(is_proven), evidence }
}

fn own_user(process: &Path) -> Evidence {
    let text = "the engine runs as an OS user of its own";
    let uid = status(process, "Uid:").and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok());
    let Some(uid) = uid else {
        return claim(text, false, "its status cannot be read".to_owned());
    };
    if !is_root() {
        let evidence = format!("uid {uid}, Chitin's own: Chitin does not run as root");
        return Evidence { claim: text.to_owned(), is_proven: None, evidence };
    }
    claim(text, uid >= 1_900_000_000, format!("uid {uid}"))
}

fn own_namespaces(process: &Path) -> Evidence {
    let differs = |kind: &str| {
        let own = std::fs::read_link(Path::new("/proc/self/ns").join(kind)).ok();
        let theirs = std::fs::read_link(process.join("ns").join(kind)).ok();
        theirs.is_some() && own != theirs
    };
    let kinds = ["pid", "net", "ipc", "uts", "mnt"];
    let own: Vec<&str> = kinds.into_iter().filter(|kind| differs(kind)).collect();
    claim(
        "the engine sees no processes but its own",
        own.len() == kinds.len(),
        format!("own namespaces: {}", own.join(", ")),
    )
}

fn no_network(process: &Path) -> Evidence {
    let table = std::fs::read_to_string(process.join("net/dev")).unwrap_or_default();
    let interfaces: Vec<&str> =
        table.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    let routes =
        std::fs::read_to_string(process.join("net/route")).unwrap_or_default().lines().skip(1).count();
    let is_alone = interfaces == ["lo"] && routes == 0;
    claim(
        "the engine has no network",
        is_alone,
        format!("interfaces: {}; routes: {routes}", interfaces.join(", ")),
    )
}

fn no_shell(process: &Path) -> Evidence {
    let root = process.join("root");
    // What cannot be looked at may be there.
    let is_absent = |shell: &&str| is_there_below(&root, shell).is_ok_and(|is_there| !is_there);
    let found: Vec<&str> = SHELLS.iter().copied().filter(|shell| !is_absent(shell)).collect();
    let is_seen = is_there_below(&root, "volume/pg").unwrap_or(false);
    let evidence =
        if found.is_empty() { "none of sh, bash, perl, python".to_owned() } else { found.join(", ") };
    claim("no shell or interpreter is in the engine's reach", is_seen && found.is_empty(), evidence)
}

fn read_only(process: &Path) -> Evidence {
    let table = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    let expected: HashSet<&str> =
        ["/volume", "/run/chitin", "/tmp", "/dev/shm", "/dev", "/dev/pts", "/dev/console", "/proc"].into();
    let mut writable: Vec<&str> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (place, options) = (*fields.get(4)?, *fields.get(5)?);
            // The volume has several file systems.
            let is_part = place.starts_with("/dev/") || place.starts_with("/volume/");
            (options.split(',').any(|option| option == "rw") && !expected.contains(place) && !is_part)
                .then_some(place)
        })
        .collect();
    writable.dedup();
    let evidence = if writable.is_empty() {
        "writable: its volume, its socket folder, /tmp and /dev/shm only".to_owned()
    } else {
        format!("also writable: {}", writable.join(", "))
    };
    claim("the system is read-only to the engine", writable.is_empty() && !table.is_empty(), evidence)
}

fn no_privileges(process: &Path) -> Evidence {
    let value = |name| status(process, name).unwrap_or_default();
    let (bounding, effective, sealed) = (value("CapBnd:"), value("CapEff:"), value("NoNewPrivs:"));
    let is_none = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte == b'0');
    let is_proven = is_none(&bounding) && is_none(&effective) && sealed == "1";
    claim(
        "the engine has no privileges and can gain none",
        is_proven,
        format!("CapEff {effective}, CapBnd {bounding}, NoNewPrivs {sealed}"),
    )
}

fn filtered(process: &Path) -> Evidence {
    let (mode, filters) = (status(process, "Seccomp:"), status(process, "Seccomp_filters:"));
    claim(
        "the engine has the system calls that PostgreSQL needs and no other",
        mode.as_deref() == Some("2"),
        format!(
            "Seccomp {}, filters {}",
            mode.as_deref().unwrap_or("unknown"),
            filters.as_deref().unwrap_or("unknown")
        ),
    )
}

fn no_programs(process: &Path) -> Evidence {
    let table = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    let mounts: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            Some((*fields.get(4)?, *fields.get(5)?))
        })
        .collect();
    let is_closed = |place: &&str| {
        let options = mounts.iter().rev().find(|(at, _)| at == place).map(|(_, options)| *options);
        let options: Vec<&str> = options.unwrap_or_default().split(',').collect();
        ["nosuid", "nodev", "noexec"].iter().all(|flag| options.contains(flag))
    };
    // The volume has several file systems.
    let parts = mounts.iter().map(|(at, _)| *at).filter(|at| at.starts_with("/volume/"));
    let places: Vec<&str> = WRITABLE.iter().copied().chain(parts).collect();
    let open: Vec<&str> = places.iter().copied().filter(|place| !is_closed(place)).collect();
    let evidence = if open.is_empty() {
        format!("nosuid, nodev, noexec: {}", places.join(", "))
    } else {
        format!("without nosuid, nodev or noexec: {}", open.join(", "))
    };
    claim("no program or library that was brought along can be run", open.is_empty(), evidence)
}

fn limits(jailer: u32, group: Option<&Group>) -> Evidence {
    let text = "memory, processes, processors and disk operations of the engine are limited";
    let Some(group) = group else {
        let evidence =
            "no control group is delegated to Chitin; run it as a systemd service with Delegate=yes"
                .to_owned();
        return Evidence { claim: text.to_owned(), is_proven: None, evidence };
    };
    let (inside, limits) = (group.processes(), group.limits());
    let mut outside = family(jailer, usize::MAX);
    let all = outside.len();
    // One that has ended since is in no group.
    outside.retain(|pid| !inside.contains(pid) && Path::new("/proc").join(pid.to_string()).exists());
    let is_set = |name: &str| limits.iter().any(|(file, value)| *file == name && value != "max");
    let is_weighed = limits.iter().any(|(file, _)| *file == "cpu.weight");
    let values: Vec<String> = limits.iter().map(|(file, value)| format!("{file} {value}")).collect();
    claim(
        text,
        outside.is_empty() && is_set("memory.max") && is_set("pids.max") && is_weighed,
        format!("{all} processes, {} outside of the group; {}", outside.len(), values.join(", ")),
    )
}

/// Whom the kernel ends first when the machine has no memory left.
fn shortage(postmaster: u32) -> Evidence {
    let text = "in a shortage of memory a session goes before its engine, and the engine before Chitin";
    let score = |pid: u32| shortage_score(&Path::new("/proc").join(pid.to_string()).join("oom_score_adj"));
    let (Ok(ours), Ok(engine)) = (own_shortage_score(), score(postmaster)) else {
        return claim(text, false, "the kernel does not say it".to_owned());
    };
    // One that is just being started has not said it yet, one that has ended says nothing.
    let others = children(postmaster).into_iter().filter_map(|pid| score(pid).ok()).max();
    let is_ordered = ours < engine && others.is_some_and(|others| engine < others);
    let shown = others.map_or_else(|| "none".to_owned(), |score| score.to_string());
    let evidence = format!("oom_score_adj: Chitin {ours}, the engine {engine}, its other processes {shown}");
    if !is_ordered && others.is_some_and(|others| ours < engine && engine <= others) {
        let lacking =
            format!("{evidence}; without root and CAP_SYS_RESOURCE the engine is as near as its sessions");
        return Evidence { claim: text.to_owned(), is_proven: None, evidence: lacking };
    }
    claim(text, is_ordered, evidence)
}

/// Whether this program is protected in a shortage of memory.
pub fn shortage_protection() -> Capability {
    match own_shortage_score() {
        Ok(score @ ..0) => Capability::Present {
            how: format!("oom_score_adj {score}: sessions go first, then engines, then Chitin"),
        },
        Ok(score) => Capability::Missing {
            why: format!(
                "oom_score_adj {score}: engines and their sessions go first, but Chitin is as near as the machine's other programs"
            ),
            next_step: "start Chitin with OOMScoreAdjust=-900 in its systemd unit, or with CAP_SYS_RESOURCE"
                .to_owned(),
        },
        Err(cause) => Capability::Missing {
            why: format!("the kernel does not say it: {cause}"),
            next_step: "mount /proc".to_owned(),
        },
    }
}

fn status(process: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(process.join("status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}
