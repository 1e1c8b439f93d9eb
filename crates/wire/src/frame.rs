//! Message frames: a tag, a length, a body. The relay looks at headers only and forwards the rest from where it lies.

use crate::Malformed;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 5;
/// Longest body that any message may claim: PostgreSQL's own `PQ_LARGE_MESSAGE_LIMIT`, one byte below 1 GiB.
pub const BODY_BYTES_MAX: usize = 0x3fff_ffff;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's type.
    pub tag: u8,
    /// Bytes after the header.
    pub body_bytes: usize,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        let [tag, a, b, c, d] = bytes;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length < 4 || length - 4 > BODY_BYTES_MAX {
            return Err(Malformed("invalid message length"));
        }
        Ok(Self { tag, body_bytes: length - 4 })
    }
}

/// Follows the frames of one direction through buffers of any size, without keeping their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    header: [u8; HEADER_BYTES],
    header_seen: usize,
    body_left: usize,
}

impl Frames {
    /// A stream at its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the last byte seen ended a frame: only here may a message of our own be put in.
    pub fn is_at_boundary(&self) -> bool {
        self.header_seen == 0 && self.body_left == 0
    }

    /// Whether the last byte seen is of a frame whose header is known, and that has not come to its end.
    pub fn is_in_body(&self) -> bool {
        self.body_left > 0
    }

    /// Bytes that the present frame still has, as far as its header is known; 0 at a boundary.
    pub fn bytes_left(&self) -> usize {
        if self.header_seen > 0 { HEADER_BYTES - self.header_seen } else { self.body_left }
    }

    /// Follows the bytes and tells each frame's header as it begins. Stops at the first impossible length.
    pub fn follow(&mut self, mut bytes: &[u8], mut begin: impl FnMut(Header)) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let taken = self.body_left.min(bytes.len());
                self.body_left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let seen = self.header_seen;
            let taken = (HEADER_BYTES - seen).min(bytes.len());
            self.header[seen..seen + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if seen + taken < HEADER_BYTES {
                self.header_seen += taken;
                return Ok(());
            }
            self.header_seen = 0;
            let header = Header::parse(self.header)?;
            self.body_left = header.body_bytes;
            begin(header);
        }
        Ok(())
    }
}

/// A length as the protocol writes it. Messages that we make are far below the bound.
pub(crate) fn length_field(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(frames: &mut Frames, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut tags = Vec::new();
        frames.follow(bytes, |header| tags.push(header.tag)).map(|()| tags)
    }

    #[test]
    fn frames_are_found_however_the_stream_is_cut() {
        let stream = b"Q\0\0\0\x09abcd\0S\0\0\0\x04X\0\0\0\x04d\0\0\0\x07abc";
        for size in 1..=stream.len() {
            let mut frames = Frames::new();
            let mut seen = Vec::new();
            for part in stream.chunks(size) {
                seen.extend(tags(&mut frames, part).unwrap());
            }
            assert_eq!(seen, b"QSXd", "in parts of {size}");
            assert!(frames.is_at_boundary());
        }
    }

    #[test]
    fn a_boundary_is_only_between_frames() {
        let mut frames = Frames::new();
        for (byte, is_boundary) in
            b"S\0\0\0\x05xS".iter().zip([false, false, false, false, false, true, false])
        {
            tags(&mut frames, &[*byte]).unwrap();
            assert_eq!(frames.is_at_boundary(), is_boundary);
        }
        assert!(!frames.is_in_body(), "a header that has only begun");
        tags(&mut frames, b"\0\0\0\x05").unwrap();
        assert!(frames.is_in_body() && !frames.is_at_boundary());
    }

    #[test]
    fn t18_t19_impossible_lengths_end_the_stream_and_hide_nothing() {
        for length in [[0, 0, 0, 0], [0, 0, 0, 3], [0x40, 0, 0, 4], [0x80, 0, 0, 0], [0xff; 4]] {
            let mut stream = vec![b'Q'];
            stream.extend(length);
            stream.extend(b"X\0\0\0\x04");
            assert!(tags(&mut Frames::new(), &stream).is_err(), "{length:?}");
        }
        let mut largest = vec![b'd'];
        largest.extend(0x4000_0003_u32.to_be_bytes());
        largest.extend(b"X\0\0\0\x04");
        assert_eq!(tags(&mut Frames::new(), &largest), Ok(vec![b'd']));
    }
}
