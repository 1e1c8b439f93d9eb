//! Tests of client certificates, their authorities and revocation lists.

use rcgen::{
    CertificateRevocationListParams, CertifiedIssuer, DnType, DnValue, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams, SanType,
    SerialNumber,
};
use time::Duration;

use super::*;
use crate::testing::{
    Ca, Leaf, ca_params, client, client_params, intermediate, issue, now, openssl, responders, root,
};

fn list(ca: &Ca, serials: &[u64], made: OffsetDateTime, until: OffsetDateTime) -> String {
    let revoked_certs = serials
        .iter()
        .map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: made,
            reason_code: None,
            invalidity_date: None,
        })
        .collect();
    let params = CertificateRevocationListParams {
        this_update: made,
        next_update: until,
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(ca).unwrap().pem().unwrap()
}

fn fresh_list(ca: &Ca, serials: &[u64]) -> Crls {
    Crls::parse(&list(ca, serials, now() - Duration::HOUR, now() + Duration::DAY)).unwrap()
}

fn verify(ca: &Ca, presented: &[&CertificateDer<'static>]) -> Result<Verified, CertRefused> {
    verify_with(ca, presented, &Crls::empty())
}

fn verify_with(
    ca: &Ca,
    presented: &[&CertificateDer<'static>],
    crls: &Crls,
) -> Result<Verified, CertRefused> {
    let presented: Vec<_> = presented.iter().map(|der| (*der).clone()).collect();
    ClientAuthorities::parse(&ca.pem()).unwrap().verify(&presented, crls, now())
}

#[test]
fn a_client_is_who_its_certificate_says() {
    let ca = root("Shop root");
    let mut params = client_params("maria", 0x1234);
    params.distinguished_name.push(DnType::OrganizationName, "Shop");
    params.subject_alt_names = vec![
        SanType::DnsName("maria.example.org".try_into().unwrap()),
        SanType::Rfc822Name("maria@example.org".try_into().unwrap()),
        SanType::URI("spiffe://example.org/maria".try_into().unwrap()),
        SanType::IpAddress("10.0.0.1".parse().unwrap()),
    ];
    let urls = ["http://ocsp.example.org/a", "ldap://x", "https://ocsp.example.org/b", "file:///etc/passwd"];
    params.custom_extensions = vec![responders(&urls)];
    let leaf = issue(&params, &ca);
    let verified = verify(&ca, &[&leaf.der]).unwrap();
    assert_eq!(verified.common_name.as_deref(), Some("maria"));
    assert_eq!(verified.subject, "O=Shop,CN=maria");
    let names = &verified.alternative_names;
    assert_eq!(names.dns, ["maria.example.org"]);
    assert_eq!(names.emails, ["maria@example.org"]);
    assert_eq!(names.uris, ["spiffe://example.org/maria"]);
    assert!(!verified.is_constrained);
    assert_eq!(verified.serial, "1234");
    assert_eq!(verified.not_after, params.not_after);
    assert_eq!(verified.steps.len(), 1);
    assert_eq!(verified.steps[0].issuer, *ca.der());
    assert_eq!(verified.steps[0].responders, [urls[0], urls[2]]);
}

#[test]
fn intermediates_come_from_the_client_or_from_the_bundle_and_are_steps() {
    let top = root("top");
    let middle = intermediate("middle", &top);
    let leaf = client("maria", 1, &middle);
    let verified = verify(&top, &[&leaf.der, middle.der()]).unwrap();
    let pairs: Vec<_> =
        verified.steps.iter().map(|step| (step.certificate.clone(), step.issuer.clone())).collect();
    let wanted = [(leaf.der.clone(), middle.der().clone()), (middle.der().clone(), top.der().clone())];
    assert_eq!(pairs, wanted);
    assert_eq!(verify(&top, &[&leaf.der]).unwrap_err(), CertRefused::Stranger);
    let both = ClientAuthorities::parse(&format!("{}{}", middle.pem(), top.pem())).unwrap();
    let verified = both.verify(std::slice::from_ref(&leaf.der), &Crls::empty(), now()).unwrap();
    assert_eq!(verified.steps.len(), 2, "the intermediate one is asked about as well");
    // Who trusts one issuing authority only gives that one.
    let verified = verify(&middle, &[&leaf.der]).unwrap();
    assert_eq!(verified.steps.len(), 1);
    assert_eq!(verify(&middle, &[&client("maria", 2, &top).der]).unwrap_err(), CertRefused::Stranger);
}

#[test]
fn t44_only_the_right_certificate_passes() {
    let (ca, other, impostor) = (root("ours"), root("other"), root("ours"));
    let changed = |change: &dyn Fn(&mut rcgen::CertificateParams), by: &Ca| {
        let mut params = client_params("maria", 7);
        change(&mut params);
        issue(&params, by)
    };
    let of = |leaf: Leaf| verify(&ca, &[&leaf.der]).map(|_| ());
    let expired = |params: &mut rcgen::CertificateParams| {
        params.not_before = now() - Duration::days(3);
        params.not_after = now() - Duration::seconds(1);
    };
    let early = |params: &mut rcgen::CertificateParams| {
        params.not_before = now() + Duration::hours(1);
    };
    let server = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    assert_eq!(of(changed(&|_| {}, &ca)), Ok(()));
    assert_eq!(of(changed(&|params| params.extended_key_usages.clear(), &ca)), Ok(()));
    assert_eq!(of(changed(&expired, &ca)), Err(CertRefused::Expired));
    assert_eq!(of(changed(&early, &ca)), Err(CertRefused::NotYetValid));
    assert_eq!(of(changed(&server, &ca)), Err(CertRefused::WrongUse));
    let encipher = |params: &mut rcgen::CertificateParams| {
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    };
    assert_eq!(of(changed(&encipher, &ca)), Err(CertRefused::WrongUse));
    // Nothing is said about a certificate that is not of these authorities, whatever else is wrong with it.
    for stranger in [&other, &impostor] {
        for change in [&|_: &mut rcgen::CertificateParams| {}, &expired, &early, &server]
            as [&dyn Fn(&mut rcgen::CertificateParams); 4]
        {
            assert_eq!(of(changed(change, stranger)), Err(CertRefused::Stranger));
            let leaf = changed(change, stranger);
            let refused = verify(&ca, &[&leaf.der, stranger.der(), ca.der()]).unwrap_err();
            assert_eq!(refused, CertRefused::Stranger);
        }
    }
    let own = client_params("maria", 7).self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(verify(&ca, &[own.der()]).unwrap_err(), CertRefused::Stranger);
    assert_eq!(verify(&ca, &[ca.der()]).unwrap_err(), CertRefused::WrongUse);
    assert_eq!(verify(&ca, &[]).unwrap_err(), CertRefused::Malformed);
    let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(verify(&ca, &[&garbage]).unwrap_err(), CertRefused::Malformed);
    let leaf = client("maria", 1, &ca);
    assert!(verify(&ca, &[&leaf.der, &garbage]).is_ok(), "what does not help does not hurt");
    assert_eq!(verify(&ca, &[&leaf.der; PRESENTED_MAX + 1]).unwrap_err(), CertRefused::Malformed);
    let mut bent = leaf.der.to_vec();
    let last = bent.len() - 1;
    bent[last] ^= 1;
    assert_eq!(verify(&ca, &[&CertificateDer::from(bent)]).unwrap_err(), CertRefused::Stranger);
}

#[test]
fn who_may_not_issue_issues_nothing() {
    let ca = root("top");
    // A client as an issuer of others.
    let maria = client("maria", 1, &ca);
    let issuer =
        rcgen::Issuer::from_params(&client_params("maria", 1), maria.key).signed(&client_params("root", 2));
    let refused = verify(&ca, &[&issuer, &maria.der]).unwrap_err();
    assert_eq!(refused, CertRefused::Stranger);
    // An intermediate one without keyCertSign.
    let mut params = ca_params("middle");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let middle = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &ca).unwrap();
    let leaf = client("maria", 1, &middle);
    assert_eq!(verify(&ca, &[&leaf.der, middle.der()]).unwrap_err(), CertRefused::Constraint);
    // One more below a root than it allows.
    let mut params = ca_params("short");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let short = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let middle = intermediate("middle", &short);
    let leaf = client("maria", 1, &middle);
    assert_eq!(verify(&short, &[&leaf.der, middle.der()]).unwrap_err(), CertRefused::Constraint);
    assert!(verify(&short, &[&client("maria", 1, &short).der]).is_ok());
    // A name that an intermediate one may not certify.
    let mut params = ca_params("names");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let names = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &ca).unwrap();
    let mut params = client_params("maria", 3);
    params.subject_alt_names = vec![SanType::DnsName("evil.example.com".try_into().unwrap())];
    let leaf = issue(&params, &names);
    assert_eq!(verify(&ca, &[&leaf.der, names.der()]).unwrap_err(), CertRefused::Constraint);
}

#[test]
fn names_in_a_subject_are_within_the_constraints_of_every_authority_above() {
    let ca = root("ours");
    let partner = |permitted: &[GeneralSubtree], excluded: &[GeneralSubtree]| {
        let mut params = ca_params("partner");
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: permitted.to_vec(),
            excluded_subtrees: excluded.to_vec(),
        });
        CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &ca).unwrap()
    };
    let dns = GeneralSubtree::DnsName("partner.example".to_owned());
    let email = GeneralSubtree::Rfc822Name("partner.example".to_owned());
    let by_all = partner(&[dns.clone(), email.clone()], &[]);
    let below = intermediate("below", &by_all);
    let by_dns = partner(std::slice::from_ref(&dns), &[]);
    let by_exclusion = partner(&[], &[GeneralSubtree::DnsName("corp.example".to_owned())]);
    let named = |name: &str, by: &Ca, between: &[&CertificateDer<'static>]| {
        let leaf = client(name, 1, by);
        let presented: Vec<_> = std::iter::once(&leaf.der).chain(between.iter().copied()).collect();
        let verified = verify(&ca, &presented).unwrap();
        assert!(verified.is_constrained, "{name}");
        verified.common_name
    };
    for attack in ["db.other.example", "a@evil.example", "maria"] {
        assert_eq!(named(attack, &by_all, &[by_all.der()]), None, "{attack}");
        assert_eq!(named(attack, &by_dns, &[by_dns.der()]), None, "{attack}");
        assert_eq!(named(attack, &below, &[below.der(), by_all.der()]), None, "{attack}");
    }
    assert_eq!(named("db.corp.example", &by_exclusion, &[by_exclusion.der()]), None);
    for good in ["db.partner.example", "a@partner.example"] {
        assert_eq!(named(good, &below, &[below.der(), by_all.der()]).as_deref(), Some(good));
    }
    assert_eq!(named("maria", &by_exclusion, &[by_exclusion.der()]).as_deref(), Some("maria"));
    // An authority that is trusted by itself has limits as well.
    let leaf = client("db.other.example", 1, &by_dns);
    assert_eq!(verify(&by_dns, &[&leaf.der]).unwrap().common_name, None);
    // An e-mail address in the subject is within the constraints for e-mail, or the certificate counts for nothing.
    let with_email = |address: &str, by: &Ca| {
        let mut params = client_params("a@partner.example", 3);
        params.distinguished_name.push(
            DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]),
            DnValue::Ia5String(address.try_into().unwrap()),
        );
        verify(&ca, &[&issue(&params, by).der, by.der()]).map(|verified| verified.subject)
    };
    assert_eq!(with_email("maria@corp.example", &by_all), Err(CertRefused::Constraint));
    assert_eq!(
        with_email("a@partner.example", &by_all).as_deref(),
        Ok("emailAddress=a@partner.example,CN=a@partner.example")
    );
}

#[test]
fn an_alternative_name_has_the_form_of_its_type() {
    let ca = root("ours");
    let names = |names: Vec<SanType>| {
        let mut params = client_params("maria", 3);
        params.subject_alt_names = names;
        verify(&ca, &[&issue(&params, &ca).der]).unwrap().alternative_names
    };
    let maria = "maria@corp.example";
    let found = names(vec![
        SanType::DnsName(maria.try_into().unwrap()),
        SanType::URI(maria.try_into().unwrap()),
        SanType::Rfc822Name(maria.try_into().unwrap()),
        SanType::Rfc822Name("spiffe://corp.example/x@evil.example".try_into().unwrap()),
        SanType::Rfc822Name("maria@evil.example@corp.example".try_into().unwrap()),
        SanType::Rfc822Name("maria".try_into().unwrap()),
        SanType::URI("spiffe://corp.example/maria".try_into().unwrap()),
        SanType::DnsName("spiffe://corp.example/maria".try_into().unwrap()),
        SanType::DnsName("db.corp.example".try_into().unwrap()),
    ]);
    let wanted = AlternativeNames {
        dns: vec!["db.corp.example".to_owned()],
        emails: vec![maria.to_owned()],
        uris: vec!["spiffe://corp.example/maria".to_owned()],
    };
    assert_eq!(found, wanted);
}

trait Signs {
    fn signed(self, params: &rcgen::CertificateParams) -> CertificateDer<'static>;
}

impl Signs for rcgen::Issuer<'_, KeyPair> {
    fn signed(self, params: &rcgen::CertificateParams) -> CertificateDer<'static> {
        params.signed_by(&KeyPair::generate().unwrap(), &self).unwrap().der().clone()
    }
}

#[test]
fn an_expired_authority_vouches_for_nobody_and_its_successor_does() {
    let mut params = ca_params("ours");
    params.not_after = now() - Duration::seconds(1);
    let old = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let new = root("ours");
    let (by_old, by_new) = (client("maria", 1, &old), client("maria", 1, &new));
    assert_eq!(verify(&old, &[&by_old.der]).unwrap_err(), CertRefused::AuthorityExpired);
    let both = ClientAuthorities::parse(&format!("{}{}", old.pem(), new.pem())).unwrap();
    assert!(both.verify(&[by_new.der], &Crls::empty(), now()).is_ok());
    assert_eq!(both.verify(&[by_old.der], &Crls::empty(), now()).unwrap_err(), CertRefused::AuthorityExpired);
}

#[test]
fn a_name_that_can_be_read_in_two_ways_is_none() {
    let ca = root("ours");
    let named = |values: Vec<DnValue>| {
        let mut params = client_params("x", 1);
        params.distinguished_name.remove(DnType::CommonName);
        for value in values {
            params.distinguished_name.push(DnType::CommonName, value);
        }
        verify(&ca, &[&issue(&params, &ca).der]).unwrap()
    };
    let text = |text: &str| DnValue::Utf8String(text.to_owned());
    assert_eq!(named(vec![text("maria")]).common_name.as_deref(), Some("maria"));
    for odd in ["", "root\0.example.org", "maria\n"] {
        assert_eq!(named(vec![text(odd)]).common_name, None, "{odd:?}");
    }
    let bmp = DnValue::BmpString("root".try_into().unwrap());
    assert_eq!(named(vec![bmp]).common_name, None);
    assert_eq!(named(vec![]).common_name, None);
    assert_eq!(named(vec![]).subject, "");
    // Two common names, which rcgen does not make.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(folder.path().join("ca.key"), ca.key().serialize_pem()).unwrap();
    let two = by_openssl(folder.path(), "/CN=maria/CN=root", "keyUsage=digitalSignature");
    let verified = verify(&ca, &[&two]).unwrap();
    assert_eq!((verified.common_name, verified.subject.as_str()), (None, "CN=root,CN=maria"));
}

/// A certificate by `openssl x509 -req`.
fn by_openssl(folder: &std::path::Path, subject: &str, extensions: &str) -> CertificateDer<'static> {
    let request = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-utf8"];
    let files = ["-keyout", "leaf.key", "-out", "leaf.csr", "-multivalue-rdn", "-subj", subject];
    openssl(folder, &[&request[..], &files[..]].concat());
    let mut sign = vec!["x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key"];
    sign.extend(["-set_serial", "7", "-days", "1", "-outform", "DER", "-out", "leaf.der"]);
    if !extensions.is_empty() {
        std::fs::write(folder.join("ext"), extensions).unwrap();
        sign.extend(["-extfile", "ext"]);
    }
    openssl(folder, &sign);
    CertificateDer::from(std::fs::read(folder.join("leaf.der")).unwrap())
}

#[test]
fn a_key_s_digest_is_openssl_s() {
    let (ca, folder) = (root("ours"), tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(folder.path().join("ca.key"), ca.key().serialize_pem()).unwrap();
    let certificate = by_openssl(folder.path(), "/CN=proxy", "");
    let digest = key_digest(&certificate).unwrap();
    let pipe = "openssl x509 -in leaf.der -inform DER -noout -pubkey | openssl pkey -pubin -outform DER | \
                openssl dgst -sha256 -r";
    let output =
        std::process::Command::new("sh").args(["-c", pipe]).current_dir(folder.path()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().split(' ').next(), Some(digest.as_str()));
    assert_eq!(key_digest(&CertificateDer::from(vec![0x30, 0])), None);
}

#[test]
fn the_subject_is_written_as_openssl_and_with_it_postgresql_writes_it() {
    let ca = root("ours");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(folder.path().join("ca.key"), ca.key().serialize_pem()).unwrap();
    for subject in [
        "/C=DE/ST=Bayern/L=München/O=Acme\\, Inc./OU=a\"b;c<d>e/CN=maria",
        "/DC=org/DC=example/UID=maria+CN=Maria Müller/emailAddress=m@example.org",
        "/O=#hash/OU= space /GN=Maria/SN=M/title=x\\\\y/serialNumber=12/CN=名前",
        "/O=Acme+OU=IT/businessCategory=b/postalCode=1/street=s/organizationIdentifier=o/CN=a=b",
    ] {
        let leaf = by_openssl(folder.path(), subject, "keyUsage=digitalSignature");
        let show = ["x509", "-in", "leaf.der", "-inform", "DER", "-noout", "-subject", "-nameopt", "RFC2253"];
        let written = openssl(folder.path(), &show);
        let written = written.trim_end_matches('\n').strip_prefix("subject=").unwrap();
        assert_eq!(verify(&ca, &[&leaf]).unwrap().subject, written);
    }
    let old = by_openssl(folder.path(), "/CN=maria", "");
    assert_eq!(verify(&ca, &[&old]).unwrap_err(), CertRefused::OldVersion);
}

#[test]
fn a_bundle_holds_authorities_and_nothing_else() {
    let (one, two) = (root("one"), root("two"));
    let both = format!("# ours\n{}\n\n{}", one.pem(), two.pem());
    let facts = ClientAuthorities::parse(&both).unwrap().describe();
    assert_eq!(facts.iter().map(|fact| fact.subject.as_str()).collect::<Vec<_>>(), ["CN=one", "CN=two"]);
    assert_eq!(facts[0].sha256.len(), 64);
    let refused = |text: &str| ClientAuthorities::parse(text).unwrap_err().to_string();
    let leaf = client("maria", 1, &one);
    assert!(
        refused(&format!("{}{}", one.pem(), leaf.pem)).starts_with("certificate 2: it is not an authority")
    );
    assert!(refused(&format!("{}{}", one.pem(), one.pem())).contains("the same as certificate 1"));
    let key = one.key().serialize_pem();
    let text = refused(&format!("{}{key}", one.pem()));
    assert!(text.contains("private key") && !text.contains(&key[30..60]));
    assert!(refused("").contains("BEGIN CERTIFICATE"));
    assert!(
        refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").contains("certificate 1")
    );
    let mut params = ca_params("three");
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    assert!(refused(&params.self_signed(&key).unwrap().pem()).contains("keyCertSign"));
    params.key_usages.clear();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert!(refused(&params.self_signed(&key).unwrap().pem()).contains("clientAuth"));
    let many: String = (0..=CA_CERTIFICATES_MAX).map(|_| root("many").pem()).collect();
    assert!(refused(&many).contains("more than 32"));
    let folder = tempfile::tempdir().unwrap();
    let weak =
        ["req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=weak", "-keyout", "k", "-out", "c"];
    openssl(folder.path(), &weak);
    assert!(refused(&std::fs::read_to_string(folder.path().join("c")).unwrap()).contains("1024 bits"));
    let other = ["req", "-x509", "-newkey", "ed448", "-nodes", "-subj", "/CN=x", "-keyout", "k", "-out", "c"];
    openssl(folder.path(), &other);
    assert!(refused(&std::fs::read_to_string(folder.path().join("c")).unwrap()).contains("kind"));
    let rsa =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "k", "-out", "c"];
    openssl(folder.path(), &rsa);
    ClientAuthorities::parse(&std::fs::read_to_string(folder.path().join("c")).unwrap()).unwrap();
}

#[test]
fn the_clouds_own_root_and_what_it_issued_are_no_authorities_of_clients() {
    let (own, theirs) = (root("Chitin root"), root("theirs"));
    let below = intermediate("below", &own);
    let parse = |text: String| ClientAuthorities::parse_without(&text, own.der()).map(|_| ());
    assert_eq!(parse(theirs.pem()), Ok(()));
    for mine in [own.pem(), below.pem()] {
        let refused = parse(format!("{}{mine}", theirs.pem())).unwrap_err().to_string();
        assert!(refused.starts_with("certificate 2: it belongs to this cloud"), "{refused}");
    }
    // The same key under another name is the same authority.
    let renamed = ca_params("another name").self_signed(own.key()).unwrap();
    assert!(parse(renamed.pem()).is_err());
}

#[test]
fn t45_revocation_lists_refuse_whom_they_name_and_stale_ones_everybody() {
    let (ca, other) = (root("ours"), root("other"));
    let middle = intermediate("middle", &ca);
    let (maria, paul) = (client("maria", 7, &ca), client("paul", 8, &ca));
    let under = client("nora", 7, &middle);
    let crls = fresh_list(&ca, &[7]);
    assert_eq!(crls.describe()[0].issuer, "CN=ours");
    assert_eq!(crls.describe()[0].revoked, 1);
    assert_eq!(verify_with(&ca, &[&maria.der], &crls).unwrap_err(), CertRefused::Revoked);
    let good = verify_with(&ca, &[&paul.der], &crls).unwrap();
    assert!(!crls.revokes(&good));
    // The same serial of another issuer is another certificate. An issuer without a list counts only if that was said.
    let chain: [&CertificateDer<'_>; 2] = [&under.der, middle.der()];
    assert_eq!(verify_with(&ca, &chain, &crls).unwrap_err(), CertRefused::NoCrl);
    let of_middle = list(&middle, &[9], now() - Duration::HOUR, now() + Duration::DAY);
    let only_middle = Crls::parse(&of_middle).unwrap();
    assert_eq!(verify_with(&ca, &chain, &only_middle).unwrap_err(), CertRefused::NoCrl, "nor one between");
    let of_root = list(&ca, &[7], now() - Duration::HOUR, now() + Duration::DAY);
    assert!(verify_with(&ca, &chain, &Crls::parse(&format!("{of_root}{of_middle}")).unwrap()).is_ok());
    let crls = crls.accepting_without_list(true);
    let verified = verify_with(&ca, &chain, &crls).unwrap();
    assert!(!crls.revokes(&verified));
    // An intermediate one that is revoked takes all below it with it.
    let serial = parsed(middle.der()).unwrap().raw_serial().to_vec();
    let params = CertificateRevocationListParams {
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: now(),
            reason_code: None,
            invalidity_date: None,
        }],
        this_update: now() - Duration::HOUR,
        next_update: now() + Duration::DAY,
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let above = Crls::parse(&params.signed_by(&ca).unwrap().pem().unwrap()).unwrap();
    assert_eq!(verify_with(&ca, &[&under.der, middle.der()], &above).unwrap_err(), CertRefused::Revoked);
    assert!(above.revokes(&verified), "also while a session is open");
    // Out of date: everybody is refused, but nobody is called revoked who is not.
    let stale =
        Crls::parse(&list(&ca, &[7], now() - Duration::days(2), now() - Duration::seconds(1))).unwrap();
    assert_eq!(verify_with(&ca, &[&paul.der], &stale).unwrap_err(), CertRefused::StaleCrl);
    assert!(!stale.revokes(&good));
    // Another authority's list says nothing about this one's certificates; one that another made in this one's name refuses everybody.
    let of_other = fresh_list(&other, &[7]);
    assert_eq!(verify_with(&ca, &[&maria.der], &of_other).unwrap_err(), CertRefused::NoCrl);
    assert!(verify_with(&ca, &[&maria.der], &of_other.accepting_without_list(true)).is_ok());
    let forged = fresh_list(&root("ours"), &[8]);
    assert_eq!(verify_with(&ca, &[&paul.der], &forged).unwrap_err(), CertRefused::UnusableCrl);
    assert!(!forged.revokes(&good), "a forged list cuts nobody");
    // Strangers learn nothing from lists.
    let stranger = client("maria", 7, &other);
    assert_eq!(verify_with(&ca, &[&stranger.der], &crls).unwrap_err(), CertRefused::Stranger);
}

#[test]
fn of_several_lists_the_newest_of_the_right_authority_counts() {
    let (ca, before) = (root("ours"), root("ours"));
    let leaf = client("maria", 7, &ca);
    let older = list(&ca, &[], now() - Duration::days(2), now() + Duration::DAY);
    let newer = list(&ca, &[7], now() - Duration::HOUR, now() + Duration::DAY);
    for text in [format!("{older}{newer}"), format!("{newer}{older}")] {
        let crls = Crls::parse(&text).unwrap();
        assert_eq!(verify_with(&ca, &[&leaf.der], &crls).unwrap_err(), CertRefused::Revoked);
    }
    // After a change of keys the old and the new authority have the same name.
    let namesake = list(&before, &[8], now(), now() + Duration::DAY);
    let crls = Crls::parse(&format!("{namesake}{older}")).unwrap();
    assert!(verify_with(&ca, &[&leaf.der], &crls).is_ok());
    let crls = Crls::parse(&format!("{namesake}{newer}")).unwrap();
    assert_eq!(verify_with(&ca, &[&leaf.der], &crls).unwrap_err(), CertRefused::Revoked);
}

#[test]
fn t45_lists_that_are_not_complete_are_refused_when_they_are_set() {
    let ca = root("ours");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", &ca.pem());
    write("ca.key", &ca.key().serialize_pem());
    write("index.txt", "R\t400101000000Z\t240101000000Z\t07\tunknown\t/CN=maria\n");
    write("crlnumber", "01\n");
    let made = |extensions: &str, days: &str| {
        let section = if extensions.is_empty() { "" } else { "crl_extensions = e" };
        write(
            "cnf",
            &format!(
                "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\ncrlnumber = crlnumber\ndefault_md = sha256\n{section}\n[e]\n{extensions}\n[idp]\nfullname = URI:http://crl.example.org\n{days}\n"
            ),
        );
        let arguments = ["ca", "-gencrl", "-config", "cnf", "-cert", "ca.pem", "-keyfile", "ca.key"];
        openssl(folder.path(), &[&arguments[..], &["-crldays", "3", "-out", "crl.pem"]].concat());
        let text = std::fs::read_to_string(folder.path().join("crl.pem")).unwrap();
        Crls::parse(&text).map(|crls| crls.describe()[0].revoked).map_err(|cause| cause.to_string())
    };
    let number = "authorityKeyIdentifier = keyid";
    assert_eq!(made(number, ""), Ok(1));
    let delta = format!("{number}\n2.5.29.27 = critical,DER:02:01:01");
    assert!(made(&delta, "").unwrap_err().contains("delta"));
    let scoped = format!("{number}\nissuingDistributionPoint = critical,@idp");
    assert!(made(&scoped, "indirectCRL = TRUE").unwrap_err().contains("indirect"));
    assert!(made(&scoped, "onlysomereasons = keyCompromise").unwrap_err().contains("reasons"));
    assert!(Crls::parse(&ca.pem()).is_err());
    assert!(Crls::parse("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").is_err());
}
