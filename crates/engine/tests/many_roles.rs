//! A tenant with as many roles and memberships as one can make: reading them takes bounded time and memory.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::time::{Duration, Instant};

use common::{Place, cluster, maria, place, session};
use engine::Error;
use model::{Encryption, RoleName, SQL_MEMBERSHIPS_MAX, SqlRoles};

const ROLES: usize = 20_000;
const MEMBERSHIPS: usize = 100_000;

/// Memory of this process, which is the one that reads.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_roles_with_a_hundred_thousand_memberships_are_read_in_bounded_time_and_memory() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(33);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let maria = session(&host, cluster.id, "maria", "defaultdb").await;
    // Groups in chains of 50, and users that are members of 5 each: through others they are members of some 125 each,
    // which would be two million names.
    maria
        .batch_execute(&format!(
            "DO $$ BEGIN
               FOR i IN 0..999 LOOP EXECUTE format('CREATE ROLE g%s', i); END LOOP;
               FOR i IN 0..999 LOOP
                 IF i % 50 > 0 THEN EXECUTE format('GRANT g%s TO g%s', i, i - 1); END IF;
               END LOOP;
               FOR i IN 1..{users} LOOP
                 EXECUTE format('CREATE ROLE u%s IN ROLE g%s, g%s, g%s, g%s, g%s', i,
                   i % 1000, (i + 137) % 1000, (i + 271) % 1000, (i + 433) % 1000, (i + 877) % 1000);
               END LOOP;
               EXECUTE 'CREATE ROLE full_member';
               FOR i IN 1..{more} LOOP EXECUTE format('GRANT u%s TO full_member', i); END LOOP;
             END $$",
            users = ROLES - 1_000,
            more = MEMBERSHIPS - 980 - 5 * (ROLES - 1_000),
        ))
        .await
        .unwrap();

    let (before, began) = (resident_bytes(), Instant::now());
    let roles = SqlRoles::new(administration.roles().await.unwrap());
    let (taken, more) = (began.elapsed(), resident_bytes().saturating_sub(before));
    let kept = serde_json::to_vec(roles.as_slice()).unwrap().len();
    println!(
        "{} roles, {} memberships: {taken:?}, {more} bytes of memory, {kept} bytes to keep",
        roles.as_slice().len(),
        roles.memberships()
    );
    assert!(roles.as_slice().len() >= ROLES && roles.memberships() >= MEMBERSHIPS);
    assert!(taken < Duration::from_secs(20), "{taken:?}");
    assert!(more < 96 << 20, "{more} bytes");
    assert!(kept < 16 << 20, "{kept} bytes");

    // What a copy tells when it is asked is what the engine tells.
    for name in ["u1", "u777", "g0", "g49", "full_member", "maria"] {
        let role: RoleName = name.parse().unwrap();
        let began = Instant::now();
        let now = administration.role(&role).await.unwrap().unwrap();
        println!("{name}: {} inherited, asked {:?}", now.inherited.len(), began.elapsed());
        assert_eq!(now.inherited, roles.inherited([name]), "{name}");
        assert_eq!(now.inherited, administration.inherited(&[role]).await.unwrap(), "{name}");
        assert_eq!(Some(&now.role), roles.get(name), "{name}");
    }

    // At sign-in many are asked for at once, about the roles that rules name; nobody has proven anything yet.
    let users: Vec<RoleName> =
        ["u1", "u777", "g0", "maria", "nobody_here"].map(|name| name.parse().unwrap()).into();
    let named = ["g7", "g49", "u5", "admin", "no_such_role"].map(str::to_owned);
    let began = Instant::now();
    let found = administration.roles_named(&users, &named).await.unwrap();
    println!("{} of {} users, asked about 5 roles: {:?}", found.len(), users.len(), began.elapsed());
    assert_eq!(found.len(), 4, "who does not exist is not there");
    for now in found {
        let name = &now.role.name;
        assert_eq!(now.inherited, roles.inherited_of(name, &named), "{name}");
        let all = roles.inherited([name.as_str()]);
        let expected: Vec<String> = all.into_iter().filter(|role| named.contains(role)).collect();
        assert_eq!(now.inherited, expected, "{name}");
        assert_eq!(now.role.verifier, roles.get(name).unwrap().verifier);
    }
    assert!(
        administration.roles_named(&users, &[]).await.unwrap().iter().all(|now| now.inherited.is_empty())
    );
    assert!(administration.users().await.unwrap().iter().any(|user| user.name == "maria"));

    // More than are kept: said as that, and one that is asked for is told all the same.
    let beyond = SQL_MEMBERSHIPS_MAX - roles.memberships();
    maria
        .batch_execute(&format!(
            "DO $$ BEGIN
               FOR i IN 1..{} LOOP EXECUTE format('GRANT g%s, g%s, g%s TO u%s', (i + 11) % 1000, (i + 23) % 1000, (i + 37) % 1000, i);
               END LOOP;
             END $$",
            beyond / 3 + 1
        ))
        .await
        .unwrap();
    let refused = administration.roles().await.unwrap_err();
    assert!(
        matches!(refused, Error::TooMuch { what: "memberships", limit: SQL_MEMBERSHIPS_MAX }),
        "{refused:?}"
    );
    assert!(
        administration.role(&"u5".parse().unwrap()).await.unwrap().is_some(),
        "the session is good still"
    );
    host.destroy(&cluster).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_whose_name_is_no_text_spoils_nothing_and_is_a_step_between_others() {
    let Place { host, folder: _folder } = place(Some(Encryption::None)).await;
    let cluster = cluster(34);
    host.create(&cluster).await.unwrap();
    let administration = host.administration(cluster.id).await.unwrap();
    maria(&administration).await;
    let maria = session(&host, cluster.id, "maria", "defaultdb").await;
    maria
        .batch_execute("CREATE DATABASE raw TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        .await
        .unwrap();
    let raw = session(&host, cluster.id, "maria", "raw").await;
    raw.batch_execute(
        "DO $$ BEGIN
           EXECUTE 'CREATE ROLE ' || convert_from('\\x22ff22'::bytea, 'SQL_ASCII') || ' LOGIN';
           EXECUTE 'CREATE ROLE dba; GRANT dba TO ' || convert_from('\\x22ff22'::bytea, 'SQL_ASCII');
           EXECUTE 'CREATE ROLE otto LOGIN; GRANT ' || convert_from('\\x22ff22'::bytea, 'SQL_ASCII') || ' TO otto';
         END $$",
    )
    .await
    .unwrap();
    let roles = SqlRoles::new(administration.roles().await.unwrap());
    assert!(roles.inherited(["otto"]).contains(&"dba".to_owned()), "{:?}", roles.inherited(["otto"]));
    let otto: RoleName = "otto".parse().unwrap();
    assert_eq!(administration.role(&otto).await.unwrap().unwrap().inherited, ["dba"]);
    let users: Vec<String> =
        administration.users().await.unwrap().into_iter().map(|user| user.name).collect();
    assert_eq!(users, ["maria", "otto"]);
    host.destroy(&cluster).await.unwrap();
}
