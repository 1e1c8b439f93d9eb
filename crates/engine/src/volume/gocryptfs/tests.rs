//! gocryptfs as the tests of this room see it: mounted, used as an engine's user, and looked at from both sides.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::skipped::skipped;

/// An engine's user that no cluster of other tests has.
const ENGINE: Owner = Owner { uid: 1_900_090_001, gid: 1_900_090_001 };
/// Clients at the same time, and the files that each makes.
const CLIENTS: usize = 8;
const FILES_EACH: usize = 500;

#[test]
fn the_cipher_is_what_gocryptfs_wrote_down() {
    let config =
        br#"{"Creator":"gocryptfs 2.3","FeatureFlags":["HKDF","GCMIV128","DirIV","EMENames","LongNames"]}"#;
    assert_eq!(cipher_of(config).as_deref(), Some("AES-256-GCM and AES-256-EME for names"));
    assert_eq!(cipher_of(br#"{"FeatureFlags":[]}"#), None, "a name that we do not know proves nothing");
    assert_eq!(cipher_of(b"nonsense"), None);
}

/// What this machine lacks for a volume of root's.
fn lacking() -> Option<&'static str> {
    if !is_root() {
        return Some("only root gives a volume to an engine's user");
    }
    File::open("/dev/fuse").err().map(|_| "the kernel has no FUSE")
}

/// A folder that others may pass, with an empty volume in it.
fn volume(key: &DataKey) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    create(folder.path(), key).unwrap();
    folder
}

fn as_engine(script: &str, folder: &Path, client: usize) -> Child {
    let (uid, gid) = (ENGINE.uid.to_string(), ENGINE.gid.to_string());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "sh", "-c", script]);
    command.arg(folder.join(FILES)).args([client.to_string(), FILES_EACH.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Every file and folder below, and whose it is.
fn owners(folder: &Path) -> Vec<(PathBuf, u32, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let facts = entry.metadata().unwrap();
        found.push((entry.path(), facts.uid(), facts.gid()));
        if facts.is_dir() {
            found.extend(owners(&entry.path()));
        }
    }
    found
}

#[test]
fn clients_that_make_files_at_the_same_time_are_all_served_and_each_file_is_the_engine_s() {
    if let Some(reason) = lacking() {
        return skipped(reason);
    }
    let key = DataKey::random();
    let folder = volume(&key);
    let unlocked = unlock(folder.path(), &key, ENGINE).unwrap();
    crate::places::give(&folder.path().join(FILES), ENGINE).unwrap();
    let make = r#"mkdir "$0/$1" || exit 1; i=0
                  while [ $i -lt $2 ]; do echo $i >"$0/$1/$i" || exit 1; i=$((i + 1)); done"#;
    let clients: Vec<Child> = (0..CLIENTS).map(|client| as_engine(make, folder.path(), client)).collect();
    for client in clients {
        let ended = client.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let seen = owners(&folder.path().join(FILES));
    assert_eq!(seen.len(), CLIENTS * (FILES_EACH + 1));
    let strange = seen.iter().find(|(_, uid, gid)| (*uid, *gid) != (ENGINE.uid, ENGINE.gid));
    assert_eq!(strange, None, "a file belongs to somebody else");
    // Below too, so that the volume opens in whatever way it is mounted.
    let ciphers = owners(&folder.path().join(CIPHER));
    let of_the_engine = ciphers.iter().filter(|(_, uid, _)| *uid == ENGINE.uid).count();
    assert!(of_the_engine >= seen.len(), "{of_the_engine} of {}", seen.len());
    unlocked.lock().unwrap();
}

#[test]
fn the_server_has_the_engine_s_user_and_no_more_of_root_s_rights_than_it_needs() {
    if let Some(reason) = lacking() {
        return skipped(reason);
    }
    let key = DataKey::random();
    let folder = volume(&key);
    let unlocked = unlock(folder.path(), &key, ENGINE).unwrap();
    let servers = servers_of(&folder.path().join(CIPHER));
    let [server] = servers[..] else { panic!("{servers:?}") };
    let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let fact = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(fact("Uid:"), ["1900090001"; 4]);
    assert_eq!(fact("Gid:"), ["1900090001"; 4]);
    assert_eq!(fact("NoNewPrivs:"), ["1"]);
    // CAP_CHOWN, CAP_DAC_OVERRIDE and CAP_FOWNER.
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(fact(set), ["000000000000000b"], "{set}");
    }
    // Who has the engine's user and none of its rights does not come at its memory, where the key is.
    let mut look = Command::new("setpriv");
    look.args(["--reuid", "1900090001", "--regid", "1900090001", "--clear-groups", "head", "-c1"]);
    let looked = look.arg(format!("/proc/{server}/environ")).output().unwrap();
    assert!(!looked.status.success(), "an engine's process could read what gocryptfs has");
    unlocked.lock().unwrap();
    assert_eq!(mounts_below(folder.path()), Vec::<PathBuf>::new());
    assert_eq!(servers_of(&folder.path().join(CIPHER)), Vec::<u32>::new());
}

#[test]
fn files_from_before_and_files_that_the_engine_shut_still_open() {
    if let Some(reason) = lacking() {
        return skipped(reason);
    }
    let key = DataKey::random();
    let folder = volume(&key);
    let (files, cipher) = (folder.path().join(FILES), folder.path().join(CIPHER));
    let unlocked = unlock(folder.path(), &key, ENGINE).unwrap();
    std::fs::create_dir(files.join("inner")).unwrap();
    std::fs::write(files.join("inner/file"), "kept").unwrap();
    unlocked.lock().unwrap();
    // As gocryptfs left them when it ran as root.
    for (path, ..) in owners(&cipher) {
        std::os::unix::fs::lchown(path, Some(0), Some(0)).unwrap();
    }
    let unlocked = unlock(folder.path(), &key, ENGINE).unwrap();
    assert_eq!(std::fs::read_to_string(files.join("inner/file")).unwrap(), "kept");
    for name in ["inner/file", "inner", ""] {
        std::os::unix::fs::lchown(files.join(name), Some(ENGINE.uid), Some(ENGINE.gid)).unwrap();
        // An engine may take its own rights away, and with them nobody else's.
        std::fs::set_permissions(files.join(name), std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    unlocked.lock().unwrap();
    let unlocked = unlock(folder.path(), &key, ENGINE).unwrap();
    assert_eq!(std::fs::read_to_string(files.join("inner/file")).unwrap(), "kept");
    std::fs::write(files.join("inner/file"), "written").unwrap();
    std::fs::remove_dir_all(files.join("inner")).unwrap();
    unlocked.lock().unwrap();
}

#[test]
fn a_volume_that_does_not_open_says_why_and_leaves_no_mount() {
    if File::open("/dev/fuse").is_err() {
        return skipped("the kernel has no FUSE");
    }
    let (key, other) = (DataKey::random(), DataKey::random());
    let folder = volume(&key);
    let refused = unlock(folder.path(), &other, ENGINE).unwrap_err().to_string();
    assert!(refused.contains("Password incorrect"), "{refused}");
    assert!(!refused.contains("Reading Password"), "what is no reason is not told: {refused}");
    assert_eq!(mounts_below(folder.path()), Vec::<PathBuf>::new());
    assert_eq!(servers_of(&folder.path().join(CIPHER)), Vec::<u32>::new());
}
