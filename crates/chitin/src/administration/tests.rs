//! What passwords and searches are worth.

use keys::SecretText;

use super::*;

fn role(name: &str, verifier: Option<&str>) -> SqlRole {
    SqlRole {
        name: name.to_owned(),
        can_login: true,
        verifier: verifier.map(str::to_owned),
        valid_until: None,
        connection_limit: -1,
        member_of: Vec::new(),
    }
}

#[test]
fn another_kind_of_password_is_named_and_no_password_is_told() {
    let scram = Verifier::from_password(&SecretText::new("a good password".to_owned())).to_string();
    let good = passwords_row(&[role("maria", Some(&scram)), role("admin", None)]);
    assert_eq!(good.outcome, Outcome::Proven);
    let bad = passwords_row(&[role("maria", Some(&scram)), role("otto", Some("md5-canary"))]);
    assert_eq!(bad.outcome, Outcome::Failed);
    assert!(bad.evidence.contains("otto") && !bad.evidence.contains("canary"), "{}", bad.evidence);
}

#[test]
fn a_search_that_finds_nothing_anywhere_proves_nothing() {
    let report = |hits, hits_in_plaintext| SearchReport {
        place: "the image".to_owned(),
        bytes: 1,
        hits,
        hits_in_plaintext,
    };
    assert_eq!(canary_outcome(&report(0, 0), false), Outcome::Failed);
    assert_eq!(canary_outcome(&report(0, 100), false), Outcome::Proven);
    assert_eq!(canary_outcome(&report(1, 100), false), Outcome::Failed);
    assert_eq!(canary_outcome(&report(100, 100), true), Outcome::Missing);
}
