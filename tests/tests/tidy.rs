//! What the manifest, the design and the guide promise about the code itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file; a longer one has a second noun in it.
const LINES_MAX: usize = 620;

/// Which room may import which of ours. A room that is not here does not exist yet.
const IMPORTS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("wire", &[]),
    ("keys", &["model"]),
    ("identity", &["model", "wire", "keys"]),
    ("audit", &["model", "keys"]),
    ("store", &["model", "keys"]),
    ("network", &["model", "wire"]),
    ("engine", &["model", "keys"]),
    ("backup", &["model", "keys"]),
    ("gateway", &["model", "wire", "keys", "identity", "network", "audit"]),
    ("api", &["model", "keys"]),
    ("control", &["model", "api", "keys", "identity", "audit", "store"]),
    ("reconcile", &["model", "keys", "audit", "store", "network", "engine", "backup"]),
    ("console", &["model", "api"]),
    ("cli", &["model", "api"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn files(below: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).expect("a directory").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_foreign = name.starts_with('.') || ["target", "node_modules"].contains(&name.as_str());
        if path.is_dir() && !is_foreign {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let found = files(&root(), ".rs");
    assert!(found.len() > 20, "the sources were not found");
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8"))).collect()
}

/// The names of our rooms under a manifest's `[dependencies]`.
fn imports(manifest: &str, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    let mut is_inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_inside = line.contains("dependencies") && !line.contains("dev-dependencies");
        } else if is_inside {
            let name: String =
                line.chars().take_while(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
            if rooms.contains(&name) {
                found.insert(name);
            }
        }
    }
    found
}

#[test]
fn rooms_import_only_what_the_design_allows() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        IMPORTS.iter().map(|(room, others)| (*room, others.iter().copied().collect())).collect();
    let rooms: BTreeSet<String> = fs::read_dir(root().join("crates"))
        .expect("the rooms")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    for room in rooms.iter().filter(|room| *room != "chitin") {
        let may =
            allowed.get(room.as_str()).unwrap_or_else(|| panic!("`{room}` is not in the design's table"));
        let manifest =
            fs::read_to_string(root().join("crates").join(room).join("Cargo.toml")).expect("a manifest");
        for import in imports(&manifest, &rooms) {
            assert!(may.contains(import.as_str()), "`{room}` may not import `{import}`");
        }
    }
}

#[test]
fn every_room_takes_its_lints_from_the_workspace() {
    for entry in fs::read_dir(root().join("crates")).expect("the rooms").flatten() {
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{} has no lints", entry.path().display());
    }
}

#[test]
fn unsafe_code_lives_in_one_file() {
    let word = ["un", "safe"].concat();
    for (path, text) in sources() {
        if path.ends_with("engine/src/syscall.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let is_used =
                [" {", " fn", " impl", " extern"].iter().any(|next| code.contains(&format!("{word}{next}")));
            let is_allowed = code.contains("allow(") && code.contains(&format!("{word}_code"));
            let is_room = path.ends_with("engine/src/lib.rs");
            assert!(!is_used && (!is_allowed || is_room), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

/// What of a file is in the program; `None` of a file for tests only. A single item for tests counts as in the program.
fn shipped<'text>(path: &Path, text: &'text str) -> Option<&'text str> {
    let name = path.file_name()?.to_str()?;
    let is_of_tests = ["tests.rs", "testing.rs", "false_engine.rs"].iter().any(|end| name.ends_with(end));
    let begins = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"];
    let end = begins.iter().filter_map(|begin| text.find(begin)).min().unwrap_or(text.len());
    (!is_of_tests).then(|| &text[..end])
}

#[test]
fn what_is_in_the_program_is_told_from_its_tests() {
    let text =
        "fn a() {}\n#[cfg(test)]\nfn b() {}\nfn planted() {}\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
    let kept = shipped(Path::new("crates/x/src/y.rs"), text).expect("it is in the program");
    assert!(kept.contains("planted") && !kept.contains("fn c"), "{kept}");
    assert!(shipped(Path::new("crates/x/src/y/tests.rs"), text).is_none());
}

#[test]
fn clients_certificates_are_taken_from_connections_in_one_place() {
    let mut places = Vec::new();
    for (path, text) in sources() {
        let Ok(name) = path.strip_prefix(root().join("crates")) else { continue };
        if name.starts_with("cli") || name.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let Some(code) = shipped(&path, &text) else { continue };
        if code.contains("peer_certificates") {
            places.push(name.display().to_string());
        }
    }
    assert_eq!(
        places,
        ["gateway/src/tls.rs"],
        "take them by `tls::presented`, which knows whose key was shown"
    );
}

#[test]
fn one_file_connects_to_engines() {
    let ways = [
        "UnixStream::connect",
        "UnixDatagram",
        "UnixAddr",
        "from_pathname",
        "SockAddr::unix",
        "host_path(",
        ".host(\"/",
        "SocketAddrUnix",
        ".s.PGSQL",
    ];
    let mut is_there = false;
    for (path, text) in sources() {
        // The operator's own socket; and the peer that a measurement has beside the connector.
        if path.ends_with("api/src/transport.rs") || path.ends_with("engine/examples/sandbox.rs") {
            continue;
        }
        if !path.starts_with(root().join("crates"))
            || path.components().any(|part| part.as_os_str() == "tests")
        {
            continue;
        }
        let Some(code) = shipped(&path, &text) else { continue };
        let way = ways.iter().find(|way| code.contains(**way));
        if path.ends_with("engine/src/connector.rs") {
            is_there = way.is_some();
        } else {
            assert_eq!(way, None, "{} goes to a Unix socket by itself", path.display());
        }
    }
    assert!(is_there, "the connector connects in no way that is looked for");
}

/// Ways to touch a file by its path. A link on the way may be an engine's.
const BY_PATH: &[&str] = &[
    "fs::read",
    "fs::write(",
    "fs::remove_",
    "fs::rename(",
    "fs::copy(",
    "fs::hard_link(",
    "fs::create_dir",
    "fs::metadata(",
    "fs::symlink",
    "fs::set_permissions(",
    "fs::canonicalize(",
    "fs::exists(",
    "fs::open(",
    "fs::stat(",
    "fs::statvfs(",
    "fs::chmod(",
    "fs::CWD",
    "File::open",
    "File::create",
    "File::options(",
    "OpenOptions::new(",
    "DirBuilder::new(",
    "lchown(",
    ".exists()",
    ".try_exists()",
    ".is_dir()",
    ".is_file()",
    ".is_symlink()",
    ".canonicalize()",
    ".read_dir()",
    ".read_link()",
    ".symlink_metadata()",
    "rustix::mount::mount(",
    "unmount(",
    "statvfs(",
    "Command::new(",
];

/// Where the engine's room goes by path all the same: its file, what the line holds, and why no engine is met there.
const BY_PATH_ALLOWED: &[(&str, &str, &str)] = &[
    ("cgroup.rs", "", "control groups, which are the kernel's and whose folders no engine can write to"),
    ("claim.rs", "", "the data directory and the lock in it, which are ours, and the kernel's word on locks"),
    ("connector.rs", "/proc/{pid}", "the kernel's word on a process"),
    ("evidence.rs", "process.join(", "the kernel's word on a process"),
    ("evidence.rs", "/proc/self", "the kernel's word on our own process"),
    ("evidence.rs", "Path::new(\"/proc\")", "the kernel's word on a process"),
    ("companion/mod.rs", "File::open(&launcher.program)", "our own program"),
    ("companion/mod.rs", "/proc/self/fd", "our own program, by a descriptor that is held"),
    ("companion/program.rs", "/proc/self/oom_score_adj", "the kernel's word on our own process"),
    ("companion/program.rs", "OpenOptions::new()", "the lock in the data directory, which is ours"),
    (
        "companion/program.rs",
        "File::open(places.clusters())",
        "the folder above those of clusters, which is ours",
    ),
    ("launch/mod.rs", "Command::new(&self.program)", "our own program"),
    ("launch/mod.rs", "fs::write(entrance", "a control group, which is the kernel's"),
    ("launch/mod.rs", "Command::new(program)", "bubblewrap, outside of any sandbox"),
    ("host.rs", "config.data.canonicalize()", "the data directory, above everything of an engine's"),
    ("inner_network.rs", "fs::open(&path, flags", "a namespace, by the kernel's own link"),
    ("inner_network.rs", "fs::stat(path)", "our own namespace, by the kernel's own link"),
    ("inner_network.rs", "OpenOptions::new()", "a sandbox's /etc, which is read-only inside"),
    ("inside.rs", "fs::open(path, folder_flags()", "folders of ours, from which everything else is resolved"),
    ("inside.rs", "fs::open(root, flags", "the root of a process, by the kernel's own link"),
    ("host/template.rs", "read_dir(folder)", "the system's own folders of libraries"),
    ("host/template.rs", "metadata(file)", "the system's own programs and libraries"),
    ("jail.rs", "Command::new(\"bwrap\")", "mounts a volume's base, which lies in a folder of ours"),
    ("jail.rs", "read_link(link)", "the system's own folders"),
    ("jail.rs", "/bin/sh", "the system's own shell"),
    ("jail.rs", "fs::write(&path, text)", "a sandbox's /etc, which is read-only inside"),
    ("jail.rs", "/usr/lib", "the system's own folders"),
    ("jail.rs", "lib64.is_dir()", "the system's own folders"),
    ("jail.rs", "Path::new(file).exists()", "the kernel's own list of keys"),
    ("launch/mod.rs", "unmount(LAUNCHER", "inside the sandbox, before the engine"),
    ("launch/mod.rs", "Command::new(&program)", "inside the sandbox, PostgreSQL itself"),
    ("launch/mod.rs", "statvfs(folder)", "inside the sandbox, before the engine"),
    ("launch/probe.rs", "", "inside a sandbox in which no engine runs"),
    ("launch/shortage.rs", "fs::read_to_string(file)", "the kernel's word on a process"),
    ("launch/shortage.rs", "fs::write(OF_THIS_PROCESS", "the kernel's place for our own process"),
    ("places.rs", "DirBuilder::new()", "folders of ours; what is there then is opened without a link"),
    ("places.rs", "statvfs(folder)", "folders of ours, which no engine can write to"),
    ("places.rs", "/proc/self/mountinfo", "the kernel's word on mounts"),
    ("postgres/mod.rs", "", "PostgreSQL's own programs and libraries, as they were installed"),
    ("postgres/installations.rs", "", "folders in which PostgreSQL may be installed"),
    ("postgres/owners.rs", "", "PostgreSQL's own programs and libraries, and the way to them"),
    ("process.rs", "read_dir(\"/proc\")", "the kernel's word on processes"),
    ("process.rs", "/proc/{parent}", "the kernel's word on processes"),
    ("process.rs", "/proc/{of}", "the kernel's word on processes"),
    ("process.rs", "/proc/{pid}", "the kernel's word on processes"),
    ("process.rs", "thread.path().join(\"children\")", "the kernel's word on processes"),
    ("search.rs", "File::open(&device)", "a block device, named by the kernel"),
    ("search.rs", "fs::metadata(folder)", "a cluster's own folder, which no engine can write to"),
    ("search.rs", "read_link(&link)", "the kernel's word on devices"),
    ("volume/below.rs", "fs::metadata(folder)", "a cluster's own folder, which no engine can write to"),
    ("volume/below.rs", "device.join(", "the kernel's word on devices"),
    (
        "volume/gocryptfs.rs",
        "Command::new(\"gocryptfs\")",
        "the folder of ciphertext, which no sandbox shows",
    ),
    ("volume/gocryptfs.rs", "Command::new(\"sh\")", "the folder of ciphertext, which no sandbox shows"),
    ("volume/gocryptfs.rs", "File::options()", "the kernel's FUSE device"),
    ("volume/gocryptfs.rs", "mount::mount(cipher, mounted", "a mount point in a folder of ours"),
    ("volume/check.rs", "Command::new(\"setpriv\")", "the image or its device, in a cluster's own folder"),
    ("volume/check.rs", "File::open(device)", "the image or its device, in a cluster's own folder"),
    ("volume/gocryptfs.rs", "unmount(&", "a mount point in a folder of ours"),
    ("volume/gocryptfs.rs", "Command::new(\"fusermount3\")", "a mount point in a folder of ours"),
    ("volume/gocryptfs.rs", "/proc", "the kernel's word on processes"),
    (
        "volume/image.rs",
        "fs::symlink_metadata(path)",
        "the image, in a cluster's own folder or where the kernel says it is now",
    ),
    ("volume/image.rs", "try_exists()", "the image, in a cluster's own folder"),
    ("volume/image.rs", "File::create_new(image)", "the image, in a cluster's own folder"),
    ("volume/image.rs", "Command::new(\"mkfs.ext4\")", "the image, in a cluster's own folder"),
    ("volume/image.rs", "unmount(mounted", "a mount point in a folder of ours"),
    ("volume/image.rs", "/sys/block", "the kernel's word on devices"),
    ("volume/image.rs", "loop/backing_file", "the kernel's word on devices"),
    ("volume/mounting.rs", "OpenOptions::new()", "devices, and an image in a cluster's own folder"),
    ("volume/mounting.rs", "unmount(target", "a mount point in a folder of ours"),
    ("volume/mounting.rs", "file.metadata()", "of a file that is open"),
    ("volume/luks.rs", "Command::new(\"mkfs.ext4\")", "a crypt device of ours"),
    ("volume/luks.rs", "Command::new(\"cryptsetup\")", "the image, in a cluster's own folder"),
    ("volume/luks.rs", "Command::new(\"dmsetup\")", "the kernel's word on devices"),
    ("volume/luks.rs", "SYS_BLOCK", "the kernel's word on devices"),
    ("volume/luks.rs", "device.path().join(", "the kernel's word on devices"),
    ("volume/luks.rs", "slave.path().join(", "the kernel's word on devices"),
    ("volume/mod.rs", "unmount(&mounted", "a mount point as the kernel names it"),
    ("volume/mod.rs", "Command::new(\"fusermount3\")", "a mount point as the kernel names it"),
    ("volume/space.rs", "fs::open(self.mounted", "the root of a volume's own file system, which is root's"),
    ("volume/space.rs", "fs::stat(above)", "a cluster's own folder, which no engine can write to"),
    ("volume/space.rs", "fstatvfs(", "by a descriptor that is held"),
    ("volume/trouble.rs", "statvfs(base)", "a volume's base, which lies in a folder of ours"),
    ("volume/space.rs", "/sys/dev/block", "the kernel's word on a device"),
    ("volume/space.rs", "/sys/fs/ext4", "the kernel's word on a file system"),
    ("volume/watched.rs", "/proc/{process}/task", "the kernel's word on a process"),
    ("volume/watched.rs", "fs::read_dir(links)", "the kernel's word on a process"),
    ("volume/watched.rs", "fs::metadata(file.path())", "an open file, by the kernel's own link"),
    ("volume/watched.rs", "facts.is_file()", "what was found of an open file"),
];

#[test]
fn what_an_engine_can_write_is_reached_by_descriptor_only() {
    let room = root().join("crates/engine/src");
    let (mut used, mut by_path) = (BTreeSet::new(), Vec::new());
    for (path, text) in sources() {
        let Ok(name) = path.strip_prefix(&room) else {
            continue;
        };
        let name = name.to_string_lossy();
        let Some(code) = shipped(&path, &text) else { continue };
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or("");
            if line.trim_start().starts_with("use ") || !BY_PATH.iter().any(|way| line.contains(way)) {
                continue;
            }
            let allowed = BY_PATH_ALLOWED
                .iter()
                .position(|(file, fragment, _)| name == *file && line.contains(fragment));
            match allowed {
                Some(allowed) => {
                    used.insert(allowed);
                }
                None => by_path.push(format!("crates/engine/src/{name}:{}: {}", number + 1, line.trim())),
            }
        }
    }
    assert!(
        by_path.is_empty(),
        "these go by path; use `Inside`, or say in BY_PATH_ALLOWED why no engine can have put anything there:\n{}",
        by_path.join("\n")
    );
    for (index, (file, fragment, reason)) in BY_PATH_ALLOWED.iter().enumerate() {
        assert!(!reason.is_empty());
        assert!(used.contains(&index), "nothing in {file} needs `{fragment}` any more");
    }
}

#[test]
fn only_the_engine_s_room_goes_into_a_cluster_s_folder() {
    for (path, text) in sources() {
        let Ok(name) = path.strip_prefix(root().join("crates")) else {
            continue;
        };
        let is_elsewhere =
            !name.starts_with("engine") && !name.components().any(|part| part.as_os_str() == "tests");
        let Some(code) = shipped(&path, &text) else { continue };
        let code: String = code.lines().filter_map(|line| line.split("//").next()).collect();
        let goes = ["clusters()).", "join(\"clusters\")", "(\"complete.json\"", "(\"key.json\""];
        let way = goes.iter().find(|way| code.contains(**way));
        // The name of the folder; and which versions of the root key are still needed, from our own files beside volumes.
        let may = ["chitin/src/paths.rs", "chitin/src/root_key/rotation.rs", "chitin/src/root_key/tests.rs"];
        if is_elsewhere && !may.iter().any(|file| name.ends_with(file)) {
            assert_eq!(way, None, "crates/{} goes into a cluster's folder by itself", name.display());
        }
    }
}

#[test]
fn files_are_short_enough_to_read() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}

#[test]
fn files_say_what_lives_in_them() {
    for (path, text) in sources() {
        assert!(
            text.starts_with("//!") || text.starts_with("#!["),
            "{} does not begin with //!",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_for_later() {
    let markers =
        ["TO", "FIX", "XX", "HA"].iter().zip(["DO", "ME", "X", "CK"]).map(|(a, b)| format!("{a}{b}"));
    let markers: Vec<String> =
        markers.chain([["todo", "!("].concat(), ["unimplemented", "!("].concat()]).collect();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for marker in &markers {
                let is_word = line.split(|c: char| !c.is_alphanumeric()).any(|word| word == marker);
                let is_macro = marker.ends_with('(') && line.contains(marker.as_str());
                assert!(!is_word && !is_macro, "{}:{}: {line}", path.display(), number + 1);
            }
        }
    }
}

/// Targets of Markdown links in a text.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut count = 0;
    for path in files(&root(), ".md") {
        let text = fs::read_to_string(&path).expect("UTF-8");
        for link in links(&text) {
            let target = link.split('#').next().unwrap_or("");
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let wanted = path.parent().expect("a directory").join(target);
            assert!(wanted.exists(), "{}: {link} leads nowhere", path.display());
            count += 1;
        }
    }
    assert!(count > 0, "no document links to another");
}

#[test]
fn the_documents_of_the_house_are_there() {
    let documents = "README.md ARCHITECTURE.md CONTRIBUTING.md SECURITY.md CHANGELOG.md LICENSE docs/threats.md docs/glossary.md";
    for document in documents.split(' ') {
        assert!(root().join(document).is_file(), "{document} is missing");
    }
}

#[test]
fn tests_that_threats_name_exist() {
    let everything: String = sources().into_iter().map(|(_, text)| text).collect();
    let threats = fs::read_to_string(root().join("docs/threats.md")).expect("docs/threats.md");
    let mut count = 0;
    for name in threats.split('`').filter(|name| name.contains('_') && !name.contains(' ')) {
        let name = name.rsplit("::").next().unwrap_or(name);
        let is_test =
            name.len() > 20 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if is_test {
            assert!(
                everything.contains(&format!("fn {name}")),
                "docs/threats.md names `{name}`, which does not exist"
            );
            count += 1;
        }
    }
    assert!(count > 0, "docs/threats.md names no test");
}

#[test]
fn every_test_from_outside_is_run() {
    let base = root().join("tests/outside");
    let mut count = 0;
    for path in files(&base, ".rs") {
        let folder = path.parent().expect("a folder");
        if folder == base {
            continue;
        }
        let suite = fs::read_to_string(folder.with_extension("rs")).expect("the suite of the folder");
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("UTF-8");
        for line in text.lines().filter_map(|line| line.strip_prefix("pub fn ")) {
            let name = line.split('(').next().unwrap_or("");
            let is_run = [',', ']'].iter().any(|end| suite.contains(&format!("{module}::{name}{end}")));
            assert!(is_run, "{module}::{name} is never run");
            count += 1;
        }
    }
    assert!(count > 300, "only {count} tests from outside were found");
}

#[test]
fn the_program_that_people_build_has_no_steps_to_stop_at() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let asked = std::process::Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            "chitin",
            "-e",
            "normal,build",
            "--prefix",
            "none",
            "-f",
            "{p} [{f}]",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&asked.stdout).into_owned();
    let fail = tree.lines().find(|line| line.starts_with("fail v")).unwrap_or_else(|| {
        panic!("cargo tree names no crate `fail`: {tree}{}", String::from_utf8_lossy(&asked.stderr))
    });
    assert!(!fail.contains("failpoints"), "{fail}");
}

#[test]
fn t42_secrets_are_compared_in_constant_time() {
    // By construction: the comparison of the room that checks secrets is the library's constant-time one, and
    // secret types have no `==` of their own.
    let text: String = sources()
        .into_iter()
        .filter(|(path, _)| {
            path.starts_with(root().join("crates/identity"))
                || path.starts_with(root().join("crates/gateway"))
        })
        .map(|(_, text)| text)
        .collect();
    assert!(
        text.contains("verify_slices_are_equal") || text.contains("constant_time"),
        "no constant-time comparison"
    );
    let secret = fs::read_to_string(root().join("crates/keys/src/secret.rs")).expect("the secret types");
    for derive in secret.lines().filter(|line| line.trim_start().starts_with("#[derive")) {
        assert!(!derive.contains("PartialEq"), "a secret can be compared with ==: {derive}");
    }
}
