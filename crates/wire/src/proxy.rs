//! The PROXY protocol, version 2: what a balancer says about the client whose connection it carries.
//!
//! Source: HAProxy's `doc/proxy-protocol.txt`, section 2.2. Whether the peer may be believed is not decided here.

use std::net::{IpAddr, SocketAddr};

use crate::Malformed;

/// Bytes of the fixed part: signature, version and command, family, length.
pub const PROXY_PREFIX_BYTES: usize = 16;
/// Most bytes after the fixed part: addresses and TLVs. The field could say 65,535; balancers send about a hundred.
pub const PROXY_BODY_BYTES_MAX: usize = 4096;
/// Most TLVs of one header, those that only pad included.
pub const PROXY_TLVS_MAX: usize = 64;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION: u8 = 2;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Two addresses and two ports.
const IPV4_BYTES: usize = 2 * (4 + 2);
const IPV6_BYTES: usize = 2 * (16 + 2);

const TYPE_CRC32C: u8 = 0x03;
const TYPE_NOOP: u8 = 0x04;
const TYPE_GCP: u8 = 0xE0;
const TYPE_AWS: u8 = 0xEA;
const TYPE_AZURE: u8 = 0xEE;
const SUBTYPE_AWS_VPCE_ID: u8 = 0x01;
const SUBTYPE_AZURE_PRIVATE_ENDPOINT_LINK_ID: u8 = 0x01;
/// Bytes of a TLV's type and length.
const TLV_HEAD_BYTES: usize = 3;

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyPrefix {
    /// As they came: the checksum runs over them too.
    bytes: [u8; PROXY_PREFIX_BYTES],
    carried: Carried,
    body_bytes: usize,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Nobody,
    OverIpv4,
    OverIpv6,
}

/// A header, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The balancer's own connection, for instance to see whether we are there. There is no client.
    Local,
    /// A client's connection.
    Client(Proxied),
}

/// What a header says about a client. IPv4-mapped IPv6 addresses are given as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxied {
    source: SocketAddr,
    destination: SocketAddr,
    tlvs: Vec<Tlv>,
}

/// One more thing that a header says: a type and its value (section 2.2, "Type-Length-Value").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlv {
    /// The type.
    pub kind: u8,
    /// The value, which may be empty.
    pub value: Vec<u8>,
}

/// Through which private endpoint of a cloud a client came, as that cloud's balancer says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CloudEndpoint {
    /// A VPC endpoint's id: `vpce-` and 8 to 17 lower-case hexadecimal digits. Source: AWS, "Edit target group attributes
    /// for your Network Load Balancer", section "Proxy protocol", part "VPC endpoint services".
    Aws(String),
    /// A Private Service Connect connection id (`pscConnectionId`), sent in network order. Source: Google Cloud, "About
    /// published services", section "PROXY protocol".
    Gcp(u64),
    /// A private endpoint's link id (`linkIdentifier`), sent in little endian. Source: Azure, "What is Azure Private Link
    /// service?", section "Getting connection information using TCP proxy v2".
    Azure(u32),
}

impl ProxyPrefix {
    /// Reads the fixed part. A claimed length is checked before anybody allocates it.
    pub fn parse(bytes: [u8; PROXY_PREFIX_BYTES]) -> Result<Self, Malformed> {
        if bytes.starts_with(b"PROXY ") {
            return Err(Malformed(
                "version 1 of the PROXY protocol is refused; let the balancer send version 2",
            ));
        }
        let [signature @ .., version_and_command, family, high, low] = bytes;
        if signature != SIGNATURE {
            return Err(Malformed("no PROXY protocol header; let the balancer send version 2"));
        }
        if version_and_command >> 4 != VERSION {
            return Err(Malformed("unknown version of the PROXY protocol; let the balancer send version 2"));
        }
        let (carried, body_bytes_min) = match (version_and_command & 0x0f, family) {
            (COMMAND_LOCAL, _) => (Carried::Nobody, 0),
            (COMMAND_PROXY, TCP_OVER_IPV4) => (Carried::OverIpv4, IPV4_BYTES),
            (COMMAND_PROXY, TCP_OVER_IPV6) => (Carried::OverIpv6, IPV6_BYTES),
            (COMMAND_PROXY, _) => {
                return Err(Malformed(
                    "a PROXY protocol header for something else than TCP over IPv4 or IPv6",
                ));
            }
            _ => return Err(Malformed("unknown command of the PROXY protocol")),
        };
        let body_bytes = usize::from(u16::from_be_bytes([high, low]));
        if !(body_bytes_min..=PROXY_BODY_BYTES_MAX).contains(&body_bytes) {
            return Err(Malformed("invalid length of a PROXY protocol header"));
        }
        Ok(Self { bytes, carried, body_bytes })
    }

    /// Bytes that follow the fixed part: 0 to [`PROXY_BODY_BYTES_MAX`].
    pub fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Reads what follows the fixed part, which must be exactly [`Self::body_bytes`] long.
    pub fn header(&self, body: &[u8]) -> Result<ProxyHeader, Malformed> {
        let truncated = Malformed("a truncated PROXY protocol header");
        if body.len() != self.body_bytes {
            return Err(truncated);
        }
        let (source, destination, rest) = match self.carried {
            // Its body counts for nothing (section 2.2, "LOCAL").
            Carried::Nobody => return Ok(ProxyHeader::Local),
            Carried::OverIpv4 => take_addresses::<4>(body),
            Carried::OverIpv6 => take_addresses::<16>(body),
        }
        .ok_or(truncated)?;
        if !may_be_a_client(source) {
            return Err(Malformed("a PROXY protocol header with a source that no client has"));
        }
        let tlvs = parse_tlvs(rest)?;
        self.check_sum(body, &tlvs)?;
        Ok(ProxyHeader::Client(Proxied { source, destination, tlvs }))
    }

    /// Compares the checksum, where there is one, with that of the whole header with the checksum's own bytes zeroed
    /// (section 2.2.3).
    fn check_sum(&self, body: &[u8], tlvs: &[Tlv]) -> Result<(), Malformed> {
        let wrong = Malformed("a PROXY protocol header with a wrong checksum");
        let Some(position) = tlvs.iter().position(|tlv| tlv.kind == TYPE_CRC32C) else {
            return Ok(());
        };
        let after_bytes: usize =
            tlvs[position + 1..].iter().map(|tlv| TLV_HEAD_BYTES + tlv.value.len()).sum();
        let (before_and_sum, after) = body.split_at_checked(body.len() - after_bytes).ok_or(wrong)?;
        let (before, sum) = before_and_sum.split_last_chunk::<4>().ok_or(wrong)?;
        if tlvs[position].value != sum {
            return Err(wrong);
        }
        let parts = [before, &[0; 4], after];
        let expected = parts
            .iter()
            .fold(crc32c::crc32c(&self.bytes), |so_far, part| crc32c::crc32c_append(so_far, part));
        if expected == u32::from_be_bytes(*sum) { Ok(()) } else { Err(wrong) }
    }
}

impl Proxied {
    /// The client. Its port is not 0, its address neither unspecified nor multicast nor broadcast.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Where the client connected to, as the balancer saw it.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// All TLVs in the header's order. No type comes twice but `PP2_TYPE_NOOP` (0x04).
    pub fn tlvs(&self) -> &[Tlv] {
        &self.tlvs
    }

    /// The private endpoint that the client came through; `None` where no cloud names one, or names something else than
    /// an endpoint in its TLV. Two clouds in one header are malformed: two readers could choose differently.
    pub fn endpoint(&self) -> Result<Option<CloudEndpoint>, Malformed> {
        let mut found = self.tlvs.iter().filter(|tlv| matches!(tlv.kind, TYPE_AWS | TYPE_GCP | TYPE_AZURE));
        let Some(tlv) = found.next() else {
            return Ok(None);
        };
        if found.next().is_some() {
            return Err(Malformed("a PROXY protocol header of more than one cloud"));
        }
        match tlv.kind {
            TYPE_AWS => aws_endpoint(&tlv.value),
            TYPE_GCP => gcp_endpoint(&tlv.value).map(Some),
            _ => azure_endpoint(&tlv.value),
        }
    }
}

fn take_addresses<const BYTES: usize>(body: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])>
where
    IpAddr: From<[u8; BYTES]>,
{
    let (source, rest) = body.split_first_chunk::<BYTES>()?;
    let (destination, rest) = rest.split_first_chunk::<BYTES>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, rest) = rest.split_first_chunk::<2>()?;
    let socket = |address: &[u8; BYTES], port: &[u8; 2]| {
        SocketAddr::new(IpAddr::from(*address).to_canonical(), u16::from_be_bytes(*port))
    };
    Some((socket(source, source_port), socket(destination, destination_port), rest))
}

fn may_be_a_client(source: SocketAddr) -> bool {
    let is_broadcast = matches!(source.ip(), IpAddr::V4(address) if address.is_broadcast());
    source.port() != 0 && !source.ip().is_unspecified() && !source.ip().is_multicast() && !is_broadcast
}

fn parse_tlvs(mut rest: &[u8]) -> Result<Vec<Tlv>, Malformed> {
    let truncated = Malformed("a TLV that runs past the end of its PROXY protocol header");
    let mut tlvs: Vec<Tlv> = Vec::new();
    while !rest.is_empty() {
        let ([kind, high, low], after) = rest.split_first_chunk::<TLV_HEAD_BYTES>().ok_or(truncated)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, after) = after.split_at_checked(length).ok_or(truncated)?;
        if tlvs.len() == PROXY_TLVS_MAX {
            return Err(Malformed("too many TLVs in a PROXY protocol header"));
        }
        if *kind != TYPE_NOOP && tlvs.iter().any(|known| known.kind == *kind) {
            return Err(Malformed("a TLV that comes twice in a PROXY protocol header"));
        }
        tlvs.push(Tlv { kind: *kind, value: value.to_vec() });
        rest = after;
    }
    Ok(tlvs)
}

fn aws_endpoint(value: &[u8]) -> Result<Option<CloudEndpoint>, Malformed> {
    let malformed = Malformed("a VPC endpoint's id that is none");
    let (subtype, id) = value.split_first().ok_or(malformed)?;
    if *subtype != SUBTYPE_AWS_VPCE_ID {
        return Ok(None);
    }
    let digits = id.strip_prefix(b"vpce-").ok_or(malformed)?;
    let is_id = (8..=17).contains(&digits.len())
        && digits.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    if !is_id {
        return Err(malformed);
    }
    String::from_utf8(id.to_vec()).map(|id| Some(CloudEndpoint::Aws(id))).map_err(|_| malformed)
}

fn gcp_endpoint(value: &[u8]) -> Result<CloudEndpoint, Malformed> {
    <[u8; 8]>::try_from(value)
        .map(|id| CloudEndpoint::Gcp(u64::from_be_bytes(id)))
        .map_err(|_| Malformed("a Private Service Connect connection id that is none"))
}

fn azure_endpoint(value: &[u8]) -> Result<Option<CloudEndpoint>, Malformed> {
    let malformed = Malformed("a private endpoint's link id that is none");
    let (subtype, id) = value.split_first().ok_or(malformed)?;
    if *subtype != SUBTYPE_AZURE_PRIVATE_ENDPOINT_LINK_ID {
        return Ok(None);
    }
    <[u8; 4]>::try_from(id)
        .map(|id| Some(CloudEndpoint::Azure(u32::from_le_bytes(id))))
        .map_err(|_| malformed)
}

#[cfg(test)]
mod tests;
