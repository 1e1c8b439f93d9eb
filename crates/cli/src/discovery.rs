//! Finds the cloud: the directory of one that runs here, or an address and a key from the environment.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::command::Global;
use crate::data_directory::{DEFAULT_DATA, DataDirectory, root_certificate};
use crate::failure::{Failure, Kind};

/// A cloud that can be spoken to.
#[derive(Clone)]
pub struct Found {
    /// Where its API answers.
    pub url: String,
    /// The folder of the operator's socket; none where the cloud is elsewhere, or somebody else's.
    pub operator: Option<PathBuf>,
    /// What signs requests.
    pub api_key: String,
    /// The root certificate; none means the machine's own trust anchors.
    pub root: Option<Root>,
}

/// A root certificate on this machine.
#[derive(Clone, Debug)]
pub struct Root {
    /// Where it lies, as people are told.
    pub path: PathBuf,
    /// It in PEM.
    pub pem: String,
    /// The file that was read, open: another one may lie at its path a moment later.
    pub file: Arc<File>,
}

impl Root {
    fn new(path: &Path, (pem, file): (String, File)) -> Self {
        Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            pem,
            file: Arc::new(file),
        }
    }
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
        None => here(global.data.as_deref().unwrap_or(Path::new(DEFAULT_DATA))),
    }
}

fn here(data: &Path) -> Result<Found, Failure> {
    let none = || {
        Failure::new(Kind::Unreachable, format!("no running cloud was found in {}", data.display()))
            .next("start one: chitin start; or name its directory: --data DIR; or set CHITIN_URL and CHITIN_API_KEY")
    };
    let directory = DataDirectory::open(data)?.ok_or_else(none)?;
    let (text, _) = directory.read("endpoint.json")?.ok_or_else(none)?;
    let endpoint: Endpoint = serde_json::from_str(&text).map_err(|error| {
        let path = directory.path_of("endpoint.json");
        Failure::new(Kind::Unreachable, format!("{} cannot be read: {error}", path.display()))
            .next("start the cloud again: chitin start")
    })?;
    let root_path = directory.path_of("ca.pem");
    let root = directory.read("ca.pem")?.ok_or_else(|| {
        Failure::new(Kind::Failed, format!("there is no {}", root_path.display()))
            .next("start the cloud again: chitin start")
    })?;
    Ok(Found {
        url: format!("https://{}", reachable(&endpoint.http)),
        // It takes the cloud's own user only; anybody else who has the key comes by TCP.
        operator: directory
            .has_own_folder(api::OPERATOR_FOLDER)
            .then(|| directory.path_of(api::OPERATOR_FOLDER)),
        api_key: directory.read_private("admin-key")?,
        root: Some(Root::new(&root_path, root)),
    })
}

fn elsewhere(global: &Global, url: &str) -> Result<Found, Failure> {
    if !url.starts_with("https://") {
        return Err(Failure::new(Kind::Usage, format!("`{url}` is not an https:// address"))
            .next("the API speaks TLS 1.3 only; write for instance --url https://cloud.example.org:8080"));
    }
    let api_key = global.api_key.0.clone().filter(|key| !key.trim().is_empty()).ok_or_else(|| {
        Failure::new(Kind::Usage, "--url needs an API key").next("set CHITIN_API_KEY to the key")
    })?;
    let root = match (&global.ca, &global.data) {
        (Some(path), _) => Some(Root::new(path, root_certificate(path)?)),
        // A directory that nobody named may be anybody's.
        (None, None) => None,
        (None, Some(data)) => match DataDirectory::open(data)? {
            Some(directory) => {
                directory.read("ca.pem")?.map(|root| Root::new(&directory.path_of("ca.pem"), root))
            }
            None => None,
        },
    };
    Ok(Found {
        url: url.trim_end_matches('/').to_owned(),
        operator: None,
        api_key: api_key.trim().to_owned(),
        root,
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::command::{Hidden, Output};

    fn global(data: &Path, url: Option<&str>, key: Option<&str>) -> Global {
        Global {
            data: Some(data.to_owned()),
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
        assert!(found.root.unwrap().path.is_absolute());
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
        for (mode, why) in
            [(0o644, "no secret"), (0o640, "no secret"), (0o604, "no secret"), (0o602, "may write to it")]
        {
            let directory = cloud(mode);
            let failure = find(&global(directory.path(), None, None)).err().unwrap();
            assert_eq!(failure.kind, Kind::Failed);
            assert!(failure.what.contains(why), "{failure}");
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
        assert_eq!(found.url, "https://cloud:8080");
        assert!(found.root.is_none());
    }
}
