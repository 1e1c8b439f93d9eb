//! Headers as the clouds send them, and those that nobody should send.

use super::*;
use crate::hello::{HELLO_BYTES, Hello};

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPEC: u8 = 0x00;
/// 203.0.113.7:50000 to 10.0.0.1:5432.
const IPV4: &[u8] = &[203, 0, 113, 7, 10, 0, 0, 1, 0xc3, 0x50, 0x15, 0x38];

/// A network load balancer's header for a client of a VPC endpoint: checksum, endpoint, padding. Source: AWS's
/// elastic-load-balancing-tools, `proprot/tst/.../Compatibility_AwsNetworkLoadBalancerTest.java`.
const AWS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x54\
    \xac\x1f\x07\x71\xac\x1f\x0a\x1f\xc8\xf2\0\x50\
    \x03\0\x04\xe8\xd6\x89\x2d\
    \xea\0\x17\x01vpce-08d2bf15fac5001c9\
    \x04\0\x24\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn read(bytes: &[u8]) -> Result<ProxyHeader, Malformed> {
    let (prefix, body) = bytes.split_first_chunk().ok_or(Malformed("shorter than its fixed part"))?;
    ProxyPrefix::parse(*prefix)?.header(body)
}

fn client(bytes: &[u8]) -> Result<Proxied, Malformed> {
    match read(bytes)? {
        ProxyHeader::Client(client) => Ok(client),
        ProxyHeader::Local => panic!("a client's header was read as the balancer's own"),
    }
}

fn bytes(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&SIGNATURE, [version_and_command, family].as_slice(), &length, body].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], u16::try_from(value.len()).unwrap().to_be_bytes().as_slice(), value].concat()
}

/// A good header over IPv4 with these TLVs.
fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
    bytes(PROXY, TCP_OVER_IPV4, &[IPV4, &tlvs.concat()].concat())
}

fn endpoint_of(bytes: &[u8]) -> Option<CloudEndpoint> {
    client(bytes).unwrap().endpoint().unwrap()
}

/// What a client said to have these TLVs came through, past every bound of a header.
fn endpoint(tlvs: &[(u8, &[u8])]) -> Result<Option<CloudEndpoint>, Malformed> {
    let mut proxied = client(&with_tlvs(&[])).unwrap();
    proxied.tlvs = tlvs.iter().map(|(kind, value)| Tlv { kind: *kind, value: value.to_vec() }).collect();
    proxied.endpoint()
}

#[test]
fn a_client_over_ipv4_is_read() {
    let client = client(&with_tlvs(&[tlv(0x02, b"example.org"), tlv(0x05, b"")])).unwrap();
    assert_eq!(client.source(), "203.0.113.7:50000".parse().unwrap());
    assert_eq!(client.destination(), "10.0.0.1:5432".parse().unwrap());
    let tlvs = [Tlv { kind: 0x02, value: b"example.org".to_vec() }, Tlv { kind: 0x05, value: Vec::new() }];
    assert_eq!(client.tlvs(), tlvs);
    assert_eq!(client.endpoint(), Ok(None));
}

#[test]
fn a_client_over_ipv6_is_read() {
    let source: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    let destination: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
    let body = [&source.octets(), &destination.octets(), [0xc3, 0x50, 0x15, 0x38].as_slice()].concat();
    let client = client(&bytes(PROXY, TCP_OVER_IPV6, &body)).unwrap();
    assert_eq!(client.source(), "[2001:db8::7]:50000".parse().unwrap());
    assert_eq!(client.destination(), "[2001:db8::1]:5432".parse().unwrap());
    assert_eq!(client.tlvs(), []);
}

#[test]
fn a_mapped_client_is_the_ipv4_client_that_it_means() {
    let mapped = |last: u8| [[0; 10].as_slice(), &[0xff, 0xff, 203, 0, 113, last]].concat();
    let body = [mapped(7), mapped(1), vec![0xc3, 0x50, 0x15, 0x38]].concat();
    let client = client(&bytes(PROXY, TCP_OVER_IPV6, &body)).unwrap();
    assert_eq!(client.source(), "203.0.113.7:50000".parse().unwrap());
    assert_eq!(client.destination(), "203.0.113.1:5432".parse().unwrap());
}

#[test]
fn a_header_as_aws_sends_it_is_read() {
    let client = client(AWS).unwrap();
    assert_eq!(client.source(), "172.31.7.113:51442".parse().unwrap());
    assert_eq!(client.destination(), "172.31.10.31:80".parse().unwrap());
    let kinds: Vec<u8> = client.tlvs().iter().map(|tlv| tlv.kind).collect();
    assert_eq!(kinds, [TYPE_CRC32C, TYPE_AWS, TYPE_NOOP]);
    assert_eq!(client.endpoint(), Ok(Some(CloudEndpoint::Aws("vpce-08d2bf15fac5001c9".to_owned()))));

    // Another one, caught on the wire (go-proxyproto, `tlvparse/aws_test.go`).
    let caught = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x54\xc0\xa8\x2c\x0a\xc0\xa8\x2c\x07\xcc\x3e\x24\x1b\
        \x03\0\x04\xb9\x28\x6f\xa6\xea\0\x17\x01vpce-00eafc458ec97b833\
        \x04\0\x24\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(endpoint_of(caught), Some(CloudEndpoint::Aws("vpce-00eafc458ec97b833".to_owned())));
}

#[test]
fn a_header_as_google_cloud_sends_it_is_read() {
    // Caught on the wire in Google's codelab "Using Private Service Connect to publish and consume services with GKE".
    let client = client(
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x17\x0a\0\x3c\x02\x0a\0\x3c\x64\x81\x38\0\x50\
          \xe0\0\x08\0\x9b\x34\xd7\x0a\0\x3c\x64",
    )
    .unwrap();
    assert_eq!(client.source(), "10.0.60.2:33080".parse().unwrap());
    assert_eq!(client.destination(), "10.0.60.100:80".parse().unwrap());
    assert_eq!(client.endpoint(), Ok(Some(CloudEndpoint::Gcp(43_686_719_580_552_292))));
}

#[test]
fn a_header_as_azure_sends_it_is_read() {
    // By the table of Azure's page; a link id of 0x210045c1.
    let client = client(
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\x0a\0\0\x04\x0a\x01\0\x05\xc3\x50\x15\x38\
          \xee\0\x05\x01\xc1\x45\0\x21",
    )
    .unwrap();
    assert_eq!(client.source(), "10.0.0.4:50000".parse().unwrap());
    assert_eq!(client.endpoint(), Ok(Some(CloudEndpoint::Azure(0x2100_45c1))));
}

#[test]
fn t54_an_aws_endpoint_has_one_spelling() {
    for good in ["vpce-0abcdef0", "vpce-00eafc458ec97b833"] {
        let value = [b"\x01", good.as_bytes()].concat();
        assert_eq!(endpoint(&[(0xEA, &value)]), Ok(Some(CloudEndpoint::Aws(good.to_owned()))));
    }
    let endless = [b"\x01vpce-".as_slice(), &vec![b'0'; 65_529]].concat();
    for wrong in [
        b"".as_slice(),
        b"\x01",
        b"\x01v",
        b"\x01vpc",
        b"\x01vpce",
        b"\x01vpce-",
        b"\x01vpce-0abcdef",
        b"\x01vpce-00eafc458ec97b8330",
        b"\x01vpce-0ABCDEF0",
        b"\x01vpce-0abcdefg",
        b"\x01vpce-0abcdef0\0",
        b"\x01vpce-0abcdef0 ",
        b"\x01 vpce-0abcdef0",
        b"\x01VPCE-0abcdef0",
        b"\x01vpce-0abcdef\xff",
        b"\x01\xff\xfe\xfd\xfc",
        &endless,
    ] {
        assert!(endpoint(&[(0xEA, wrong)]).is_err(), "{:?}", &wrong[..wrong.len().min(30)]);
    }
    assert_eq!(endless.len(), 65_535);
}

#[test]
fn t54_an_azure_endpoint_has_one_length() {
    assert_eq!(endpoint(&[(0xEE, b"\x01\x01\0\0\0")]), Ok(Some(CloudEndpoint::Azure(1))));
    assert_eq!(endpoint(&[(0xEE, b"\x01\xff\xff\xff\xff")]), Ok(Some(CloudEndpoint::Azure(u32::MAX))));
    for length in [0, 1, 2, 4, 6, 65_535] {
        assert!(endpoint(&[(0xEE, &vec![1; length])]).is_err(), "{length} bytes");
    }
}

#[test]
fn t54_a_gcp_endpoint_has_one_length() {
    assert_eq!(endpoint(&[(0xE0, b"\0\0\0\0\0\0\0\x01")]), Ok(Some(CloudEndpoint::Gcp(1))));
    assert_eq!(endpoint(&[(0xE0, &[0xff; 8])]), Ok(Some(CloudEndpoint::Gcp(u64::MAX))));
    for length in [0, 1, 2, 4, 5, 7, 9, 65_535] {
        assert!(endpoint(&[(0xE0, &vec![1; length])]).is_err(), "{length} bytes");
    }
}

#[test]
fn t54_another_subtype_names_no_endpoint() {
    for kind in [0xEA, 0xEE] {
        for length in [1, 2, 4, 5, 65_535] {
            assert_eq!(endpoint(&[(kind, &vec![2; length])]), Ok(None), "{kind:#x}, {length} bytes");
        }
    }
    assert_eq!(endpoint(&[(0xE1, b"\x01vpce-0abcdef0"), (0x05, b"\x01\0\0\0\0")]), Ok(None));
}

#[test]
fn t54_two_clouds_in_one_header_are_refused() {
    let known: [(u8, &[u8]); 4] = [
        (0xEA, b"\x01vpce-0abcdef0"),
        (0xE0, b"\0\0\0\0\0\0\0\x01"),
        (0xEE, b"\x01\0\0\0\x01"),
        (0xEE, b"\x02\0\0\0\x01"),
    ];
    for one in known {
        for other in known {
            assert!(one.0 == other.0 || endpoint(&[one, (0x04, b""), other]).is_err(), "{one:?}, {other:?}");
        }
    }
}

#[test]
fn t54_a_tlv_comes_once_unless_it_only_pads() {
    for kind in [0x01, 0x02, 0x05, 0x20, 0xE0, 0xEA, 0xEE, 0xFF] {
        assert!(read(&with_tlvs(&[tlv(kind, b"a"), tlv(0x05 ^ kind, b""), tlv(kind, b"b")])).is_err());
        assert!(read(&with_tlvs(&[tlv(kind, b""), tlv(kind, b"")])).is_err(), "{kind:#x}");
    }
    let padded = client(&with_tlvs(&[tlv(0x04, b""), tlv(0x04, b"\0"), tlv(0x04, b"")])).unwrap();
    assert_eq!(padded.tlvs().len(), 3);
}

#[test]
fn t54_tlvs_are_counted() {
    assert!(read(&with_tlvs(&vec![tlv(0x04, b""); PROXY_TLVS_MAX])).is_ok());
    assert!(read(&with_tlvs(&vec![tlv(0x04, b""); PROXY_TLVS_MAX + 1])).is_err());
}

#[test]
fn t54_a_tlv_never_reaches_past_its_header() {
    for kind in [0x01, 0xE0, 0xEA, 0xEE] {
        for length in [1_u16, 2, 4, 5, 65_535] {
            let [high, low] = length.to_be_bytes();
            let mut claimed = vec![kind, high, low];
            claimed.extend(vec![1; usize::from(length).min(300) - 1]);
            let before = [tlv(0x04, b""), claimed];
            assert!(read(&with_tlvs(&before)).is_err(), "{kind:#x}, {length} bytes");
        }
    }
    for stub in [b"\xea".as_slice(), b"\xea\0"] {
        assert!(read(&with_tlvs(&[stub.to_vec()])).is_err());
    }
}

#[test]
fn t54_a_header_is_bounded_before_anybody_allocates_it() {
    let prefix = |version_and_command, length: usize| {
        let mut prefix = bytes(version_and_command, TCP_OVER_IPV4, &[]);
        prefix[14..].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        ProxyPrefix::parse(prefix.try_into().unwrap())
    };
    for version_and_command in [LOCAL, PROXY] {
        let largest = prefix(version_and_command, PROXY_BODY_BYTES_MAX).unwrap();
        assert_eq!(largest.body_bytes(), PROXY_BODY_BYTES_MAX);
        for too_long in [PROXY_BODY_BYTES_MAX + 1, 65_535] {
            assert!(prefix(version_and_command, too_long).is_err(), "{too_long} bytes");
        }
    }
    assert!(prefix(PROXY, IPV4_BYTES - 1).is_err());
}

#[test]
fn t55_version_1_is_refused() {
    for line in [
        b"PROXY TCP4 203.0.113.7 10.0.0.1 50000 5432\r\n".as_slice(),
        b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 5432\r\n",
        b"PROXY UNKNOWN\r\n\0",
    ] {
        let refused = ProxyPrefix::parse(*line.first_chunk().unwrap()).unwrap_err();
        assert!(refused.to_string().contains("version 2"), "{refused}");
    }
}

#[test]
fn t55_only_the_signature_begins_a_header() {
    let good = with_tlvs(&[]);
    for position in 0..SIGNATURE.len() {
        for bit in 0..8 {
            let mut bent = good.clone();
            bent[position] ^= 1 << bit;
            assert!(read(&bent).is_err(), "byte {position}, bit {bit}");
        }
    }
    for hello in [b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\0\0\0\0\0".as_slice(), &[0x16; 16], &[0; 16]] {
        assert!(ProxyPrefix::parse(*hello.first_chunk().unwrap()).is_err());
    }
}

#[test]
fn t55_only_version_2_and_known_commands_pass() {
    for byte in 0..=u8::MAX {
        let read = read(&bytes(byte, TCP_OVER_IPV4, IPV4));
        match byte {
            LOCAL => assert_eq!(read, Ok(ProxyHeader::Local)),
            PROXY => assert!(read.is_ok()),
            _ => assert!(read.is_err(), "{byte:#x}"),
        }
    }
}

#[test]
fn t55_only_tcp_passes() {
    // Room enough for UNIX addresses; what follows shorter ones pads.
    let body = |addresses: usize| [vec![1; addresses], tlv(0x04, &vec![0; 300 - addresses])].concat();
    for family in 0..=u8::MAX {
        let addresses = if family == TCP_OVER_IPV6 { IPV6_BYTES } else { IPV4_BYTES };
        let read = read(&bytes(PROXY, family, &body(addresses)));
        assert_eq!(read.is_ok(), [TCP_OVER_IPV4, TCP_OVER_IPV6].contains(&family), "{family:#x}");
    }
    for short in [UNSPEC, 0x12, 0x22, 0x31, 0x32] {
        assert!(read(&bytes(PROXY, short, &[])).is_err(), "{short:#x}");
    }
}

#[test]
fn t55_a_balancers_own_connection_has_no_client() {
    // AWS sends one with a family, addresses and TLVs that mean nothing; the protocol wants them skipped.
    let dummy = [IPV4, &tlv(0x03, b"wrong"), b"\xea\xff"].concat();
    for body in [b"".as_slice(), &dummy, &[0xff; 84]] {
        for family in [UNSPEC, TCP_OVER_IPV4, TCP_OVER_IPV6, 0x31, 0xff] {
            assert_eq!(read(&bytes(LOCAL, family, body)), Ok(ProxyHeader::Local), "{family:#x}, {body:?}");
        }
    }
}

#[test]
fn t55_a_wrong_checksum_is_refused() {
    assert!(read(AWS).is_ok());
    // The type of the TLV that holds the checksum; with another type there is none.
    let type_at = PROXY_PREFIX_BYTES + IPV4.len();
    for position in (PROXY_PREFIX_BYTES..AWS.len()).filter(|position| *position != type_at) {
        for bit in 0..8 {
            let mut bent = AWS.to_vec();
            bent[position] ^= 1 << bit;
            assert!(read(&bent).is_err(), "byte {position}, bit {bit}");
        }
    }
}

#[test]
fn t55_a_checksum_counts_wherever_it_stands() {
    let others = [tlv(0x01, b"h2"), tlv(0x04, b"\0\0"), tlv(0x05, b"")];
    for position in 0..=others.len() {
        let mut tlvs = others.to_vec();
        tlvs.insert(position, tlv(0x03, &[0; 4]));
        let mut header = with_tlvs(&tlvs);
        let value_at = PROXY_PREFIX_BYTES + IPV4.len() + tlvs[..position].concat().len() + TLV_HEAD_BYTES;
        let sum = crc32c::crc32c(&header).to_be_bytes();
        header[value_at..value_at + 4].copy_from_slice(&sum);
        assert!(read(&header).is_ok(), "at {position}");
        header[PROXY_PREFIX_BYTES] ^= 1;
        assert!(read(&header).is_err(), "at {position}");
    }
    for length in [0, 1, 3, 5, 8] {
        assert!(read(&with_tlvs(&[tlv(0x03, &vec![0; length])])).is_err(), "{length} bytes");
    }
}

#[test]
fn t55_every_truncation_is_refused() {
    let good = with_tlvs(&[tlv(0x02, b"example.org"), tlv(0xEE, b"\x01\x01\0\0\0")]);
    for header in [AWS, &good] {
        for length in 0..header.len() {
            assert!(read(&header[..length]).is_err(), "{length} bytes");
        }
        assert!(read(header).is_ok());
        assert!(read(&[header, b"\0"].concat()).is_err());
    }
    // Also where the length is made to fit: only the ends of TLVs are ends of headers.
    let ends = [28, 28 + 14, good.len()];
    for length in PROXY_PREFIX_BYTES..=good.len() {
        let cut = bytes(PROXY, TCP_OVER_IPV4, &good[PROXY_PREFIX_BYTES..length]);
        assert_eq!(read(&cut).is_ok(), ends.contains(&length), "{length} bytes");
    }
}

#[test]
fn t55_a_source_that_no_client_has_is_refused() {
    let over_ipv4 = |source: &str, port: u16| {
        let source: std::net::Ipv4Addr = source.parse().unwrap();
        let ports = [port.to_be_bytes(), [0x15, 0x38]].concat();
        let body = [&source.octets(), [10, 0, 0, 1].as_slice(), &ports].concat();
        read(&bytes(PROXY, TCP_OVER_IPV4, &body))
    };
    let over_ipv6 = |source: &str, port: u16| {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        let ports = [port.to_be_bytes(), [0x15, 0x38]].concat();
        let body = [&source.octets(), [1; 16].as_slice(), &ports].concat();
        read(&bytes(PROXY, TCP_OVER_IPV6, &body))
    };
    assert!(over_ipv4("203.0.113.7", 1).is_ok());
    assert!(over_ipv4("203.0.113.7", 0).is_err());
    assert!(over_ipv6("2001:db8::7", 1).is_ok());
    assert!(over_ipv6("2001:db8::7", 0).is_err());
    for wrong in ["0.0.0.0", "224.0.0.1", "239.255.255.255", "255.255.255.255"] {
        assert!(over_ipv4(wrong, 1).is_err(), "{wrong}");
        assert!(over_ipv6(&format!("::ffff:{wrong}"), 1).is_err(), "mapped {wrong}");
    }
    for wrong in ["::", "ff02::1", "ffff::1"] {
        assert!(over_ipv6(wrong, 1).is_err(), "{wrong}");
    }
}

#[test]
fn t55_a_second_header_is_no_hello() {
    // A client can send a header of its own behind the balancer's; what follows the first one must be a hello.
    let second: [u8; HELLO_BYTES] = *AWS.first_chunk().unwrap();
    assert!(Hello::parse(second).is_err());
    assert!(Hello::parse(*b"PROXY TC").is_err());
}
