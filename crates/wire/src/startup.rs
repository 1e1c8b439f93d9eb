//! The startup message: who wants which database, and with which settings.

use crate::Malformed;

/// The newest minor version of protocol 3 that we speak.
pub const MINOR_MAX: u16 = 2;
/// Most parameters of one startup message.
pub const PARAMETERS_MAX: usize = 128;

/// A startup message, read.
#[derive(Clone, PartialEq, Eq)]
pub struct Startup {
    minor: u16,
    parameters: Vec<(String, String)>,
}

impl Startup {
    /// Reads the parameters that follow the version. A name that comes twice is refused: two readers could choose
    /// differently.
    pub fn parse(minor: u16, mut rest: &[u8]) -> Result<Self, Malformed> {
        let layout = Malformed("invalid startup packet layout: expected terminator as last byte");
        let mut parameters: Vec<(String, String)> = Vec::new();
        loop {
            let name = take_text(&mut rest).ok_or(layout)?;
            if name.is_empty() {
                break;
            }
            let value = take_text(&mut rest).ok_or(layout)?;
            if parameters.len() == PARAMETERS_MAX {
                return Err(Malformed("too many startup parameters"));
            }
            let text = |bytes: &[u8]| {
                String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("startup parameters must be UTF-8"))
            };
            let (name, value) = (text(name)?, text(value)?);
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Malformed("a startup parameter is given twice"));
            }
            parameters.push((name, value));
        }
        if !rest.is_empty() {
            return Err(layout);
        }
        Ok(Self { minor, parameters })
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Every parameter but protocol options, in the client's order.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters
            .iter()
            .filter(|(name, _)| !name.starts_with("_pq_."))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The minor version in force: the client's, or ours where that is older.
    pub fn minor(&self) -> u16 {
        // 3.1 was never released; a client that names it gets 3.0 (PostgreSQL 18, backend_startup.c).
        match self.minor {
            0 | 1 => 0,
            _ => MINOR_MAX,
        }
    }

    /// The `NegotiateProtocolVersion` that the client must get before anything else, if it asked for more than we speak.
    pub fn negotiation(&self) -> Option<Vec<u8>> {
        let unknown: Vec<&str> = self
            .parameters
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| name.starts_with("_pq_."))
            .collect();
        if self.minor == self.minor() && unknown.is_empty() {
            return None;
        }
        let mut message = crate::backend::Message::new(b'v');
        message.put_u32(3 << 16 | u32::from(self.minor()));
        message.put_u32(u32::try_from(unknown.len()).unwrap_or(0));
        for name in unknown {
            message.put_text(name);
        }
        Some(message.finish())
    }
}

/// Values may be secret (some clients put a password into `options`).
impl std::fmt::Debug for Startup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Startup").field("minor", &self.minor).finish_non_exhaustive()
    }
}

/// A startup message for an engine, protocol 3.0.
pub fn encode<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, 0, 3, 0, 0];
    for (name, value) in parameters {
        for text in [name, value] {
            message.extend_from_slice(text.as_bytes());
            message.push(0);
        }
    }
    message.push(0);
    let length = crate::frame::length_field(message.len());
    message[..4].copy_from_slice(&length);
    message
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (text, after) = rest.split_at(end);
    *rest = &after[1..];
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_in_order() {
        let startup = Startup::parse(0, b"user\0maria\0database\0shop\0\0").unwrap();
        assert_eq!(startup.get("user"), Some("maria"));
        assert_eq!(startup.parameters().collect::<Vec<_>>(), [("user", "maria"), ("database", "shop")]);
        let encoded = encode(startup.parameters());
        assert_eq!(Startup::parse(0, &encoded[8..]), Ok(startup));
    }

    #[test]
    fn t21_layouts_that_no_client_sends_are_refused() {
        let many = b"a\0b\0".repeat(PARAMETERS_MAX + 1);
        for wrong in [
            b"".as_slice(),
            b"user\0maria\0",
            b"user\0maria",
            b"user\0\0",
            b"user",
            b"user\0maria\0\0x",
            b"user\0maria\0user\0root\0\0",
            b"user\0mar\xffia\0\0",
            &many,
        ] {
            assert!(Startup::parse(0, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn t22_newer_versions_and_unknown_options_get_one_answer() {
        let plain = Startup::parse(0, b"user\0m\0\0").unwrap();
        assert_eq!((plain.minor(), plain.negotiation()), (0, None));
        assert_eq!(Startup::parse(2, b"user\0m\0\0").unwrap().negotiation(), None);
        let newest = Startup::parse(9_999, b"user\0m\0_pq_.x\0on\0\0").unwrap();
        assert_eq!(newest.minor(), 2);
        assert_eq!(newest.negotiation().unwrap(), b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0");
        assert_eq!(newest.parameters().count(), 1);
        assert_eq!(Startup::parse(1, b"user\0m\0\0").unwrap().negotiation().unwrap()[5..9], [0, 3, 0, 0]);
    }
}
