//! The frames of a stream: however it is cut, the same frames are seen.

use wire::frame::{BODY_BYTES_MAX, Frames};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    let seen = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut frames, mut headers) = (Frames::new(), Vec::new());
        for piece in pieces {
            let followed = frames.follow(piece, |header| {
                assert!(header.body_bytes <= BODY_BYTES_MAX);
                headers.push(header);
            });
            if followed.is_err() {
                return (headers, None);
            }
        }
        (headers, Some((frames.is_at_boundary(), frames.bytes_left())))
    };
    let whole = seen(&mut std::iter::once(stream));
    let cut = seen(&mut stream.chunks(usize::from(*size) + 1));
    assert_eq!(whole, cut);
}
