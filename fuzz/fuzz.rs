//! Feeds bytes of strangers to whatever reads them. One program for all targets, so that it is linked once; the variable
//! `FUZZ_TARGET` names the target of this run.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "targets/frames.rs"]
mod frames;
#[path = "targets/hba.rs"]
mod hba;
#[path = "targets/hello.rs"]
mod hello;
#[path = "targets/identity_map.rs"]
mod identity_map;
#[path = "targets/jwt.rs"]
mod jwt;
#[path = "targets/key_service.rs"]
mod key_service;
#[path = "targets/names.rs"]
mod names;
#[path = "targets/oauthbearer.rs"]
mod oauthbearer;
#[path = "targets/proxy.rs"]
mod proxy;
#[path = "targets/sasl.rs"]
mod sasl;
#[path = "targets/scram.rs"]
mod scram;
#[path = "targets/startup.rs"]
mod startup;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 12] = [
    ("frames", frames::run),
    ("hba", hba::run),
    ("hello", hello::run),
    ("identity_map", identity_map::run),
    ("jwt", jwt::run),
    ("key_service", key_service::run),
    ("names", names::run),
    ("oauthbearer", oauthbearer::run),
    ("proxy", proxy::run),
    ("sasl", sasl::run),
    ("scram", scram::run),
    ("startup", startup::run),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    let names: Vec<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
    found.unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}, and must be one of {}", names.join(", "))).1
});

/// As much of the bytes as is text.
fn text(bytes: &[u8]) -> &str {
    let length = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
    std::str::from_utf8(&bytes[..length]).unwrap_or_default()
}

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
