//! Ports on loopback that nothing else takes while the tests run.
//!
//! A port that was bound and closed again is anybody's: the kernel gives it to the next connection that goes out, and a
//! test beside this one may find it free too. So ports come from outside of the range that the kernel gives out, in blocks;
//! a block is one process's until that ends, and no port is given out twice.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::sync::{Mutex, PoisonError};

/// Ports that a process takes at once.
const BLOCK: u16 = 64;
/// Programs that an operator runs beside the tests have theirs below, and Chitin's own defaults lie in between.
const LOWEST: u16 = 10_240;
const DEFAULTS: [u16; 3] = [26_257, 26_300, 8_300];

/// Blocks of this process, and the ports of the last that are left.
struct Taken {
    /// Each holds a name in the abstract name space, which a network namespace has beside its ports. It is free again when
    /// this process ends, in whatever way.
    claims: Vec<UnixListener>,
    left: Range<u16>,
}

static TAKEN: Mutex<Taken> = Mutex::new(Taken { claims: Vec::new(), left: 0..0 });

/// A loopback port that is free, and stays so for whoever listens there first of this process.
pub fn free_port() -> SocketAddr {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(port) = taken.left.next() else {
            taken.next_block();
            continue;
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // A program that is none of the tests may have it all the same.
        let is_free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        if is_free && !DEFAULTS.contains(&port) {
            return address;
        }
    }
}

/// As [`free_port`], with the port after it.
pub fn two_free_ports() -> SocketAddr {
    loop {
        let (first, second) = (free_port(), free_port());
        if first.port() + 1 == second.port() {
            return first;
        }
    }
}

impl Taken {
    fn next_block(&mut self) {
        let given_out = given_out();
        // Where the kernel gives out everything there is no better port than any other.
        let is_all = given_out.start <= LOWEST;
        for begin in (LOWEST..u16::MAX - BLOCK).step_by(BLOCK.into()) {
            let block = begin..begin + BLOCK;
            if !is_all && block.start < given_out.end && given_out.start < block.end {
                continue;
            }
            let name = UnixAddress::from_abstract_name(format!("chitin-tests-ports-{begin}"));
            if let Ok(claim) = UnixListener::bind_addr(&name.expect("a short name")) {
                self.claims.push(claim);
                self.left = block;
                return;
            }
        }
        panic!("every block of ports is taken by other tests, or was used up by these");
    }
}

/// The ports that the kernel gives to connections that go out.
fn given_out() -> Range<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().filter_map(|end| end.parse().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) => first..last,
        // Linux's own default.
        _ => 32_768..60_999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_out_once_and_never_one_of_the_kernel_s() {
        let ports: Vec<u16> = (0..3 * BLOCK).map(|_| free_port().port()).collect();
        let mut different = ports.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), ports.len());
        let range = given_out();
        assert!(range.start <= LOWEST || ports.iter().all(|port| !range.contains(port)), "{ports:?}");
    }

    #[test]
    fn a_block_that_another_process_has_is_left_alone() {
        let first = free_port().port();
        let begin = LOWEST + (first - LOWEST) / BLOCK * BLOCK;
        let name = UnixAddress::from_abstract_name(format!("chitin-tests-ports-{begin}")).unwrap();
        assert!(UnixListener::bind_addr(&name).is_err(), "another process would take ports of this one");
    }
}
