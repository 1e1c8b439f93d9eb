//! Tests of the root key: its file, how it is protected, and its rotation.

use std::fs;
use std::path::Path;

use super::*;
use crate::private_file::read_private;

fn passphrase(text: &str) -> SecretText {
    SecretText::new(text.to_owned())
}

fn open(path: &Path) -> Result<RootKey, Error> {
    KeyFile::read(path).unwrap().unwrap().open()
}

fn place() -> Binding {
    Binding::Volume(ClusterId::random())
}

#[tokio::test]
async fn a_wrapped_key_opens_for_its_own_cluster_only() {
    let folder = tempfile::tempdir().unwrap();
    let root = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
    let (place, other) = (place(), place());
    let key = DataKey::random();
    let wrapped = KeyEncryption::wrap(&root, &key, &place).await.unwrap();
    assert_eq!(KeyEncryption::unwrap(&root, &wrapped, &place).await.unwrap().expose(), key.expose());
    for elsewhere in [other, Binding::Root] {
        let refused = KeyEncryption::unwrap(&root, &wrapped, &elsewhere).await;
        assert!(matches!(refused, Err(KeyFailure::DoesNotOpen { .. })), "{elsewhere:?}");
    }
    let again = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
    assert_eq!(KeyEncryption::unwrap(&again, &wrapped, &place).await.unwrap().expose(), key.expose());
}

#[tokio::test]
async fn another_cloud_s_key_is_named_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = RootKey::open_or_create(&folder.path().join("one")).unwrap();
    let second = RootKey::open_or_create(&folder.path().join("two")).unwrap();
    let place = place();
    let wrapped = KeyEncryption::wrap(&first, &DataKey::random(), &place).await.unwrap();
    let refused = KeyEncryption::unwrap(&second, &wrapped, &place).await.unwrap_err().to_string();
    assert!(refused.contains(&first.id()) && refused.contains(&second.id()), "{refused}");
}

#[tokio::test]
async fn keys_wrapped_by_the_first_version_of_this_program_open() {
    // Made by an independent program of that version's rules: root key of 32 bytes 07, data key of 64 bytes 09.
    let wrapped: WrappedKey = serde_json::from_str(include_str!("../fixtures/wrapped-1.json")).unwrap();
    let place = Binding::Volume("11111111-2222-4333-8444-555555555555".parse().unwrap());
    for roots in [&[(1, 7)][..], &[(2, 8), (1, 7)]] {
        let root = RootKey::for_test(roots);
        assert_eq!(KeyEncryption::unwrap(&root, &wrapped, &place).await.unwrap().expose(), &[9; 64]);
    }
    for roots in [&[(1, 8)][..], &[(2, 7)]] {
        assert!(KeyEncryption::unwrap(&RootKey::for_test(roots), &wrapped, &place).await.is_err());
    }
}

#[test]
fn a_damaged_key_file_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kek");
    let digits = "07".repeat(32);
    let damaged = [
        String::new(),
        "chitin-kek-1 00".to_owned(),
        "chitin-kek-1 zz".to_owned(),
        "hello".to_owned(),
        "chitin-kek-2".to_owned(),
        "chitin-kek-2\n{}\n".to_owned(),
        "chitin-kek-2\n{\"protection\":\"file\"}\n".to_owned(),
        format!("chitin-kek-2\n{{\"protection\":\"file\"}}\nroot 0 {digits}\n"),
        format!("chitin-kek-2\n{{\"protection\":\"file\"}}\nroot 1 {digits}\nroot 2 {digits}\n"),
        format!("chitin-kek-2\n{{\"protection\":\"file\"}}\nroot 2 {digits}\nroot 2 {digits}\n"),
        format!("chitin-kek-2\n{{\"protection\":\"file\"}}\nroot 1 {digits} x\n"),
        format!("chitin-kek-2\n{{\"protection\":\"credential\",\"id\":\"00\"}}\nroot 1 {digits}\n"),
    ];
    for damaged in damaged {
        write_private(&path, damaged.as_bytes()).unwrap();
        assert!(matches!(RootKey::open_or_create(&path), Err(Error::Damaged { .. })), "{damaged}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
}

#[test]
fn a_new_key_file_is_one_that_older_programs_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kek");
    RootKey::open_or_create(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let digits = text.strip_prefix("chitin-kek-1 ").unwrap().trim_end();
    assert!(digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[test]
fn a_passphrase_protects_the_file_and_a_wrong_one_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kek");
    let root = RootKey::open_or_create(&path).unwrap();
    let digits = fs::read_to_string(&path).unwrap()["chitin-kek-1 ".len()..].trim_end().to_owned();
    let sealed = root.sealer("state").unwrap().seal(b"a", b"value").unwrap();
    root.protect(&Protect::Passphrase(&passphrase("correct horse battery"))).unwrap();

    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains(&digits) && !text.contains("horse"));
    assert!(matches!(open(&path), Err(Error::Root(Refusal::NeedsPassphrase { .. }))));
    let with = |text: &str| KeyFile::read(&path).unwrap().unwrap().open_with_passphrase(&passphrase(text));
    let refused = with("correct horse batterz").unwrap_err().to_string();
    assert!(refused.contains("passphrase is another one") && !refused.contains("horse"), "{refused}");
    let again = with("correct horse battery").unwrap();
    assert_eq!(again.sealer("state").unwrap().open(b"a", &sealed).unwrap().expose(), b"value");

    again.protect(&Protect::File).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap().trim_end(), format!("chitin-kek-1 {digits}"));
}

#[test]
fn a_protected_file_that_was_changed_anywhere_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kek");
    let root = RootKey::open_or_create(&path).unwrap();
    root.protect(&Protect::Passphrase(&passphrase("correct horse battery"))).unwrap();
    let good = fs::read(&path).unwrap();
    // Each try costs a derivation, so every seventh byte: all parts of the file are met.
    for position in (0..good.len() - 1).step_by(7) {
        let mut changed = good.clone();
        changed[position] ^= 1;
        write_private(&path, &changed).unwrap();
        let opened = KeyFile::read(&path)
            .and_then(|file| file.unwrap().open_with_passphrase(&passphrase("correct horse battery")));
        assert!(opened.is_err(), "byte {position}");
    }
}

#[test]
fn a_credential_keeps_the_root_key_out_of_the_data_directory() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("kek"), folder.path().join("credential"));
    let root = RootKey::open_or_create(&path).unwrap();
    let id = root.id();
    root.protect(&Protect::Credential(&copy)).unwrap();
    assert!(!fs::read_to_string(&path).unwrap().contains("root "));
    assert!(matches!(open(&path), Err(Error::Root(Refusal::NeedsCredential { .. }))));
    assert!(RootKey::open_or_create(&path).is_err(), "a lost credential never makes a new key");

    let credential = read_private(&copy).unwrap().unwrap();
    let again = KeyFile::read(&path).unwrap().unwrap().open_with_credential(&credential).unwrap();
    assert_eq!(again.id(), id);
    assert!(matches!(again.begin_rotation(), Err(Error::Root(Refusal::InCredential))));
    assert_eq!(again.versions(), [1], "what was not written is not used");

    let other = RootKey::open_or_create(&folder.path().join("other")).unwrap();
    other.protect(&Protect::Credential(&folder.path().join("other-credential"))).unwrap();
    let foreign = read_private(&folder.path().join("other-credential")).unwrap().unwrap();
    let refused = KeyFile::read(&path).unwrap().unwrap().open_with_credential(&foreign);
    assert!(matches!(refused, Err(Error::Root(Refusal::OtherCredential { .. }))));
    for bad in ["", "chitin-kek-1 zz", "chitin-kek-2\n{\"protection\":\"credential\",\"id\":\"00\"}\n"] {
        let bad = Secret::new(bad.as_bytes().to_vec());
        assert!(KeyFile::read(&path).unwrap().unwrap().open_with_credential(&bad).is_err());
    }
}

#[tokio::test]
async fn a_service_s_key_protects_the_file_and_without_it_nothing_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kek");
    // Another cloud's root key stands for the service: it is a key-encryption key as any other.
    let (service, stranger) = (RootKey::for_test(&[(1, 3)]), RootKey::for_test(&[(1, 4)]));
    let root = RootKey::open_or_create(&path).unwrap();
    root.protect_by_service(&service).await.unwrap();
    assert!(matches!(open(&path), Err(Error::Root(Refusal::NeedsService { .. }))));
    let file = || KeyFile::read(&path).unwrap().unwrap();
    assert_eq!(file().open_by_service(&service).await.unwrap().id(), root.id());
    let refused = file().open_by_service(&stranger).await;
    assert!(matches!(refused, Err(Error::Root(Refusal::Service { .. }))));

    let good = fs::read_to_string(&path).unwrap();
    let sealed = good.lines().last().unwrap();
    let swapped = format!("{}B{}", &sealed[..5], &sealed[6..]);
    let swapped = if swapped == sealed { format!("{}C{}", &sealed[..5], &sealed[6..]) } else { swapped };
    write_private(&path, good.replace(sealed, &swapped).as_bytes()).unwrap();
    assert!(matches!(file().open_by_service(&service).await, Err(Error::Root(Refusal::WrongService { .. }))));

    // A rotation needs no service: the file is written anew under the key that it has.
    write_private(&path, good.as_bytes()).unwrap();
    let again = file().open_by_service(&service).await.unwrap();
    again.begin_rotation().unwrap();
    assert_eq!(file().open_by_service(&service).await.unwrap().versions(), [2, 1]);
}

#[tokio::test]
async fn everything_opens_at_each_step_of_a_rotation_and_nothing_old_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kek");
    let root = RootKey::open_or_create(&path).unwrap();
    let (place, key) = (place(), DataKey::random());
    let sealer = root.sealer("state").unwrap();
    let old = KeyEncryption::wrap(&root, &key, &place).await.unwrap();
    let old_value = sealer.seal(b"a", b"value").unwrap();

    assert_eq!(root.begin_rotation().unwrap(), 2);
    assert!(!sealer.is_current(&old_value), "a sealer that was there before knows of it");
    let new = KeyEncryption::wrap(&root, &key, &place).await.unwrap();
    let new_value = sealer.seal(b"a", b"value").unwrap();
    assert!(sealer.is_current(&new_value));
    assert_eq!((old.key_version.as_str(), new.key_version.as_str()), ("1", "2"));
    for root in [&root, &open(&path).unwrap()] {
        assert_eq!(root.versions(), [2, 1]);
        let sealer = root.sealer("state").unwrap();
        for (wrapped, value) in [(&old, &old_value), (&new, &new_value)] {
            assert_eq!(KeyEncryption::unwrap(root, wrapped, &place).await.unwrap().expose(), key.expose());
            assert_eq!(sealer.open(b"a", value).unwrap().expose(), b"value");
        }
    }

    assert_eq!(root.retire(&BTreeSet::from([1])).unwrap(), Vec::<u32>::new(), "it is needed");
    assert_eq!(root.retire(&BTreeSet::new()).unwrap(), [1]);
    assert_eq!(root.retire(&BTreeSet::new()).unwrap(), Vec::<u32>::new(), "once more does nothing");
    for root in [&root, &open(&path).unwrap()] {
        assert_eq!(root.versions(), [2]);
        let sealer = root.sealer("state").unwrap();
        assert_eq!(KeyEncryption::unwrap(root, &new, &place).await.unwrap().expose(), key.expose());
        assert!(sealer.open(b"a", &new_value).is_ok());
        assert!(KeyEncryption::unwrap(root, &old, &place).await.is_err());
        assert!(sealer.open(b"a", &old_value).is_err());
    }
}

#[test]
fn versions_of_a_root_key_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let root = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
    for _ in 1..ROOTS_MAX {
        root.begin_rotation().unwrap();
    }
    assert!(matches!(root.begin_rotation(), Err(Error::Root(Refusal::TooManyVersions))));
    assert_eq!(open(&folder.path().join("kek")).unwrap().versions().len(), ROOTS_MAX);
}

#[test]
fn a_backup_holds_every_version_and_opens_with_its_own_passphrase() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = (folder.path().join("kek"), folder.path().join("backup"));
    let root = RootKey::open_or_create(&path).unwrap();
    root.begin_rotation().unwrap();
    assert!(root.back_up(&backup, &passphrase("short")).is_err());
    assert!(!backup.exists());
    root.back_up(&backup, &passphrase("correct horse battery")).unwrap();
    assert_eq!(root.protection(), Protection::File, "the cloud's own file stays as it was");

    fs::remove_file(&path).unwrap();
    let file = KeyFile::read(&backup).unwrap().unwrap();
    let back = file.open_with_passphrase(&passphrase("correct horse battery")).unwrap();
    assert_eq!(back.ids(), root.ids());
    back.move_to(&path).unwrap();
    assert!(
        matches!(open(&path), Err(Error::Root(Refusal::NeedsPassphrase { .. }))),
        "no weaker than the backup"
    );
}

#[test]
fn a_root_key_does_not_print() {
    let root = RootKey::for_test(&[(2, 8), (1, 7)]);
    let printed = format!("{root:?} {:?}", root.sealer("state").unwrap());
    assert!(!printed.contains("0707") && !printed.contains("0808") && !printed.contains("7, 7"), "{printed}");
}
