//! Roles and memberships, as sign-in needs them.

use std::collections::HashMap;

use model::{INTERNAL_ROLE, RoleName, SQL_MEMBERSHIPS_MAX, SQL_ROLES_MAX, SqlRole};
use time::OffsetDateTime;
use tokio_postgres::Row;

use crate::Error;
use crate::administration::Administration;
use crate::session::{AnswerMax, RawName, get};

/// For all roles: a name, a verifier, some numbers each.
const ROLES: AnswerMax = AnswerMax { rows: SQL_ROLES_MAX, bytes: 16 << 20 };
/// For all memberships: two numbers each.
const MEMBERSHIPS: AnswerMax = AnswerMax { rows: SQL_MEMBERSHIPS_MAX, bytes: 8 << 20 };

/// Roles that [`Administration::verifier_forms`] looks at, the first by name: it is asked while somebody waits to be let in.
pub const VERIFIERS_SAMPLED: usize = 2_000;

/// One role, with what it counts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleNow {
    /// The role. Its direct memberships are there only where it was asked for alone.
    pub role: SqlRole,
    /// The roles that it is a member of, directly or through others, sorted: every one, or those of them that were named.
    pub inherited: Vec<String>,
}

/// What clients see of verifiers before they have proven anything, and how many users have such a one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifierForm {
    /// How often a client must hash its password.
    pub iterations: u32,
    /// Length of the salt.
    pub salt_bytes: usize,
    /// Users whose verifiers have this form.
    pub users: u32,
}

impl Administration {
    /// Every role that exists, with its verifier and its direct memberships, all as of one moment. Of what comes through
    /// others there may be many times more; who needs it asks [`model::SqlRoles::inherited`].
    pub async fn roles(&self) -> Result<Vec<SqlRole>, Error> {
        self.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let read = self.read_roles().await;
        let ended = self.batch("ROLLBACK").await;
        let roles = read?;
        ended.map(|()| roles)
    }

    async fn read_roles(&self) -> Result<Vec<SqlRole>, Error> {
        let mut roles: Vec<SqlRole> = Vec::new();
        let mut places: HashMap<u32, usize> = HashMap::new();
        // One more than is taken tells that there are too many, and the rest stays where it is.
        let sql = format!("SELECT {COLUMNS}, oid FROM pg_authid LIMIT {}", ROLES.rows + 1);
        let each = self.each(&sql, &[], ROLES, |row| {
            let id: u32 = get(row, 5)?;
            // One that cannot be named cannot sign in, and is a step between others all the same. No name of the engine's
            // has a zero in it.
            let name = get::<RawName>(row, 0)?.0.unwrap_or_else(|| format!("\0{id}"));
            places.insert(id, roles.len());
            roles.push(role(row, name)?);
            Ok(())
        });
        each.await.map_err(|cause| too_many(cause, "roles"))?;
        // Who granted it makes no difference.
        let sql =
            format!("SELECT DISTINCT member, roleid FROM pg_auth_members LIMIT {}", MEMBERSHIPS.rows + 1);
        let each = self.each(&sql, &[], MEMBERSHIPS, |row| {
            let (member, held): (u32, u32) = (get(row, 0)?, get(row, 1)?);
            if let (Some(&member), Some(&held)) = (places.get(&member), places.get(&held)) {
                let held = roles[held].name.clone();
                roles[member].member_of.push(held);
            }
            Ok(())
        });
        each.await.map_err(|cause| too_many(cause, "memberships"))?;
        for role in &mut roles {
            role.member_of.sort();
        }
        Ok(roles)
    }

    /// One role.
    pub async fn role(&self, name: &RoleName) -> Result<Option<RoleNow>, Error> {
        let sql = format!(
            "SELECT {COLUMNS},
               ARRAY(SELECT held.rolname::text FROM pg_auth_members JOIN pg_authid AS held ON held.oid = roleid
                     WHERE member = pg_authid.oid),
               ARRAY(WITH RECURSIVE of (id) AS (
                   SELECT roleid FROM pg_auth_members WHERE member = pg_authid.oid
                   UNION SELECT roleid FROM pg_auth_members JOIN of ON member = of.id)
                 SELECT held.rolname::text FROM of JOIN pg_authid AS held ON held.oid = of.id)
             FROM pg_authid WHERE rolname = $1"
        );
        let mut found = None;
        self.each(&sql, &[&name.as_str()], AnswerMax { rows: 1, ..AnswerMax::LIST }, |row| {
            let role = SqlRole { member_of: names(row, 5)?, ..role(row, name.as_str().to_owned())? };
            found = Some(RoleNow { role, inherited: names(row, 6)? });
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Those of these roles that exist, each with those of the named roles that it is a member of, directly or through
    /// others. The memberships are walked from the named roles down, and not at all where none is named; so what it costs
    /// depends on whom somebody asks for no more than on whether they exist.
    pub async fn roles_named(&self, of: &[RoleName], named: &[String]) -> Result<Vec<RoleNow>, Error> {
        let of: Vec<&str> = of.iter().map(RoleName::as_str).collect();
        let max = AnswerMax { rows: of.len(), ..AnswerMax::LIST };
        let mut found = Vec::new();
        self.each(&format!("{BELOW} SELECT {COLUMNS}, coalesce(held, '{{}}'), rolname FROM pg_authid LEFT JOIN holders ON holder = oid
                            WHERE rolname = ANY($1::name[])"), &[&of, &named], max, |row| {
            let Some(name) = get::<RawName>(row, 6)?.0 else { return Ok(()) };
            found.push(RoleNow { role: role(row, name)?, inherited: names(row, 5)? });
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// The forms of the verifiers of the first [`VERIFIERS_SAMPLED`] users by name, the most frequent first.
    pub async fn verifier_forms(&self) -> Result<Vec<VerifierForm>, Error> {
        let sql = format!(
            "SELECT iterations, salt_bytes, count(*)::int4 FROM (
               SELECT substring(rolpassword FROM '^SCRAM-SHA-256[$]([0-9]{{1,9}}):')::int4 AS iterations,
                      length(decode(substring(rolpassword FROM '^SCRAM-SHA-256[$][0-9]{{1,9}}:([^$]*)[$]'), 'base64')) AS salt_bytes
               FROM (SELECT rolpassword FROM pg_authid WHERE rolcanlogin ORDER BY rolname LIMIT {VERIFIERS_SAMPLED}) AS users
               WHERE rolpassword LIKE 'SCRAM-SHA-256$%' AND length(rolpassword) <= 512) AS forms
             WHERE iterations > 0 AND salt_bytes > 0 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        );
        let mut forms = Vec::new();
        self.each(&sql, &[], AnswerMax { rows: VERIFIERS_SAMPLED, ..AnswerMax::FEW }, |row| {
            let number = |column| Ok::<_, Error>(get::<i32>(row, column)?.unsigned_abs());
            let salt_bytes = usize::try_from(number(1)?).unwrap_or(usize::MAX);
            forms.push(VerifierForm { iterations: number(0)?, salt_bytes, users: number(2)? });
            Ok(())
        })
        .await?;
        Ok(forms)
    }

    /// Every role that one of these is a member of, directly or through others, sorted.
    pub async fn inherited(&self, of: &[RoleName]) -> Result<Vec<String>, Error> {
        let of: Vec<&str> = of.iter().map(RoleName::as_str).collect();
        let mut inherited = Vec::new();
        self.each(INHERITED, &[&of], AnswerMax::LIST, |row| {
            inherited.extend(get::<RawName>(row, 0)?.0);
            Ok(())
        })
        .await?;
        inherited.sort();
        Ok(inherited)
    }

    /// Ends every session but our own, and what carries out subscriptions: a trigger that fires for what comes by one may
    /// change roles. Where nobody is let in any more, nothing changes after this; subscriptions go on after some seconds
    /// (`wal_retrieve_retry_interval`), when the engine that is about to stop has stopped.
    pub async fn end_sessions(&self) -> Result<(), Error> {
        let works = "backend_type = 'client backend' OR backend_type LIKE 'logical replication%worker'";
        self.end(&format!("usename <> '{INTERNAL_ROLE}' AND ({works})"), &[]).await
    }
}

/// What PostgreSQL's own code takes for a verifier is shorter (MAX_ENCRYPTED_PASSWORD_LEN in PostgreSQL 18).
const COLUMNS: &str = "rolname, rolcanlogin,
    CASE WHEN rolpassword LIKE 'SCRAM-SHA-256$%' AND length(rolpassword) <= 512 THEN rolpassword END,
    CASE WHEN isfinite(rolvaliduntil) THEN extract(epoch FROM rolvaliduntil)::float8
         WHEN rolvaliduntil = '-infinity' THEN 0 END,
    rolconnlimit";

const INHERITED: &str = "WITH RECURSIVE of (id) AS (
    SELECT roleid FROM pg_auth_members WHERE member IN (SELECT oid FROM pg_authid WHERE rolname::text = ANY($1))
    UNION SELECT roleid FROM pg_auth_members JOIN of ON member = of.id)
  SELECT rolname FROM of JOIN pg_authid ON oid = of.id";

/// Who is a member of which of the named roles, `$2`.
const BELOW: &str = "WITH RECURSIVE below (named, id) AS (
    SELECT oid, oid FROM pg_authid WHERE rolname = ANY($2::name[])
    UNION SELECT named, member FROM below JOIN pg_auth_members ON roleid = below.id),
  holders (holder, held) AS (
    SELECT id, array_agg(DISTINCT held.rolname::text) FROM below JOIN pg_authid AS held ON held.oid = named
    WHERE id <> named GROUP BY id)";

fn role(row: &Row, name: String) -> Result<SqlRole, Error> {
    // What lies beyond the year 9999 is as good as for ever.
    let valid_until = get::<Option<f64>>(row, 3)?.and_then(|seconds| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a cast of floats saturates, and the range is checked"
        )]
        OffsetDateTime::from_unix_timestamp(seconds as i64).ok()
    });
    Ok(SqlRole {
        name,
        can_login: get(row, 1)?,
        verifier: get(row, 2)?,
        valid_until,
        connection_limit: get(row, 4)?,
        member_of: Vec::new(),
    })
}

/// Names that nobody can say lead to no rule.
fn names(row: &Row, column: usize) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> =
        get::<Vec<RawName>>(row, column)?.into_iter().filter_map(|name| name.0).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Says what there is too much of.
fn too_many(cause: Error, what: &'static str) -> Error {
    match cause {
        Error::TooMuch { what: "rows", limit } => Error::TooMuch { what, limit },
        other => other,
    }
}
