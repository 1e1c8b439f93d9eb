//! Who somebody is: rules, SCRAM, passwords, certificates' revocation, tokens, sign-in through a browser, API keys; and the
//! throttle before them.

mod abandoned;
pub mod api_key;
pub mod authorize;
pub mod hba;
pub mod identity_map;
pub mod oidc;
pub mod password;
pub mod revocation;
pub mod scram;
mod shares;
pub mod throttle;
pub mod ticket;
pub mod token;

use aws_lc_rs::digest;
use keys::fill_random;

/// Draws text of this length from the alphabet, without bias.
fn random_text(length: usize, alphabet: &[u8]) -> String {
    let mut text = String::with_capacity(length);
    let ceiling = 256 - 256 % alphabet.len();
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        fill_random(&mut bytes);
        for byte in bytes {
            // A byte above the last whole multiple would make the first letters likelier.
            if usize::from(byte) < ceiling && text.len() < length {
                text.push(char::from(alphabet[usize::from(byte) % alphabet.len()]));
            }
        }
    }
    text
}

/// SHA-256 of a secret that has enough randomness of its own: what is found by it tells nothing of it by its time.
fn digest_of(text: &str) -> [u8; 32] {
    let mut value = [0; 32];
    value.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    value
}
