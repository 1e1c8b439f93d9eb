//! Which clusters exist is nobody's business whom none of them lets in: by any door, and as soon as the rules say so.

use std::io::Read;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use house::api::curl;
use house::caller::fresh_address;
use house::provider::Provider;
use house::{Caller, Cloud, Options, tls};
use serde_json::json;

/// A name that no cluster has.
const MISSING: &str = "not-there-99999998";

/// What the sign-in pages answer from this address, all of it but the time of day.
fn page(cloud: &Cloud, from: IpAddr, path: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["-i", "-4", "--interface", &from.to_string(), "--cacert"]).arg(cloud.root_certificate());
    let answer = curl(command.arg(cloud.web(path)), None);
    answer.text.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n")
}

fn login(cloud: &Cloud, from: IpAddr, handle: &str) -> String {
    page(cloud, from, &format!("/oidc/v1/login?cluster={handle}"))
}

/// What the door for SQL answers from there to a ClientHello with this name.
fn hello(cloud: &Cloud, from: IpAddr, name: &str) -> Vec<u8> {
    let mut wire = cloud.connect(cloud.sql_address(), Some(from)).expect("the door is there");
    let config = Arc::new(tls::client(&cloud.root_certificate(), &[]));
    assert_eq!(wire.ask_for_tls().expect("an answer"), b'S');
    wire.send_raw(&tls::client_hello(&config, name)).expect("the door listens");
    wire.socket().set_read_timeout(Some(Duration::from_secs(2))).expect("a live socket");
    let mut answer = Vec::new();
    // Whom it goes on with, it waits for.
    let _ = wire.read_to_end(&mut answer);
    answer
}

pub fn t57_whom_no_cluster_lets_in_learns_from_no_door_which_clusters_exist() {
    let cloud = Cloud::start(Options::unencrypted(&["--fetch-allow", "127.0.0.0/8"]));
    let one = cloud.cluster("is-there", &["--plan", "dedicated"]);
    let (stranger, guest) = (fresh_address(), fresh_address());
    let look_alike = |who: IpAddr, when: &str| {
        let (there, missing) = (login(&cloud, who, &one.handle), login(&cloud, who, MISSING));
        assert!(there.starts_with("HTTP/") && there.contains(" 403"), "{when}: {there}");
        assert_eq!(there, missing, "{when}: the pages tell which clusters exist");
        let sni = |name: &str| hello(&cloud, who, &format!("{name}.localhost"));
        assert_eq!(sni(&one.handle), sni(MISSING), "{when}: SQL tells which clusters exist");
        assert_eq!(sni(&one.handle).first(), Some(&21), "{when}: an alert");
        let mut other = one.clone();
        other.handle = MISSING.to_owned();
        let inside =
            |one: &house::Cluster<'_>| one.enter(&Caller::with("x").from(who)).err().expect("a refusal");
        assert_eq!(inside(&one), inside(&other), "{when}");
    };
    look_alike(stranger, "nobody is let in anywhere");
    let provider = Provider::start("ES256");
    provider.register(&cloud);
    cloud.set_provider("corp", &provider.settings()).ok();
    look_alike(stranger, "with a provider of the whole cloud");
    one.set_provider("own", &provider.settings()).ok();
    look_alike(stranger, "with a provider of the cluster");
    // A list that lets in the guest opens nothing to the stranger.
    let line = format!("{guest}/32");
    one.try_allow(&line, &json!({ "sql": true, "ui": true })).ok();
    look_alike(stranger, "somebody else is let in");
    assert!(login(&cloud, guest, &one.handle).contains(" 307"));
    assert!(login(&cloud, guest, MISSING).contains(" 307"), "on a way that ends in a refusal");
    for name in [one.handle.as_str(), MISSING] {
        assert_eq!(hello(&cloud, guest, &format!("{name}.localhost")).first(), Some(&22), "a ServerHello");
    }
    // One surface opens the other to nobody.
    one.edit_allowed(&line, &json!({ "sql": true, "ui": false }));
    assert_eq!(login(&cloud, guest, &one.handle), login(&cloud, guest, MISSING), "open for SQL alone");
    one.edit_allowed(&line, &json!({ "sql": true, "ui": true }));
    // What was known of the guest is gone with the last line of the last list.
    one.disallow(&line);
    look_alike(guest, "after all lists were emptied");
    // Tickets, sessions and the way back know nobody.
    for path in
        ["/sign-in/AAAAAAAAAAAAAAAAAAAAAAAAAAA", "/oidc/v1/callback?state=AAAAAAAAAAAAAAAAAAAA&code=x"]
    {
        assert_eq!(page(&cloud, stranger, path), page(&cloud, guest, path), "{path}");
    }
}
