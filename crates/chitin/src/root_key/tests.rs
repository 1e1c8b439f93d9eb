//! Tests of the root key at start, of its commands and of its rotation.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use keys::{Authority, Binding, DataKey, KeyEncryption, WrappedKey};
use model::{ClusterId, SystemClock};
use std::time::Duration;
use store::{Draft, Store};
use time::OffsetDateTime;

use super::command::KeyCommand;
use super::rotation::{Rotation, Standing};
use super::*;

const PASSPHRASE: &str = "correct horse battery";

/// A data directory with files beside it.
struct Home {
    folder: tempfile::TempDir,
}

/// A cloud without engines, as it is between two starts.
struct Open {
    root: Arc<RootKey>,
    store: Arc<Store>,
    rotation: Arc<Rotation>,
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn paths(&self) -> Paths {
        Paths::prepare(&self.data()).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        keys::write_private(&path, text.as_bytes()).unwrap();
        path
    }

    fn with_passphrase(&self, text: &str) -> Unlock {
        Unlock { passphrase_file: Some(self.file("passphrase", text)), ..Unlock::default() }
    }

    async fn open(&self) -> Open {
        let paths = self.paths();
        let root = Arc::new(open(&paths, &Unlock::default()).await.unwrap());
        let store = Store::open(&paths.state(), root.sealer("state").unwrap()).unwrap();
        Authority::open_or_create(paths.data(), &root.sealer("authority").unwrap(), &SystemClock).unwrap();
        let rotation = Rotation::waiting(root.clone(), store.clone(), paths, Duration::ZERO).unwrap();
        Open { root, store, rotation }
    }

    /// Runs a command as somebody types it.
    async fn run(&self, words: &[&str]) -> Result<String, String> {
        #[derive(Parser)]
        struct Line {
            #[command(subcommand)]
            command: KeyCommand,
        }
        let line = Line::try_parse_from(["key"].iter().chain(words)).map_err(|cause| cause.to_string())?;
        command::run(line.command, &self.data()).await
    }

    async fn wrap(&self, root: &RootKey, folder: &str) -> ClusterId {
        let id = ClusterId::random();
        let wrapped = KeyEncryption::wrap(root, &DataKey::random(), &Binding::Volume(id)).await.unwrap();
        self.keep(id, folder, &wrapped);
        id
    }

    fn keep(&self, id: ClusterId, folder: &str, wrapped: &WrappedKey) {
        let cluster = self.data().join("clusters").join(id.to_string());
        fs::create_dir_all(cluster.join(folder)).unwrap();
        fs::write(cluster.join("complete.json"), "{}").unwrap();
        fs::write(cluster.join(folder).join("key.json"), serde_json::to_vec(wrapped).unwrap()).unwrap();
    }
}

fn draft(name: &str) -> Draft {
    Draft {
        name: name.parse().unwrap(),
        plan: model::Plan::Serverless,
        provider: model::Provider::Gcp,
        regions: vec!["local".to_owned()],
        labels: BTreeMap::new(),
        is_delete_protected: false,
        allowlist: Vec::new(),
        network: model::Network::default(),
        egress: model::Egress::default(),
        asked: model::Asked::default(),
    }
}

#[tokio::test]
async fn a_lost_key_is_said_and_never_replaced() {
    let home = Home::new();
    drop(home.open().await);
    let kek = home.paths().key_encryption_key();
    fs::remove_file(&kek).unwrap();
    let refused = open(&home.paths(), &Unlock::default()).await.unwrap_err();
    assert!(
        matches!(refused, Error::Lost { .. }) && refused.to_string().contains("chitin key recover"),
        "{refused}"
    );
    assert!(!kek.exists());
    fs::remove_file(home.paths().state()).unwrap();
    assert!(
        matches!(open(&home.paths(), &Unlock::default()).await, Err(Error::Lost { .. })),
        "ca.key is left"
    );
}

#[tokio::test]
async fn a_protected_cloud_starts_with_its_passphrase_alone() {
    let home = Home::new();
    let id = home.open().await.root.id();
    let new = home.file("new", PASSPHRASE);
    let told =
        home.run(&["protect", "--with=passphrase", "--new-passphrase-file", new.to_str().unwrap()]).await;
    assert!(told.unwrap().contains("passphrase"));

    let refused = open(&home.paths(), &Unlock::default()).await.unwrap_err().to_string();
    assert!(refused.contains("--passphrase-file"), "{refused}");
    let refused =
        open(&home.paths(), &home.with_passphrase("wrong horse battery")).await.unwrap_err().to_string();
    assert!(refused.contains("chitin key recover") && !refused.contains("horse"), "{refused}");
    assert_eq!(open(&home.paths(), &home.with_passphrase(PASSPHRASE)).await.unwrap().id(), id);
    let typed = Unlock { typed: Some(SecretText::new(PASSPHRASE.to_owned())), ..Unlock::default() };
    assert_eq!(open(&home.paths(), &typed).await.unwrap().id(), id);

    let readable = home.with_passphrase(PASSPHRASE);
    let file = readable.passphrase_file.clone().unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(open(&home.paths(), &readable).await.unwrap_err().to_string().contains("chmod 600"));
}

#[tokio::test]
async fn systemd_s_credentials_unlock_and_a_lost_one_stops_the_start() {
    let home = Home::new();
    let id = home.open().await.root.id();
    let credentials = home.folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let unlock = Unlock { credentials: Some(credentials.clone()), ..Unlock::default() };

    // The passphrase.
    let new = home.file("new", PASSPHRASE);
    home.run(&["protect", "--with=passphrase", "--new-passphrase-file", new.to_str().unwrap()])
        .await
        .unwrap();
    assert!(open(&home.paths(), &unlock).await.is_err());
    keys::write_private(&credentials.join("chitin-kek-passphrase"), PASSPHRASE.as_bytes()).unwrap();
    assert_eq!(open(&home.paths(), &unlock).await.unwrap().id(), id);
    // As systemd's access lists show for a service's user; but never for everybody.
    let passphrase = credentials.join("chitin-kek-passphrase");
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o440)).unwrap();
    assert_eq!(open(&home.paths(), &unlock).await.unwrap().id(), id);
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(open(&home.paths(), &unlock).await.is_err());

    // The root key itself.
    let opener = new.to_str().unwrap();
    let copy = home.folder.path().join("copy");
    let words = [
        "protect",
        "--with=credential",
        "--passphrase-file",
        opener,
        "--credential-file",
        copy.to_str().unwrap(),
    ];
    assert!(home.run(&words).await.unwrap().contains("systemd-creds encrypt"));
    let refused = open(&home.paths(), &Unlock::default()).await.unwrap_err().to_string();
    assert!(refused.contains("chitin-kek"), "{refused}");
    fs::copy(&copy, credentials.join("chitin-kek")).unwrap();
    assert_eq!(open(&home.paths(), &unlock).await.unwrap().id(), id);

    // Where the directory has a whole key of its own, nobody guesses which is right.
    let other = Home::new();
    drop(other.open().await);
    assert!(matches!(open(&other.paths(), &unlock).await, Err(Error::Two { .. })));
    // A new cloud takes it, and asks for it ever after.
    let new = Home::new();
    assert_eq!(open(&new.paths(), &unlock).await.unwrap().id(), id);
    assert!(open(&new.paths(), &Unlock::default()).await.is_err());
}

#[tokio::test]
async fn a_backup_brings_a_cloud_back_whose_key_file_was_lost() {
    let home = Home::new();
    let (kek, id) = {
        let cloud = home.open().await;
        cloud.store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
        (home.paths().key_encryption_key(), cloud.root.id())
    };
    let new = home.file("new", PASSPHRASE);
    let file = home.folder.path().join("backup");
    let backup = ["backup", file.to_str().unwrap(), "--new-passphrase-file", new.to_str().unwrap()];
    let procedure = home.run(&backup).await.unwrap();
    assert!(procedure.contains("chitin key recover") && procedure.contains(&id), "{procedure}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let digits = fs::read_to_string(&kek).unwrap()["chitin-kek-1 ".len()..].trim_end().to_owned();
    assert!(!fs::read_to_string(&file).unwrap().contains(&digits) && !procedure.contains(&digits));
    assert!(home.run(&backup).await.unwrap_err().contains("exists already"));

    let recover = ["recover", file.to_str().unwrap(), "--passphrase-file", new.to_str().unwrap()];
    assert!(home.run(&recover).await.unwrap().contains("already"), "the same key is there");
    let other = Home::new();
    drop(other.open().await);
    let before = fs::read(other.paths().key_encryption_key()).unwrap();
    assert!(other.run(&recover).await.unwrap_err().contains("nothing was changed"), "another cloud's key");
    assert_eq!(fs::read(other.paths().key_encryption_key()).unwrap(), before);
    fs::remove_file(other.paths().key_encryption_key()).unwrap();
    let refused = other.run(&recover).await.unwrap_err();
    assert!(
        refused.contains("does not open the state") && !other.paths().key_encryption_key().exists(),
        "{refused}"
    );

    fs::remove_file(&kek).unwrap();
    let wrong = home.file("wrong", "wrong horse battery");
    let guess = ["recover", file.to_str().unwrap(), "--passphrase-file", wrong.to_str().unwrap()];
    assert!(home.run(&guess).await.unwrap_err().contains("passphrase"));
    assert!(!kek.exists());
    assert!(home.run(&recover).await.unwrap().contains("it opens the state"));
    assert!(open(&home.paths(), &Unlock::default()).await.is_err(), "it is no weaker than the backup was");
    let words = ["protect", "--with=file", "--passphrase-file", new.to_str().unwrap()];
    home.run(&words).await.unwrap();
    assert_eq!(home.open().await.store.snapshot().len(), 1);
}

#[tokio::test]
async fn a_running_cloud_s_key_file_is_left_alone() {
    let home = Home::new();
    drop(home.open().await);
    let file = home.folder.path().join("backup");
    let new = home.file("new", PASSPHRASE);
    let _running = home.paths().claim().unwrap();
    let before = fs::read(home.paths().key_encryption_key()).unwrap();
    // A backup only reads.
    home.run(&["backup", file.to_str().unwrap(), "--new-passphrase-file", new.to_str().unwrap()])
        .await
        .unwrap();
    for words in [
        vec!["protect", "--with=passphrase", "--new-passphrase-file", new.to_str().unwrap()],
        vec!["recover", file.to_str().unwrap(), "--passphrase-file", new.to_str().unwrap()],
    ] {
        assert!(home.run(&words).await.unwrap_err().contains("stop that one first"), "{words:?}");
    }
    assert_eq!(fs::read(home.paths().key_encryption_key()).unwrap(), before);
    let nowhere = Home::new();
    assert!(nowhere.run(&["backup", file.to_str().unwrap()]).await.is_err());
    assert!(!nowhere.data().join("kek").exists(), "looking for a key makes none");
}

#[tokio::test]
async fn a_rotation_reaches_everything_and_the_old_version_goes_when_nothing_needs_it() {
    let home = Home::new();
    let cloud = home.open().await;
    cloud.store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
    let in_use = home.wrap(&cloud.root, "").await;
    let being_made = home.wrap(&cloud.root, "volume-2").await;
    let standing = cloud.rotation.rotate_root().await.unwrap();
    assert_eq!(standing, Standing { current: 2, earlier: vec![1] });
    assert_eq!(cloud.rotation.settle().await.unwrap().earlier, [1], "two data keys are under it");

    let rewrap = async |id: ClusterId, folder: &str| {
        let path = home.data().join("clusters").join(id.to_string()).join(folder).join("key.json");
        let old: WrappedKey = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let key = KeyEncryption::unwrap(&*cloud.root, &old, &Binding::Volume(id)).await.unwrap();
        let new = KeyEncryption::wrap(&*cloud.root, &key, &Binding::Volume(id)).await.unwrap();
        home.keep(id, folder, &new);
    };
    rewrap(in_use, "").await;
    assert_eq!(cloud.rotation.settle().await.unwrap().earlier, [1], "a volume that is being made needs it");
    rewrap(being_made, "volume-2").await;
    assert_eq!(cloud.rotation.settle().await.unwrap(), Standing { current: 2, earlier: vec![] });
    assert_eq!(cloud.store.snapshot().len(), 1);
    cloud.store.create(draft("shop-two"), OffsetDateTime::now_utc()).unwrap();
    drop(cloud);
    let again = home.open().await;
    assert_eq!((again.root.versions(), again.store.snapshot().len()), (vec![2], 2));
}

#[tokio::test]
async fn a_key_file_that_cannot_be_read_keeps_every_version() {
    let home = Home::new();
    let cloud = home.open().await;
    let id = home.wrap(&cloud.root, "").await;
    cloud.rotation.rotate_root().await.unwrap();
    let path = home.data().join("clusters").join(id.to_string()).join("key.json");
    for damaged in
        [&b"{"[..], b"", b"{\"key_id\":\"a\",\"key_version\":\"x\",\"algorithm\":\"\",\"wrapped\":\"\"}"]
    {
        fs::write(&path, damaged).unwrap();
        assert_eq!(cloud.rotation.settle().await.unwrap().earlier, [1]);
    }
    // A customer's key is none of ours.
    let customers = r#"{"key":{"type":"VAULT_TRANSIT","uri":"transit/keys/a"},"key_id":"a","key_version":"7","algorithm":"","wrapped":""}"#;
    fs::write(&path, customers).unwrap();
    assert_eq!(cloud.rotation.settle().await.unwrap().earlier, Vec::<u32>::new());
}

#[tokio::test]
async fn a_rotation_that_stops_after_any_step_goes_on() {
    for steps in 0..=4 {
        let home = Home::new();
        let before = {
            let cloud = home.open().await;
            cloud.store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
            if steps >= 1 {
                cloud.root.begin_rotation().unwrap();
            }
            if steps >= 2 {
                Authority::reseal(&home.data(), &cloud.root.sealer("authority").unwrap()).unwrap();
            }
            if steps >= 3 {
                cloud.store.reseal().unwrap();
            }
            if steps >= 4 {
                cloud.root.retire(&std::collections::BTreeSet::new()).unwrap();
            }
            fs::read(home.data().join("ca.pem")).unwrap()
        };
        // The program ended here; the next start goes on.
        let cloud = home.open().await;
        cloud.rotation.seal_anew().await.unwrap();
        let standing = cloud.rotation.settle().await.unwrap();
        let current = if steps == 0 { 1 } else { 2 };
        assert_eq!(standing, Standing { current, earlier: vec![] }, "after {steps} steps");
        drop(cloud);
        let cloud = home.open().await;
        assert_eq!(cloud.store.snapshot().len(), 1, "after {steps} steps");
        assert_eq!(fs::read(home.data().join("ca.pem")).unwrap(), before, "after {steps} steps");
    }
}

/// As where the disk went, or somebody moved the state away.
#[tokio::test]
async fn a_rotation_while_the_state_cannot_be_written_changes_nothing_and_says_what_to_do() {
    let home = Home::new();
    let cloud = home.open().await;
    cloud.store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
    let everything = || ["kek", "ca.key", "ca.pem"].map(|name| fs::read(home.data().join(name)).unwrap());
    let (state, aside) = (home.paths().state(), home.folder.path().join("aside"));
    let before = everything();
    fs::rename(&state, &aside).unwrap();
    for _ in 0..2 {
        let refused = cloud.rotation.rotate_root().await.unwrap_err().to_string();
        assert!(refused.contains("removed or replaced") && refused.contains("copy it back"), "{refused}");
        assert_eq!(cloud.rotation.standing(), Standing { current: 1, earlier: vec![] });
        assert!(everything() == before, "a part of the rotation was done");
    }
    fs::rename(&aside, &state).unwrap();
    let standing = cloud.rotation.rotate_root().await.unwrap();
    assert_eq!(standing, Standing { current: 2, earlier: vec![1] });
    assert_eq!(cloud.rotation.settle().await.unwrap(), Standing { current: 2, earlier: vec![] });
    drop(cloud);
    assert_eq!(home.open().await.store.snapshot().len(), 1);
}

/// What could be written a moment before fails in the middle.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_rotation_whose_state_fails_in_the_middle_opens_all_the_time_and_goes_on_by_itself() {
    let home = Home::new();
    let cloud = home.open().await;
    cloud.store.create(draft("shop-one"), OffsetDateTime::now_utc()).unwrap();
    let root = fs::read(home.data().join("ca.pem")).unwrap();
    let (state, aside) = (home.paths().state(), home.folder.path().join("aside"));
    let (from, to) = (state.clone(), aside.clone());
    // Other tests come by there too; for them nothing happens.
    fail::cfg_callback("root-rotation-begun", move || drop(fs::rename(&from, &to))).unwrap();
    let refused = cloud.rotation.rotate_root().await.unwrap_err().to_string();
    fail::remove("root-rotation-begun");
    assert!(refused.contains("copy it back"), "{refused}");
    assert_eq!(cloud.rotation.standing(), Standing { current: 2, earlier: vec![1] });
    assert!(cloud.rotation.settle().await.is_err(), "what is needed is kept");
    assert_eq!(cloud.rotation.standing(), Standing { current: 2, earlier: vec![1] });
    fs::rename(&aside, &state).unwrap();
    drop(cloud);
    // Also where the program ends at that moment.
    let cloud = home.open().await;
    assert_eq!(cloud.store.snapshot().len(), 1);
    assert_eq!(cloud.rotation.settle().await.unwrap(), Standing { current: 2, earlier: vec![] });
    drop(cloud);
    assert_eq!(home.open().await.root.versions(), [2]);
    assert_eq!(fs::read(home.data().join("ca.pem")).unwrap(), root, "clients trust what they trusted");
}

#[tokio::test]
async fn stand_ins_stay_the_same_through_a_rotation() {
    let home = Home::new();
    let secret = |cloud: &Open| {
        let first = cloud.root.sealer("stand-ins").unwrap().first_secret().unwrap();
        cloud.store.kept_secret("stand-ins", &first).unwrap().expose().to_vec()
    };
    let cloud = home.open().await;
    // What an earlier version of the program derived from the root key at each start.
    let derived = cloud.root.sealer("stand-ins").unwrap().first_secret().unwrap().expose().to_vec();
    assert_eq!(secret(&cloud), derived);
    cloud.rotation.rotate_root().await.unwrap();
    cloud.rotation.settle().await.unwrap();
    drop(cloud);
    let cloud = home.open().await;
    assert_eq!(cloud.root.versions(), [2]);
    assert_eq!(secret(&cloud), derived);
}

#[tokio::test]
async fn an_old_backup_of_the_root_key_does_not_open_what_was_rotated() {
    let home = Home::new();
    let new = home.file("new", PASSPHRASE);
    let file = home.folder.path().join("backup");
    let cloud = home.open().await;
    home.run(&["backup", file.to_str().unwrap(), "--new-passphrase-file", new.to_str().unwrap()])
        .await
        .unwrap();
    cloud.rotation.rotate_root().await.unwrap();
    cloud.rotation.settle().await.unwrap();
    drop(cloud);
    fs::remove_file(home.paths().key_encryption_key()).unwrap();
    let recover = ["recover", file.to_str().unwrap(), "--passphrase-file", new.to_str().unwrap()];
    assert!(home.run(&recover).await.unwrap_err().contains("before the last rotation is too old"));
}

#[test]
fn a_passphrase_is_no_argument_and_does_not_print() {
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        unlock: Unlock,
    }
    let typed = Unlock { typed: Some(SecretText::new("canary horse".to_owned())), ..Unlock::default() };
    assert!(!format!("{typed:?}").contains("canary"));
    let refused = Line::try_parse_from(["start", "--passphrase=canary"]).unwrap_err().to_string();
    assert!(refused.contains("unexpected argument"), "{refused}");
}
