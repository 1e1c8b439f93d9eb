//! How much a cluster may store, and what was seen of it.

use serde::{Deserialize, Serialize};

use crate::{Cluster, Plan};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// A part of the limit that is the write-ahead log's alone: one in so many.
const WAL_PART: u64 = 8;
const WAL_BYTES_MIN: u64 = 256 * MIB;
const WAL_BYTES_MAX: u64 = 8 * GIB;

/// A cluster's storage limit: everything that its engine keeps, its write-ahead log and temporary files included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StorageLimit(u64);

impl StorageLimit {
    /// The least: a new cluster takes some 60 MiB, and its write-ahead log has its part.
    pub const MIN: Self = Self(GIB);
    /// The most.
    pub const MAX: Self = Self(64 << 40);

    /// A limit of so many bytes.
    ///
    /// # Errors
    ///
    /// It is outside of [`Self::MIN`] to [`Self::MAX`].
    pub fn from_bytes(bytes: u64) -> Result<Self, String> {
        if (Self::MIN.0..=Self::MAX.0).contains(&bytes) {
            return Ok(Self(bytes));
        }
        Err("a storage limit lies between 1 GiB and 64 TiB".to_owned())
    }

    /// A limit of so many GiB; see [`Self::from_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn from_gib(gib: u64) -> Result<Self, String> {
        Self::from_bytes(gib.saturating_mul(GIB))
    }

    /// A limit of so many MiB; see [`Self::from_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn from_mib(mib: u64) -> Result<Self, String> {
        Self::from_bytes(mib.saturating_mul(MIB))
    }

    /// What a plan has where nobody said otherwise.
    pub fn of_plan(plan: Plan) -> Self {
        match plan {
            Plan::Serverless => Self(10 * GIB),
            Plan::Dedicated => Self(100 * GIB),
        }
    }

    /// The whole, in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// What of it is for the write-ahead log alone, in bytes: where that has no room, the engine ends.
    pub fn wal_bytes(self) -> u64 {
        (self.0 / WAL_PART).clamp(WAL_BYTES_MIN, WAL_BYTES_MAX)
    }

    /// What of it is for everything else, in bytes.
    pub fn data_bytes(self) -> u64 {
        self.0 - self.wal_bytes()
    }

    /// From here on a cluster that no file system holds back is stopped: between the limit and this it may delete.
    pub fn stopped_at_bytes(self) -> u64 {
        self.0.saturating_add((self.0 / 20).max(128 * MIB))
    }

    /// What one session may use for temporary files, in KiB (PostgreSQL's `temp_file_limit`).
    pub fn temp_kib_per_session(self) -> u64 {
        self.data_bytes() / 4 / 1_024
    }
}

impl Cluster {
    /// Its storage limit: what was asked for in the words of its plan, else the plan's own, and never less than its floor. What
    /// an earlier version wrote down without a bound is brought within bounds.
    pub fn storage(&self) -> StorageLimit {
        let asked = match self.plan {
            Plan::Serverless => self
                .asked
                .storage_mib_limit
                .and_then(|mib| u64::try_from(mib).ok())
                .map(|mib| mib.saturating_mul(MIB)),
            Plan::Dedicated => self.asked.storage_gib.map(|gib| u64::from(gib) * GIB),
        };
        let clamped = |bytes: u64| StorageLimit(bytes.clamp(StorageLimit::MIN.0, StorageLimit::MAX.0));
        let limit = asked.filter(|bytes| *bytes > 0).map_or(StorageLimit::of_plan(self.plan), clamped);
        limit.max(self.storage_floor.unwrap_or(limit))
    }
}

/// What holds a cluster to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Its file system has no more room: the engine cannot go beyond.
    Enforced,
    /// It is measured again and again, and stopped from writing.
    Watched,
}

/// How near the limit a cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fullness {
    /// There is room.
    #[default]
    Ample,
    /// 80 % are used.
    Filling,
    /// 90 % are used.
    Low,
    /// What grows is refused.
    Full,
}

impl Fullness {
    /// Of these bytes in use; full is for whoever refuses to say.
    pub fn of(used_bytes: u64, limit_bytes: u64) -> Self {
        let percent = u128::from(used_bytes) * 100 / u128::from(limit_bytes.max(1));
        match percent {
            0..80 => Self::Ample,
            80..90 => Self::Filling,
            _ => Self::Low,
        }
    }
}

/// What a cluster stores at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageUse {
    /// What its limit is, in bytes.
    pub limit_bytes: u64,
    /// What is in use, in bytes, without the write-ahead log where that has a part of its own.
    pub used_bytes: u64,
    /// What may be in use, in bytes, without the write-ahead log where that has a part of its own.
    pub data_limit_bytes: u64,
    /// What the write-ahead log takes of its part; none where it has no part of its own.
    pub wal_used_bytes: Option<u64>,
    /// The size of that part. When the limit is lowered it follows at the engine's next start.
    #[serde(default)]
    pub wal_limit_bytes: Option<u64>,
    /// What holds it to that.
    pub enforcement: Enforcement,
    /// How near the limit it is.
    pub fullness: Fullness,
}

/// What was last written down of a cluster's storage: its changes, not every measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageSeen {
    /// How near the limit it was, and how much was in use when that changed.
    #[serde(default)]
    pub last: Option<StorageUse>,
    /// Why its file system cannot be written to, while that is so.
    #[serde(default)]
    pub is_read_only: Option<String>,
    /// It went on storing while the machine had nothing left to give, where nothing but stopping it holds it.
    #[serde(default)]
    pub is_stopped_for_machine: bool,
}

impl StorageSeen {
    /// Whether the cluster may not run: nothing but stopping it kept it from growing further above this limit. Under a limit that
    /// was lowered since it is measured first.
    pub fn is_stopped(&self, limit: StorageLimit) -> bool {
        self.is_stopped_for_machine
            || self.last.is_some_and(|last| {
                let measured_against = StorageLimit(last.limit_bytes);
                last.enforcement == Enforcement::Watched
                    && last.used_bytes >= limit.max(measured_against).stopped_at_bytes()
            })
    }

    /// How near the limit it was.
    pub fn fullness(&self) -> Fullness {
        self.last.map_or(Fullness::Ample, |last| last.fullness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_bounds_and_its_parts_make_the_whole() {
        assert!(StorageLimit::from_mib(1_023).is_err() && StorageLimit::from_gib(1 << 40).is_err());
        for limit in [StorageLimit::MIN, StorageLimit::from_gib(10).unwrap(), StorageLimit::MAX] {
            assert_eq!(limit.wal_bytes() + limit.data_bytes(), limit.bytes());
            assert!(limit.data_bytes() >= 3 * limit.bytes() / 4, "{limit:?}");
            assert!(limit.wal_bytes() >= WAL_BYTES_MIN);
        }
        assert_eq!(StorageLimit::from_gib(10).unwrap().wal_bytes(), 1_280 * MIB);
    }

    #[test]
    fn only_what_no_file_system_holds_back_is_stopped_and_a_larger_limit_lets_it_run() {
        let limit = StorageLimit::from_gib(1).unwrap();
        let of = |enforcement, used_bytes| {
            let last = StorageUse {
                limit_bytes: limit.bytes(),
                used_bytes,
                data_limit_bytes: limit.bytes(),
                wal_used_bytes: None,
                wal_limit_bytes: None,
                enforcement,
                fullness: Fullness::Full,
            };
            StorageSeen { last: Some(last), ..StorageSeen::default() }
        };
        let over = limit.stopped_at_bytes();
        assert!(over > limit.bytes() && !of(Enforcement::Watched, over - 1).is_stopped(limit));
        assert!(of(Enforcement::Watched, over).is_stopped(limit));
        assert!(!of(Enforcement::Watched, over).is_stopped(StorageLimit::from_gib(2).unwrap()));
        assert!(!of(Enforcement::Enforced, over).is_stopped(limit));
        // What was noted under a larger limit says nothing of one that was lowered since: it may have been less for long.
        let lower = StorageLimit::MIN;
        let larger = StorageLimit::from_gib(8).unwrap();
        let mut noted = of(Enforcement::Watched, 6 * GIB);
        noted.last.as_mut().unwrap().limit_bytes = larger.bytes();
        assert!(!noted.is_stopped(lower));
        noted.is_stopped_for_machine = true;
        assert!(noted.is_stopped(larger));
    }

    #[test]
    fn a_cluster_is_full_by_degrees() {
        for (used, expected) in [
            (0, Fullness::Ample),
            (79, Fullness::Ample),
            (80, Fullness::Filling),
            (90, Fullness::Low),
            (400, Fullness::Low),
        ] {
            assert_eq!(Fullness::of(used, 100), expected, "{used}");
        }
        assert_eq!(Fullness::of(0, 0), Fullness::Ample);
    }
}
