//! The data directory: ours alone, private, and never mistaken for somebody else's folder.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use store::StateLock;

const MARK: &str = "chitin-data";
const MARK_TEXT: &str = "This is the data directory of a Chitin cloud, layout 1. Back it up as a whole.\n";

/// Why a folder cannot be the data directory.
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    /// Something else lies there.
    #[error(
        "{} is not empty and not a Chitin data directory; choose an empty or new folder with --data", path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// It belongs to another user.
    #[error("{} belongs to another user (uid {uid}); run Chitin as that user or choose another --data", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Named by a path that means another folder in every working directory, and somebody else decides which.
    #[error(
        "{} is not taken for the data directory: {reason}; name it by its full path with --data, in a folder that only you can change", path.display()
    )]
    NotOnlyOurs {
        /// The folder as it was named.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A layout of a later version.
    #[error(
        "{} was written by another version of Chitin; use that version, or choose another --data", path.display()
    )]
    Layout {
        /// The folder.
        path: PathBuf,
    },
    /// A cloud runs there.
    #[error(transparent)]
    InUse(engine::Error),
    /// The state is gone.
    #[error(
        "{} has a cloud's keys and no state.redb; put it back from your backup, or move the directory away to begin anew", path.display()
    )]
    StateLost {
        /// The folder.
        path: PathBuf,
    },
    /// The file system says no.
    #[error("could not {action} {}: {source}; choose another --data or give yourself access", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of ours could not be written.
    #[error(transparent)]
    Key(#[from] keys::Error),
}

/// The data directory's files.
#[derive(Clone, Debug)]
pub struct Paths {
    data: PathBuf,
}

/// What clients on this machine need to find the running cloud.
#[derive(Debug, Serialize)]
pub struct Endpoint {
    /// Address of the SQL door.
    pub sql: String,
    /// Address of the API.
    pub http: String,
    /// The program's process id.
    pub pid: u32,
}

impl Paths {
    /// Makes the data directory (mode 0700) or checks that it is ours.
    pub fn prepare(data: &Path) -> Result<Self, Unsuitable> {
        if !data.is_absolute() {
            let above =
                data.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
            only_ours_to_change(data, &above.canonicalize().map_err(file("find", above))?)?;
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(file("create", data))?;
        let named = data;
        let data = data.canonicalize().map_err(file("find", data))?;
        if !named.is_absolute() {
            not_by_a_link(named, &data)?;
            only_ours_to_change(named, data.parent().unwrap_or(&data))?;
        }
        let facts = std::fs::metadata(&data).map_err(file("look at", &data))?;
        if facts.uid() != rustix::process::geteuid().as_raw() {
            return Err(Unsuitable::Owner { path: data, uid: facts.uid() });
        }
        let mark = data.join(MARK);
        match std::fs::read_to_string(&mark) {
            Ok(text) if text == MARK_TEXT => {}
            Ok(_) => return Err(Unsuitable::Layout { path: data }),
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                let mut entries = std::fs::read_dir(&data).map_err(file("read", &data))?;
                if entries.next().is_some_and(|entry| !is_own_half_mark(entry)) || entries.next().is_some() {
                    return Err(Unsuitable::Foreign { path: data });
                }
                keys::write_atomically(&mark, MARK_TEXT.as_bytes())?;
            }
            Err(other) => return Err(file("read", &mark)(other)),
        }
        // After the check: a folder that is not ours keeps its mode.
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&data, private).map_err(file("protect", &data))?;
        Ok(Self { data })
    }

    /// The folder itself.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The root key.
    pub fn key_encryption_key(&self) -> PathBuf {
        self.data.join("kek")
    }

    /// The cloud's state.
    pub fn state(&self) -> PathBuf {
        self.data.join("state.redb")
    }

    /// The local administrator's API key.
    pub fn admin_key(&self) -> PathBuf {
        self.data.join("admin-key")
    }

    /// Whether there are files that only the root key opens.
    pub fn has_sealed_files(&self) -> bool {
        [self.state(), self.data.join("ca.key")].iter().any(|path| path.exists())
    }

    /// Whether there is an authority, which is made after the state, and no state.
    pub fn has_lost_its_state(&self) -> bool {
        self.data.join("ca.key").exists() && !self.state().exists()
    }

    /// The clusters' folders.
    pub fn clusters(&self) -> PathBuf {
        self.data.join("clusters")
    }

    /// Makes the directory ours alone for as long as the claim lives, as a running cloud does.
    pub fn claim(&self) -> Result<engine::Claim, Unsuitable> {
        engine::Claim::take(&self.data).map_err(|refused| match refused {
            in_use @ engine::Error::InUse { .. } => Unsuitable::InUse(in_use),
            other => file("lock", &self.data)(std::io::Error::other(other)),
        })
    }

    /// Takes the state's own lock, where there is a state: before anything is cleared away that could be another Chitin's.
    pub fn lock_state(&self) -> Result<StateLock, crate::cloud::Error> {
        let state = self.state();
        StateLock::take(&state).map_err(|refused| match refused {
            store::Error::InUse { .. } => {
                let process = engine::holder(&state);
                engine::Error::InUse { path: self.data.clone(), process }.into()
            }
            other => other.into(),
        })
    }

    /// The cloud's root certificate.
    pub fn root_certificate(&self) -> PathBuf {
        self.data.join("ca.pem")
    }

    fn endpoint(&self) -> PathBuf {
        self.data.join("endpoint.json")
    }

    /// Tells clients on this machine where we listen.
    pub fn tell_endpoint(&self, endpoint: &Endpoint) -> Result<(), Unsuitable> {
        let text = serde_json::to_vec_pretty(endpoint)
            .map_err(|cause| file("write", &self.endpoint())(std::io::Error::other(cause)))?;
        Ok(keys::write_atomically(&self.endpoint(), &text)?)
    }

    /// Takes it back. A predecessor that was killed may have left one.
    pub fn forget_endpoint(&self) {
        match std::fs::remove_file(self.endpoint()) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%cause, "could not remove endpoint.json");
            }
            _ => {}
        }
    }
}

/// Whoever can write to a folder above could put another one in our place while we work. From the root down, so that nobody can
/// change what was looked at.
fn only_ours_to_change(named: &Path, folder: &Path) -> Result<(), Unsuitable> {
    let refused = |reason| Unsuitable::NotOnlyOurs { path: named.to_owned(), reason };
    let folders: Vec<&Path> = folder.ancestors().collect();
    for above in folders.into_iter().rev() {
        let facts = std::fs::symlink_metadata(above).map_err(file("look at", above))?;
        let (owner, mode) = (facts.uid(), facts.mode());
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(refused(format!("{} belongs to another user (uid {owner})", above.display())));
        }
        // Where users have a group each, with their number, what the group may do only they can.
        let by_group = mode & 0o020 != 0 && facts.gid() != owner;
        // With the sticky bit nobody moves what is somebody else's.
        if mode & 0o1000 == 0 && (mode & 0o002 != 0 || by_group) {
            let mode = mode & 0o7777;
            return Err(refused(format!("others may write to {} (mode {mode:o})", above.display())));
        }
    }
    Ok(())
}

/// A link could lead to any folder of ours.
fn not_by_a_link(named: &Path, found: &Path) -> Result<(), Unsuitable> {
    // `..` at the end names a folder by where it lies.
    let Some(name) = named.file_name() else { return Ok(()) };
    let above = named.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if above.canonicalize().map_err(file("find", above))?.join(name) == found {
        return Ok(());
    }
    Err(Unsuitable::NotOnlyOurs {
        path: named.to_owned(),
        reason: format!("it is a link to {}", found.display()),
    })
}

/// A crash while the mark was written leaves its beginning, which is as good as nothing.
fn is_own_half_mark(entry: std::io::Result<std::fs::DirEntry>) -> bool {
    entry.is_ok_and(|entry| entry.file_name() == format!("{MARK}.new").as_str())
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Unsuitable {
    let path = path.to_owned();
    move |source| Unsuitable::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_folder_is_private_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("deep/er");
        Paths::prepare(&data).unwrap();
        assert_eq!(mode(&data), 0o700);
        std::fs::write(data.join("state.redb"), "").unwrap();
        Paths::prepare(&data).unwrap();
    }

    #[test]
    fn a_foreign_folder_is_refused_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
        let refused = Paths::prepare(folder.path()).unwrap_err();
        assert!(matches!(refused, Unsuitable::Foreign { .. }), "{refused}");
        assert_eq!(mode(folder.path()), 0o755);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// The same folder, from the working directory.
    fn relative(path: &Path) -> PathBuf {
        let up: PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
        up.join(path.strip_prefix("/").unwrap())
    }

    #[test]
    fn a_folder_that_others_can_exchange_is_taken_by_its_full_path_only() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let set =
            |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o777);
        let refused = Paths::prepare(&relative(&data)).unwrap_err();
        assert!(refused.to_string().contains("others may write to"), "{refused}");
        assert!(!data.exists(), "nothing was made");
        for allowed in [0o1777, 0o755] {
            set(allowed);
            Paths::prepare(&relative(&data)).unwrap();
        }
        set(0o777);
        Paths::prepare(&data).unwrap();
    }

    #[test]
    fn a_link_in_the_working_directory_leads_to_no_other_folder_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, link) = (folder.path().join("empty"), folder.path().join("link"));
        std::fs::create_dir(&empty).unwrap();
        std::fs::set_permissions(&empty, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        let refused = Paths::prepare(&relative(&link)).unwrap_err();
        assert!(refused.to_string().contains("it is a link to"), "{refused}");
        assert_eq!(mode(&empty), 0o755);
        assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
        Paths::prepare(&link).unwrap();
    }

    #[test]
    fn another_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MARK), "layout 2").unwrap();
        assert!(matches!(Paths::prepare(folder.path()), Err(Unsuitable::Layout { .. })));
    }

    #[test]
    fn an_open_folder_of_ours_is_closed_again() {
        let folder = tempfile::tempdir().unwrap();
        Paths::prepare(folder.path()).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        Paths::prepare(folder.path()).unwrap();
        assert_eq!(mode(folder.path()), 0o700);
    }

    #[test]
    fn the_endpoint_is_told_and_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::prepare(folder.path()).unwrap();
        let endpoint = Endpoint { sql: "127.0.0.1:1".into(), http: "127.0.0.1:2".into(), pid: 3 };
        paths.tell_endpoint(&endpoint).unwrap();
        assert!(folder.path().join("endpoint.json").exists());
        paths.forget_endpoint();
        assert!(!folder.path().join("endpoint.json").exists());
    }
}
