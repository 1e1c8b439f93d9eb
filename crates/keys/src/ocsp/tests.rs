//! Tests of questions and answers, against the real `openssl ocsp`.

use std::path::Path;

use der::Encode;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use x509_ocsp::OcspRequest;

use super::*;
use crate::testing::{Ca, Leaf, client, client_params, intermediate, issue, now, openssl, root};

const NONCE_SENT: [u8; 32] = [7; 32];

struct Desk {
    folder: tempfile::TempDir,
    ca: Ca,
}

impl Desk {
    /// An authority that issued 7 (good), 8 (revoked), 9 (revoked for a reason), and knows nothing of others.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = root("ours");
        let desk = Self { folder, ca };
        desk.write("ca.pem", &desk.ca.pem());
        desk.write("ca.key", &desk.ca.key().serialize_pem());
        desk.write(
            "index.txt",
            "V\t400101000000Z\t\t07\tunknown\t/CN=a\nR\t400101000000Z\t240102030405Z\t08\tunknown\t/CN=b\nR\t400101000000Z\t240102030405Z,keyCompromise\t09\tunknown\t/CN=c\n",
        );
        desk
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn step(&self, serial: u64) -> Step {
        Step::new(client("maria", serial, &self.ca).der, self.ca.der().clone()).unwrap()
    }

    fn signer(&self, leaf: &Leaf) -> [&'static str; 4] {
        self.write("signer.pem", &leaf.pem);
        self.write("signer.key", &leaf.key.serialize_pem());
        ["-rsigner", "signer.pem", "-rkey", "signer.key"]
    }

    /// What `openssl ocsp` answers to our question.
    fn answer(&self, step: &Step, more: &[&str]) -> Vec<u8> {
        std::fs::write(self.path().join("request"), request(step, &NONCE_SENT)).unwrap();
        let mut arguments = vec!["ocsp", "-index", "index.txt", "-CA", "ca.pem"];
        arguments.extend(["-reqin", "request", "-respout", "response"]);
        if !more.contains(&"-rsigner") {
            arguments.extend(["-rsigner", "ca.pem", "-rkey", "ca.key"]);
        }
        arguments.extend(more);
        openssl(self.path(), &arguments);
        std::fs::read(self.path().join("response")).unwrap()
    }

    fn ask(&self, serial: u64, more: &[&str]) -> Result<Answer, BadAnswer> {
        let step = self.step(serial);
        read(&self.answer(&step, more), &step, now(), Some(&NONCE_SENT))
    }
}

fn responder(change: impl Fn(&mut CertificateParams), by: &Ca) -> Leaf {
    let mut params = client_params("responder", 99);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    change(&mut params);
    issue(&params, by)
}

#[test]
fn a_real_responder_understands_the_question() {
    let desk = Desk::new();
    let good = desk.ask(7, &["-ndays", "1"]).unwrap();
    assert_eq!(good.status, Status::Good);
    assert_eq!(good.next_update.unwrap() - good.this_update, Duration::DAY);
    let at = time::macros::datetime!(2024-01-02 03:04:05 UTC);
    let revoked = desk.ask(8, &["-ndays", "1"]).unwrap();
    assert_eq!(revoked.status, Status::Revoked { at, reason: None });
    let revoked = desk.ask(9, &["-ndays", "1"]).unwrap();
    assert_eq!(revoked.status, Status::Revoked { at, reason: Some("keyCompromise") });
    assert_eq!(desk.ask(10, &["-ndays", "1"]).unwrap().status, Status::Unknown);
    let text = openssl(desk.path(), &["ocsp", "-reqin", "request", "-req_text", "-noverify"]);
    assert!(text.contains("Serial Number: 0A") && text.contains("OCSP Nonce"), "{text}");
    let sent = OcspRequest::from_der(&request(&desk.step(7), &NONCE_SENT)).unwrap();
    assert_eq!(sent.nonce().unwrap().0.as_bytes(), NONCE_SENT);
    assert_eq!(sent.to_der().unwrap(), request(&desk.step(7), &NONCE_SENT));
}

#[test]
fn an_appointed_responder_counts_and_nobody_else() {
    let desk = Desk::new();
    let signed_by = |leaf: &Leaf| desk.ask(7, &desk.signer(leaf)).map(|answer| answer.status);
    assert_eq!(signed_by(&responder(|_| {}, &desk.ca)), Ok(Status::Good));
    let wrong = Err(BadAnswer::WrongSigner);
    let client_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    assert_eq!(signed_by(&responder(client_only, &desk.ca)), wrong);
    assert_eq!(signed_by(&responder(|params| params.extended_key_usages.clear(), &desk.ca)), wrong);
    assert_eq!(
        signed_by(&responder(|params| params.not_after = now() - Duration::seconds(1), &desk.ca)),
        wrong
    );
    // Another authority of the same name, and one below ours that was not asked.
    assert_eq!(signed_by(&responder(|_| {}, &root("ours"))), wrong);
    assert_eq!(signed_by(&responder(|_| {}, &intermediate("below", &desk.ca))), wrong);
    // An answer without the responder's certificate cannot be checked.
    let signer = desk.signer(&responder(|_| {}, &desk.ca));
    assert_eq!(
        desk.ask(7, &[&signer[..], &["-resp_no_certs"]].concat()).unwrap_err(),
        BadAnswer::WrongSigner
    );
}

#[test]
fn t45_an_answer_is_of_the_present_and_about_this_certificate() {
    let desk = Desk::new();
    let step = desk.step(7);
    let day = desk.answer(&step, &["-ndays", "1"]);
    let open = desk.answer(&step, &[]);
    let at =
        |bytes: &[u8], later: Duration| read(bytes, &step, now() + later, None).map(|answer| answer.status);
    assert_eq!(at(&day, Duration::hours(23)), Ok(Status::Good));
    assert_eq!(at(&day, Duration::hours(25)), Err(BadAnswer::OutOfDate));
    assert_eq!(at(&open, Duration::hours(23)), Ok(Status::Good));
    assert_eq!(at(&open, Duration::hours(25)), Err(BadAnswer::OutOfDate), "a day without nextUpdate");
    assert_eq!(at(&day, Duration::minutes(-4)), Ok(Status::Good), "clocks may differ");
    assert_eq!(at(&day, Duration::minutes(-6)), Err(BadAnswer::FromTheFuture));
    let other = desk.step(6);
    assert_eq!(read(&day, &other, now(), None), Err(BadAnswer::OtherCertificate));
    // The same serial under another issuer.
    let elsewhere = root("theirs");
    let stranger = Step::new(client("maria", 7, &elsewhere).der, elsewhere.der().clone()).unwrap();
    assert_eq!(read(&day, &stranger, now(), None), Err(BadAnswer::WrongSigner));
    let namesake = Step::new(client("maria", 7, &elsewhere).der, desk.ca.der().clone()).unwrap();
    assert_eq!(read(&day, &namesake, now(), None).unwrap().status, Status::Good, "the serial is what counts");
}

#[test]
fn t45_the_nonce_must_be_ours_where_it_is_echoed() {
    let desk = Desk::new();
    let step = desk.step(7);
    let echoed = desk.answer(&step, &["-ndays", "1"]);
    assert!(read(&echoed, &step, now(), Some(&NONCE_SENT)).is_ok());
    assert_eq!(read(&echoed, &step, now(), Some(&[8; 32])), Err(BadAnswer::WrongNonce));
    assert!(read(&echoed, &step, now(), None).is_ok(), "a stapled answer answers another's question");
    // Asked without a nonce, `openssl` has none to echo.
    let arguments = ["ocsp", "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "ca.pem", "-rkey", "ca.key"];
    let ask = ["-issuer", "ca.pem", "-serial", "7", "-no_nonce", "-ndays", "1", "-respout", "response"];
    for hash in ["-sha1", "-sha256", "-sha384"] {
        let asked = [&arguments[..], &["-noverify", hash], &ask[..]].concat();
        openssl(desk.path(), &asked);
        let plain = std::fs::read(desk.path().join("response")).unwrap();
        assert_eq!(read(&plain, &step, now(), Some(&NONCE_SENT)).unwrap().status, Status::Good, "{hash}");
    }
}

#[test]
fn t45_what_is_no_answer_is_refused_and_never_a_panic() {
    let desk = Desk::new();
    let step = desk.step(7);
    let good = desk.answer(&step, &["-ndays", "1"]);
    let of = |bytes: &[u8]| read(bytes, &step, now(), Some(&NONCE_SENT));
    for garbage in
        [&b""[..], b"nonsense", b"<html></html>", &[0x30], &[0x30, 0x80], &[0x30, 0x84, 255, 255, 255, 255]]
    {
        assert_eq!(of(garbage), Err(BadAnswer::Malformed));
    }
    assert_eq!(of(&vec![0; RESPONSE_BYTES_MAX + 1]), Err(BadAnswer::TooLong));
    for (number, name) in [(1, "malformedRequest"), (3, "tryLater"), (6, "unauthorized")] {
        assert_eq!(of(&[0x30, 3, 0x0a, 1, number]), Err(BadAnswer::NotSuccessful(name)));
    }
    assert_eq!(of(&[0x30, 3, 0x0a, 1, 0]), Err(BadAnswer::Malformed), "successful without an answer");
    for length in 0..good.len() {
        assert!(of(&good[..length]).is_err());
    }
    // No changed bit makes another good answer out of it, except in what is not signed: the certificates beside it.
    for index in 0..good.len() {
        let mut bent = good.clone();
        bent[index] ^= 1;
        if let Ok(answer) = of(&bent) {
            assert_eq!(answer, of(&good).unwrap(), "byte {index}");
        }
    }
    let weak = desk.answer(&step, &["-ndays", "1", "-rmd", "sha1"]);
    assert_eq!(of(&weak), Err(BadAnswer::WrongSigner), "SHA-1 signs nothing");
    assert!(Step::new(step.certificate.clone(), CertificateDer::from(vec![1])).is_none());
}
