//! How many sessions a cluster may have, and what happens when they are used up.

use house::cloud::PATIENCE;
use house::command::eventually;
use house::wire::Wire;
use house::{Cloud, Cluster, Options};

/// What `cluster show` says of sessions after how many there are.
fn limits(cloud: &Cloud, one: &Cluster<'_>) -> String {
    let shown = cloud.chitin(["cluster", "show", &one.name]).ok();
    let line = shown.lines().find_map(|line| line.trim().strip_prefix("sessions"));
    let line = line.unwrap_or_else(|| panic!("{shown}"));
    line.split_once("of ").unwrap_or_else(|| panic!("{line}")).1.to_owned()
}

/// Signs in until somebody is refused.
fn use_up(one: &Cluster<'_>, at_most: usize) -> Vec<Wire> {
    let mut held = Vec::new();
    for _ in 0..=at_most {
        match one.try_sign_in() {
            Ok(wire) => held.push(wire),
            Err(refusal) => {
                assert_eq!(refusal.code, "53300", "{refusal:?}");
                return held;
            }
        }
    }
    panic!("{} sessions and nobody was refused", held.len());
}

fn start_again(cloud: &Cloud, one: &Cluster<'_>) {
    cloud.chitin(["cluster", "sleep", &one.name, "--force"]).ok();
    cloud.chitin(["cluster", "wake", &one.name]).ok();
}

fn is_told(cloud: &Cloud, one: &Cluster<'_>, text: &str) -> bool {
    let alerts = cloud.json(["status"])["alerts"].clone();
    let mut alerts = alerts.as_array().expect("a list").iter();
    alerts.any(|alert| alert["cluster"] == one.name.as_str() && alert["what"].to_string().contains(text))
}

pub fn a_cluster_has_the_sessions_that_were_asked_for_and_no_more() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("asked-for", &["--connections", "10"]);
    assert_eq!(limits(&cloud, &one), "10 at most");
    // One place of ten stays for the cluster's other users.
    let held = use_up(&one, 10);
    assert_eq!(held.len(), 9);
    let told = "it may have 10";
    eventually("the operator is told", PATIENCE, || is_told(&cloud, &one, told).then_some(()));
    cloud.chitin(["cluster", "update", &one.name, "--connections", "20"]).ok();
    assert_eq!(limits(&cloud, &one), "10 at most, of 20 from its engine's next start on");
    assert_eq!(one.try_sign_in().err().expect("the tenth").code, "53300");
    drop(held);
    start_again(&cloud, &one);
    assert!(!is_told(&cloud, &one, "sessions were used up"), "of an earlier run");
    assert_eq!(use_up(&one, 20).len(), 19);
    assert_eq!(limits(&cloud, &one), "20 at most", "who chose a number has it");
    for wrong in ["5", "2001"] {
        let refused = cloud.chitin(["cluster", "update", &one.name, "--connections", wrong]).refused();
        assert!(refused.contains("2000") || refused.contains("2_000"), "{refused}");
    }
}

pub fn a_cluster_that_used_up_its_sessions_has_more_after_its_next_start() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let one = cloud.cluster("grows-by-itself", &[]);
    let mut held = use_up(&one, 200);
    assert_eq!(held.len(), 190);
    assert_eq!(held[189].value("select 1"), "1");
    eventually("it is to have more", PATIENCE, || {
        (limits(&cloud, &one) == "200 at most, of 400 from its engine's next start on").then_some(())
    });
    assert!(is_told(&cloud, &one, "it may have 400"));
    drop(held);
    start_again(&cloud, &one);
    assert_eq!(limits(&cloud, &one), "400 at most");
    let mut wire = one.sign_in();
    assert_eq!(wire.value("show max_connections"), "520");
    cloud.chitin(["cluster", "update", &one.name, "--connections", "2000"]).ok();
    start_again(&cloud, &one);
    assert_eq!(one.sign_in().value("show max_connections"), "2520");
}
