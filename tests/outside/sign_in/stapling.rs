//! Our own certificate with a fresh OCSP answer, as a client sees it on both doors.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use house::authority::{Authority, Leaf};
use house::command::{eventually, run_with};
use house::responder::{Mood, Responder};
use house::{Cloud, Options};

const PATIENCE: Duration = Duration::from_secs(90);

/// What `openssl s_client -status` says of the answer that came with the certificate.
fn status(door: SocketAddr, more: &[&str]) -> String {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-connect", &door.to_string(), "-servername", "db.example.test", "-status"]);
    let finished = run_with(client.args(more), b"", Duration::from_secs(20));
    let answer = finished
        .stdout
        .lines()
        .filter(|line| line.contains("Cert Status") || line.contains("OCSP response:"));
    answer.map(str::trim).collect::<Vec<_>>().join("; ")
}

pub fn our_own_certificate_comes_with_an_answer_of_its_responder() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let root = Authority::root(scratch.path(), "servers");
    let responder = Responder::of(&root);
    let server = root.issue(&Leaf {
        names: vec!["DNS:db.example.test".to_owned()],
        usage: Some("serverAuth".to_owned()),
        ..Leaf::of("db.example.test").asked_at(&responder.url())
    });
    // The issuer must be in the file: an answer is about a certificate and who signed it.
    let chain = scratch.path().join("server-with-issuer.pem");
    let leaf = std::fs::read_to_string(&server.chain).expect("the certificate");
    std::fs::write(&chain, leaf + &root.pem()).expect("a file of ours");
    let path = |path: &std::path::Path| path.display().to_string();
    let cloud = Cloud::start(Options::unencrypted(&[
        "--tls-cert",
        &path(&chain),
        "--tls-key",
        &path(&server.key),
        "--tls-staple",
        "--fetch-allow",
        "127.0.0.0/8",
    ]));
    let doors = [(cloud.sql_address(), &["-starttls", "postgres"][..]), (cloud.http_address(), &[][..])];
    for (door, more) in doors {
        eventually("the certificate comes with an answer", PATIENCE, || {
            status(door, more).contains("Cert Status: good").then_some(())
        });
    }
    // A responder that is down takes nothing away that is still valid.
    responder.set(Mood::Down);
    assert!(status(cloud.sql_address(), &["-starttls", "postgres"]).contains("good"));
    // Nobody who did not ask for it is given another certificate's answer: this machine's own has none.
    let mut plain = Command::new("openssl");
    plain.args(["s_client", "-connect", &cloud.sql_address().to_string(), "-servername", "localhost"]);
    let own = run_with(plain.args(["-status", "-starttls", "postgres"]), b"", Duration::from_secs(20));
    assert!(own.stdout.contains("OCSP response: no response sent"), "{}", own.stdout);
}
