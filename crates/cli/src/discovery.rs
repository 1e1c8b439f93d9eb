//! Finds the cloud: the directory of one that runs here, or an address and a key from the environment.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::command::Global;
use crate::failure::{Failure, Kind};

/// Longest file that is read here.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Permissions of everybody but the owner.
const OTHERS: u32 = 0o077;

/// A cloud that can be spoken to.
#[derive(Clone)]
pub struct Found {
    /// Where its API answers.
    pub url: String,
    /// The folder of the operator's socket; none where the cloud is elsewhere, or somebody else's.
    pub operator: Option<PathBuf>,
    /// What signs requests.
    pub api_key: String,
    /// The root certificate, as a file for psql.
    pub root_path: Option<PathBuf>,
    /// The root certificate in PEM; none means the machine's own trust anchors.
    pub root_pem: Option<String>,
}

/// What `chitin start` writes for its clients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Endpoint {
    http: String,
}

/// Finds the cloud that the options mean.
pub fn find(global: &Global) -> Result<Found, Failure> {
    match &global.url {
        Some(url) => elsewhere(global, url),
        None => here(&global.data),
    }
}

fn here(data: &Path) -> Result<Found, Failure> {
    let path = data.join("endpoint.json");
    let text = read(&path).map_err(|error| {
        Failure::new(Kind::Unreachable, format!("no running cloud was found in {}: {error}", data.display()))
            .next("start one: chitin start; or name its directory: --data DIR; or set CHITIN_URL and CHITIN_API_KEY")
    })?;
    let endpoint: Endpoint = serde_json::from_str(&text).map_err(|error| {
        Failure::new(Kind::Unreachable, format!("{} cannot be read: {error}", path.display()))
            .next("start the cloud again: chitin start")
    })?;
    let root_path = data.join("ca.pem");
    let root_pem = read(&root_path).map_err(|error| unreadable(&root_path, &error))?;
    let root_path = std::path::absolute(&root_path).unwrap_or(root_path);
    Ok(Found {
        url: format!("https://{}", reachable(&endpoint.http)),
        operator: operator(data),
        api_key: private(&data.join("admin-key"))?,
        root_path: Some(root_path),
        root_pem: Some(root_pem),
    })
}

/// Where the operator's socket lies. It takes the cloud's own user only; anybody else who has the key comes by TCP.
fn operator(data: &Path) -> Option<PathBuf> {
    let folder = data.join(api::OPERATOR_FOLDER);
    let facts = std::fs::symlink_metadata(&folder).ok()?;
    (facts.is_dir() && facts.uid() == rustix::process::geteuid().as_raw()).then_some(folder)
}

fn elsewhere(global: &Global, url: &str) -> Result<Found, Failure> {
    if !url.starts_with("https://") {
        return Err(Failure::new(Kind::Usage, format!("`{url}` is not an https:// address"))
            .next("the API speaks TLS 1.3 only; write for instance --url https://cloud.example.org:8080"));
    }
    let api_key = global.api_key.0.clone().filter(|key| !key.trim().is_empty()).ok_or_else(|| {
        Failure::new(Kind::Usage, "--url needs an API key").next("set CHITIN_API_KEY to the key")
    })?;
    let root_path =
        global.ca.clone().or_else(|| Some(global.data.join("ca.pem")).filter(|path| path.exists()));
    let root_pem = match &root_path {
        Some(path) => Some(read(path).map_err(|error| unreadable(path, &error))?),
        None => None,
    };
    let root_path = root_path.map(|path| std::path::absolute(&path).unwrap_or(path));
    Ok(Found {
        url: url.trim_end_matches('/').to_owned(),
        operator: None,
        api_key: api_key.trim().to_owned(),
        root_path,
        root_pem,
    })
}

/// A server that listens on every address is reached on this machine's own.
fn reachable(address: &str) -> String {
    let Ok(mut socket) = address.parse::<std::net::SocketAddr>() else { return address.to_owned() };
    if socket.ip().is_unspecified() {
        socket.set_ip(if socket.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    socket.to_string()
}

/// Reads a key that nobody else may read: one that others could have read is no longer a secret.
fn private(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    let mode = file.metadata().map_err(|error| unreadable(path, &error))?.mode();
    if mode & OTHERS != 0 {
        return Err(Failure::new(
            Kind::Failed,
            format!("{} can be read by others (mode {:o}), so it is no secret", path.display(), mode & 0o777),
        )
        .next(format!(
            "chmod 600 {0}; if others use this machine, remove it and start the cloud again",
            path.display()
        )));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| unreadable(path, &error))?;
    Ok(text.trim().to_owned())
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Kind::Failed, format!("{} cannot be read: {error}", path.display()))
        .next("run the command as the user who started the cloud")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::command::{Hidden, Output};

    fn global(data: &Path, url: Option<&str>, key: Option<&str>) -> Global {
        Global {
            data: data.to_owned(),
            output: Output::Table,
            url: url.map(str::to_owned),
            api_key: Hidden(key.map(str::to_owned)),
            ca: None,
        }
    }

    fn cloud(mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("endpoint.json"), r#"{"sql":"0.0.0.0:26257","http":"0.0.0.0:8080","pid":1}"#).unwrap();
        fs::write(at("ca.pem"), "root").unwrap();
        fs::write(at("admin-key"), "CCDB1_x_y\n").unwrap();
        fs::set_permissions(at("admin-key"), fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn a_running_cloud_is_found_by_its_directory() {
        let directory = cloud(0o600);
        let found = find(&global(directory.path(), None, None)).unwrap();
        assert_eq!((found.url.as_str(), found.api_key.as_str()), ("https://127.0.0.1:8080", "CCDB1_x_y"));
        assert!(found.root_path.unwrap().is_absolute());
    }

    #[test]
    fn the_operator_s_socket_is_used_on_the_cloud_s_own_machine_and_for_no_url() {
        let directory = cloud(0o600);
        let found = |url| find(&global(directory.path(), url, Some("k"))).unwrap().operator;
        assert_eq!(found(None), None, "an older cloud has none");
        let folder = directory.path().join(api::OPERATOR_FOLDER);
        std::os::unix::fs::symlink("/tmp", &folder).unwrap();
        assert_eq!(found(None), None, "a link is not the cloud's");
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert_eq!(found(None), Some(folder));
        assert_eq!(found(Some("https://127.0.0.1:8080")), None);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        for mode in [0o644, 0o640, 0o604, 0o602] {
            let directory = cloud(mode);
            let failure = find(&global(directory.path(), None, None)).err().unwrap();
            assert_eq!(failure.kind, Kind::Failed);
            assert!(failure.what.contains("no secret"), "{failure}");
        }
    }

    #[test]
    fn no_cloud_means_exit_code_three_and_how_to_start_one() {
        let directory = tempfile::tempdir().unwrap();
        let failure = find(&global(directory.path(), None, None)).err().unwrap();
        assert_eq!(failure.kind, Kind::Unreachable);
        assert!(failure.next.unwrap().contains("chitin start"));
    }

    #[test]
    fn an_address_needs_https_and_a_key() {
        let nowhere = Path::new("/nonexistent");
        for (url, key) in [
            ("http://cloud:8080", Some("k")),
            ("https://cloud:8080", None),
            ("https://cloud:8080", Some(" ")),
        ] {
            assert_eq!(find(&global(nowhere, Some(url), key)).err().unwrap().kind, Kind::Usage, "{url}");
        }
        let found = find(&global(nowhere, Some("https://cloud:8080/"), Some("k"))).unwrap();
        assert_eq!((found.url.as_str(), found.root_pem), ("https://cloud:8080", None));
    }
}
