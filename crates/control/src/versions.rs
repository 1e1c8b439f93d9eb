//! Versions of PostgreSQL: which a new cluster gets, and what becomes of those that were made before.

use std::collections::BTreeMap;

use api::{Alert, Machine, Severity};
use model::{Phase, Wish};
use store::{Entry, Snapshot};

use crate::Refusal;
use crate::alerts::of_cluster;

/// Names of clusters in one warning.
const NAMES_MAX: usize = 5;

/// The major version of a new cluster.
pub(crate) fn choose(machine: &Machine, wanted: Option<u32>) -> Result<u32, Refusal> {
    let is_there = |major: &u32| machine.postgres.iter().any(|one| one.major == *major);
    let Some(chosen) = wanted.or(machine.default_major) else {
        return Err(Refusal::wrong_state(format!(
            "no PostgreSQL 14 to 18 is installed any more (installed: {}), so no cluster can be made; install one: apt-get install \
             postgresql",
            installed(machine)
        )));
    };
    if is_there(&chosen) {
        return Ok(chosen);
    }
    let refused = format!(
        "PostgreSQL {chosen} is not installed here, or not so that it can be used (installed: {}); choose one of these, or install it \
         (apt-get install postgresql-{chosen}) or name the folder that it is in (chitin start --postgres DIR)",
        installed(machine)
    );
    Err(if wanted.is_some() { Refusal::invalid(refused) } else { Refusal::wrong_state(refused) })
}

/// What is there, and what is there and not used.
fn installed(machine: &Machine) -> String {
    let all: Vec<&str> = machine.postgres.iter().map(|one| one.version.as_str()).collect();
    let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    machine.unusable_postgres.iter().fold(all, |text, one| text + "; not used: " + one)
}

/// The alert of a cluster that was made with a version that is not installed.
pub(crate) fn gone(entry: &Entry, machine: &Machine) -> Option<Alert> {
    let (cluster, seen) = (&entry.cluster, &entry.seen);
    let major = cluster.postgres_major(seen)?;
    let is_there = machine.postgres.iter().any(|one| one.major == major);
    if is_there || !seen.is_initialized || cluster.wish == Wish::Deleted {
        return None;
    }
    let installed = installed(machine);
    let what = format!(
        "it was made with PostgreSQL {major}, which is not installed here, or not so that it can be used (installed: {installed})"
    );
    let (severity, effect) = match seen.phase {
        // It has the files that it has open, and those that are left.
        Phase::Running => (Severity::Warning, "it runs until its engine ends, and cannot be started then"),
        _ => (Severity::Critical, "it cannot run"),
    };
    let next_step = format!(
        "install it (apt-get install postgresql-{major}), or start Chitin with --postgres and the folder that it is in; it is noticed by \
         itself"
    );
    Some(of_cluster(cluster, severity, format!("{what}: {effect}"), None, next_step))
}

/// Which running clusters get another minor version at their next start.
pub(crate) fn updates(snapshot: &Snapshot, machine: &Machine) -> Vec<String> {
    let mut waiting: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for entry in snapshot.iter().filter(|entry| entry.seen.phase == Phase::Running) {
        let runs = entry.seen.engine_version.as_deref();
        let major = entry.cluster.postgres_major(&entry.seen);
        let there = machine.postgres.iter().find(|one| Some(one.major) == major);
        if let (Some(runs), Some(there)) = (runs, there)
            && runs != there.version
        {
            waiting.entry((runs, &there.version)).or_default().push(entry.cluster.name.as_str());
        }
    }
    let line = |((runs, there), names): ((&str, &str), Vec<&str>)| {
        let more = names.len().saturating_sub(NAMES_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = names[..names.len().min(NAMES_MAX)].join(", ");
        format!(
            "PostgreSQL {there} is installed, and still with {runs} run: {names}{more}; each takes it at its next start: chitin \
             cluster sleep NAME, chitin cluster wake NAME"
        )
    };
    waiting.into_iter().map(line).collect()
}
