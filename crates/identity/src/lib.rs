//! Who somebody is: SCRAM verifiers and exchanges, passwords, API keys.

pub mod api_key;
pub mod password;
pub mod scram;

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
