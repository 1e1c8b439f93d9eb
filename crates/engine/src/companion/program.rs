//! The companion's own side: it listens, and when Chitin has ended it locks what was unlocked.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use model::Encryption;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, getppid, pidfd_open, set_dumpable_behavior, setsid,
};

use super::{KNOWS, LOCK, LOCKED, MESSAGE_BYTES_MAX, ORDERS, READY, UNLOCKING, YES};
use crate::claim::lock as lock_file;
use crate::places::{Places, mounts_below};
use crate::{leftovers, process, syscall};

/// For the companion of a Chitin that was killed to lock everything.
const CLAIM_MAX: Duration = Duration::from_secs(75);
const PAUSE: Duration = Duration::from_millis(20);
/// For everything to be locked. What is not by then is left to the next start, which says so.
const LOCK_MAX: Duration = Duration::from_secs(60);
/// So often is looked for an end that nothing tells of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// For what was done to be said.
const SAY_MAX: Duration = Duration::from_secs(2);
/// Volumes of one machine. More is a mistake of ours.
const VOLUMES_MAX: usize = 100_000;
/// Where the kernel has 15 bytes for a process's name.
const SHORT_NAME: &std::ffi::CStr = c"companion";

type Volumes = BTreeMap<PathBuf, Encryption>;

/// Is a companion until its Chitin has ended, where that was asked for. Returns where it was not.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let data = std::env::var_os(ORDERS)?;
    Some(match serve(Path::new(&data)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::FAILURE,
    })
}

fn serve(data: &Path) -> Result<(), ()> {
    stand_alone();
    let (line, places) = (std::io::stdin(), Places::new(data));
    // Beside the line: a copy of its other end may be in a process that is just being started.
    let chitin = Chitin::ours();
    let claim = match claim(&places, &line) {
        Ok(claim) => claim,
        Err(reason) => {
            answer(&line, reason.as_bytes());
            return Err(());
        }
    };
    answer(&line, READY);
    let volumes = listen(&line, &chitin, &places);
    if volumes.is_empty() {
        return Ok(());
    }
    let (begun, count) = (Instant::now(), volumes.len());
    let left = lock(&places, volumes, &chitin);
    let took = begun.elapsed().as_millis();
    drop(claim);
    say(match left.as_slice() {
        [] => format!("companion: Chitin has ended; {count} unlocked volumes were locked in {took} ms"),
        left => format!(
            "companion: Chitin has ended, and of {count} unlocked volumes these could not be locked: {}; starting Chitin \
             again tries it once more",
            left.join("; ")
        ),
    });
    if left.is_empty() { Ok(()) } else { Err(()) }
}

/// Says something to whoever reads Chitin's log. A reader that stands still does not keep us.
fn say(text: String) {
    let (told, heard) = std::sync::mpsc::channel();
    let say = move || told.send(writeln!(std::io::stderr(), "{text}"));
    if std::thread::Builder::new().spawn(say).is_ok() {
        let _ = heard.recv_timeout(SAY_MAX);
    }
}

/// Lets go of everything by which Chitin's end, or a terminal's, could reach this process too.
fn stand_alone() {
    syscall::ignore_signals();
    // Fails where it leads a session already, which is as good.
    let _ = setsid();
    let _ = rustix::thread::set_name(SHORT_NAME);
    // Where we may not, we are as likely to be chosen as any other when memory ends.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    syscall::close_inherited();
}

/// Waits until no other companion of this data directory is at work. Nothing to wait for any more where Chitin has ended.
/// The clusters' folder is locked beside the file, which somebody may have removed.
fn claim(places: &Places, line: &impl AsFd) -> Result<Vec<File>, String> {
    let path = places.data().join(LOCK);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(|cause| format!("{}: {cause}", path.display()))?;
    let folder = File::open(places.clusters()).ok();
    let is_free = || {
        let is_taken = |folder| matches!(lock_file(folder), Err(Errno::WOULDBLOCK));
        lock_file(&file).is_ok() && !folder.as_ref().is_some_and(is_taken)
    };
    let until = Instant::now() + CLAIM_MAX;
    while !is_free() {
        let mut what = [PollFd::new(line, PollFlags::IN)];
        let pause = Timespec::try_from(PAUSE).ok();
        if poll(&mut what, pause.as_ref()).is_ok_and(|count| count > 0) {
            return Err("Chitin has ended".to_owned());
        }
        if Instant::now() >= until {
            return Err(format!(
                "the companion of a Chitin that was killed still locks its volumes, since {} seconds; fuser {} tells its process",
                CLAIM_MAX.as_secs(),
                path.display()
            ));
        }
    }
    Ok(folder.into_iter().chain([file]).collect())
}

/// Hears what is unlocked until Chitin has ended.
fn listen(line: &impl AsFd, chitin: &Chitin, places: &Places) -> Volumes {
    let (mut volumes, mut message) = (Volumes::new(), vec![0; MESSAGE_BYTES_MAX]);
    let look_every = Timespec::try_from(LOOK_EVERY).ok();
    loop {
        let mut what = vec![PollFd::new(line, PollFlags::IN)];
        what.extend(chitin.handle.as_ref().map(|handle| PollFd::new(handle, PollFlags::IN)));
        match poll(&mut what, look_every.as_ref()) {
            Ok(0) if chitin.has_ended() => return volumes,
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return volumes,
        }
        // What was said before the end is heard first.
        if !what[0].revents().contains(PollFlags::IN) {
            return volumes;
        }
        match recv(line, message.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => return volumes,
            Ok((count, _)) => answer(line, heed(&message[..count], places, &mut volumes)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return volumes,
        }
    }
}

fn answer(line: &impl AsFd, text: &[u8]) {
    // Nobody there: that is heard next.
    let _ = send(line, text, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn heed(message: &[u8], places: &Places, volumes: &mut Volumes) -> &'static [u8] {
    let parts: Vec<&[u8]> = message.split(|byte| *byte == 0).collect();
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    match parts.as_slice() {
        [word, kind, folder] if *word == UNLOCKING.as_bytes() => {
            let (folder, kind) = (path(folder), std::str::from_utf8(kind).ok().and_then(kind_of));
            let Some(kind) = kind.filter(|_| is_of_a_cluster(&folder, places)) else {
                return b"it was told of something that is no volume";
            };
            if volumes.len() >= VOLUMES_MAX {
                return b"it was told of more volumes than there can be";
            }
            volumes.insert(folder, kind);
            YES
        }
        [word, folder] if *word == LOCKED.as_bytes() => {
            volumes.remove(&path(folder));
            YES
        }
        [word, folder] if *word == KNOWS.as_bytes() && volumes.contains_key(&path(folder)) => YES,
        [word, _] if *word == KNOWS.as_bytes() => b"it was not told of the volume",
        _ => b"it was told something that it does not understand",
    }
}

fn kind_of(text: &str) -> Option<Encryption> {
    serde_json::from_value(serde_json::Value::from(text)).ok()
}

fn is_of_a_cluster(folder: &Path, places: &Places) -> bool {
    let below = folder.strip_prefix(places.clusters());
    below.is_ok_and(|below| {
        let mut parts = below.components();
        parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    })
}

/// The Chitin that started this process.
struct Chitin {
    process: Option<Pid>,
    handle: Option<OwnedFd>,
}

impl Chitin {
    fn ours() -> Self {
        let process = getppid();
        let handle = process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
        Self { process, handle }
    }

    /// Whether it has ended but for threads of it that wait for a disk and cannot be ended: until they are, neither its
    /// descriptors are closed nor does the kernel tell of its end.
    fn has_ended(&self) -> bool {
        let state = self.process.and_then(|process| process::stat(process.as_raw_nonzero(), 0));
        state.is_some_and(|state| ["Z", "X"].contains(&state.as_str()))
    }

    /// Whether it was killed and a thread of it is left that may still mount something.
    fn is_stuck(&self) -> bool {
        let Some(handle) = &self.handle else {
            return false;
        };
        let mut what = [PollFd::new(handle, PollFlags::IN)];
        let is_gone = poll(&mut what, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        !is_gone && self.has_ended()
    }
}

/// Ends engines and locks volumes until nothing is left; returns what could not be locked.
fn lock(places: &Places, mut volumes: Volumes, chitin: &Chitin) -> Vec<String> {
    let (clusters, until) = (places.clusters(), Instant::now() + LOCK_MAX);
    loop {
        let failed = leftovers::lock(&clusters, &volumes);
        volumes.retain(|folder, _| failed.contains_key(folder));
        // What Chitin was just mounting may have come meanwhile.
        let mut mounted = mounts_below(&clusters);
        // The operator may have a disk there.
        mounted.retain(|place| *place != clusters);
        let is_stuck = chitin.is_stuck();
        if volumes.is_empty() && mounted.is_empty() && !is_stuck {
            return Vec::new();
        }
        if Instant::now() >= until {
            let mounted = mounted.iter().map(|place| format!("{} is still mounted", place.display()));
            let stuck =
                "Chitin itself waits for a disk and cannot be ended, so that it may still mount something";
            let stuck = is_stuck.then(|| stuck.to_owned());
            return failed.into_values().chain(mounted).chain(stuck).collect();
        }
        std::thread::sleep(AGAIN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_volume_of_this_data_directory_is_never_taken_for_one() {
        let (places, mut volumes) = (Places::new(Path::new("/data")), Volumes::new());
        let good = "/data/clusters/6d0c4a52-9d1c-4d0e-9c0e-3b1f5a7c2d10";
        for folder in [
            "/",
            "",
            "/data",
            "/data/clusters",
            "/data/clusters/",
            "/data/clusters/../../etc",
            "/data/clusters/a/../../..",
            "/other/clusters/x",
            "clusters/x",
        ] {
            let told = super::super::unlocking(Path::new(folder), Encryption::Fscrypt);
            assert_ne!(heed(&told, &places, &mut volumes), YES, "{folder}");
        }
        let unknown = [UNLOCKING, "rot13", good].join("\0");
        for message in
            [unknown.as_bytes(), b"", b"\0", b"unlocking", b"unlocking\0none", b"knows", b"stop\0x"]
        {
            assert_ne!(heed(message, &places, &mut volumes), YES, "{}", message.escape_ascii());
        }
        assert!(volumes.is_empty());
        assert_eq!(
            heed(&super::super::unlocking(Path::new(good), Encryption::None), &places, &mut volumes),
            YES
        );
        let asked = super::super::message(KNOWS, Path::new(good));
        assert_eq!(heed(&asked, &places, &mut volumes), YES);
        heed(&super::super::message(LOCKED, Path::new(good)), &places, &mut volumes);
        assert_ne!(heed(&asked, &places, &mut volumes), YES);
    }

    #[test]
    fn a_process_has_ended_when_its_first_thread_has() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let chitin = Chitin { process: Pid::from_raw(child.id().cast_signed()), handle: None };
        assert!(!chitin.has_ended() && !Chitin { process: None, handle: None }.has_ended());
        child.kill().unwrap();
        // Nobody has waited for it yet, so it stays as a zombie.
        let deadline = Instant::now() + LOCK_MAX;
        while !chitin.has_ended() {
            assert!(Instant::now() < deadline, "it was ended");
            std::thread::sleep(PAUSE);
        }
        child.wait().unwrap();
    }

    #[test]
    fn every_kind_of_volume_is_known_by_its_name() {
        for kind in [
            Encryption::Fscrypt,
            Encryption::FscryptImage,
            Encryption::Luks2,
            Encryption::Gocryptfs,
            Encryption::Attested,
            Encryption::None,
        ] {
            assert_eq!(kind_of(kind.as_str()), Some(kind));
        }
    }
}
