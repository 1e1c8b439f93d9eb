//! A cluster's keys: set through the Cloud API as scripts do, and looked at on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::Answer;
use crate::cloud::Cluster;
use crate::command::eventually;

/// For a key service to be asked and a volume to be locked, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// What is written in a file, by its places.
pub type Extents = Vec<(u64, Vec<u8>)>;

impl Cluster<'_> {
    fn cmek_path(&self) -> String {
        format!("/api/v1/clusters/{}/cmek", self.id)
    }

    fn keys_path(&self) -> String {
        format!("/api/v1/chitin/clusters/{}/keys", self.id)
    }

    /// Where the customer's key stands, as Terraform reads it.
    pub fn cmek(&self) -> Value {
        self.cloud.call("GET", &self.cmek_path(), None).ok()
    }

    /// The status of the customer's key.
    pub fn key_status(&self) -> String {
        self.cmek()["status"].as_str().expect("a status").to_owned()
    }

    /// The versions of the keys that were used, newest first.
    pub fn key_infos(&self) -> Vec<Value> {
        self.cmek()["region_infos"][0]["key_infos"].as_array().cloned().unwrap_or_default()
    }

    /// Asks for a key in every region.
    pub fn ask_for_key(&self, method: &str, key: &Value) -> Answer {
        self.cloud.call(method, &self.cmek_path(), Some(&self.in_every_region(key)))
    }

    /// As [`Cluster::ask_for_key`], where the program may stop before it answers.
    pub fn begin_to_ask_for_key(&self, method: &str, key: &Value) -> std::process::Child {
        self.cloud.begin_call(method, &self.cmek_path(), &self.in_every_region(key))
    }

    fn in_every_region(&self, key: &Value) -> Value {
        let shown = self.cloud.call("GET", &format!("/api/v1/clusters/{}", self.id), None).ok();
        let regions = shown["regions"].as_array().expect("regions");
        let specs: Vec<Value> =
            regions.iter().map(|region| json!({ "region": region["name"], "key_spec": key })).collect();
        json!({ "region_specs": specs })
    }

    /// Gives the cluster its first key of the customer's, and waits until it wraps the data key.
    #[track_caller]
    pub fn enable_key(&self, key: &Value) {
        let status = self.ask_for_key("POST", key).ok()["status"].clone();
        assert!(status == "ENABLING" || status == "ENABLED", "{status}");
        self.await_key("ENABLED");
    }

    /// Goes over to another key, or to the newest version of the same, and waits for it.
    #[track_caller]
    pub fn rotate_key(&self, key: &Value) {
        let status = self.ask_for_key("PUT", key).ok()["status"].clone();
        // What an earlier demand failed of is no failure of this one; and nothing was enabled yet if all of them failed.
        let expected = ["ENABLING", "ROTATING", "ENABLED"];
        assert!(expected.iter().any(|word| status == *word), "{status}");
        self.await_key("ENABLED");
    }

    /// Waits for a status of the customer's key.
    #[track_caller]
    pub fn await_key(&self, status: &str) {
        let mut last = Value::Null;
        let begun = std::time::Instant::now();
        while begun.elapsed() < SOON {
            last = self.cmek();
            if last["status"] == status {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{} is not {status} but {last}\n{}", self.name, self.cloud.log_end());
    }

    /// Takes the key away.
    #[track_caller]
    pub fn revoke_key(&self) {
        self.cloud.call("PATCH", &self.cmek_path(), Some(&json!({ "action": "REVOKE" }))).ok();
    }

    /// Gives the key back.
    #[track_caller]
    pub fn restore_key(&self) {
        self.cloud.call("POST", &format!("{}/restore", self.keys_path()), Some(&json!({}))).ok();
    }

    /// Asks for another data key.
    pub fn ask_for_data_key(&self) -> Answer {
        self.cloud.call("POST", &format!("{}/data-key/rotate", self.keys_path()), Some(&json!({})))
    }

    /// As [`Cluster::ask_for_data_key`], where the program may stop before it answers.
    pub fn begin_to_ask_for_data_key(&self) -> std::process::Child {
        self.cloud.begin_call("POST", &format!("{}/data-key/rotate", self.keys_path()), &json!({}))
    }

    /// What Chitin shows of the cluster's keys.
    pub fn keys(&self) -> Value {
        self.cloud.call("GET", &self.keys_path(), None).ok()
    }

    /// Whether the kernel has the data key.
    pub fn is_unlocked(&self) -> bool {
        let keys = self.keys();
        keys["facts"]["is_unlocked"].as_bool().unwrap_or_else(|| panic!("no facts in {keys}"))
    }

    /// The folder of the cluster.
    pub fn folder(&self) -> PathBuf {
        self.cloud.data().join("clusters").join(&self.id)
    }

    /// The generation of its volume that counts.
    pub fn generation(&self) -> u64 {
        let text = fs::read_to_string(self.folder().join("complete.json")).expect("a marker");
        let marker: Value = serde_json::from_str(&text).expect("JSON");
        marker["generation"].as_u64().unwrap_or_default()
    }

    /// The folder of the volume that counts.
    pub fn volume(&self) -> PathBuf {
        match self.generation() {
            0 => self.folder(),
            number => self.folder().join(format!("volume-{number}")),
        }
    }

    /// The wrapped data key as it lies on the disk.
    pub fn key_file(&self) -> PathBuf {
        self.volume().join("key.json")
    }

    /// What it says.
    pub fn wrapped_key(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.key_file()).expect("a key file")).expect("JSON")
    }

    /// What the disk has of the cluster's data: the image or the files of ciphertext, with their bytes by their places.
    /// Holes of an image are left out.
    pub fn ciphertext(&self) -> Vec<(PathBuf, Extents)> {
        let volume = self.volume();
        let found: Vec<_> = ["image", "cipher"]
            .iter()
            .flat_map(|name| files_below(&volume.join(name)))
            .map(|path| (path.clone(), extents(&path)))
            .collect();
        let bytes: usize = found.iter().flat_map(|(_, extents)| extents).map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes > 1 << 20, "only {bytes} bytes lie in {}", volume.display());
        found
    }

    /// Waits until nothing of the cluster runs.
    pub fn await_rest(&self) {
        eventually("no engine runs", SOON, || self.engine_processes().is_empty().then_some(()));
    }

    /// Mounts of the cluster, as the program sees them.
    pub fn mounts(&self) -> Vec<String> {
        let path = format!("/proc/{}/mountinfo", self.cloud.pid());
        let text = fs::read_to_string(path).expect("the program runs");
        text.lines().filter(|line| line.contains(&self.id)).map(str::to_owned).collect()
    }
}

/// Every plain file at or below the path; what cannot be read is left out.
pub fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(facts) = fs::symlink_metadata(path) else { return Vec::new() };
    if facts.is_file() {
        return vec![path.to_owned()];
    }
    if !facts.is_dir() {
        return Vec::new();
    }
    let entries = fs::read_dir(path).map(|entries| entries.flatten().collect::<Vec<_>>());
    let mut found: Vec<PathBuf> =
        entries.unwrap_or_default().iter().flat_map(|entry| files_below(&entry.path())).collect();
    found.sort();
    found
}

/// Copies a folder with everything in it.
pub fn copy_folder(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    crate::command::run(command.args(["-a", "--sparse=always"]).arg(from).arg(to)).ok();
}

/// What is written in a file, by its places; holes are left out, since an image is as big as its disk.
pub fn extents(path: &Path) -> Extents {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{SeekFrom, seek};

    let file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut found, mut at) = (Vec::new(), 0);
    // The error at the end says that no data follow.
    while let Ok(begin) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(begin)).expect("a hole follows all data");
        let mut bytes = vec![0; usize::try_from(end - begin).expect("it fits")];
        file.read_exact_at(&mut bytes, begin).expect("ours");
        found.push((begin, bytes));
        at = end;
    }
    found
}

/// Files at or below the path in which one of the texts stands.
pub fn files_with<T: AsRef<str>>(path: &Path, texts: &[T]) -> Vec<String> {
    let has = |path: &PathBuf| {
        extents(path).iter().any(|(_, bytes)| texts.iter().any(|text| is_in(text.as_ref().as_bytes(), bytes)))
    };
    files_below(path).iter().filter(|path| has(path)).map(|path| path.display().to_string()).collect()
}

/// Whether the bytes are somewhere in the others.
pub fn is_in(needle: &[u8], bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, needle).is_some()
}
