//! A real SoftHSM2, with keys that an operator makes by `pkcs11-tool`.
//!
//! SoftHSM2 reads the name of its configuration from the environment, which a program cannot change safely for itself. So
//! each test runs itself once more as a child, with a token of its own, and fails if the child fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use keys::{DataKey, KeyEncryption, KeyFailure};
use model::{KeptSecret, KeyCredentials, KeyService, KeyType};

use crate::world::{kind_of, open, place, service, spec};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "730419";
const CONFIGURATION: &str = "SOFTHSM2_CONF";
const CHILD: &str = "CHITIN_TEST_TOKEN";

/// The folder with the token, in the child. In the parent: runs the child, and says that all is done.
fn in_child(test: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(CHILD) {
        return Some(PathBuf::from(folder));
    }
    assert!(Path::new(MODULE).exists(), "{MODULE} is missing; run ./test once, which installs SoftHSM2");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let configuration = folder.path().join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let with_token = |command: &mut Command| {
        let output =
            command.env(CONFIGURATION, &configuration).env(CHILD, folder.path()).output().expect("it starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    with_token(Command::new("softhsm2-util").args([
        "--init-token",
        "--free",
        "--label",
        "chitin",
        "--pin",
        PIN,
        "--so-pin",
        "12345678",
    ]));
    let mut child = Command::new(std::env::current_exe().unwrap());
    let said = with_token(child.args(["--exact", &format!("pkcs11::{test}"), "--nocapture"]));
    assert!(said.contains("1 passed"), "the child did not run the test: {said}");
    None
}

fn tool(arguments: &[&str]) -> Output {
    let output = Command::new("pkcs11-tool")
        .args(["--module", MODULE, "--token-label", "chitin", "--login", "--pin", PIN])
        .args(arguments)
        .output()
        .expect("pkcs11-tool is there; else run ./test once");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// As docs/key-services.md says.
fn make_key(label: &str, id: &str) {
    tool(&["--keygen", "--key-type", "AES:32", "--label", label, "--id", id, "--sensitive"]);
}

fn hsm() -> KeyService {
    service(KeyType::Pkcs11, MODULE, KeyCredentials::Pkcs11Pin(KeptSecret::new(PIN.into())))
}

fn key(uri: &str) -> Arc<dyn KeyEncryption> {
    open(&hsm(), &spec(KeyType::Pkcs11, uri))
}

#[tokio::test]
async fn a_key_in_a_token_wraps_and_opens_for_its_own_cluster_only() {
    if in_child("a_key_in_a_token_wraps_and_opens_for_its_own_cluster_only").is_none() {
        return;
    }
    make_key("shop", "01");
    let key = key("pkcs11:token=chitin;object=shop");
    let (mine, data_key) = (place(), DataKey::random());
    let wrapped = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!((wrapped.key_version.as_str(), wrapped.algorithm.as_str()), ("01", "CKM_AES_GCM"));
    assert!(wrapped.key_id.starts_with("pkcs11:token=chitin;serial="), "{}", wrapped.key_id);
    assert_eq!(key.unwrap(&wrapped, &mine).await.unwrap().expose(), data_key.expose());
    assert_eq!(kind_of(key.unwrap(&wrapped, &place()).await), "does not open");
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens", "and the token still works");
    let again = key.wrap(&data_key, &mine).await.unwrap();
    assert_ne!(again.wrapped, wrapped.wrapped, "each has an IV of its own");

    let changed = [
        keys::WrappedKey { wrapped: "AAAA".into(), ..wrapped.clone() },
        keys::WrappedKey {
            wrapped: wrapped.wrapped.replacen(&wrapped.wrapped[40..44], "AAAA", 1),
            ..wrapped.clone()
        },
        keys::WrappedKey { key_version: "zz".into(), ..wrapped.clone() },
        keys::WrappedKey { key_version: String::new(), ..wrapped.clone() },
    ];
    for wrapped in changed {
        assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "does not open", "{wrapped:?}");
    }
}

#[tokio::test]
async fn a_higher_id_is_a_new_version_and_the_old_object_opens_while_it_is_there() {
    if in_child("a_higher_id_is_a_new_version_and_the_old_object_opens_while_it_is_there").is_none() {
        return;
    }
    make_key("shop", "09");
    let key = key("pkcs11:token=chitin;object=shop");
    let (mine, data_key) = (place(), DataKey::random());
    let old = key.wrap(&data_key, &mine).await.unwrap();
    make_key("shop", "0010");
    make_key("other", "ff");
    let new = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!((old.key_version.as_str(), new.key_version.as_str()), ("09", "0010"));
    for wrapped in [&old, &new] {
        assert_eq!(key.unwrap(wrapped, &mine).await.unwrap().expose(), data_key.expose());
    }
    tool(&["--delete-object", "--type", "secrkey", "--label", "shop", "--id", "09"]);
    assert_eq!(kind_of(key.unwrap(&old, &mine).await), "denied");
    assert_eq!(kind_of(key.unwrap(&new, &mine).await), "opens");

    make_key("shop", "10");
    let two = key.wrap(&data_key, &mine).await.unwrap_err();
    assert!(matches!(two, KeyFailure::Unusable { .. }), "{two}");
    let picked = open(&hsm(), &spec(KeyType::Pkcs11, "pkcs11:token=chitin;object=shop;id=%10"));
    assert_eq!(picked.wrap(&data_key, &mine).await.unwrap().key_version, "10");
    assert_eq!(kind_of(picked.unwrap(&new, &mine).await), "does not open");
}

#[tokio::test]
async fn a_key_that_may_leave_its_token_or_is_too_short_is_refused() {
    if in_child("a_key_that_may_leave_its_token_or_is_too_short_is_refused").is_none() {
        return;
    }
    tool(&["--keygen", "--key-type", "AES:32", "--label", "open", "--id", "01", "--extractable"]);
    tool(&["--keygen", "--key-type", "AES:16", "--label", "short", "--id", "02", "--sensitive"]);
    for (label, why) in [("open", "may leave the token"), ("short", "is not AES-256")] {
        let key = key(&format!("pkcs11:token=chitin;object={label}"));
        let refused = key.wrap(&DataKey::random(), &place()).await.unwrap_err();
        assert!(
            matches!(refused, KeyFailure::Unusable { .. }) && refused.to_string().contains(why),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_wrong_pin_denies_no_key_and_is_tried_once_only_so_that_the_token_does_not_lock() {
    if in_child("a_wrong_pin_denies_no_key_and_is_tried_once_only_so_that_the_token_does_not_lock").is_none()
    {
        return;
    }
    make_key("shop", "01");
    let right = key("pkcs11:token=chitin;object=shop");
    let mine = place();
    let wrapped = right.wrap(&DataKey::random(), &mine).await.unwrap();

    let wrong =
        KeyService { credentials: KeyCredentials::Pkcs11Pin(KeptSecret::new("canary99".into())), ..hsm() };
    let stranger = open(&wrong, &wrapped.key);
    let first = stranger.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(first, KeyFailure::Unauthenticated { .. }), "{first}");
    for _ in 0..20 {
        // Also by who opens it anew.
        let again = open(&wrong, &wrapped.key).unwrap(&wrapped, &mine).await.unwrap_err();
        assert!(matches!(again, KeyFailure::Unauthenticated { .. }), "{again}");
        let again = again.to_string();
        assert!(again.contains("not tried again") && !again.contains("canary99"), "{again}");
    }
    assert!(!format!("{stranger:?}").contains("canary99"));
    assert_eq!(kind_of(right.unwrap(&wrapped, &mine).await), "opens", "the right PIN still opens");
}

#[tokio::test]
async fn a_stranger_s_pin_does_not_ride_on_another_s_sign_in() {
    if in_child("a_stranger_s_pin_does_not_ride_on_another_s_sign_in").is_none() {
        return;
    }
    make_key("shop", "01");
    let right = key("pkcs11:token=chitin;object=shop");
    let mine = place();
    let wrapped = right.wrap(&DataKey::random(), &mine).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..24 {
        let is_right = number % 2 == 0;
        let pin = if is_right { PIN.to_owned() } else { format!("wrong{number}") };
        let service = KeyService { credentials: KeyCredentials::Pkcs11Pin(KeptSecret::new(pin)), ..hsm() };
        let (key, wrapped) = (open(&service, &wrapped.key), wrapped.clone());
        tasks.spawn(async move { (is_right, kind_of(key.unwrap(&wrapped, &mine).await)) });
    }
    while let Some(done) = tasks.join_next().await {
        let (is_right, what) = done.unwrap();
        assert_eq!(what, if is_right { "opens" } else { "unauthenticated" });
    }
}

#[tokio::test]
async fn an_absent_token_is_unreachable_and_an_absent_key_denied() {
    let Some(folder) = in_child("an_absent_token_is_unreachable_and_an_absent_key_denied") else { return };
    make_key("shop", "01");
    let shop = key("pkcs11:token=chitin;object=shop");
    let mine = place();
    let wrapped = shop.wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!(
        kind_of(key("pkcs11:token=other;object=shop").wrap(&DataKey::random(), &mine).await),
        "unreachable"
    );
    assert_eq!(
        kind_of(key("pkcs11:token=chitin;object=none").wrap(&DataKey::random(), &mine).await),
        "denied"
    );

    std::fs::rename(folder.join("tokens"), folder.join("pulled")).unwrap();
    assert_eq!(kind_of(shop.unwrap(&wrapped, &mine).await), "unreachable");
    std::fs::rename(folder.join("pulled"), folder.join("tokens")).unwrap();
    assert_eq!(kind_of(shop.unwrap(&wrapped, &mine).await), "opens");
}
