//! PostgreSQL's `pg_control`: up to where everything is on the disk (src/include/catalog/pg_control.h).

use std::path::Path;

use model::Checkpoint;
use time::OffsetDateTime;

use crate::Error;
use crate::inside::Inside;

/// `PG_CONTROL_VERSION` of PostgreSQL 14 to 18, in whose files what is read here lies at the same places.
const VERSIONS: std::ops::RangeInclusive<u32> = 1_300..=1_899;
/// Where the checksum lies, which is the last of `ControlFileData`: some 290 bytes in, and in the first sector.
const STRUCT_BYTES_MIN: usize = 200;
const STRUCT_BYTES_MAX: usize = 508;
/// `MOCK_AUTH_NONCE_LEN`. It lies before the checksum; from PostgreSQL 18 on three bytes are between them, because
/// `default_char_signedness` is before it.
const NONCE_BYTES: usize = 32;
const BEFORE_NONCE_IS_A_BYTE: u32 = 1_800;

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

/// Gives files that were copied from others a name of their own: a fresh `system_identifier`, made as `initdb` makes it, and a
/// fresh `mock_authentication_nonce`. `None` where this is no whole `pg_control` of a version that we know.
///
/// What the write-ahead log calls its files is another then, so the log is to be begun anew (`pg_resetwal`).
pub(crate) fn renamed(bytes: &[u8], now: OffsetDateTime) -> Option<Vec<u8>> {
    parse(bytes)?;
    // It ends with the checksum of all before, which no other place has.
    let checksum = |bytes: &[u8], at: usize| crc32c::crc32c(&bytes[..at]).to_ne_bytes();
    let places = (STRUCT_BYTES_MIN..=STRUCT_BYTES_MAX).step_by(align_of::<u32>());
    let end =
        places.clone().find(|&at| bytes.get(at..at + 4).is_some_and(|kept| kept == checksum(bytes, at)))?;
    let version = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let nonce = end - if version >= BEFORE_NONCE_IS_A_BYTE { NONCE_BYTES + 3 } else { NONCE_BYTES };

    let mut renamed = bytes.to_vec();
    keys::fill_random(&mut renamed[nonce..nonce + NONCE_BYTES]);
    let mut low = [0; 4];
    keys::fill_random(&mut low);
    let seconds = u64::try_from(now.unix_timestamp()).ok()?;
    let system = (seconds << 32) | u64::from(u32::from_ne_bytes(low));
    renamed[..8].copy_from_slice(&system.to_ne_bytes());
    let sum = checksum(&renamed, end);
    renamed[end..end + 4].copy_from_slice(&sum);
    Some(renamed)
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
    fn a_copy_has_a_name_and_a_nonce_of_its_own_and_all_else_of_the_first() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for (version, end, nonce) in [(1_300_u32, 288, 256..288), (1_800, 296, 261..293)] {
            let mut first: Vec<u8> = (0..=250_u8).cycle().take(end).collect();
            first.resize(8_192, 0);
            first[8..12].copy_from_slice(&version.to_ne_bytes());
            let sum = crc32c::crc32c(&first[..end]).to_ne_bytes();
            first[end..end + 4].copy_from_slice(&sum);

            let copy = renamed(&first, now).unwrap();
            assert_eq!(parse(&copy).unwrap().system >> 32, 1_800_000_000);
            assert_eq!(copy[end..end + 4], crc32c::crc32c(&copy[..end]).to_ne_bytes());
            assert_ne!(copy[nonce.clone()], first[nonce.clone()]);
            let changed: Vec<usize> = (0..first.len()).filter(|&at| copy[at] != first[at]).collect();
            let may_change = |at: usize| at < 8 || nonce.contains(&at) || (end..end + 4).contains(&at);
            assert!(changed.into_iter().all(may_change), "version {version}");
            assert_ne!(renamed(&first, now).unwrap(), copy, "two have the same name");

            first[100] ^= 1;
            assert_eq!(renamed(&first, now), None, "it is damaged");
        }
        assert_eq!(renamed(&[], now), None);
    }

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
