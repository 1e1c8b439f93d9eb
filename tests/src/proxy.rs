//! Headers of the PROXY protocol as balancers send them, written by hand so that every field can be a lie.
//!
//! Source: HAProxy's `doc/proxy-protocol.txt`, sections 2.1 and 2.2.

use std::net::{IpAddr, SocketAddr};

/// What every header of version 2 begins with.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// A checksum over the whole header.
pub const CRC32C: u8 = 0x03;
/// Padding.
pub const NOOP: u8 = 0x04;
/// A GCP Private Service Connect connection id.
pub const GCP: u8 = 0xE0;
/// An AWS VPC endpoint.
pub const AWS: u8 = 0xEA;
/// An Azure private endpoint.
pub const AZURE: u8 = 0xEE;

/// A header; what is not set is right.
#[derive(Clone, Debug)]
pub struct Header {
    /// 0x21: version 2, PROXY. 0x20: version 2, LOCAL.
    pub version_and_command: u8,
    /// 0x11: TCP over IPv4. 0x21: TCP over IPv6.
    pub family: u8,
    /// Both addresses and both ports.
    pub addresses: Vec<u8>,
    /// What comes after them.
    pub tlvs: Vec<u8>,
    /// The length that is claimed, if it is not the true one.
    pub length: Option<u16>,
    /// Where in the TLVs the checksum stands that is filled in at the end.
    pub checksum_at: Option<usize>,
}

impl Header {
    /// Of a client that came from there to a balancer's port 5432.
    pub fn of(source: SocketAddr) -> Self {
        let mut addresses = Vec::new();
        let family = match source.ip() {
            IpAddr::V4(address) => {
                addresses.extend(address.octets());
                addresses.extend([10, 0, 0, 1]);
                0x11
            }
            IpAddr::V6(address) => {
                addresses.extend(address.octets());
                addresses.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                0x21
            }
        };
        addresses.extend(source.port().to_be_bytes());
        addresses.extend(5432_u16.to_be_bytes());
        Self {
            version_and_command: 0x21,
            family,
            addresses,
            tlvs: Vec::new(),
            length: None,
            checksum_at: None,
        }
    }

    /// Of a client with this address; panics where the text is none.
    pub fn from(address: &str) -> Self {
        Self::of(SocketAddr::new(address.parse().expect("an address"), 50_000))
    }

    /// The same with one more TLV.
    #[must_use]
    pub fn with(mut self, kind: u8, value: &[u8]) -> Self {
        self.tlvs.push(kind);
        self.tlvs.extend(u16::try_from(value.len()).expect("a TLV's length has 16 bits").to_be_bytes());
        self.tlvs.extend(value);
        self
    }

    /// The same, through a VPC endpoint, as AWS's network load balancers say it: subtype 1 and the id.
    #[must_use]
    pub fn through_aws(self, id: &str) -> Self {
        self.with(AWS, &[&[1], id.as_bytes()].concat())
    }

    /// The same, through a Private Service Connect endpoint: eight bytes in network order.
    #[must_use]
    pub fn through_gcp(self, id: u64) -> Self {
        self.with(GCP, &id.to_be_bytes())
    }

    /// The same, through an Azure private endpoint: subtype 1 and four bytes in little endian.
    #[must_use]
    pub fn through_azure(self, id: u32) -> Self {
        let [a, b, c, d] = id.to_le_bytes();
        self.with(AZURE, &[1, a, b, c, d])
    }

    /// The same with a checksum at this place of the TLVs, right whatever follows.
    #[must_use]
    pub fn with_checksum(self) -> Self {
        let mut one = self.with(CRC32C, &[0; 4]);
        one.checksum_at = Some(one.tlvs.len() - 4);
        one
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([self.version_and_command, self.family]);
        let length = self.addresses.len() + self.tlvs.len();
        let length = self.length.unwrap_or_else(|| u16::try_from(length).expect("16 bits"));
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.addresses);
        let tlvs = bytes.len();
        bytes.extend(&self.tlvs);
        if let Some(at) = self.checksum_at.map(|at| tlvs + at) {
            let sum = crc32c(&bytes).to_be_bytes();
            bytes[at..at + 4].copy_from_slice(&sum);
        }
        bytes
    }
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_header_is_the_one_that_aws_publishes() {
        // Compatibility_AwsNetworkLoadBalancerTest of AWS's elastic-load-balancing-tools.
        let addresses = vec![172, 31, 7, 113, 172, 31, 10, 31, 0xc8, 0xf2, 0, 80];
        let header = Header { addresses, ..Header::from("172.31.7.113") };
        let bytes = header.with_checksum().through_aws("vpce-08d2bf15fac5001c9").with(NOOP, &[0; 36]).bytes();
        assert_eq!((&bytes[14..16], &bytes[31..35]), (&[0, 0x54][..], &[0xe8, 0xd6, 0x89, 0x2d][..]));
    }
}
