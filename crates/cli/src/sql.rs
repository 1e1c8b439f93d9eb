//! `chitin sql`: becomes psql, with the encryption and the certificate checked and the password in the environment.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use api::Cluster;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};

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
    let root = match &cloud.root {
        // The file that was read, and not what lies at its path by then.
        Some(root) => inherited(&root.file)?,
        None => machine_s_root()?,
    };
    Ok(psql(&sql, &cluster, &user, &answer.params, root.into()))
}

/// The machine's own trust anchors, by which the API was believed too, in a file in memory.
fn trust_anchors() -> Result<File, Failure> {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return Err(Failure::new(
            Kind::Failed,
            "this machine has no root certificates to check the cloud's by",
        )
        .next("install them (apt-get install ca-certificates), or name the cloud's own with --ca FILE"));
    }
    let in_memory = rustix::fs::memfd_create("trust-anchors", MemfdFlags::empty());
    let mut file = File::from(in_memory.map_err(std::io::Error::from)?);
    for certificate in found {
        write!(file, "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines_of(&certificate))?;
    }
    Ok(file)
}

/// The file's name for psql, which has it open when it begins. libpq before 16 takes `system` for the name of a file in the working
/// directory, where anybody may have put one.
fn machine_s_root() -> Result<String, Failure> {
    let anchors = trust_anchors()?;
    let name = inherited(&anchors)?;
    // It stays open until this program becomes psql, or ends.
    let _ = anchors.into_raw_fd();
    Ok(name)
}

/// Base64 in lines as PEM has them (RFC 7468).
fn lines_of(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    lines.collect::<Vec<String>>().join("\n")
}

/// A name for an open file that holds in the program that we become, and in those that it starts.
fn inherited(file: &File) -> std::io::Result<String> {
    fcntl_setfd(file, FdFlags::empty())?;
    Ok(format!("/proc/self/fd/{}", file.as_raw_fd()))
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
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::command::Hidden;

    #[test]
    fn psql_trusts_the_file_that_was_read_and_not_what_lies_there_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "ours").unwrap();
        let file = File::open(&path).unwrap();
        std::fs::rename(&path, folder.path().join("away")).unwrap();
        std::fs::write(&path, "planted").unwrap();
        let root = inherited(&file).unwrap();
        // In another program, as psql is.
        let read = Command::new("cat").arg(root).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&read.stdout), "ours");
    }

    #[test]
    fn psql_gets_the_machine_s_trust_anchors_whatever_lies_in_the_working_directory() {
        let name = machine_s_root().unwrap();
        assert!(
            name.starts_with("/proc/self/fd/"),
            "libpq before 16 reads `system` in the working directory: {name}"
        );
        // In another program, as psql is.
        let read = Command::new("cat").arg(name).output().unwrap();
        let mut pem = read.stdout.as_slice();
        let found = rustls_pki_types::CertificateDer::pem_reader_iter(&mut pem);
        let found: Vec<_> = found.map(Result::unwrap).collect();
        assert_eq!(found, rustls_native_certs::load_native_certs().certs);
    }

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
