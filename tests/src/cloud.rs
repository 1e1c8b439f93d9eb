//! A running cloud of a test's own: the real program in a directory that is removed afterwards, unless the test failed.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use serde_json::Value;

use crate::clock::Clock;
use crate::command::{Finished, eventually, run, run_with};
use crate::hosts::Host;
use crate::machine::{self, Process};
use crate::ports::free_port;
use crate::scram::{self, Exchange};
use crate::tls;
use crate::wire::{PROTOCOL_3_0, Refusal, Wire, startup};

/// Longest time for the program to start, to stop, and to make a cluster.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Where SQL clients find a cloud that runs on a host of its own, on every address of it.
pub const SQL_PORT: u16 = 26257;
/// Where its API is there.
pub const HTTP_PORT: u16 = 8080;

/// How a cloud is started beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments of `chitin start`.
    pub arguments: Vec<String>,
    /// More environment of `chitin start`.
    pub environment: Vec<(String, String)>,
    /// The host that it runs on, reached from others at ports [`SQL_PORT`] and [`HTTP_PORT`]; `None` is this machine.
    pub host: Option<Host>,
    /// How many descriptors it may have at the most, if not as many as this machine allows.
    pub descriptors: Option<u32>,
    /// What the program finds in `/etc/hosts` instead of what is there; only root can do that.
    pub names: Option<String>,
    /// The time of day there.
    pub clock: Option<Clock>,
}

impl Options {
    /// With these arguments of `chitin start`, and clusters whose files are not encrypted. For tests whose subject is not
    /// how data lie on the disk: where the kernel encrypts without help of the processor, that is most of a cluster's cost.
    pub fn unencrypted(arguments: &[&str]) -> Self {
        Self::with(&[arguments, &["--encryption", "none", "--allow-unencrypted"]].concat())
    }

    /// With these arguments of `chitin start`.
    pub fn with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self { arguments, ..Self::default() }
    }
}

/// A cloud under test.
pub struct Cloud {
    directory: tempfile::TempDir,
    options: Options,
    sql: SocketAddr,
    http: SocketAddr,
    process: Mutex<Option<Child>>,
    trust: OnceLock<Arc<ClientConfig>>,
}

/// The program under test: `CHITIN_BIN`, or the debug build, in which `./test` compiles the steps at which tests stop it.
pub fn program() -> PathBuf {
    let path = std::env::var_os("CHITIN_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/chitin"), PathBuf::from);
    assert!(path.exists(), "{} does not exist; build it with: cargo build -p chitin", path.display());
    path
}

impl Cloud {
    /// Starts a cloud and waits until it answers.
    pub fn start(options: Options) -> Self {
        let cloud = Self::prepare(options);
        cloud.boot();
        cloud
    }

    /// A cloud over a copy of another one's data directory, as it lies there now. It is not started.
    pub fn over(data: &Path, options: Options) -> Self {
        let cloud = Self::prepare(options);
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(data).arg(cloud.data())).ok();
        cloud
    }

    fn prepare(options: Options) -> Self {
        // Short, because the path of a Unix socket below it may have 107 bytes.
        let directory = tempfile::Builder::new().prefix("ch").tempdir().expect("a temporary directory");
        let port = |known| match options.host {
            Some(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), known),
            None => free_port(),
        };
        Self {
            directory,
            sql: port(SQL_PORT),
            http: port(HTTP_PORT),
            options,
            process: Mutex::new(None),
            trust: OnceLock::new(),
        }
    }

    /// Starts with the defaults.
    pub fn plain() -> Self {
        Self::start(Options::default())
    }

    /// Starts the program (again) over the same data and waits until it answers.
    pub fn boot(&self) {
        self.boot_with(&[], &[]);
    }

    /// Starts the program in vain, with more arguments and more environment, and returns what it said.
    #[track_caller]
    pub fn refuses_to_start(&self, arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let mut command = self.start_command();
        self.say_how(&mut command, arguments, environment);
        run_with(&mut command, b"", PATIENCE).refused()
    }

    fn say_how(&self, command: &mut Command, arguments: &[&str], environment: &[(&str, &str)]) {
        let listen = |address: SocketAddr| match self.options.host {
            Some(_) => format!("[::]:{}", address.port()),
            None => address.to_string(),
        };
        command
            .args(["start", "--data"])
            .arg(self.data())
            .args(["--sql", &listen(self.sql), "--http", &listen(self.http)])
            .args(&self.options.arguments)
            .args(arguments)
            // Many tests fail to sign in to one cluster from one address, on purpose; those of the throttle say so.
            .env("CHITIN_THROTTLE_FREE", "1000000")
            .envs(self.options.environment.iter().cloned())
            .envs(environment.iter().copied());
    }

    /// As [`Cloud::boot`], but the program stops for good when it comes to this step.
    pub fn boot_until(&self, step: &str) {
        self.boot_with(&[], &[("CHITIN_STOP_AT", step)]);
    }

    /// Waits until the program that [`Cloud::boot_until`] started stands still at its step.
    pub fn await_step(&self, step: &str) {
        let said = format!("stopped at the step {step}");
        eventually(&said, PATIENCE * 2, || self.log().contains(&said).then_some(()));
    }

    /// As [`Cloud::boot`], with more arguments and more environment for this once.
    pub fn boot_with(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        machine::watch_lateness();
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.start_command();
        self.say_how(&mut command, arguments, environment);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let pid = child.id();
        *self.process.lock().expect("no test panicked here") = Some(child);
        eventually("chitin start answers", PATIENCE, || {
            let mut process = self.process.lock().expect("no test panicked here");
            let ended = process.as_mut().and_then(|child| child.try_wait().expect("the child is ours"));
            assert!(ended.is_none(), "chitin start ended with {ended:?}:\n{}", self.log());
            drop(process);
            let endpoint = fs::read_to_string(self.data().join("endpoint.json")).ok()?;
            let endpoint: Value = serde_json::from_str(&endpoint).ok()?;
            let is_ours = endpoint["pid"].as_u64() == Some(u64::from(pid));
            (is_ours && run(&mut self.command(["status"])).status.success()).then_some(())
        });
    }

    /// The program with names of its own, if it is to have any. Every step becomes the next, so its number stays the same.
    fn start_command(&self) -> Command {
        let Some(names) = &self.options.names else { return self.bounded() };
        let file = self.directory.path().join("hosts");
        fs::write(&file, names).expect("a scratch file");
        let mut command = self.program("unshare");
        let steps = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        command.args(["--mount", "--propagation", "slave", "sh", "-c", steps]).arg(file).arg(program());
        command
    }

    fn bounded(&self) -> Command {
        let Some(most) = self.options.descriptors else { return self.program(program()) };
        let mut command = self.program("prlimit");
        command.arg(format!("--nofile={most}:{most}")).arg(program());
        command
    }

    /// Where the cloud keeps everything.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A scratch directory beside the data.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The certificate that clients trust.
    pub fn root_certificate(&self) -> PathBuf {
        self.data().join("ca.pem")
    }

    /// A program that will run where the cloud does.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.options.host {
            Some(host) => host.command(program),
            None => Command::new(program),
        };
        if let Some(clock) = &self.options.clock {
            clock.give(&mut command);
        }
        command
    }

    /// Connects to one of its doors from where it runs itself.
    pub fn connect(&self, door: SocketAddr, source: Option<IpAddr>) -> std::io::Result<Wire> {
        match &self.options.host {
            Some(host) => host.connect(door, source),
            None => Wire::tcp_from(door, source),
        }
    }

    /// Where SQL clients connect.
    pub fn sql_address(&self) -> SocketAddr {
        self.sql
    }

    /// Where the API answers.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.process.lock().expect("no test panicked here").as_ref().expect("the cloud runs").id()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Everything that the program has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// A client command of this cloud, ready to run.
    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        self.command_of(&arguments)
    }

    /// As [`Cloud::command`], for a list whose length is not known before.
    pub fn command_of(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(program());
        command.args(arguments).arg("--data").arg(self.data());
        for name in ["CHITIN_DATA", "CHITIN_URL", "CHITIN_API_KEY", "CHITIN_CA", "CHITIN_SQL", "CHITIN_HTTP"]
        {
            command.env_remove(name);
        }
        command
    }

    /// Runs a client command.
    pub fn chitin<const N: usize>(&self, arguments: [&str; N]) -> Finished {
        run_with(&mut self.command(arguments), b"", PATIENCE * 2)
    }

    /// Runs a client command that must succeed, and returns its JSON.
    pub fn json<const N: usize>(&self, arguments: [&str; N]) -> Value {
        let output = run_with(self.command(arguments).args(["--output", "json"]), b"", PATIENCE * 2).ok();
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error} in: {output}"))
    }

    /// What the API answers to the local administrator.
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).ok()
    }

    /// Creates a cluster, with the arguments after its name, and a user `maria` in it.
    pub fn cluster(&self, name: &str, arguments: &[&str]) -> Cluster<'_> {
        let mut all = vec!["cluster", "create", name];
        all.extend(arguments);
        run_with(&mut self.command_of(&all), b"", PATIENCE * 2).ok();
        let password = self.user(name, "maria");
        let url = self.chitin(["cluster", "url", name, "maria"]).ok();
        let (_, after) = url.split_once("cluster%3D").expect("the URL names the cluster");
        let handle = after.split(['&', '\n']).next().expect("the handle follows").to_owned();
        let id = self.json(["cluster", "show", name])["id"].as_str().expect("a cluster has an id").to_owned();
        Cluster { cloud: self, name: name.to_owned(), handle, id, user: "maria".to_owned(), password }
    }

    /// Creates a user and returns the password.
    pub fn user(&self, cluster: &str, name: &str) -> String {
        let made = self.json(["user", "create", cluster, name]);
        made["password"].as_str().expect("a new user has a password").to_owned()
    }

    /// What a well-configured client trusts.
    pub fn trust(&self) -> &Arc<ClientConfig> {
        self.trust.get_or_init(|| Arc::new(tls::client(&self.root_certificate(), &[])))
    }

    /// A connection after SSLRequest and the handshake, for the server name `localhost`.
    pub fn encrypted(&self) -> Wire {
        self.encrypted_from(None).expect("the gateway makes TLS with everyone")
    }

    /// As [`Cloud::encrypted`], from a source address.
    pub fn encrypted_from(&self, source: Option<IpAddr>) -> std::io::Result<Wire> {
        let mut wire = self.connect(self.sql, source)?;
        let answer = wire.ask_for_tls()?;
        assert_eq!(answer, b'S', "SSLRequest must be welcome");
        wire.handshake(self.trust(), "localhost")?;
        Ok(wire)
    }

    /// Ends the program with SIGTERM and checks that nothing is left; returns how long it took.
    pub fn stop(&self) -> Duration {
        let taken = self.end(Signal::TERM);
        let left = machine::leftovers(&self.data(), &[]);
        assert!(left.is_empty(), "left behind: {left:#?}\nlog:\n{}", self.log_end());
        taken
    }

    /// Ends the program with SIGKILL.
    pub fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// The same, and does not wait for what the program started.
    pub fn kill_at_once(&self) {
        self.signal(Signal::KILL);
        self.child().wait().expect("ours");
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id is not zero");
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Waits until the program has ended by itself, or by a signal that was sent, and returns how.
    pub fn await_end(&self) -> ExitStatus {
        let mut child = self.child();
        eventually("the program ends after its signal", PATIENCE, || child.try_wait().expect("ours"))
    }

    /// The program, which is not this cloud's any more.
    fn child(&self) -> Child {
        self.process.lock().expect("no test panicked here").take().expect("the cloud runs")
    }

    fn end(&self, signal: Signal) -> Duration {
        let begun = Instant::now();
        let before = machine::descendants(self.pid());
        self.signal(signal);
        self.await_end();
        let taken = begun.elapsed();
        eventually("every process of the cloud ends with it", PATIENCE, || {
            before.iter().all(|process| !process.is_alive()).then_some(())
        });
        taken
    }

    /// Every process of the cloud beside the program itself.
    pub fn processes(&self) -> Vec<Process> {
        machine::descendants(self.pid())
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let is_running = self.process.get_mut().is_ok_and(|process| process.is_some());
        if !std::thread::panicking() {
            if is_running {
                self.stop();
            }
            return;
        }
        let directory = kept(&mut self.directory);
        eprintln!(
            "the cloud's log and data are left in {directory}; the end of the log:\n{}",
            self.log_end()
        );
        if is_running {
            // One that stands still at a step would not end otherwise. A second panic would end all tests.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end(Signal::KILL)));
            if ended.is_err() {
                eprintln!("a process of that cloud did not end");
            }
        }
    }
}

/// Lets a directory outlive its test, which has failed, and says where it is.
pub fn kept(directory: &mut tempfile::TempDir) -> String {
    directory.disable_cleanup(true);
    directory.path().display().to_string()
}

/// A cluster with a user.
#[derive(Clone)]
pub struct Cluster<'cloud> {
    /// Where it is.
    pub cloud: &'cloud Cloud,
    /// Its name.
    pub name: String,
    /// How clients name it: `NAME-ROUTINGID`.
    pub handle: String,
    /// Its id in the API.
    pub id: String,
    /// A SQL user.
    pub user: String,
    /// The user's password.
    pub password: String,
}

impl<'cloud> Cluster<'cloud> {
    /// The same cluster with another user.
    pub fn with_user(&self, user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned(), ..self.clone() }
    }

    /// The same cluster as another cloud has it, over a copy of this one's data.
    pub fn at<'other>(&self, cloud: &'other Cloud) -> Cluster<'other> {
        let Cluster { cloud: _, name, handle, id, user, password } = self.clone();
        Cluster { cloud, name, handle, id, user, password }
    }

    /// The same cluster with a user that is made now.
    pub fn with_new_user(&self, user: &str) -> Self {
        self.with_user(user, &self.cloud.user(&self.name, user))
    }

    /// The startup parameters of a plain client.
    pub fn parameters(&self) -> Vec<(String, String)> {
        vec![
            ("user".into(), self.user.clone()),
            ("database".into(), "defaultdb".into()),
            ("options".into(), format!("--cluster={}", self.handle)),
        ]
    }

    /// A connection that has sent its startup message and waits for the answer.
    pub fn knock(&self) -> Wire {
        self.knock_with(&[])
    }

    /// As [`Cluster::knock`], with more or other startup parameters.
    pub fn knock_with(&self, more: &[(&str, &str)]) -> Wire {
        let mut wire = self.cloud.encrypted();
        let own = self.parameters();
        let mut all: Vec<(&str, &str)> = own
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| more.iter().all(|(other, _)| other != name))
            .collect();
        all.extend(more);
        wire.send_raw(&startup(PROTOCOL_3_0, &all)).expect("the gateway reads the startup message");
        wire
    }

    /// Signs in the way the exchange says, up to ReadyForQuery.
    pub fn sign_in_by(&self, exchange: &Exchange) -> Result<Wire, Refusal> {
        let mut wire = self.knock();
        wire.expect_message()?;
        scram::prove(&mut wire, exchange)?;
        wire.expect_ready()?;
        Ok(wire)
    }

    /// Signs in as a good client does.
    pub fn try_sign_in(&self) -> Result<Wire, Refusal> {
        self.sign_in_by(&Exchange::bound(&self.password))
    }

    /// Signs in as a good client does; panics when refused.
    pub fn sign_in(&self) -> Wire {
        self.try_sign_in().unwrap_or_else(|refusal| panic!("{} could not sign in: {refusal:?}", self.user))
    }

    /// Signs in from a source address; the handshake itself may be refused.
    pub fn try_sign_in_from(&self, source: IpAddr) -> Result<Wire, Refusal> {
        let closed = |error: std::io::Error| Refusal::closed(&error.to_string());
        let mut wire = self.cloud.encrypted_from(Some(source)).map_err(closed)?;
        let own = self.parameters();
        let all: Vec<(&str, &str)> =
            own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        wire.send_raw(&startup(PROTOCOL_3_0, &all)).map_err(closed)?;
        wire.expect_message()?;
        scram::prove(&mut wire, &Exchange::bound(&self.password))?;
        wire.expect_ready()?;
        Ok(wire)
    }

    /// The connection string of libpq, without the password and the TLS settings.
    pub fn conninfo(&self, database: &str) -> String {
        let address = self.cloud.sql;
        format!(
            "host=localhost hostaddr={} port={} user={} dbname={database} options=--cluster={}",
            address.ip(),
            address.port(),
            self.user,
            self.handle
        )
    }

    /// A program of PostgreSQL with the environment of a careful client; the last argument is the connection string.
    pub fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.cloud.program(program);
        self.prepare(&mut command, arguments);
        command
    }

    /// As [`Cluster::client`], on another host, at this address of the cloud's.
    pub fn client_at(&self, host: &Host, program: &str, address: IpAddr, arguments: &[&str]) -> Command {
        let mut command = host.command(program);
        self.prepare(&mut command, arguments);
        command.env("PGHOSTADDR", address.to_string());
        command
    }

    fn prepare(&self, command: &mut Command, arguments: &[&str]) {
        command
            .args(arguments)
            .env("PGPASSWORD", &self.password)
            .env("PGSSLMODE", "verify-full")
            .env("PGSSLROOTCERT", self.cloud.root_certificate())
            .env("PGHOST", "localhost")
            .env("PGHOSTADDR", self.cloud.sql.ip().to_string())
            .env("PGPORT", self.cloud.sql.port().to_string())
            .env("PGUSER", &self.user)
            .env("PGDATABASE", "defaultdb")
            .env("PGOPTIONS", format!("--cluster={}", self.handle))
            .env("PGCONNECT_TIMEOUT", "60");
    }

    /// Runs statements with psql and returns the bare rows.
    pub fn psql(&self, sql: &str) -> Finished {
        run_with(
            &mut self.client("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]),
            sql.as_bytes(),
            PATIENCE,
        )
    }

    /// The cluster's phase as one word, from the API.
    pub fn phase(&self) -> String {
        let detail = self.cloud.get(&format!("/api/v1/chitin/clusters/{}", self.id));
        match &detail["phase"] {
            Value::String(word) => word.clone(),
            // A phase with a reason, such as `broken`.
            Value::Object(map) => map.keys().next().expect("a phase has a name").clone(),
            other => panic!("no phase in the answer: {other}"),
        }
    }

    /// Puts the cluster to sleep and waits for it.
    pub fn sleep(&self) {
        self.cloud.chitin(["cluster", "sleep", &self.name]).ok();
        eventually("the cluster sleeps", PATIENCE, || (self.phase() == "asleep").then_some(()));
    }

    /// How many engine processes (postmasters) the cloud runs for this cluster, read from the machine.
    pub fn engine_processes(&self) -> Vec<Process> {
        let number = self.handle.rsplit_once('-').expect("a handle ends with its number").1;
        let directory = format!("/run/{number}");
        self.cloud
            .processes()
            .into_iter()
            .filter(|process| {
                let line = process.command_line();
                let mut after = line.split(&directory).skip(1);
                after.any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
            })
            .collect()
    }
}
