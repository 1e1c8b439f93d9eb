//! What went over a link, as `tcpdump` saw it there: every packet, and what each side of a TCP connection sent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::eventually;
use crate::hosts::Host;

/// For `tcpdump` to begin and to end.
const TCPDUMP_MAX: Duration = Duration::from_secs(20);
const ETHERNET_BYTES: usize = 14;

/// A capture that runs.
pub struct Capture {
    process: Child,
    file: PathBuf,
    _scratch: tempfile::TempDir,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Who has an address (ARP).
    Arp,
    /// ICMP for IPv6: neighbours find each other.
    Icmpv6,
    /// UDP over IPv4.
    Udp {
        /// The ports of both sides, the sender's first.
        ports: (u16, u16),
        /// What it carries.
        payload: Vec<u8>,
    },
    /// TCP over IPv4.
    Tcp {
        /// Who sent it.
        from: (Ipv4Addr, u16),
        /// To whom.
        to: (Ipv4Addr, u16),
        /// Its place in the stream.
        sequence: u32,
        /// Whether it opens the connection.
        is_first: bool,
        /// What it carries.
        payload: Vec<u8>,
    },
    /// Anything else, by its EtherType and its protocol.
    Other(u16, u8),
}

/// One direction of a TCP connection: who sends, and to whom.
pub type Direction = ((Ipv4Addr, u16), (Ipv4Addr, u16));

impl Capture {
    /// Begins on a host's link; everything from now on is seen.
    pub fn begin(host: &Host, link: &str) -> Self {
        Self::begin_of(host, link, &[])
    }

    /// Begins on a host's link with a filter of `tcpdump`: a bridge may bring what is for others, too.
    pub fn begin_of(host: &Host, link: &str, filter: &[&str]) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let file = scratch.path().join("packets");
        let mut command = host.command("tcpdump");
        // As root: the file lies where nobody else may write.
        command
            .args(["-i", link, "-s", "0", "-U", "--immediate-mode", "-n", "-Z", "root", "-w"])
            .arg(&file)
            .args(filter);
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump starts; ./test installs it");
        let said = BufReader::new(process.stderr.take().expect("piped"));
        let mut lines = said.lines();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        assert!(listens, "tcpdump did not begin; ./test installs it");
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, file, _scratch: scratch }
    }

    /// Ends it and returns what was seen, raw and packet by packet.
    pub fn end(mut self) -> (Vec<u8>, Vec<Packet>) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).expect("a process id is not zero");
        kill_process(pid, Signal::INT).expect("the process is ours");
        eventually("tcpdump ends", TCPDUMP_MAX, || self.process.try_wait().expect("ours").map(|_| ()));
        let bytes = std::fs::read(&self.file).expect("tcpdump wrote a file");
        let packets = packets(&bytes);
        (bytes, packets)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Reads a file of `tcpdump` (pcap 2.4, of this machine's byte order) of an Ethernet link.
fn packets(file: &[u8]) -> Vec<Packet> {
    assert_eq!(file[..4], 0xa1b2_c3d4_u32.to_ne_bytes(), "not a capture");
    let number = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(number(20), 1, "an Ethernet link");
    let (mut at, mut found) = (24, Vec::new());
    while at < file.len() {
        let (kept, sent) = (number(at + 8) as usize, number(at + 12) as usize);
        assert_eq!(kept, sent, "a packet was cut off");
        found.push(packet(&file[at + 16..at + 16 + kept]));
        at += 16 + kept;
    }
    found
}

fn packet(frame: &[u8]) -> Packet {
    let short = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let kind = short(frame, 12);
    let inner = &frame[ETHERNET_BYTES..];
    match kind {
        0x0806 => Packet::Arp,
        0x86dd if inner[6] == 58 => Packet::Icmpv6,
        // Reports of multicast listeners stand behind a hop-by-hop option.
        0x86dd if inner[6] == 0 && inner[40] == 58 => Packet::Icmpv6,
        0x0800 => {
            let inner = &inner[..usize::from(short(inner, 2))];
            let body = &inner[usize::from(inner[0] & 15) * 4..];
            let address = |at: usize| Ipv4Addr::new(inner[at], inner[at + 1], inner[at + 2], inner[at + 3]);
            let ports = || (short(body, 0), short(body, 2));
            match inner[9] {
                17 => Packet::Udp { ports: ports(), payload: body[8..].to_vec() },
                6 => Packet::Tcp {
                    from: (address(12), ports().0),
                    to: (address(16), ports().1),
                    sequence: u32::from_be_bytes(body[4..8].try_into().expect("four bytes")),
                    is_first: body[13] & 2 != 0,
                    payload: body[usize::from(body[12] >> 4) * 4..].to_vec(),
                },
                other => Packet::Other(kind, other),
            }
        }
        _ => Packet::Other(kind, inner.get(6).copied().unwrap_or(0)),
    }
}

/// What each side of each TCP connection sent, put together in order; panics where a piece is missing.
pub fn streams(packets: &[Packet]) -> BTreeMap<Direction, Vec<u8>> {
    let mut begun: BTreeMap<Direction, u32> = BTreeMap::new();
    let mut pieces: BTreeMap<Direction, BTreeMap<u32, &[u8]>> = BTreeMap::new();
    for packet in packets {
        let Packet::Tcp { from, to, sequence, is_first, payload } = packet else { continue };
        if *is_first {
            begun.insert((*from, *to), sequence.wrapping_add(1));
        } else if !payload.is_empty() {
            let first = begun.get(&(*from, *to)).expect("the capture saw the connection begin");
            pieces.entry((*from, *to)).or_default().insert(sequence.wrapping_sub(*first), payload);
        }
    }
    let whole = |pieces: BTreeMap<u32, &[u8]>| {
        let mut bytes = Vec::new();
        for (place, piece) in pieces {
            // What was sent twice is taken once.
            let known = bytes.len().checked_sub(place as usize).expect("no piece is missing");
            bytes.extend(piece.iter().skip(known));
        }
        bytes
    };
    pieces.into_iter().map(|(direction, pieces)| (direction, whole(pieces))).collect()
}

/// The kinds of the TLS records that these bytes are, each whole but for the last; panics where they are anything else.
pub fn tls_records(bytes: &[u8]) -> Vec<u8> {
    let (mut at, mut kinds) = (0, Vec::new());
    while at < bytes.len() {
        let (kind, version) = (bytes[at], [bytes[at + 1], bytes[at + 2]]);
        assert!((20..=23).contains(&kind) && [[3, 1], [3, 3]].contains(&version), "no TLS record at {at}");
        kinds.push(kind);
        at += 5 + usize::from(u16::from_be_bytes([bytes[at + 3], bytes[at + 4]]));
    }
    kinds
}
