//! Memory under made-up keys, in a process of its own so that nothing else is measured.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop at what should not happen")]

#[path = "api/double.rs"]
mod double;
#[path = "api/world.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod world;

use axum::body::Body;
use axum::http::Request;

use crate::world::World;

const GROWTH_BYTES_MAX: u64 = 8 << 20;

#[tokio::test]
async fn a_hundred_thousand_made_up_keys_leave_no_trace_and_the_true_key_its_turn() {
    let world = World::new();
    for number in 0..5_000 {
        refused(&world, number).await;
    }
    let before = resident_bytes();
    for number in 5_000..105_000 {
        refused(&world, number).await;
    }
    // An entry for each would take far more than 100 bytes: text of 68 bytes, a bucket and the map's own.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "memory grew by {grown} bytes");
    assert_eq!(ask(&world, &world.key).await, 200);
}

async fn refused(world: &World, number: u32) {
    assert_eq!(ask(world, &format!("CCDB1_{number:022}_{}", "A".repeat(40))).await, 401);
}

async fn ask(world: &World, key: &str) -> u16 {
    let request = Request::builder().uri("/api/v1/clusters").header("authorization", format!("Bearer {key}"));
    world.send(request.body(Body::empty()).unwrap()).await.status
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}
