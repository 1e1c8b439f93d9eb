//! Whose client certificates count, as an administrator sets it: authorities and revocation lists.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::world::World;

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn list(authority: &CertifiedIssuer<'static, KeyPair>, next_update: OffsetDateTime) -> String {
    let now = OffsetDateTime::now_utc();
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(7_u64),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: now - Duration::DAY,
        next_update,
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(authority).unwrap().pem().unwrap()
}

#[tokio::test]
async fn client_authorities_are_set_replaced_and_deleted_as_the_cloud_api_says() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/clusters/{id}/client-ca-cert");
    let unset = json!({"status": "NOT_SET", "x509_pem_cert": ""});
    assert_eq!(world.get(&path).await.json(), unset);
    let (one, two) = (authority("one").pem(), authority("two").pem());
    let body = |pem: &str| json!({"x509_pem_cert": pem});
    let set = |pem: &str| json!({"status": "IS_SET", "x509_pem_cert": pem});
    assert_eq!(world.call("POST", &path, body(&one)).await.json(), set(&one));
    assert_eq!(
        world.call("POST", &path, body(&one)).await.json(),
        set(&one),
        "a repeated call is no conflict"
    );
    assert_eq!(world.call("POST", &path, body(&two)).await.refusal(), (409, 6));
    assert_eq!(world.get(&path).await.json(), set(&one));
    let both = format!("{one}\n{two}");
    assert_eq!(world.call("PATCH", &path, body(&both)).await.json(), set(&both));
    assert_eq!(world.get(&path).await.json(), set(&both));
    let described = world.get(&format!("/chitin/clusters/{id}/client-ca")).await.json();
    let authorities = described["authorities"].as_array().unwrap();
    assert_eq!(authorities.len(), 2);
    assert!(authorities[0]["subject"].as_str().unwrap().contains("one"), "{described}");
    assert_eq!(authorities[1]["sha256"].as_str().unwrap().len(), 64);
    for _ in 0..2 {
        assert_eq!(world.call("DELETE", &path, Value::Null).await.json(), unset, "also when there is none");
    }
    assert_eq!(world.get(&path).await.json(), unset);
    assert_eq!(world.call("PATCH", &path, body(&two)).await.json(), set(&two));
}

#[tokio::test]
async fn what_is_no_authority_or_is_ours_is_refused_and_changes_nothing() {
    let world = World::new();
    let id = world.made("shop-one").await;
    let path = format!("/clusters/{id}/client-ca-cert");
    let one = authority("one").pem();
    world.call("POST", &path, json!({"x509_pem_cert": one})).await;
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["leaf".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let ours = world.get("/chitin/ca").await.json()["pem"].as_str().unwrap().to_owned();
    let cases = [
        String::new(),
        "nonsense".to_owned(),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        leaf,
        format!("{one}{}", key.serialize_pem()),
        format!("{one}{one}"),
        ours.clone(),
        format!("{one}{ours}"),
        "x".repeat(300_000),
    ];
    for pem in cases {
        for method in ["POST", "PATCH"] {
            let refused = world.call(method, &path, json!({"x509_pem_cert": pem})).await;
            assert_eq!(refused.refusal(), (400, 3), "{pem:.60}");
            assert!(!refused.text.contains(&key.serialize_pem()[30..60]), "{}", refused.text);
        }
    }
    assert_eq!(world.call("PATCH", &path, json!({})).await.refusal(), (400, 3));
    assert_eq!(world.get(&path).await.json()["x509_pem_cert"], one);
}

#[tokio::test]
async fn revocation_lists_are_set_shown_and_deleted() {
    let world = World::new();
    let path = format!("/chitin/clusters/{}/crls", world.made("shop-one").await);
    let nothing =
        json!({"pem": "", "lists": [], "accept_without_list": false, "authorities_without_list": []});
    assert_eq!(world.get(&path).await.json(), nothing);
    let tomorrow = OffsetDateTime::now_utc() + Duration::DAY;
    let pem = list(&authority("one"), tomorrow) + &list(&authority("two"), tomorrow);
    let set = world.call("PUT", &path, json!({"pem": pem})).await;
    assert_eq!(set.status, 200, "{}", set.text);
    let lists = set.json()["lists"].clone();
    assert_eq!((lists.as_array().unwrap().len(), &lists[0]["revoked"]), (2, &json!(1)));
    assert!(lists[1]["issuer"].as_str().unwrap().contains("two"), "{lists}");
    assert!(lists[0]["next_update"].is_string());
    assert_eq!(set.json()["accept_without_list"], json!(false));
    let accepting = world.call("PUT", &path, json!({"pem": pem, "accept_without_list": true})).await;
    assert_eq!(accepting.json()["accept_without_list"], json!(true));
    // Setting lists without a word goes back to what is safe.
    let set = world.call("PUT", &path, json!({"pem": pem})).await;
    assert_eq!(set.json()["accept_without_list"], json!(false));
    assert_eq!(world.get(&path).await.json(), set.json());
    for wrong in ["", "nonsense", &authority("one").pem()] {
        assert_eq!(world.call("PUT", &path, json!({"pem": wrong})).await.refusal(), (400, 3), "{wrong:.40}");
    }
    assert_eq!(world.get(&path).await.json(), set.json());
    for _ in 0..2 {
        assert_eq!(world.call("DELETE", &path, Value::Null).await.json(), nothing);
    }
}
