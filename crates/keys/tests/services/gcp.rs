//! Keys of Google Cloud KMS, against the small Google of `google.rs`.

use std::sync::Arc;

use keys::{DataKey, KeyEncryption, KeyFailure};
use model::{KeyCredentials, KeyService, KeySpec, KeyType, SystemClock};

use crate::google::{ACCOUNT, Fault, Google, OTHER_ACCOUNT, World};
use crate::world::{Loopback, TestClock, kind_of, open, place, service, spec};

fn key_service(google: &Google) -> KeyService {
    service(KeyType::Gcp, &google.address, KeyCredentials::GcpServiceAccount(google.key_file.clone()))
}

fn key_spec(google: &Google) -> KeySpec {
    spec(KeyType::Gcp, &google.world.lock().unwrap().key)
}

fn key(google: &Google) -> Arc<dyn KeyEncryption> {
    open(&key_service(google), &key_spec(google))
}

fn assertions(google: &Google) -> usize {
    google.world.lock().unwrap().assertions
}

#[tokio::test]
async fn a_google_key_wraps_and_opens_for_its_own_cluster_only() {
    let google = Google::start().await;
    let key = key(&google);
    let (mine, data_key) = (place(), DataKey::random());
    let wrapped = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!(wrapped.key_version, "1");
    assert_eq!(key.unwrap(&wrapped, &mine).await.unwrap().expose(), data_key.expose());
    assert_eq!(kind_of(key.unwrap(&wrapped, &place()).await), "does not open");
    for text in ["", "AAAA", "not base64"] {
        let changed = keys::WrappedKey { wrapped: text.to_owned(), ..wrapped.clone() };
        assert_eq!(kind_of(key.unwrap(&changed, &mine).await), "does not open", "{text}");
    }
    assert_eq!(assertions(&google), 1, "the token is kept");
}

#[tokio::test]
async fn a_rotated_google_key_wraps_with_its_primary_version_and_each_version_has_its_own_state() {
    let google = Google::start().await;
    let key = key(&google);
    let mine = place();
    let old = key.wrap(&DataKey::random(), &mine).await.unwrap();
    google.change(World::rotate);
    let new = key.wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!((old.key_version.as_str(), new.key_version.as_str()), ("1", "2"));
    for state in ["DISABLED", "DESTROYED", "DESTROY_SCHEDULED"] {
        google.change(|world| world.versions[0].state = state);
        let denied = key.unwrap(&old, &mine).await.unwrap_err();
        assert!(matches!(denied, KeyFailure::Denied { .. }), "{denied}");
        assert!(denied.to_string().contains(state), "{denied}");
        assert_eq!(kind_of(key.unwrap(&new, &mine).await), "opens");
    }
    google.change(|world| world.versions[0].state = "ENABLED");
    assert_eq!(kind_of(key.unwrap(&old, &mine).await), "opens");
    google.change(|world| world.versions[1].state = "PENDING_GENERATION");
    assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "unreachable");
}

#[tokio::test]
async fn what_changes_on_the_way_is_noticed_by_its_checksum() {
    let google = Google::start().await;
    let key = key(&google);
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    for fault in [Fault::BadCiphertextChecksum, Fault::NotVerified] {
        google.change(|world| world.fault = fault);
        assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "unreachable");
    }
    google.change(|world| world.fault = Fault::BadPlaintextChecksum);
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unreachable");
    google.change(|world| world.fault = Fault::ForeignName);
    assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "unusable");
}

#[tokio::test]
async fn only_the_service_s_own_word_denies_a_key() {
    let google = Google::start().await;
    let key = key(&google);
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    for code in [429, 500, 503] {
        google.change(|world| world.fault = Fault::Status(code));
        assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unreachable", "{code}");
    }
    // A proxy's page is nobody's word about a key.
    for code in [403, 404, 302] {
        google.change(|world| world.fault = Fault::Html(code));
        assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unreachable", "{code}");
    }
    google.change(|world| {
        world.fault = Fault::None;
        world.users.clear();
    });
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    google.change(|world| {
        world.users.insert(ACCOUNT.to_owned());
    });
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    google.change(|world| world.key.push_str("-gone"));
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
}

#[tokio::test]
async fn a_token_that_ended_is_asked_for_anew_and_an_account_s_key_that_was_deleted_denies_no_key() {
    let google = Google::start().await;
    let (fetcher, clock) = (Arc::<Loopback>::default(), TestClock::new());
    let key = keys::service::open(&key_service(&google), &key_spec(&google), fetcher.clone(), clock.clone())
        .unwrap();
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    google.change(World::end_tokens);
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(assertions(&google), 2);
    google.change(|world| {
        world.end_tokens();
        world.is_account_key_valid = false;
    });
    let refused = key.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(refused, KeyFailure::Unauthenticated { .. }), "{refused}");
    assert!(!format!("{refused:?} {key:?}").contains("PRIVATE"), "{refused:?} {key:?}");
    google.change(|world| world.is_account_key_valid = true);

    // Our clock is wrong: that says nothing of the key.
    clock.advance(-time::Duration::hours(3));
    let unreachable = key.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(unreachable, KeyFailure::Unreachable { .. }), "{unreachable}");
    assert!(unreachable.to_string().contains("clock"), "{unreachable}");
    assert!(fetcher.fetches.lock().unwrap().iter().all(|fetch| fetch.cluster == mine.cluster()));
}

#[tokio::test]
async fn a_key_is_used_as_another_account_only_while_that_is_allowed() {
    let google = Google::start().await;
    google.change(|world| world.users = [OTHER_ACCOUNT.to_owned()].into());
    let as_other = KeySpec { auth_principal: OTHER_ACCOUNT.to_owned(), ..key_spec(&google) };
    let clock = TestClock::new();
    let key =
        keys::service::open(&key_service(&google), &as_other, Arc::<Loopback>::default(), clock.clone())
            .unwrap();
    let mine = place();
    assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "denied");
    google.change(|world| world.may_impersonate = true);
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    google.change(|world| {
        world.may_impersonate = false;
        world.end_tokens();
    });
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    let own = keys::service::open(
        &key_service(&google),
        &key_spec(&google),
        Arc::<Loopback>::default(),
        Arc::new(SystemClock),
    );
    assert_eq!(kind_of(own.unwrap().unwrap(&wrapped, &mine).await), "denied");
}
