//! Identity providers that are changed: a mistake over what works is noticed before it counts.

use house::Caller;
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::command::run_with;
use house::provider::{CLIENT_SECRET, Provider, with};
use serde_json::json;

use crate::sign_in::cloud;

fn bearing(token: &str) -> Caller {
    Caller::with(token).from(fresh_address())
}

pub fn a_mistake_over_a_good_provider_is_refused_and_sign_ins_go_on() {
    let provider = Provider::start("ES256");
    provider.register(cloud());
    let one = cloud().cluster("providers-tried", &[]);
    one.set_rules("host all all all jwt\n");
    let tried = |more| {
        one.set_provider("corp", &with(&with(&provider.settings(), &json!({ "force": false })), &more))
    };
    // What is right passes, also where nothing was before.
    let set = tried(json!({})).ok();
    assert_eq!(set["has_client_secret"], true);
    let asked = provider.count("/token");
    assert!(asked > 0, "the token endpoint was not asked");

    let path = format!("/api/v1/chitin/clusters/{}/providers", one.id);
    let before = cloud().call("GET", &path, None).ok();
    let (port, nowhere) = Provider::of_the_future();
    for (more, why) in [
        (
            json!({ "client_secret": "a-secret-with-a-typo-0123456789-0123456789" }),
            "does not accept the client id",
        ),
        (json!({ "client_id": "chitln" }), "does not accept the client id"),
        (json!({ "issuer": nowhere }), nowhere.as_str()),
        (json!({ "issuer": format!("{}/typo", provider.issuer()) }), "HTTP status 404"),
        (json!({ "jwks_uri": format!("http://127.0.0.1:{port}/jwks") }), "jwks"),
    ] {
        let said = tried(more.clone()).refused(400);
        assert!(said.contains(why) && said.contains("--force"), "{more}: {said}");
        assert!(!said.contains("typo-0123456789") && !said.contains(CLIENT_SECRET), "{said}");
    }
    provider.set_fault("*", &json!("down"));
    assert!(tried(json!({})).refused(400).contains("--force"));
    provider.set_fault("*", &json!(null));
    assert_eq!(cloud().call("GET", &path, None).ok(), before, "a refused change changed something");
    let token = provider.token("maria");
    one.welcome(&bearing(&token));

    // The same by the command, which says how to insist.
    let set = |arguments: &[&str], secret: &str| {
        let line = ["provider", "set", "corp", "--cluster", "providers-tried", "--client-secret-stdin"];
        let line: Vec<&str> = line.iter().chain(arguments).copied().collect();
        run_with(&mut cloud().command_of(&line), secret.as_bytes(), PATIENCE)
    };
    let said = set(&[], "a-typo").refused();
    assert!(
        said.contains("give the secret that belongs to the client id") && said.contains("--force"),
        "{said}"
    );
    set(&["--force"], "a-typo").ok();
    let said = set(&[], "another-typo").refused();
    assert!(said.contains("--force"), "{said}");
    set(&[], CLIENT_SECRET).ok();
    one.welcome(&bearing(&provider.token("maria")));
}
