//! `chitin sql`: becomes psql, with the encryption and the certificate checked and the password in the environment.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use api::Cluster;

use crate::cloud::Cloud;
use crate::command::Sql;
use crate::failure::{Failure, Kind};

/// The psql to become, ready to be executed.
pub async fn prepare(cloud: &Cloud, sql: Sql) -> Result<Command, Failure> {
    let cluster = cloud.cluster(&sql.cluster).await?;
    let user = sql.user.clone().filter(|user| !user.is_empty()).ok_or_else(|| {
        Failure::new(Kind::Usage, "no SQL user was named").next(format!(
            "chitin sql {0} --user NAME; a user is made with: chitin user create {0} NAME",
            cluster.name
        ))
    })?;
    let answer = cloud.api.connection_string(cluster.id, Some(&user), Some(&sql.database)).await?;
    let root = match &cloud.root_path {
        Some(path) => path.clone().into_os_string(),
        // libpq 16 and newer: the machine's own trust anchors.
        None => "system".into(),
    };
    Ok(psql(&sql, &cluster, &user, &answer.params, root))
}

fn psql(
    sql: &Sql,
    cluster: &Cluster,
    user: &str,
    params: &api::ConnectionParameters,
    root: OsString,
) -> Command {
    let mut psql = Command::new("psql");
    for (name, value) in [
        ("PGHOST", params.host.as_str()),
        ("PGPORT", &params.port),
        ("PGDATABASE", &sql.database),
        ("PGUSER", user),
        ("PGOPTIONS", &format!("--cluster={}", cluster.handle())),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
        ("PGCHANNELBINDING", "prefer"),
    ] {
        psql.env(name, value);
    }
    psql.env("PGSSLROOTCERT", root);
    // What would lead psql elsewhere, or past the checks.
    for name in
        ["PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGREQUIRESSL", "PGGSSENCMODE", "CHITIN_SQL_PASSWORD"]
    {
        psql.env_remove(name);
    }
    psql.env_remove("CHITIN_API_KEY");
    if let Some(password) = &sql.password.0 {
        psql.env("PGPASSWORD", password);
    }
    psql.args(&sql.arguments);
    psql
}

/// Becomes psql; returns only if that is not possible.
pub fn become_psql(mut psql: Command) -> Failure {
    let error = psql.exec();
    let failure = Failure::new(Kind::Failed, format!("psql could not be started: {error}"));
    if error.kind() == std::io::ErrorKind::NotFound {
        return failure.next("install it: sudo apt install postgresql-client");
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Hidden;

    #[test]
    fn the_password_is_in_the_environment_and_never_an_argument() {
        let sql = Sql {
            cluster: "my-shop".to_owned(),
            user: Some("maria".to_owned()),
            database: "defaultdb".to_owned(),
            password: Hidden(Some("a secret".into())),
            arguments: vec!["-c".into(), "select 1".into()],
        };
        let params = api::ConnectionParameters {
            host: "localhost".to_owned(),
            port: "26257".to_owned(),
            database: "defaultdb".to_owned(),
            username: Some("maria".to_owned()),
        };
        let psql = psql(&sql, &crate::fixtures::cluster(), "maria", &params, "/srv/ca.pem".into());
        let arguments: Vec<_> = psql.get_args().collect();
        assert_eq!(arguments, ["-c", "select 1"]);
        let value = |name: &str| {
            let found = psql.get_envs().find(|(known, _)| *known == name);
            found.and_then(|(_, value)| value).and_then(std::ffi::OsStr::to_str)
        };
        assert_eq!(value("PGPASSWORD"), Some("a secret"));
        assert_eq!(value("PGSSLMODE"), Some("verify-full"));
        assert_eq!(value("PGSSLROOTCERT"), Some("/srv/ca.pem"));
        assert_eq!(value("PGOPTIONS"), Some("--cluster=my-shop-2"));
        assert!(!format!("{sql:?}").contains("a secret"));
    }
}
