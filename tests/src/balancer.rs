//! HAProxy as an operator runs it: in front of a cloud as a balancer, or beside a client as a connecting proxy.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::command::eventually;
use crate::hosts::Host;
use crate::wire::Wire;

/// One that runs until it is dropped.
pub struct Balancer {
    process: Child,
    _configuration: tempfile::TempDir,
}

impl Balancer {
    /// Starts it on a host. It listens at one port of all the host's addresses and carries every connection to one server,
    /// which is written with its options as in HAProxy's manual (5.2).
    pub fn start(host: &Host, port: u16, server: &str) -> Self {
        let configuration = tempfile::tempdir().expect("a temporary directory");
        let file = configuration.path().join("haproxy.cfg");
        let text = format!(
            "global\n  maxconn 500\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             listen front\n  bind 0.0.0.0:{port}\n  bind [::]:{port} v6only\n  unique-id-format %ci_%cp_%rt\n  server cloud {server}\n"
        );
        std::fs::write(&file, text).expect("a scratch file");
        let process = host
            .command("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("haproxy starts; ./test installs it");
        let mut one = Self { process, _configuration: configuration };
        let front = SocketAddr::new(host.ipv4(), port);
        eventually("haproxy listens", Duration::from_secs(20), || {
            let ended = one.process.try_wait().expect("ours");
            assert!(ended.is_none(), "haproxy ended with {ended:?}");
            host.within(|| Wire::tcp_from(front, None)).ok()
        });
        one
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server in HAProxy's words.
pub fn server(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}
