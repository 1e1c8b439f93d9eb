//! Versions of PostgreSQL, as the API chooses them and speaks of them.

use model::{Observation, Phase};
use serde_json::json;

use crate::double::installed;
use crate::world::{World, serverless};

fn install(world: &World, versions: &[&str]) {
    let all = versions.iter().map(|version| installed(version)).collect();
    *world.engines.postgres.lock().unwrap() = Some(all);
}

#[tokio::test]
async fn a_cluster_has_the_version_that_is_asked_for_or_the_default_and_keeps_it() {
    let world = World::new();
    install(&world, &["14.20", "17.5"]);
    let newest = world.create("newest-shop").await;
    let mut wanted = serverless("older-shop");
    wanted["spec"]["postgres_version"] = json!(14);
    let answer = world.call("POST", "/clusters", wanted.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let older = answer.json()["id"].as_str().unwrap().parse::<model::ClusterId>().unwrap();
    // Another one that is the newest later changes nothing for them.
    install(&world, &["14.20", "17.5", "18.1"]);
    let major = |id| world.store.snapshot().get(&id).unwrap().cluster.asked.postgres_major;
    assert_eq!((major(newest), major(older)), (Some(17), Some(14)));
    // Whoever asks once more for the same has the same.
    assert_eq!(world.call("POST", "/clusters", wanted.clone()).await.json()["id"], json!(older));

    for (version, why) in [
        (
            16,
            "PostgreSQL 16 is not installed here, or not so that it can be used (installed: 14.20, 17.5, 18.1)",
        ),
        (9, "PostgreSQL 9"),
    ] {
        wanted["name"] = json!("other-shop");
        wanted["spec"]["postgres_version"] = json!(version);
        let refused = world.call("POST", "/clusters", wanted.clone()).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert!(refused.text.contains(why) && refused.text.contains("--postgres DIR"), "{}", refused.text);
    }
    install(&world, &[]);
    let refused = world.call("POST", "/clusters", serverless("other-shop")).await;
    assert!(refused.text.contains("no PostgreSQL 14 to 18 is installed any more"), "{}", refused.text);
}

#[tokio::test]
async fn status_tells_of_a_version_that_is_gone_and_of_one_that_waits_for_the_next_start() {
    let world = World::new();
    let id = world.made("small-shop").await;
    let status = async || world.get("/chitin/status").await.json();
    let alerts = async || status().await["alerts"].as_array().cloned().unwrap_or_default();
    assert!(alerts().await.is_empty());
    install(&world, &["15.19"]);
    let warnings = status().await["warnings"].to_string();
    assert!(
        warnings
            .contains("PostgreSQL 15.19 is installed, and still with 15.18 run: small-shop; each takes it"),
        "{warnings}"
    );
    assert!(alerts().await.is_empty());

    install(&world, &["17.5"]);
    // What runs has its files.
    let warned = alerts().await;
    assert_eq!((warned.len(), &warned[0]["severity"]), (1, &json!("warning")), "{warned:?}");
    assert!(warned[0]["what"].to_string().contains("cannot be started then"), "{warned:?}");

    let seen = world.store.snapshot().get(&id).unwrap().seen.clone();
    let asleep = Observation { phase: Phase::Asleep, ..seen.clone() };
    world.store.observe(id, asleep.clone()).unwrap();
    let told = alerts().await;
    assert_eq!((told.len(), &told[0]["severity"]), (1, &json!("critical")), "{told:?}");
    let what = told[0]["what"].as_str().unwrap();
    assert!(what.contains("made with PostgreSQL 15, which is not installed here"), "{what}");
    assert!(what.contains("(installed: 17.5): it cannot run"), "{what}");
    assert!(told[0]["next_step"].as_str().unwrap().contains("apt-get install postgresql-15"), "{told:?}");
    // Whatever else is wrong with it is told beside that, and once.
    let mut changed = asleep.clone();
    changed.volume.alarm = Some("another volume lies in its place".to_owned());
    world.store.observe(id, changed).unwrap();
    assert!(alerts().await.iter().any(|one| one["what"] == "another volume lies in its place"));
    let broken = Phase::Broken { reason: "PostgreSQL 15 is not installed here".to_owned() };
    world.store.observe(id, Observation { phase: broken, ..asleep }).unwrap();
    assert_eq!(alerts().await.len(), 1);
    let status = status().await;
    assert_eq!(
        (&status["clusters"], &status["asleep"], &status["broken"]),
        (&json!(1), &json!(0), &json!(1))
    );
}

#[tokio::test]
async fn a_cluster_that_an_earlier_chitin_made_has_the_version_that_its_engine_had() {
    let world = World::new();
    let id = world.made("older-shop").await;
    // As it was kept before there was a choice.
    let mut document = serde_json::to_value(&world.store.snapshot().get(&id).unwrap().cluster).unwrap();
    document["asked"].as_object_mut().unwrap().remove("postgres_major").unwrap();
    let cluster: model::Cluster = serde_json::from_value(document).unwrap();
    let seen = world.store.snapshot().get(&id).unwrap().seen.clone();
    assert_eq!(cluster.asked.postgres_major, None);
    assert_eq!(cluster.postgres_major(&seen), Some(15));
    let beta = Observation { engine_version: Some("18beta1".to_owned()), ..seen.clone() };
    assert_eq!(cluster.postgres_major(&beta), Some(18));
    assert_eq!(cluster.postgres_major(&Observation { engine_version: None, ..seen }), None);
}
