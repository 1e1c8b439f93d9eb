//! A keeper of keys of our own: the transit engine of Vault, as much of it as wrapping a data key asks for. It says yes,
//! no or nothing, as the attack wants.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::loopback::{Answers, Loopback, Reply};
use super::wire::Fault;

const PREFIX: &str = "vault:v";

/// How the keeper answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    /// As it should.
    Willing,
    /// Permission for the key is denied, to a token that is good.
    Denying,
    /// It closes every connection without a word.
    Silent,
}

/// A keeper that answers until it is dropped.
pub struct Keeper {
    server: Loopback,
    office: Arc<Office>,
}

struct Office {
    /// One key a version, the first version first.
    keys: Mutex<Vec<RandomizedNonceKey>>,
    mood: AtomicU8,
}

impl Keeper {
    /// Opens a keeper on loopback with a new key.
    pub async fn open() -> Result<Self, Fault> {
        let office =
            Arc::new(Office { keys: Mutex::new(vec![key()?]), mood: AtomicU8::new(Mood::Willing as u8) });
        let server = Loopback::open(office.clone()).await?;
        Ok(Self { server, office })
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// How it answers from now on.
    pub fn set(&self, mood: Mood) {
        self.office.mood.store(mood as u8, Ordering::SeqCst);
    }

    /// Gives the key another version, which wraps from now on; earlier ones still unwrap.
    pub fn rotate(&self) -> Result<(), Fault> {
        let new = key()?;
        self.office.keys.lock().unwrap_or_else(PoisonError::into_inner).push(new);
        Ok(())
    }
}

fn key() -> Result<RandomizedNonceKey, Fault> {
    let fault = |_| Fault::Setup("no key could be made".to_owned());
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(fault)?;
    RandomizedNonceKey::new(&AES_256_GCM, bytes.as_ref()).map_err(fault)
}

impl Answers for Office {
    fn answer(&self, path: &str, body: &[u8]) -> Option<Reply> {
        let mood = self.mood.load(Ordering::SeqCst);
        if mood == Mood::Silent as u8 {
            return None;
        }
        // A token of Vault's without an end, as its root token is: good also where the key is denied, else the refusal would
        // say nothing of the key.
        if path.ends_with("/auth/token/lookup-self") {
            let token = json!({"ttl": 0, "renewable": false, "expire_time": null});
            return Some(reply("200 OK", &json!({ "data": token })));
        }
        if mood == Mood::Denying as u8 {
            return Some(reply("403 Forbidden", &json!({"errors": ["permission denied"]})));
        }
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let verb = path.rsplit_once("/transit/").map_or(path, |(_, verb)| verb);
        let answered = match verb.split('/').next()? {
            "encrypt" => self.encrypt(&asked),
            "decrypt" => self.decrypt(&asked),
            "keys" => Some(json!({
                "type": "aes256-gcm96", "latest_version": self.keys().len(), "min_decryption_version": 1,
                "supports_encryption": true, "supports_decryption": true, "deletion_allowed": false,
            })),
            _ => None,
        };
        Some(match answered {
            Some(data) => reply("200 OK", &json!({ "data": data })),
            None => reply("400 Bad Request", &json!({"errors": ["cipher: message authentication failed"]})),
        })
    }
}

impl Office {
    fn keys(&self) -> std::sync::MutexGuard<'_, Vec<RandomizedNonceKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encrypt(&self, asked: &Value) -> Option<Value> {
        let mut bytes = Zeroizing::new(BASE64.decode(asked["plaintext"].as_str()?).ok()?);
        let keys = self.keys();
        let nonce = keys.last()?.seal_in_place_append_tag(place(asked)?, &mut *bytes).ok()?;
        let sealed = [nonce.as_ref().as_slice(), &bytes].concat();
        let version = keys.len();
        Some(
            json!({"ciphertext": format!("{PREFIX}{version}:{}", BASE64.encode(sealed)), "key_version": version}),
        )
    }

    fn decrypt(&self, asked: &Value) -> Option<Value> {
        let (version, sealed) = asked["ciphertext"].as_str()?.strip_prefix(PREFIX)?.split_once(':')?;
        let sealed = BASE64.decode(sealed).ok()?;
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let mut body = Zeroizing::new(body.to_vec());
        let keys = self.keys();
        let key = keys.get(version.parse::<usize>().ok()?.checked_sub(1)?)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = key.open_in_place(nonce, place(asked)?, &mut body).ok()?;
        Some(json!({ "plaintext": BASE64.encode(plain) }))
    }
}

/// The associated data, as they were sent.
fn place(asked: &Value) -> Option<Aad<Vec<u8>>> {
    let text = asked["associated_data"].as_str().unwrap_or_default();
    Some(Aad::from(BASE64.decode(text).ok()?))
}

fn reply(status: &'static str, body: &Value) -> Reply {
    Reply { status, kind: "application/json", body: body.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrapped_opens_in_its_place_and_after_a_rotation() {
        let office =
            Office { keys: Mutex::new(vec![key().unwrap()]), mood: AtomicU8::new(Mood::Willing as u8) };
        let ask = |path: &str, body: Value| office.answer(path, body.to_string().as_bytes()).unwrap();
        let told = |reply: Reply| serde_json::from_slice::<Value>(&reply.body).unwrap();
        let (plain, place) = (BASE64.encode("key"), BASE64.encode("here"));
        let wrapped =
            told(ask("/v1/transit/encrypt/k", json!({"plaintext": plain, "associated_data": place})))["data"]
                ["ciphertext"]
                .clone();
        office.keys().push(key().unwrap());
        let back = ask("/v1/transit/decrypt/k", json!({"ciphertext": wrapped, "associated_data": place}));
        assert_eq!(told(back)["data"]["plaintext"], plain);
        let elsewhere = ask("/v1/transit/decrypt/k", json!({"ciphertext": wrapped}));
        assert_eq!(elsewhere.status, "400 Bad Request");
        office.mood.store(Mood::Denying as u8, Ordering::SeqCst);
        let denied = ask("/v1/transit/decrypt/k", json!({"ciphertext": wrapped, "associated_data": place}));
        assert_eq!(denied.status, "403 Forbidden");
        assert_eq!(
            ask("/v1/auth/token/lookup-self", json!({})).status,
            "200 OK",
            "the key is denied, not the token"
        );
    }
}
