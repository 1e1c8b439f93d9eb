//! Hosts with addresses of their own, as network namespaces of this machine: real packets between real addresses, none of
//! which leaves it. Nothing of this machine's own network is touched, so the addresses are the same in every test.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{Finished, run, run_with};
use crate::wire::Wire;

/// Addresses of each kind that a host has.
pub const ADDRESSES: u8 = 4;
/// What the names of our namespaces begin with; the process id follows.
const PREFIX: &str = "house-";
/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";

/// An internet of our own: a switch, and hosts at it.
#[derive(Debug)]
pub struct Hosts {
    switch: Arc<Namespace>,
    count: AtomicU8,
}

/// One host. It is gone when the last copy is dropped.
#[derive(Clone, Debug)]
pub struct Host(Arc<Plugged>);

#[derive(Debug)]
struct Plugged {
    own: Namespace,
    /// Its end at the switch.
    port: String,
    switch: Arc<Namespace>,
    number: u8,
}

/// A named network namespace, removed when dropped.
#[derive(Debug)]
struct Namespace(String);

fn ip(arguments: &[&str], input: &str) -> Finished {
    // Two that make the first namespace of a machine at once get into each other's way.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run_with(Command::new("ip").args(arguments), input.as_bytes(), std::time::Duration::from_secs(30))
}

impl Namespace {
    fn new() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let one = Self(format!("{PREFIX}{}-{number}", std::process::id()));
        one.tell(&["netns", "add", &one.0], "")?;
        one.inside("link set lo up\n")?;
        Ok(one)
    }

    fn tell(&self, arguments: &[&str], input: &str) -> Result<(), String> {
        let said = ip(arguments, input);
        if said.status.success() { Ok(()) } else { Err(format!("ip {arguments:?}: {}", said.stderr)) }
    }

    /// Runs lines of `ip` in the namespace.
    fn inside(&self, lines: &str) -> Result<(), String> {
        self.tell(&["-netns", &self.0, "-batch", "-"], lines)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(FOLDER).join(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have been removed with all others.
        ip(&["netns", "delete", &self.0], "");
    }
}

impl Hosts {
    /// Why there can be none on this machine; `None` where there can.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("only root can make network namespaces".to_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join("ip").exists()) {
            return Some("there is no `ip` (Debian: iproute2)".to_owned());
        }
        Self::try_new().and_then(|hosts| hosts.try_host()).err()
    }

    /// An internet without hosts yet; panics where there can be none.
    pub fn new() -> Self {
        Self::try_new().expect("network namespaces can be made")
    }

    fn try_new() -> Result<Self, String> {
        sweep();
        let switch = Arc::new(Namespace::new()?);
        switch.inside("link add switch type bridge\nlink set switch up\n")?;
        Ok(Self { switch, count: AtomicU8::new(1) })
    }

    /// A new host. Its number is part of all its addresses, and no two hosts share a /24 of IPv4 or a /64 of IPv6.
    pub fn host(&self) -> Host {
        self.try_host().expect("a network namespace can be made")
    }

    fn try_host(&self) -> Result<Host, String> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        assert!(number < u8::MAX, "there are addresses for 254 hosts");
        let own = Namespace::new()?;
        let port = format!("port{number}");
        self.switch.inside(&format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master switch up\n",
            own.0
        ))?;
        let host = Host(Arc::new(Plugged { own, port, switch: self.switch.clone(), number }));
        // With no address of the link's, which would come a while after it is up.
        let mut lines = "link set eth0 addrgenmode none\nlink set eth0 up\n".to_owned();
        for place in 1..=ADDRESSES {
            lines += &format!("address add {}/16 dev eth0\n", host.ipv4_at(place));
            // There is nobody who could have the same address, so nobody is asked. The kernel chooses none of the further
            // ones by itself.
            let further = if place > 1 { " preferred_lft 0" } else { "" };
            lines += &format!("address add {}/48 dev eth0 nodad{further}\n", host.ipv6_at(place));
        }
        host.0.own.inside(&lines)?;
        Ok(host)
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// What `ip netns` calls its network.
    pub fn name(&self) -> &str {
        &self.0.own.0
    }

    /// Its first IPv4 address, which its connections come from.
    pub fn ipv4(&self) -> IpAddr {
        self.ipv4_at(1)
    }

    /// Its IPv4 address of this place, 1 to [`ADDRESSES`].
    pub fn ipv4_at(&self, place: u8) -> IpAddr {
        Ipv4Addr::new(10, 213, self.0.number, place).into()
    }

    /// Its first IPv6 address.
    pub fn ipv6(&self) -> IpAddr {
        self.ipv6_at(1)
    }

    /// Its IPv6 address of this place, 1 to [`ADDRESSES`].
    pub fn ipv6_at(&self, place: u8) -> IpAddr {
        Ipv6Addr::new(0xfd13, 0, 0, self.0.number.into(), 0, 0, 0, place.into()).into()
    }

    /// A program that will run on the host. Only its network is the host's: `ip netns exec` would also put another `/sys`
    /// over ours, and with it hide the control groups.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut network = std::ffi::OsString::from("--net=");
        network.push(self.0.own.path());
        let mut command = Command::new("nsenter");
        command.arg(network).arg("--").arg(program);
        command
    }

    /// Does something on the host: what is connected, listened to or started there has the host's network, and keeps it.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let network = File::open(self.0.own.path()).expect("the host is there");
        let enter_and_act = || {
            // A network belongs to a thread; this one ends with the visit.
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a network namespace");
            act()
        };
        std::thread::scope(|scope| match scope.spawn(enter_and_act).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Connects to an address, from the host's own of the same kind or from the given one.
    pub fn connect(&self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<Wire> {
        self.within(|| Wire::tcp_from(address, source))
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        // At once: the namespace itself lives on while a socket in it is open.
        let _ = self.switch.inside(&format!("link delete {}\n", self.port));
    }
}

/// The names of namespaces that belong to this process, or whatever process `is_meant` picks.
fn ours(is_meant: impl Fn(u32) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(FOLDER) else { return Vec::new() };
    let is_ours = |name: &String| {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        owner.is_some_and(&is_meant)
    };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(is_ours).collect()
}

/// Removes what a run that was killed left behind.
fn sweep() {
    for name in ours(|owner| !PathBuf::from(format!("/proc/{owner}")).exists()) {
        ip(&["netns", "delete", &name], "");
    }
}

/// Removes every host of this process, also those in statics, which are never dropped; says whether all went.
pub fn remove_all() -> bool {
    for name in ours(|owner| owner == std::process::id()) {
        let said = run(Command::new("ip").args(["netns", "delete", &name]));
        if !said.status.success() {
            eprintln!("the network namespace {name} is left behind: {}", said.stderr);
        }
    }
    ours(|owner| owner == std::process::id()).is_empty()
}
