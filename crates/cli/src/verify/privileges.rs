//! Attacks by a user who has signed in: everything that would lead out of the database or up to the superuser.

use super::row::{Row, Verdict};
use super::session::{Claim, Session, enter};
use super::target::{ANSWER_MAX, Target};
use super::wire::Fault;

const FEATURE: &str = "users and privileges";
/// `insufficient_privilege`, and `undefined_object`: a role that is not there gives nobody anything.
const DENIED: &str = "42501";
const ABSENT: &str = "42704";

/// A statement that must be denied.
struct Crime {
    what: &'static str,
    sql: &'static str,
    /// Whether it can be undone by a transaction; the others are harmless when they succeed.
    is_in_transaction: bool,
    /// Whether what it reaches for may be missing altogether.
    may_be_absent: bool,
}

const fn crime(what: &'static str, sql: &'static str) -> Crime {
    Crime { what, sql, is_in_transaction: true, may_be_absent: false }
}

/// Grants the user every role that it can be granted.
macro_rules! EVERY_ROLE {
    () => {
        "do $$ declare one name; begin for one in select rolname from pg_roles where rolname <> current_user loop \
         begin execute format('grant %I to %I', one, current_user); exception when others then null; end; \
         end loop; end $$; "
    };
}

/// Statements that reach the machine.
const MACHINE: &[Crime] = &[
    crime("COPY FROM PROGRAM", "create temp table loot (line text); copy loot from program 'id'"),
    crime("COPY TO PROGRAM", "copy (select 1) to program 'cat'"),
    crime("COPY FROM a file", "create temp table loot (line text); copy loot from '/etc/passwd'"),
    crime("pg_read_file", "select pg_read_file('/etc/passwd')"),
    crime("pg_ls_dir", "select pg_ls_dir('/')"),
    crime("lo_import", "select lo_import('/etc/passwd')"),
    crime("LANGUAGE C", "create function escape(text) returns int as 'libc.so.6', 'system' language c"),
    crime("LOAD", "load '/tmp/escape.so'"),
];

/// Statements that reach for more rights.
const RIGHTS: &[Crime] = &[
    crime("SET ROLE chitin", "set role chitin"),
    crime("SET SESSION AUTHORIZATION", "set session authorization chitin"),
    crime("CREATE ROLE … SUPERUSER", "create role verify_up superuser"),
    crime(
        "ALTER ROLE … SUPERUSER",
        "do $$ begin execute format('alter role %I superuser', current_user); end $$",
    ),
    crime("ALTER ROLE chitin", "alter role chitin password 'x'"),
    Crime {
        what: "GRANT pg_execute_server_program",
        sql: "do $$ begin execute format('grant pg_execute_server_program to %I', current_user); end $$",
        is_in_transaction: true,
        may_be_absent: true,
    },
    // Whatever a role that may give programs away is called: take every role there is, then try.
    crime("every role, then COPY TO PROGRAM", concat!(EVERY_ROLE!(), "copy (select 1) to program 'cat'")),
    crime("every role, then pg_read_file", concat!(EVERY_ROLE!(), "select pg_read_file('/etc/passwd')")),
    crime("every role, then pg_authid", concat!(EVERY_ROLE!(), "select rolpassword from pg_authid")),
    crime("pg_authid", "select rolpassword from pg_authid"),
    Crime {
        what: "ALTER SYSTEM",
        sql: "alter system reset chitin_verify.nothing",
        is_in_transaction: false,
        may_be_absent: false,
    },
];

/// Every attack of this file.
pub async fn attack(target: &Target, honest: Claim<'_>) -> Vec<Row> {
    let mut rows = vec![
        Verdict::from(no_superuser(target, honest).await)
            .on(FEATURE, "a user is no superuser and inherits no dangerous role"),
    ];
    for (claim, crimes) in [
        ("SQL reaches no file, no program and no library of the machine", MACHINE),
        ("SQL reaches no other identity and no more rights", RIGHTS),
    ] {
        rows.push(Verdict::from(commit(target, honest, crimes).await).on(FEATURE, claim));
    }
    rows
}

async fn no_superuser(target: &Target, honest: Claim<'_>) -> Result<Verdict, Fault> {
    let mut session = enter(target, honest).await?;
    let dangerous = session
        .wire
        .value(
            "select coalesce(string_agg(r.rolname, ', '), '') from pg_roles r \
             where pg_has_role(current_user, r.oid, 'member') and (r.rolsuper or r.rolreplication \
             or r.rolbypassrls or r.rolname in ('pg_execute_server_program', 'pg_read_server_files', \
             'pg_write_server_files'))",
        )
        .await?;
    let setting = session.wire.value("show is_superuser").await?;
    Ok(if dangerous.is_empty() && setting == "off" {
        Verdict::proven("is_superuser off; no SUPERUSER, REPLICATION, BYPASSRLS or server-file role in reach")
    } else {
        Verdict::failed(format!("is_superuser {setting}; in reach: {dangerous}"))
    })
}

async fn commit(target: &Target, honest: Claim<'_>, crimes: &[Crime]) -> Result<Verdict, Fault> {
    let mut session = enter(target, honest).await?;
    let mut successes = Vec::new();
    for crime in crimes {
        match try_one(&mut session, crime).await? {
            None => successes.push(format!("{} succeeded", crime.what)),
            Some(code) if code == DENIED || (crime.may_be_absent && code == ABSENT) => {}
            Some(code) => {
                successes.push(format!("{} failed with {code}, not for want of privilege", crime.what));
            }
        }
    }
    Ok(judge(&successes, crimes))
}

fn judge(successes: &[String], crimes: &[Crime]) -> Verdict {
    if successes.is_empty() {
        let names: Vec<&str> = crimes.iter().map(|crime| crime.what).collect();
        Verdict::proven(format!("{DENIED} for {}", names.join(", ")))
    } else {
        Verdict::failed(successes.join("; "))
    }
}

/// Runs a statement; what it did is undone. Returns the SQLSTATE with which it failed.
async fn try_one(session: &mut Session, crime: &Crime) -> Result<Option<String>, Fault> {
    if crime.is_in_transaction {
        session.wire.query("begin", ANSWER_MAX).await?;
    }
    let answer = session.wire.query(crime.sql, ANSWER_MAX).await?;
    if crime.is_in_transaction {
        session.wire.query("rollback", ANSWER_MAX).await?;
    }
    session.wire.query("reset session authorization; reset role", ANSWER_MAX).await?;
    Ok(answer.error.map(|refusal| refusal.code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::row::Outcome;

    #[test]
    fn one_success_among_many_denials_fails_the_claim() {
        assert_eq!(judge(&[], MACHINE).outcome, Outcome::Proven);
        let verdict = judge(&["pg_read_file succeeded".to_owned()], MACHINE);
        assert_eq!((verdict.outcome, verdict.evidence.as_str()), (Outcome::Failed, "pg_read_file succeeded"));
    }
}
