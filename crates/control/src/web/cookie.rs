//! Cookies as this place uses them: all `__Host-`, so that no other host and no plaintext can set or read them.

use axum::http::{HeaderMap, HeaderValue, header};
use keys::SecretText;

/// The web session's token.
pub(super) const SESSION: &str = "__Host-chitin_session";
/// Ties a form to the browser that was shown it.
pub(super) const FORM: &str = "__Host-chitin_form";
/// Ties a sign-in at a provider to the browser that began it; the state's beginning follows, so that several can be
/// under way.
const STATE: &str = "__Host-chitin_state_";
const STATE_NAME_CHARACTERS: usize = 16;
/// Sign-ins at providers that one browser has under way. Each is a cookie of some hundred bytes, and all of them have to stay
/// well below [`COOKIES_BYTES_MAX`].
pub(super) const FLOWS_PER_BROWSER_MAX: usize = 12;
/// All cookies of one request together, in bytes.
const COOKIES_BYTES_MAX: usize = 16 * 1024;

/// Which requests from other sites a cookie goes with.
#[derive(Clone, Copy)]
pub(super) enum SameSite {
    /// None.
    Strict,
    /// Links that a person follows; a provider's answer is one.
    Lax,
}

/// The name of a state's cookie; `None` for what cannot be a state of ours.
pub(super) fn of_state(state: &str) -> Option<String> {
    let start = state.get(..STATE_NAME_CHARACTERS)?;
    let is_plain = start.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    is_plain.then(|| format!("{STATE}{start}"))
}

/// The names of the states' cookies that make room for one more: browsers send them in the order in which they were made
/// (RFC 6265, section 5.4), so those are the oldest.
pub(super) fn states_to_go(headers: &HeaderMap) -> Vec<String> {
    let names = pairs(headers).map(|(name, _)| name);
    let states: Vec<&str> =
        names.filter(|name| name.strip_prefix(STATE).and_then(of_state).as_deref() == Some(name)).collect();
    let count = (states.len() + 1).saturating_sub(FLOWS_PER_BROWSER_MAX);
    states.into_iter().take(count).map(str::to_owned).collect()
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// The cookie of this name, if the browser sent exactly one that is not longer than `bytes_max`.
pub(super) fn read(headers: &HeaderMap, name: &str, bytes_max: usize) -> Option<SecretText> {
    let values = headers.get_all(header::COOKIE);
    if values.iter().map(HeaderValue::len).sum::<usize>() > COOKIES_BYTES_MAX {
        return None;
    }
    let mut found = pairs(headers).filter(|(own, _)| *own == name).map(|(_, value)| value);
    match (found.next(), found.next()) {
        (Some(value), None) if !value.is_empty() && value.len() <= bytes_max => {
            Some(SecretText::new(value.to_owned()))
        }
        _ => None,
    }
}

/// A `Set-Cookie` header; `None` where the value could not stand in one.
pub(super) fn write(name: &str, value: &str, seconds: u64, same_site: SameSite) -> Option<HeaderValue> {
    let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-=".contains(&byte));
    let same_site = match same_site {
        SameSite::Strict => "Strict",
        SameSite::Lax => "Lax",
    };
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite={same_site}; Max-Age={seconds}");
    let mut value = HeaderValue::try_from(text).ok().filter(|_| is_plain)?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::COOKIE, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn exactly_one_cookie_of_that_name_counts() {
        let read = |values: &[&str]| read(&sent(values), "a", 8).map(|value| value.expose().to_owned());
        assert_eq!(read(&["a=1"]).as_deref(), Some("1"));
        assert_eq!(read(&["b=2; a=1=; c"]).as_deref(), Some("1="));
        assert_eq!(read(&["b=2", "a=1"]).as_deref(), Some("1"), "HTTP/2 sends them apart");
        for none in [&[][..], &["A=1"], &["aa=1"], &["a="], &["a=123456789"], &["a=1; a=2"], &["a=1", "a=1"]]
        {
            assert_eq!(read(none), None, "{none:?}");
        }
        let padding = format!("b={}", "x".repeat(COOKIES_BYTES_MAX));
        assert_eq!(read(&["a=1", &padding]), None);
    }

    #[test]
    fn a_browser_with_many_sign_ins_under_way_gives_up_the_oldest() {
        let state = |number: usize| format!("{STATE}{number:0>16}=value");
        let with = |count: usize| (0..count).map(state).collect::<Vec<_>>().join("; ");
        let to_go = |cookies: &str| states_to_go(&sent(&["a=1; __Host-chitin_form=x", cookies]));
        assert!(to_go("").is_empty() && to_go(&with(FLOWS_PER_BROWSER_MAX - 1)).is_empty());
        assert_eq!(to_go(&with(FLOWS_PER_BROWSER_MAX)), [format!("{STATE}{:0>16}", 0)]);
        assert_eq!(to_go(&with(FLOWS_PER_BROWSER_MAX + 5)).len(), 6);
        // What has another name is somebody else's, whatever it begins with.
        let other = format!("{STATE}short=1; {}", format!("{STATE}{:0>17}=1; ", 0).repeat(20));
        assert!(to_go(&other).is_empty());
    }

    #[test]
    fn cookies_are_written_for_this_host_only() {
        let value = write(SESSION, "abc", 60, SameSite::Lax).unwrap();
        assert!(value.is_sensitive());
        assert_eq!(
            value.to_str().unwrap(),
            "__Host-chitin_session=abc; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=60"
        );
        for wrong in ["a;b", "a b", "a\r\nSet-Cookie: x=1", "a\"", "ä"] {
            assert!(write(SESSION, wrong, 60, SameSite::Lax).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_state_s_cookie_has_a_plain_name() {
        assert_eq!(of_state("0123456789abcdefghi").as_deref(), Some("__Host-chitin_state_0123456789abcdef"));
        for wrong in ["", "short", "0123456789abcde;x=1", "0123456789abcde ", "0123456789abcdeäx"] {
            assert!(of_state(wrong).is_none(), "{wrong}");
        }
    }
}
