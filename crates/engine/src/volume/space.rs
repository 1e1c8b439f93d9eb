//! How much of its limit a volume uses, and what holds it to that.
//!
//! A volume in an image has a file system as large as the disk below, and in it a ballast file of root's that takes what the
//! cluster may not use. The ballast is allocated and never written, so it costs nothing on the disk below; it shrinks and
//! grows while the engine works, which needs neither a right nor a program, and on every kernel that has ext4. PostgreSQL
//! refuses what finds no room with SQLSTATE 53100.
//!
//! Of the limit a part is kept back and given step by step, each after something was refused: VACUUM needs new pages for
//! its maps before it gives any back. Whoever goes on storing takes each step too, so they come ever more slowly
//! ([`Giving`]), and when the storing ends there is one for VACUUM. When all of it is given small steps above the limit follow, as
//! slowly: a session begins with writing a small file, the cache of its database's catalog (`pg_internal.init`), and is refused
//! where there is no room for it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use model::{Encryption, Enforcement, Fullness, StorageLimit, StorageUse};
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, Stat, StatVfs, StatVfsMountFlags, fallocate, ftruncate, openat,
    statat,
};
use rustix::io::Errno;

use super::{image, watched};
use crate::Error;
use crate::places::read_only_reason;

const BALLAST: &str = "ballast";
/// Of a limit, one in so many bytes is kept back.
const KEPT_PART: u64 = 16;
const KEPT_BYTES_MIN: u64 = 32 << 20;
const KEPT_BYTES_MAX: u64 = 1 << 30;
/// It is given in so many steps: each has what VACUUM needs for the maps of everything that fits into the limit.
const STEPS: u64 = 64;
/// Between two steps: at first, and at most.
const STEP_PAUSE: Duration = Duration::from_secs(1);
const STEP_PAUSE_MAX: Duration = Duration::from_secs(600);
/// What an engine that starts finds free, if need be above the limit: it writes a few small files. 16 MiB of it ext4 keeps for
/// its own use. It is taken back before anybody is let in ([`settle`]).
const START_BYTES: u64 = 20 << 20;
/// While an engine repeats its log it may have so many times its limit: it makes tables again that were dropped since, and
/// removes them at the end.
const RECOVERY_LIMITS: u64 = 2;
/// Four segments of the write-ahead log: what recovery and its checkpoint need where the log had filled its part.
const WAL_KEPT_BYTES: u64 = 64 << 20;
/// While the machine has nothing left to give, of the part for the write-ahead log one in so many may be used: twice what the
/// engine aims at.
const WAL_FROZEN_PART: u64 = 2;
/// A step above the limit, and what stays free when something is taken back: a few caches of catalogs, and the first pages of
/// what TRUNCATE makes.
const ABOVE_BYTES: u64 = 512 << 10;
/// With so little room the next page finds none: a file system counts in blocks, and keeps a few for its own use.
const NO_ROOM_BYTES: u64 = 256 << 10;
/// A difference that is not worth touching the ballast for.
const SLACK_BYTES: u64 = 128 << 10;

/// When the next step of what is kept back may be given.
#[derive(Debug)]
pub(crate) struct Giving {
    next: Instant,
    pause: Duration,
}

impl Default for Giving {
    fn default() -> Self {
        Self { next: Instant::now(), pause: STEP_PAUSE }
    }
}

impl Giving {
    /// Whether a step is due. Then the next one comes after twice the time.
    fn take(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(STEP_PAUSE_MAX);
        true
    }
}

/// What a volume may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Its limit now.
    pub(crate) limit: StorageLimit,
    /// What it was when the engine started: the engine lets its write-ahead log grow accordingly, and ends where there is no room
    /// for that, so that part does not become smaller before the next start.
    pub(crate) started: StorageLimit,
    /// Nothing may grow, whatever the limit: the machine has nothing left to give.
    pub(crate) is_frozen: bool,
}

/// What was measured of a volume that is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What it uses.
    pub usage: StorageUse,
    /// Why it cannot be written to.
    pub is_read_only: Option<String>,
    /// It was full, and something of what is kept back was just given.
    pub is_given_more: bool,
}

/// One file system of a volume's own.
#[derive(Clone, Copy)]
struct Part<'a> {
    mounted: &'a Path,
    /// What may be used of it, at most.
    limit_bytes: u64,
    /// What of that is kept back at first.
    kept_bytes: u64,
    /// What is given of it at a time.
    step_bytes: u64,
    /// What an engine that starts finds free.
    start_bytes: u64,
    /// What stays free when something is taken back.
    left_bytes: u64,
    /// What may be used of it in any case while nothing may grow.
    frozen_bytes: u64,
}

/// What one looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the unit belongs to the names")]
struct Room {
    total_bytes: u64,
    used_bytes: u64,
    available_bytes: u64,
    ballast_bytes: u64,
}

impl Room {
    fn of(room: &StatVfs, ballast_bytes: u64) -> Self {
        let free_bytes = room.f_bfree.saturating_mul(room.f_frsize);
        let total_bytes = room.f_blocks.saturating_mul(room.f_frsize);
        Self {
            total_bytes,
            used_bytes: total_bytes.saturating_sub(free_bytes).saturating_sub(ballast_bytes),
            available_bytes: room.f_bavail.saturating_mul(room.f_frsize),
            ballast_bytes,
        }
    }

    /// The least ballast that a part may have.
    fn ballast_min(self, part: &Part<'_>) -> u64 {
        self.total_bytes.saturating_sub(part.limit_bytes)
    }

    /// The ballast that a part should have now. The first answer says whether there is room for everybody.
    fn ballast_for(self, part: &Part<'_>, mut may_give: impl FnMut() -> bool) -> (bool, u64) {
        let (least, most) = (self.ballast_min(part), self.ballast_min(part).saturating_add(part.kept_bytes));
        if part.is_ample(self) {
            return (true, most);
        }
        let may_be_taken = self.available_bytes.saturating_sub(part.left_bytes);
        let taken_back = least.min(self.ballast_bytes.saturating_add(may_be_taken));
        let now = self.ballast_bytes.max(taken_back).min(most);
        let is_refusing = self.available_bytes <= NO_ROOM_BYTES;
        if !is_refusing || !may_give() {
            return (false, now);
        }
        if now > least {
            return (false, now.saturating_sub(part.step_bytes).max(least));
        }
        (false, now.saturating_sub(ABOVE_BYTES))
    }

    /// The ballast with which an engine starts. One that has to recover may use so many bytes more than it does.
    fn ballast_at_start(self, part: &Part<'_>, recovery_bytes: u64) -> u64 {
        let (least, most) = (self.ballast_min(part), self.ballast_min(part).saturating_add(part.kept_bytes));
        let leaves = self.total_bytes.saturating_sub(self.used_bytes).saturating_sub(part.start_bytes);
        let wanted = self.ballast_bytes.clamp(least, most).min(leaves);
        let doubled = part.limit_bytes.saturating_mul(RECOVERY_LIMITS);
        let may_use = doubled.min(self.used_bytes.saturating_add(recovery_bytes));
        let recovery = self.total_bytes.saturating_sub(may_use);
        if recovery_bytes > 0 { wanted.min(recovery) } else { wanted }
    }

    fn fullness(self, part: &Part<'_>) -> Fullness {
        let is_refusing = self.available_bytes <= NO_ROOM_BYTES;
        if is_refusing { Fullness::Full } else { self.fullness_of_use(part) }
    }

    /// The same, whatever is free at the moment.
    fn fullness_of_use(self, part: &Part<'_>) -> Fullness {
        let limit = part.limit_bytes.min(self.total_bytes);
        if self.used_bytes.saturating_add(part.kept_bytes) >= limit {
            return Fullness::Full;
        }
        Fullness::of(self.used_bytes, limit)
    }
}

impl Part<'_> {
    /// Whether there is room for what is kept back, twice.
    fn is_ample(&self, room: Room) -> bool {
        room.used_bytes.saturating_add(2 * self.kept_bytes) <= self.limit_bytes.min(room.total_bytes)
    }

    /// Opens its root. Only a mount is opened: else the ballast would be made on the disk below.
    fn open(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = || Error::file("open", self.mounted);
        let device = |found: rustix::io::Result<Stat>| found.map(|facts| facts.st_dev);
        let root =
            rustix::fs::open(self.mounted, flags, Mode::empty()).map_err(|cause| failed()(cause.into()))?;
        let above = self.mounted.parent().unwrap_or(self.mounted);
        let (own, above) = (device(rustix::fs::fstat(&root)), device(rustix::fs::stat(above)));
        match (own, above) {
            (Ok(own), Ok(above)) if own != above => Ok(root),
            _ => Err(failed()(std::io::Error::other("nothing is mounted there"))),
        }
    }

    /// Why it cannot be written to. The table of all mounts is long where there are many clusters: it is read only where the
    /// kernel says of this one that something is wrong, or does not say.
    fn read_only_reason(&self, root: &OwnedFd) -> Result<Option<String>, Error> {
        let failed = |cause: Errno| Error::file("look at", self.mounted)(cause.into());
        let flags = rustix::fs::fstatvfs(root).map_err(failed)?.f_flag;
        let device = rustix::fs::fstat(root).map_err(failed)?.st_dev;
        let is_well = !flags.contains(StatVfsMountFlags::RDONLY) && errors_of(device) == Some(0);
        Ok(if is_well { None } else { read_only_reason(self.mounted) })
    }

    fn look(&self, root: &OwnedFd) -> Result<Room, Error> {
        let room =
            rustix::fs::fstatvfs(root).map_err(|cause| Error::file("look at", self.mounted)(cause.into()))?;
        let ballast = statat(root, BALLAST, AtFlags::SYMLINK_NOFOLLOW);
        let blocks = ballast.map_or(0, |facts| u64::try_from(facts.st_blocks).unwrap_or(0));
        Ok(Room::of(&room, blocks * 512))
    }

    /// Gives the ballast this size, or as much of it as is free.
    fn set_ballast(&self, root: &OwnedFd, bytes: u64) -> Result<(), Error> {
        let failed = |cause: Errno| Error::file("resize the ballast of", self.mounted)(cause.into());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(root, BALLAST, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let length = rustix::fs::fstat(&file).map_err(failed)?.st_size;
        if u64::try_from(length).unwrap_or(0) >= bytes {
            return ftruncate(&file, bytes).map_err(failed);
        }
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(Errno::NOSPC) => Ok(()),
            Err(other) => Err(failed(other)),
        }
    }

    /// Holds it to its limit; while nothing may grow, to what is in use. Says what it looked like, and whether more was given
    /// although there is little left.
    fn hold(&self, root: &OwnedFd, is_frozen: bool, giving: &mut Giving) -> Result<(Room, bool), Error> {
        let room = self.look(root)?;
        let frozen_bytes = room.used_bytes.max(self.frozen_bytes).min(self.limit_bytes);
        let held = Self { limit_bytes: if is_frozen { frozen_bytes } else { self.limit_bytes }, ..*self };
        let (is_ample, wanted) = room.ballast_for(&held, || giving.take(Instant::now()));
        if is_ample {
            *giving = Giving::default();
        }
        if wanted.abs_diff(room.ballast_bytes) <= SLACK_BYTES {
            return Ok((room, false));
        }
        self.set_ballast(root, wanted)?;
        Ok((room, !is_ample && wanted < room.ballast_bytes))
    }

    fn begin(&self, recovery_bytes: u64) -> Result<(), Error> {
        let root = self.open()?;
        let wanted = self.look(&root)?.ballast_at_start(self, recovery_bytes);
        self.set_ballast(&root, wanted)
    }
}

/// How many errors ext4 has had on this device, where the kernel tells it.
fn errors_of(device: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let name = link.file_name()?.to_str()?;
    std::fs::read_to_string(format!("/sys/fs/ext4/{name}/errors_count")).ok()?.trim().parse().ok()
}

/// The file systems of a volume of this kind, data first.
fn parts(
    kind: Encryption,
    limit: StorageLimit,
    started: StorageLimit,
    mounts: &[std::path::PathBuf; 2],
) -> Vec<Part<'_>> {
    let [data, wal] = mounts;
    let part = |mounted, limit_bytes: u64| {
        let kept_bytes = (limit_bytes / KEPT_PART).clamp(KEPT_BYTES_MIN, KEPT_BYTES_MAX);
        Part {
            mounted,
            limit_bytes,
            kept_bytes,
            step_bytes: kept_bytes / STEPS,
            start_bytes: START_BYTES,
            left_bytes: ABOVE_BYTES,
            frozen_bytes: 0,
        }
    };
    match kind {
        Encryption::FscryptImage => {
            let (kept_bytes, limit_bytes) = (WAL_KEPT_BYTES, limit.wal_bytes().max(started.wal_bytes()));
            let of_wal = Part {
                mounted: wal,
                limit_bytes,
                kept_bytes,
                step_bytes: kept_bytes,
                start_bytes: kept_bytes,
                left_bytes: kept_bytes,
                frozen_bytes: limit_bytes / WAL_FROZEN_PART,
            };
            vec![part(data, limit.data_bytes()), of_wal]
        }
        Encryption::Luks2 => vec![part(data, limit.bytes())],
        Encryption::Fscrypt | Encryption::Gocryptfs | Encryption::Attested | Encryption::None => Vec::new(),
    }
}

fn mounts(folder: &Path) -> [std::path::PathBuf; 2] {
    [folder.join(super::FILES), folder.join(image::WAL_FILES)]
}

/// Holds a volume that was just unlocked to its limit, with room for what an engine writes when it starts.
pub(super) fn begin(
    folder: &Path,
    kind: Encryption,
    limit: StorageLimit,
    recovers: bool,
) -> Result<(), Error> {
    let places = mounts(folder);
    // No more than the disk below has beside what it must keep.
    let recovery_bytes = if recovers { super::check::spare_bytes(folder)? } else { 0 };
    parts(kind, limit, limit, &places).iter().map(|part| part.begin(recovery_bytes)).fold(Ok(()), Result::and)
}

/// Whether nothing holds such a volume to its limit but that it is measured again and again.
pub(crate) fn is_watched(kind: Encryption) -> bool {
    !matches!(kind, Encryption::FscryptImage | Encryption::Luks2)
}

/// Whether the next page may find no room.
pub(crate) fn is_tight(folder: &Path, kind: Encryption, limit: StorageLimit) -> Result<bool, Error> {
    let places = mounts(folder);
    let parts = parts(kind, limit, limit, &places);
    let Some(data) = parts.first() else {
        return Ok(false);
    };
    Ok(!data.is_ample(data.look(&data.open()?)?))
}

/// Takes back what an engine found free when it started and did not need.
pub(crate) fn settle(
    folder: &Path,
    kind: Encryption,
    Limits { limit, started, is_frozen }: Limits,
    giving: &mut [Giving; 2],
) -> Result<(), Error> {
    let places = mounts(folder);
    for (part, giving) in parts(kind, limit, started, &places).iter().zip(giving) {
        part.hold(&part.open()?, is_frozen, giving)?;
    }
    Ok(())
}

/// Measures an unlocked volume and holds it to its limit where its file system can. With `is_frozen` nothing may grow,
/// whatever the limit. The processes are the engine's, and whatever serves the volume, for a volume that is [`is_watched`].
pub(crate) fn measure(
    folder: &Path,
    base: &Path,
    processes: &[u32],
    kind: Encryption,
    Limits { limit, started, is_frozen }: Limits,
    giving: &mut [Giving; 2],
) -> Result<Measured, Error> {
    let places = mounts(folder);
    let parts = parts(kind, limit, started, &places);
    let Some((data, others)) = parts.split_first() else {
        let usage = watched::usage(base, folder, processes, limit)?;
        return Ok(Measured { usage, is_read_only: None, is_given_more: false });
    };
    let roots: Vec<OwnedFd> = parts.iter().map(Part::open).collect::<Result<_, _>>()?;
    let mut is_read_only = None;
    for (part, root) in parts.iter().zip(&roots) {
        is_read_only = is_read_only.or(part.read_only_reason(root)?);
    }
    let mut held = Vec::new();
    for ((part, root), giving) in parts.iter().zip(&roots).zip(giving) {
        // A file system that cannot be written to is only looked at.
        held.push(match is_read_only {
            Some(_) => (part.look(root)?, false),
            None => part.hold(root, is_frozen, giving)?,
        });
    }
    let [(room, is_given_more), of_wal @ ..] = held.as_slice() else {
        return Err(Error::Unready("a volume without a file system cannot be measured".to_owned()));
    };
    let usage = StorageUse {
        limit_bytes: limit.bytes(),
        used_bytes: room.used_bytes,
        // A limit beyond the image is the image.
        data_limit_bytes: data.limit_bytes.min(room.total_bytes),
        wal_used_bytes: of_wal.first().map(|(room, _)| room.used_bytes),
        wal_limit_bytes: others.first().map(|part| part.limit_bytes),
        enforcement: Enforcement::Enforced,
        fullness: if is_frozen { room.fullness_of_use(data) } else { room.fullness(data) },
    };
    Ok(Measured { usage, is_read_only, is_given_more: *is_given_more })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(used: u64, ballast: u64) -> Room {
        let total = 1_000;
        Room {
            total_bytes: total * MIB,
            used_bytes: used * MIB,
            available_bytes: (total - used - ballast) * MIB,
            ballast_bytes: ballast * MIB,
        }
    }

    fn part(limit: u64, kept: u64, step: u64) -> Part<'static> {
        let (limit_bytes, kept_bytes, step_bytes) = (limit * MIB, kept * MIB, step * MIB);
        Part {
            mounted: Path::new("/"),
            limit_bytes,
            kept_bytes,
            step_bytes,
            start_bytes: 2 * MIB,
            left_bytes: 0,
            frozen_bytes: 0,
        }
    }

    #[test]
    fn what_is_kept_back_is_given_step_by_step_and_taken_again_when_there_is_room() {
        let part = part(400, 20, 5);
        let wanted = |used, ballast, may| room(used, ballast).ballast_for(&part, || may).1 / MIB;
        assert_eq!(wanted(50, 0, true), 620, "at first");
        assert_eq!(wanted(370, 620, true), 620, "nobody was refused yet");
        assert_eq!(wanted(380, 620, true), 615, "the next page finds no room");
        assert_eq!(wanted(380, 620, false), 620, "but the next step is not due");
        assert_eq!(wanted(381, 615, true), 615, "it stays given");
        assert_eq!(wanted(385, 615, true), 610, "until it is used up too");
        assert_eq!(wanted(400, 600, false), 600, "no more than the limit");
        assert_eq!(wanted(400, 600, true), 599, "but for what a session needs to begin");
        assert_eq!(wanted(360, 615, true), 620, "and there is room for all of it twice");
        assert_eq!(wanted(300, 690, true), 620, "a larger limit is given at once");
        assert_eq!(room(379, 620).fullness(&part), Fullness::Low);
        assert_eq!(room(380, 620).fullness(&part), Fullness::Full);
        assert_eq!(room(385, 600).fullness(&part), Fullness::Full);
        assert_eq!(room(330, 620).fullness(&part), Fullness::Filling);
    }

    #[test]
    fn an_engine_starts_also_where_everything_is_full() {
        let part = part(400, 20, 5);
        let at_start = |used, ballast| room(used, ballast).ballast_at_start(&part, 0) / MIB;
        assert_eq!(at_start(0, 0), 600, "at first");
        assert_eq!(at_start(380, 620), 618);
        assert_eq!(at_start(400, 600), 598, "a little above the limit");
        assert_eq!(at_start(700, 0), 298, "far above a limit that was lowered");
        let recovering = |used, ballast| room(used, ballast).ballast_at_start(&part, 2_000 * MIB) / MIB;
        assert_eq!(recovering(100, 620), 200, "tables that were dropped are made again");
        assert_eq!(recovering(900, 0), 98);
        assert_eq!(room(100, 620).ballast_at_start(&part, 500 * MIB) / MIB, 400, "what the disk below has");
        assert_eq!(room(100, 620).ballast_at_start(&part, MIB) / MIB, 620);
        // And when it has started it is taken back, all that is free; of the write-ahead log's part not so much that it ends.
        assert_eq!(room(700, 298).ballast_for(&part, || false), (false, 300 * MIB));
        assert_eq!(room(700, 300).ballast_for(&part, || true), (false, 300 * MIB - ABOVE_BYTES));
        let of_wal = Part { left_bytes: MIB, ..part };
        assert_eq!(room(700, 290).ballast_for(&of_wal, || true), (false, 299 * MIB));
        assert_eq!(room(700, 300).ballast_for(&of_wal, || false), (false, 300 * MIB));
    }

    #[test]
    fn steps_come_ever_more_slowly() {
        let (mut giving, mut now) = (Giving::default(), Instant::now());
        let mut given = 0;
        for _ in 0..3_600 {
            given += u32::from(giving.take(now));
            now += Duration::from_secs(1);
        }
        assert!((10..=16).contains(&given), "{given} in an hour");
    }

    #[test]
    fn a_limit_beyond_the_file_system_is_the_file_system() {
        let part = Part { limit_bytes: u64::MAX, ..part(1, 64, 64) };
        assert_eq!(room(10, 0).ballast_for(&part, || true), (true, 64 * MIB));
        assert_eq!(room(936, 64).ballast_for(&part, || true), (false, 0));
        assert_eq!(room(1_000, 0).ballast_for(&part, || true), (false, 0));
    }

    #[test]
    fn no_ballast_is_made_where_nothing_is_mounted() {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let part = Part { mounted: &files, ..part(1, 1, 1) };
        assert!(part.begin(0).unwrap_err().to_string().contains("nothing is mounted"));
        assert!(!files.join(BALLAST).exists());
    }
}
