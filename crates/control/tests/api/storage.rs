//! Storage limits in the words of each plan, and what the alerts say of them.

use api::Disk;
use model::{Enforcement, Fullness, StorageUse};
use serde_json::{Value, json};

use crate::world::{World, serverless};

const GIB: u64 = 1 << 30;

#[tokio::test]
async fn a_limit_is_taken_in_the_words_of_the_plan_and_out_of_bounds_it_is_refused() {
    let world = World::new();
    let mut wanted = serverless("limited-1");
    wanted["spec"]["serverless"]["usage_limits"] = json!({"storage_mib_limit": "1023"});
    let refused = world.call("POST", "/clusters", wanted.clone()).await;
    assert_eq!(refused.refusal(), (400, 3));
    assert!(refused.json()["message"].as_str().unwrap().contains("between 1 GiB and 64 TiB"));
    wanted["spec"]["serverless"]["usage_limits"] = json!({"storage_mib_limit": "2048"});
    let made = world.call("POST", "/clusters", wanted).await.json();
    let id = made["id"].as_str().unwrap().to_owned();
    let limit =
        async || world.get(&format!("/chitin/clusters/{id}")).await.json()["storage_limit_bytes"].clone();
    assert_eq!(limit().await, json!(2 * GIB));
    let change = |mib: &str| json!({"serverless": {"usage_limits": {"storage_mib_limit": mib}}});
    let path = format!("/clusters/{id}");
    assert_eq!(world.call("PATCH", &path, change("1")).await.status, 400);
    assert_eq!(limit().await, json!(2 * GIB));
    assert_eq!(world.call("PATCH", &path, change("4096")).await.status, 200);
    assert_eq!(limit().await, json!(4 * GIB));
    // What it got because it stored more stays until somebody asks for another.
    let floor = model::StorageLimit::from_gib(75).ok();
    let now = time::OffsetDateTime::now_utc();
    let stored = |cluster: &mut model::Cluster| {
        cluster.storage_floor = floor;
        Ok::<(), store::Error>(())
    };
    world.store.edit(id.parse().unwrap(), now, stored).unwrap();
    let others = json!({"serverless": {"usage_limits": {"request_unit_limit": "5"}}});
    assert_eq!(world.call("PATCH", &path, others).await.status, 200);
    assert_eq!(limit().await, json!(75 * GIB));
    assert_eq!(world.call("PATCH", &path, change("4096")).await.status, 200);
    assert_eq!(limit().await, json!(4 * GIB));
    // What is absent is the plan's own again.
    assert_eq!(world.call("PATCH", &path, json!({"serverless": {"usage_limits": {}}})).await.status, 200);
    assert_eq!(limit().await, json!(10 * GIB));
}

#[tokio::test]
async fn what_fills_is_an_alert_with_a_next_step_and_the_machine_s_disk_comes_first() {
    let world = World::new();
    let id = world.made("filled-1").await;
    let alerts = async || world.get("/chitin/status").await.json()["alerts"].clone();
    assert_eq!(alerts().await, json!([]));
    let seen = |fullness, enforcement, used_bytes| {
        let usage = StorageUse {
            limit_bytes: 10 * GIB,
            used_bytes,
            data_limit_bytes: 10 * GIB,
            wal_used_bytes: None,
            wal_limit_bytes: None,
            enforcement,
            fullness,
        };
        world.store.note(id, |seen| seen.storage.last = Some(usage)).unwrap();
    };
    let first = async || alerts().await[0].clone();
    let says = |alert: &Value, severity: &str, what: &str| {
        assert_eq!(alert["severity"], severity, "{alert}");
        assert!(alert["what"].as_str().unwrap().contains(what), "{alert}");
    };
    for (fullness, enforcement, used, severity, what) in [
        (Fullness::Filling, Enforcement::Enforced, 8, "warning", "it fills: 8192 of 10240 MiB"),
        (Fullness::Low, Enforcement::Enforced, 9, "warning", "near its storage limit"),
        (Fullness::Full, Enforcement::Enforced, 10, "critical", "what grows is refused"),
        (Fullness::Full, Enforcement::Watched, 10, "critical", "read-only unless they say otherwise"),
        (Fullness::Full, Enforcement::Watched, 12, "critical", "and is stopped"),
    ] {
        seen(fullness, enforcement, used * GIB);
        let alert = first().await;
        says(&alert, severity, what);
        assert!(alert["next_step"].as_str().unwrap().contains("chitin cluster update filled-1 --storage"));
    }
    let reason = Some("the kernel stopped writing".to_owned());
    world.store.note(id, |seen| seen.storage.is_read_only = reason).unwrap();
    says(&first().await, "critical", "the kernel stopped writing");
    *world.engines.disk.lock().unwrap() = Some(Disk {
        path: "/var/lib/chitin/clusters".to_owned(),
        total_bytes: 100 * GIB,
        free_bytes: GIB,
        reserve_bytes: 2 * GIB,
        is_used_up: true,
    });
    says(
        &first().await,
        "critical",
        "/var/lib/chitin/clusters has 1024 MiB left, and the machine's reserve is 2048 MiB",
    );
    *world.engines.disk.lock().unwrap() = None;
    world.store.note(id, |seen| seen.storage = model::StorageSeen::default()).unwrap();
    assert_eq!(alerts().await, json!([]));
}
