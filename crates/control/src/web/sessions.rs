//! Web sessions: tokens that browsers keep, of which only digests are kept here. They end with the program.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::SecretText;
use time::OffsetDateTime;

use super::WebSession;

/// How long a session lasts.
const LASTS: Duration = Duration::from_secs(12 * 3_600);
const TOKEN_BYTES: usize = 32;
/// Longer texts are no tokens.
const TOKEN_TEXT_MAX: usize = 64;
/// Sessions in all; then the one that ends first goes.
const SESSIONS_MAX: usize = 10_000;
/// Sessions of one SQL user of one cluster; then the one that ends first goes.
const SESSIONS_PER_USER_MAX: usize = 16;

/// The sessions that count.
#[derive(Default)]
pub struct WebSessions(Mutex<HashMap<[u8; 32], WebSession>>);

impl WebSessions {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a session of 12 hours, whatever `expires_at` says. Gives the token, how long it lasts, and the session as
    /// it is kept.
    pub fn open(&self, session: WebSession, now: OffsetDateTime) -> (SecretText, Duration, WebSession) {
        let session = WebSession { expires_at: now + LASTS, ..session };
        let mut bytes = zeroize_on_drop();
        keys::fill_random(bytes.as_mut());
        let token = SecretText::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()));
        let mut kept = self.kept();
        kept.retain(|_, session| now < session.expires_at);
        let is_same = |other: &WebSession| other.user == session.user && other.cluster == session.cluster;
        if kept.values().filter(|other| is_same(other)).count() >= SESSIONS_PER_USER_MAX {
            drop_oldest(&mut kept, is_same);
        }
        if kept.len() >= SESSIONS_MAX {
            drop_oldest(&mut kept, |_| true);
        }
        kept.insert(digest_of(&token), session.clone());
        (token, LASTS, session)
    }

    /// Whose token this is, if it counts at `now`.
    pub fn find(&self, token: &SecretText, now: OffsetDateTime) -> Option<WebSession> {
        if token.expose().len() > TOKEN_TEXT_MAX {
            return None;
        }
        self.kept().get(&digest_of(token)).filter(|session| now < session.expires_at).cloned()
    }

    /// Ends a session; whether there was one.
    pub fn close(&self, token: &SecretText) -> bool {
        token.expose().len() <= TOKEN_TEXT_MAX && self.kept().remove(&digest_of(token)).is_some()
    }

    /// Ends every session that is not to be kept: of users or clusters that are gone.
    pub fn retain(&self, mut keep: impl FnMut(&WebSession) -> bool) {
        self.kept().retain(|_, session| keep(session));
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<[u8; 32], WebSession>> {
        // Entries are put and taken whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for WebSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebSessions")
    }
}

fn zeroize_on_drop() -> zeroize::Zeroizing<[u8; TOKEN_BYTES]> {
    zeroize::Zeroizing::new([0; TOKEN_BYTES])
}

/// The token has 256 random bits, so that a plain digest is enough, and looking it up tells nothing by its time.
fn digest_of(token: &SecretText) -> [u8; 32] {
    let mut value = [0; 32];
    value.copy_from_slice(digest::digest(&digest::SHA256, token.expose().as_bytes()).as_ref());
    value
}

fn drop_oldest(kept: &mut HashMap<[u8; 32], WebSession>, among: impl Fn(&WebSession) -> bool) {
    let oldest = kept
        .iter()
        .filter(|(_, session)| among(session))
        .min_by_key(|(_, session)| session.expires_at)
        .map(|(digest, _)| *digest);
    if let Some(oldest) = oldest {
        kept.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(user: &str) -> WebSession {
        WebSession {
            cluster: "shop-7".to_owned(),
            user: user.to_owned(),
            provider: "corp".to_owned(),
            expires_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_session_counts_for_twelve_hours_or_until_it_is_closed() {
        let (sessions, now) = (WebSessions::new(), OffsetDateTime::now_utc());
        let (token, lasts, session) = sessions.open(of("maria"), now);
        assert_eq!((token.expose().len(), lasts.as_secs()), (43, 43_200));
        assert_eq!(sessions.find(&token, now), Some(session));
        assert!(sessions.find(&token, now + time::Duration::minutes(719)).is_some());
        assert!(sessions.find(&token, now + time::Duration::hours(12)).is_none());
        assert!(sessions.close(&token) && !sessions.close(&token));
        assert!(sessions.find(&token, now).is_none());
        assert_ne!(sessions.open(of("maria"), now).0.expose(), token.expose());
        sessions.retain(|session| session.user != "maria");
        assert!(sessions.kept().is_empty());
    }

    #[test]
    fn guesses_find_nothing_and_tokens_are_not_kept() {
        let (sessions, now) = (WebSessions::new(), OffsetDateTime::now_utc());
        let (token, ..) = sessions.open(of("maria"), now);
        let text = token.expose();
        for wrong in
            [String::new(), text[1..].to_owned(), format!("{text}="), text.to_lowercase(), "a".repeat(9_999)]
        {
            assert!(sessions.find(&SecretText::new(wrong), now).is_none());
        }
        assert!(!format!("{sessions:?}").contains(text));
    }

    #[test]
    fn one_user_cannot_push_out_another() {
        let (sessions, now) = (WebSessions::new(), OffsetDateTime::now_utc());
        let (other, ..) = sessions.open(of("olga"), now);
        let (first, ..) = sessions.open(of("maria"), now);
        for second in 1..=16 {
            sessions.open(of("maria"), now + time::Duration::seconds(second));
        }
        assert!(sessions.find(&other, now).is_some() && sessions.find(&first, now).is_none());
        assert_eq!(sessions.kept().len(), 17);
    }

    #[test]
    fn the_number_of_sessions_is_bounded() {
        let (sessions, now) = (WebSessions::new(), OffsetDateTime::now_utc());
        for number in 0..SESSIONS_MAX {
            sessions.kept().insert(
                digest_of(&SecretText::new(number.to_string())),
                WebSession { expires_at: now + LASTS, ..of(&number.to_string()) },
            );
        }
        sessions.open(of("maria"), now);
        assert_eq!(sessions.kept().len(), SESSIONS_MAX);
    }
}
