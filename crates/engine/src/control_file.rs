//! PostgreSQL's `pg_control`: up to where everything is on the disk (src/include/catalog/pg_control.h).

use std::path::Path;

use model::Checkpoint;

use crate::Error;
use crate::inside::Inside;

/// `PG_CONTROL_VERSION` of PostgreSQL 14 to 18, in whose files what is read here lies at the same places.
const VERSIONS: std::ops::RangeInclusive<u32> = 1_300..=1_899;

/// The checkpoint from which the engine would begin.
pub(crate) fn checkpoint(base: &Path) -> Result<Checkpoint, Error> {
    let bytes = Inside::open(base, "pg")?.below("global")?.read_bytes("pg_control");
    parse(&bytes.unwrap_or_default())
        .ok_or_else(|| Error::VolumeRefused { reason: "its pg_control cannot be read".to_owned() })
}

/// Whether the engine ended as it should, so that its next start repeats nothing from its log; also where there is none yet.
pub(crate) fn is_shut_down(base: &Path) -> Result<bool, Error> {
    let data = match Inside::open(base, "pg") {
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        opened => opened?,
    };
    let Some(global) = data.enter("global")? else {
        return Ok(true);
    };
    Ok(global.read_bytes("pg_control").is_none_or(|bytes| says_shut_down(&bytes)))
}

/// `state` is `DB_SHUTDOWNED`.
fn says_shut_down(bytes: &[u8]) -> bool {
    bytes.get(16..20).is_some_and(|state| state == 1_u32.to_ne_bytes())
}

fn parse(bytes: &[u8]) -> Option<Checkpoint> {
    let whole = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if !VERSIONS.contains(&half(8)?) {
        return None;
    }
    // system_identifier, checkPoint, checkPointCopy.ThisTimeLineID.
    Some(Checkpoint { system: whole(0)?, position: whole(32)?, timeline: half(48)? })
}

/// Refuses files that are older than what was seen of them, or others.
pub(crate) fn check(base: &Path, newest: &Checkpoint) -> Result<(), Error> {
    let found = checkpoint(base)?;
    if found.is_older_than(newest) {
        return Err(Error::VolumeRefused {
            reason: format!(
                "its last checkpoint is {found}, and the cloud has seen {newest}: an older copy was put in its place; bring \
                 back the newest, or, if it was restored on purpose, accept it: chitin cluster accept-restored NAME"
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_control_file_of_a_known_version_tells_nothing() {
        let mut bytes = vec![0; 8_192];
        assert_eq!(parse(&bytes), None);
        assert_eq!(parse(&[]), None);
        bytes[0..8].copy_from_slice(&7_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1_300_u32.to_ne_bytes());
        bytes[32..40].copy_from_slice(&0x1_0000_0005_u64.to_ne_bytes());
        bytes[48..52].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(parse(&bytes), Some(Checkpoint { system: 7, timeline: 3, position: 0x1_0000_0005 }));
        assert_eq!(parse(&bytes[..50]), None);
        assert!(!says_shut_down(&bytes) && !says_shut_down(&[]));
        bytes[16] = 1;
        assert!(says_shut_down(&bytes));
    }
}
