//! A PROXY header: what passes is bounded, whole, and says one thing.

use wire::proxy::{
    CloudEndpoint, PROXY_BODY_BYTES_MAX, PROXY_PREFIX_BYTES, PROXY_TLVS_MAX, ProxyHeader, ProxyPrefix,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    read(bytes);
    // Twelve bytes at once are too many to find by chance, and a length that fits nearly so.
    read(&[SIGNATURE, bytes].concat());
    if let Some((kinds, body)) = bytes.split_first_chunk::<2>() {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        read(&[SIGNATURE, kinds, &length, body].concat());
    }
}

fn read(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk::<PROXY_PREFIX_BYTES>() else {
        return;
    };
    let Ok(prefix) = ProxyPrefix::parse(*first) else {
        return;
    };
    assert!(prefix.body_bytes() <= PROXY_BODY_BYTES_MAX);
    let Some(body) = rest.get(..prefix.body_bytes()) else {
        assert!(prefix.header(rest).is_err());
        return;
    };
    let Ok(ProxyHeader::Client(client)) = prefix.header(body) else {
        return;
    };
    let (source, tlvs) = (client.source(), client.tlvs());
    assert!(source.port() != 0 && source.ip() == source.ip().to_canonical());
    assert!(!source.ip().is_unspecified() && !source.ip().is_multicast());
    // Every byte after the addresses belongs to exactly one TLV.
    let tlv_bytes: usize = tlvs.iter().map(|tlv| 3 + tlv.value.len()).sum();
    assert!(tlvs.len() <= PROXY_TLVS_MAX && [12, 36].contains(&(body.len() - tlv_bytes)));
    let has = |kind: u8| tlvs.iter().any(|tlv| tlv.kind == kind);
    match client.endpoint() {
        Ok(Some(CloudEndpoint::Aws(id))) => {
            assert!(id.starts_with("vpce-") && has(0xEA) && !has(0xE0) && !has(0xEE));
        }
        Ok(Some(CloudEndpoint::Gcp(_))) => assert!(has(0xE0) && !has(0xEA) && !has(0xEE)),
        Ok(Some(CloudEndpoint::Azure(_))) => assert!(has(0xEE) && !has(0xE0) && !has(0xEA)),
        Ok(None) => assert!(!has(0xE0)),
        Err(_) => assert!(has(0xE0) || has(0xEA) || has(0xEE)),
    }
}
