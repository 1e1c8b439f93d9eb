//! What the time of a refusal tells: for each way that asks for a secret, an unknown user against a wrong secret.

use std::time::Instant;

use crate::sign_in::cloud;
use house::authority::{Authority, Leaf};
use house::caller::fresh_address;
use house::provider::Provider;
use house::{Caller, Cluster};
use serde_json::json;

/// Refusals of each kind.
const COUNT: usize = 300;

/// Nanoseconds from the startup message to the refusal.
fn refusal_time(one: &Cluster<'_>, caller: &Caller) -> u128 {
    let begun = Instant::now();
    assert!(one.enter(caller).is_err());
    begun.elapsed().as_nanos()
}

/// The chance that a value of `left` is larger than one of `right`; a half when nothing tells them apart.
fn superiority(left: &[u128], right: &[u128]) -> f64 {
    let wins: f64 = left
        .iter()
        .flat_map(|a| {
            right.iter().map(move |b| f64::from(u8::from(a > b)) + f64::from(u8::from(a == b)) / 2.0)
        })
        .sum();
    wins / (left.len() * right.len()) as f64
}

fn compare(what: &str, people: [(&Cluster<'_>, &Caller); 2]) {
    let mut times: [Vec<u128>; 2] = Default::default();
    for turn in 0..COUNT {
        // They take turns in both orders, so that a busy machine weighs on both alike.
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for person in order {
            let (one, caller) = people[person];
            times[person].push(refusal_time(one, &caller.clone().from(fresh_address())));
        }
    }
    let tell = superiority(&times[0], &times[1]);
    println!("  {what}: {tell:.3} (a half is no difference)");
    // With 300 values each, chance alone stays within 0.5 ± 0.12 but once in three million runs.
    assert!((0.38..=0.62).contains(&tell), "{what} can be told by time: {tell:.3}");
}

pub fn t31_no_way_to_sign_in_tells_by_time_whether_a_user_exists() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let one = cloud().cluster("timing-one", &[]);
    let nobody = one.with_user("nobody_here", "");
    let mut unknown = one.clone();
    unknown.handle = "no-such-cluster-77".to_owned();
    let wrong = Caller::with("a-wrong-password");
    one.set_rules("host all all all password\n");
    compare("a password in clear", [(&one, &wrong), (&nobody, &wrong)]);
    one.set_rules("host all all all scram-sha-256\n");
    compare("SCRAM", [(&one, &wrong), (&nobody, &wrong)]);
    one.set_rules("");
    compare("SCRAM, and a cluster that does not exist", [(&one, &wrong), (&unknown, &wrong)]);
    let provider = Provider::start("ES256");
    one.set_provider("corp", &provider.settings()).ok();
    one.set_rules("host all all all jwt\n");
    one.welcome(&Caller::with(&provider.token("maria")));
    let forged = Caller::with(&provider.token_with("maria", &json!({ "aud": "elsewhere" })));
    compare("a token", [(&one, &forged), (&nobody, &forged)]);
    let root = Authority::root(scratch.path(), "root");
    one.set_authorities(&root.pem());
    one.set_rules("host all all all cert\n");
    let bob = Caller::holding(&root.issue(&Leaf::of("bob")));
    compare("somebody else's certificate", [(&one, &bob), (&nobody, &bob)]);
}
