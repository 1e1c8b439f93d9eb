//! What is on record of a cluster's volume. It is sealed with the state; what lies on the disk must agree with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Encryption, Observation};

/// Which of a cluster's volumes, and how it is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeId {
    /// How it is encrypted.
    pub encryption: Encryption,
    /// Its number; each new data key makes another volume.
    pub generation: u32,
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, generation {}", self.encryption.as_str(), self.generation)
    }
}

/// Up to where an engine has brought everything to the disk (PostgreSQL's `pg_control`). It only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What `initdb` called these files.
    pub system: u64,
    /// The timeline.
    pub timeline: u32,
    /// The position in it (LSN).
    pub position: u64,
}

impl Checkpoint {
    /// Whether this is what the same files were before.
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.system != other.system || (self.timeline, self.position) < (other.timeline, other.position)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = (self.position >> 32, self.position & 0xffff_ffff);
        write!(f, "{high:X}/{low:X} of timeline {}, system {}", self.timeline, self.system)
    }
}

/// What was last seen of a cluster's volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSeen {
    /// The volume that counts. Not known of what an earlier version made, until it is started.
    #[serde(default)]
    pub current: Option<VolumeId>,
    /// The volume that counts once a switch that is under way has come to its end.
    #[serde(default)]
    pub next: Option<VolumeId>,
    /// The newest checkpoint that was seen.
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
    /// What on the disk does not agree with what is on record.
    #[serde(default)]
    pub alarm: Option<String>,
}

impl Observation {
    /// Whether what the disk calls the volume that counts may be it.
    ///
    /// # Errors
    ///
    /// What is on record instead.
    pub fn check_volume(&self, found: VolumeId) -> Result<(), String> {
        let is_on_record = match (self.volume.current, self.encryption) {
            (Some(current), _) => found == current || Some(found) == self.volume.next,
            // An earlier version kept no number, and may have been stopped right after it moved out of plaintext.
            (None, Some(Encryption::None)) => true,
            (None, Some(kind)) => found.encryption == kind,
            // It was made, and the program ended before it could write so.
            (None, None) => !self.is_initialized,
        };
        if is_on_record {
            return Ok(());
        }
        let known = match (self.volume.current, self.encryption) {
            (Some(current), _) => current.to_string(),
            (None, Some(kind)) => kind.as_str().to_owned(),
            (None, None) => "none".to_owned(),
        };
        Err(format!(
            "complete.json on the disk names the volume ({found}), and the cloud's sealed state another ({known})"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: VolumeId = VolumeId { encryption: Encryption::FscryptImage, generation: 1 };
    const PLAIN: VolumeId = VolumeId { encryption: Encryption::None, generation: 1 };

    #[test]
    fn only_the_volume_on_record_counts_and_the_next_one_during_a_switch() {
        let mut seen = Observation { is_initialized: true, ..Observation::nothing_yet() };
        seen.encryption = Some(Encryption::FscryptImage);
        assert!(seen.check_volume(IMAGE).is_ok(), "of an earlier version");
        assert!(seen.check_volume(PLAIN).is_err());
        seen.volume.current = Some(IMAGE);
        let next = VolumeId { generation: 2, ..IMAGE };
        assert!(seen.check_volume(IMAGE).is_ok());
        for other in [PLAIN, next] {
            assert!(seen.check_volume(other).unwrap_err().contains("sealed state"), "{other}");
        }
        seen.volume.next = Some(next);
        assert!(seen.check_volume(next).is_ok() && seen.check_volume(IMAGE).is_ok());
        assert!(seen.check_volume(PLAIN).is_err());
    }

    #[test]
    fn checkpoints_grow_by_timeline_and_position_and_never_change_their_system() {
        let one = Checkpoint { system: 7, timeline: 1, position: 5 };
        for older in [Checkpoint { position: 4, ..one }, Checkpoint { system: 8, timeline: 2, position: 9 }] {
            assert!(older.is_older_than(&one), "{older}");
        }
        for newer in [one, Checkpoint { position: 6, ..one }, Checkpoint { timeline: 2, position: 1, ..one }]
        {
            assert!(!newer.is_older_than(&one), "{newer}");
        }
        assert_eq!(one.to_string(), "0/5 of timeline 1, system 7");
    }
}
