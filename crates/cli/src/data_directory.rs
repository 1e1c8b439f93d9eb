//! The data directory of a cloud on this machine, as commands open it: what somebody else put there is not believed.
//!
//! A path that does not begin at the root means another folder in every working directory, so it may be a stranger's. What it
//! leads to must be the caller's or root's, and no link. By a full path the operator says which folder he means: then it may be
//! a link, and another user's. In either way nobody but its owner may write to it, and its files are its owner's and no links,
//! so that none of them stands for a file of somebody else. Everything is opened once and looked at by descriptor.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, fstatfs, open, openat};
use rustix::io::Errno;

use crate::failure::{Failure, Kind};

/// Where a cloud is looked for unless told otherwise.
pub const DEFAULT_DATA: &str = "./.chitin";

/// Longest file that is read here.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Permissions of everybody but the owner.
const OTHERS: u32 = 0o077;
/// Permissions to write of everybody but the owner.
const OTHERS_WRITE: u32 = 0o022;
/// `FUSE_SUPER_MAGIC` of the kernel's `fs/fuse/inode.c`.
const FUSE: u64 = 0x6573_5546;

/// An opened data directory.
pub struct DataDirectory {
    held: OwnedFd,
    path: PathBuf,
    owner: u32,
}

impl DataDirectory {
    /// Opens it; none where there is none. Fails if somebody else may have put there what is in it.
    pub fn open(path: &Path) -> Result<Option<Self>, Failure> {
        // Without a slash at the end, by which a link would be followed.
        let path: PathBuf = path.components().collect();
        let mut flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if !path.is_absolute() {
            flags |= OFlags::NOFOLLOW;
        }
        let held = match open(&path, flags, Mode::empty()) {
            Ok(held) => held,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(refused(&path, "it is a link, or no folder", &by_its_full_path()));
            }
            Err(other) => return Err(unreadable(&path, &other.into())),
        };
        let facts = fstat(&held).map_err(|error| unreadable(&path, &error.into()))?;
        if !path.is_absolute() {
            if !is_trusted(facts.st_uid) {
                return Err(refused(&path, &belongs(facts.st_uid), &by_its_full_path()));
            }
            // A file system in a program says whatever its owner likes of what is in it.
            if let Some(owner) = fuse_owner(&held).map_err(|error| unreadable(&path, &error))?
                && !is_trusted(owner)
            {
                return Err(refused(&path, &format!("the user {owner} has mounted it"), &by_its_full_path()));
            }
        }
        if let Some(mode) = written_by_others(&facts) {
            let next = format!("see who put there what is in it; then: chmod go-w {}", path.display());
            return Err(refused(&path, &format!("others may write to it (mode {mode:o})"), &next));
        }
        Ok(Some(Self { held, path, owner: facts.st_uid }))
    }

    /// The file's path, for people.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file and keeps it open; none where there is none.
    pub fn read(&self, name: &str) -> Result<Option<(String, File)>, Failure> {
        let path = self.path_of(name);
        // A pipe or a device would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.held, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.not_ours(&path, "it is a link")),
            Err(other) => return Err(unreadable(&path, &other.into())),
        };
        let facts = fstat(&file).map_err(|error| unreadable(&path, &error.into()))?;
        if !FileType::from_raw_mode(facts.st_mode).is_file() {
            return Err(self.not_ours(&path, "it is no file"));
        }
        if facts.st_uid != self.owner {
            return Err(self.not_ours(&path, &belongs(facts.st_uid)));
        }
        if let Some(mode) = written_by_others(&facts) {
            return Err(self.not_ours(&path, &format!("others may write to it (mode {mode:o})")));
        }
        let text = text(&file).map_err(|error| unreadable(&path, &error))?;
        Ok(Some((text, file)))
    }

    /// Reads a key that nobody else may read: one that others could have read is no longer a secret.
    pub fn read_private(&self, name: &str) -> Result<String, Failure> {
        let path = self.path_of(name);
        let Some((text, file)) = self.read(name)? else {
            return Err(unreadable(&path, &Errno::NOENT.into()));
        };
        let mode = fstat(&file).map_err(|error| unreadable(&path, &error.into()))?.st_mode & 0o777;
        if mode & OTHERS != 0 {
            return Err(Failure::new(
                Kind::Failed,
                format!("{} can be read by others (mode {mode:o}), so it is no secret", path.display()),
            )
            .next(format!(
                "chmod 600 {0}; if others use this machine, remove it and start the cloud again",
                path.display()
            )));
        }
        Ok(text.trim().to_owned())
    }

    /// Whether a folder in it is there and the caller's own, and no link.
    pub fn has_own_folder(&self, name: &str) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.held, name, flags, Mode::empty())
            .and_then(fstat)
            .is_ok_and(|facts| facts.st_uid == rustix::process::geteuid().as_raw())
    }

    fn not_ours(&self, path: &Path, why: &str) -> Failure {
        let next = format!(
            "see who put it there; `chitin start` makes such files itself, as the owner of {}",
            self.path.display()
        );
        refused(path, why, &next)
    }
}

/// Reads the root certificate that the operator named. A path that does not begin at the root is believed only if the file is
/// the caller's or root's, as the data directory is.
pub fn root_certificate(path: &Path) -> Result<(String, File), Failure> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let facts = fstat(&file).map_err(|error| unreadable(path, &error.into()))?;
    if !path.is_absolute() {
        if !is_trusted(facts.st_uid) {
            return Err(refused(path, &belongs(facts.st_uid), &by_its_full_path()));
        }
        if let Some(mode) = written_by_others(&facts).filter(|_| !is_of_a_private_group(&facts)) {
            let next = format!("see that it is the right one; then: chmod go-w {}", path.display());
            return Err(refused(path, &format!("others may write to it (mode {mode:o})"), &next));
        }
    }
    let text = text(&file).map_err(|error| unreadable(path, &error))?;
    Ok((text, file))
}

/// The caller, or root, who can do everything anyway.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn written_by_others(facts: &Stat) -> Option<u32> {
    (facts.st_mode & OTHERS_WRITE != 0).then_some(facts.st_mode & 0o777)
}

/// Whether only the group may write besides, and the group is the owner's own, which has his number where users have one each.
fn is_of_a_private_group(facts: &Stat) -> bool {
    facts.st_mode & 0o002 == 0 && facts.st_gid == facts.st_uid
}

/// Who mounted the file system that a descriptor lies in, if a program serves it.
fn fuse_owner(held: &OwnedFd) -> std::io::Result<Option<u32>> {
    if u64::try_from(fstatfs(held)?.f_type).unwrap_or_default() != FUSE {
        return Ok(None);
    }
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", held.as_fd().as_raw_fd()))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = facts.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let owner = mount.and_then(|mount| mounter(&mounts, mount));
    owner.map(Some).ok_or_else(|| std::io::Error::other("nothing says who mounted it"))
}

/// `user_id` of a mount in the text of `/proc/self/mountinfo`.
fn mounter(mounts: &str, id: &str) -> Option<u32> {
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    line.rsplit(' ').next()?.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
}

fn text(file: &File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn belongs(uid: u32) -> String {
    format!("it belongs to another user (uid {uid})")
}

fn by_its_full_path() -> String {
    "if you trust it, name it by its full path, which begins with /".to_owned()
}

fn refused(path: &Path, why: &str, next: &str) -> Failure {
    Failure::new(Kind::Failed, format!("{} is not believed: {why}", path.display())).next(next)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Kind::Failed, format!("{} cannot be read: {error}", path.display()))
        .next("run the command as the user who started the cloud")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), "root").unwrap();
        directory
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The same folder, from the working directory.
    fn relative(path: &Path) -> PathBuf {
        let up: PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
        up.join(path.strip_prefix("/").unwrap())
    }

    fn read(path: &Path) -> Result<String, Failure> {
        let (text, _) =
            DataDirectory::open(path)?.expect("it is there").read("ca.pem")?.expect("it is there");
        Ok(text)
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_believed_however_it_is_named() {
        let directory = directory();
        for path in [directory.path().to_owned(), relative(directory.path())] {
            for open in [0o720, 0o702, 0o777, 0o1777] {
                mode(directory.path(), open);
                let refused = read(&path).unwrap_err();
                assert!(refused.what.contains("others may write to it"), "{refused}");
            }
            for own in [0o700, 0o755] {
                mode(directory.path(), own);
                assert_eq!(read(&path).unwrap(), "root");
            }
        }
    }

    #[test]
    fn a_link_is_followed_by_a_full_path_only_and_never_inside() {
        let directory = directory();
        let beside = tempfile::tempdir().unwrap();
        let link = beside.path().join("link");
        symlink(directory.path(), &link).unwrap();
        assert_eq!(read(&link).unwrap(), "root");
        let with_a_slash = PathBuf::from(format!("{}/", relative(&link).display()));
        for path in [relative(&link), with_a_slash, relative(&link).join(".")] {
            let refused = read(&path).unwrap_err();
            assert!(refused.what.contains("a link"), "{refused}");
            assert!(refused.next.unwrap().contains("full path"));
        }
        let secret = beside.path().join("secret");
        fs::write(&secret, "canary").unwrap();
        mode(&secret, 0o600);
        symlink(&secret, directory.path().join("admin-key")).unwrap();
        let opened = DataDirectory::open(directory.path()).unwrap().unwrap();
        let refused = opened.read_private("admin-key").unwrap_err();
        assert!(refused.what.contains("a link") && !refused.to_string().contains("canary"), "{refused}");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = directory();
        let pipe = directory.path().join("admin-key");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let opened = DataDirectory::open(directory.path()).unwrap().unwrap();
        assert!(opened.read_private("admin-key").unwrap_err().what.contains("no file"));
    }

    #[test]
    fn a_file_that_others_may_write_to_is_not_believed() {
        let directory = directory();
        for open in [0o620, 0o666, 0o646] {
            mode(&directory.path().join("ca.pem"), open);
            assert!(read(directory.path()).unwrap_err().what.contains("others may write"), "{open:o}");
        }
    }

    #[test]
    fn a_mount_says_who_made_it() {
        let mounts = "36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/root rw,errors=continue\n\
                      361 35 0:52 / /tmp/x rw,nosuid - fuse.bindfs /x rw,user_id=1000,group_id=1000,allow_other\n";
        assert_eq!(mounter(mounts, "361"), Some(1000));
        assert_eq!(mounter(mounts, "36"), None);
        assert_eq!(mounter(mounts, "3"), None);
    }
}
