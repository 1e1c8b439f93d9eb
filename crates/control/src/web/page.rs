//! Pages for people, written by hand: no scripts, nothing from elsewhere, and every value escaped.

use std::fmt;
use std::net::IpAddr;
use std::sync::LazyLock;

use aws_lc_rs::digest;
use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::desk::Waiting;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#f6f8fa;--card:#fff;--line:#d0d7de;--act:#0b5cad;\
--on:#fff}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b1;--paper:#0d1117;--card:#161b22;--line:#30363d;\
--act:#58a6ff;--on:#0d1117}}\
*{box-sizing:border-box}\
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}\
main{max-width:34rem;margin:8vh auto;padding:2rem;background:var(--card);border:1px solid var(--line);\
border-radius:.75rem;overflow-wrap:anywhere}\
h1{margin:0 0 1rem;font-size:1.4rem;line-height:1.3}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.4rem 1.25rem;margin:1.25rem 0}\
dt{color:var(--soft)}dd{margin:0}\
.code{font:600 1.5rem/1.2 ui-monospace,monospace;letter-spacing:.08em}\
.soft{color:var(--soft)}\
button,.button{display:inline-block;padding:.7rem 1.3rem;border:0;border-radius:.5rem;background:var(--act);\
color:var(--on);font:inherit;font-weight:600;text-decoration:none;cursor:pointer}\
button:focus-visible,.button:focus-visible{outline:3px solid var(--ink);outline-offset:2px}";

/// What pages may do: show this one style, and send a form back here.
pub(super) static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// A value as text in HTML, also inside quotes. What has no shape or turns the direction of reading is shown as `�`.
struct Text<T>(T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for character in self.0.to_string().chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}' => {
                    f.write_char('\u{fffd}')?;
                }
                character if character.is_control() => f.write_char('\u{fffd}')?,
                character => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

fn whole(title: &str, head: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\">{head}<title>{}</title><style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>\n",
        Text(title)
    )
}

/// Asks whether the waiting session is this person's own. `form` proves on the way back that this browser was asked.
pub(super) fn confirm(id: &str, waiting: &Waiting, from: Option<IpAddr>, form: &str) -> String {
    let Waiting { user, cluster, address, provider, code } = waiting;
    // On one machine, or behind one router, both are the same, and a second line would only confuse.
    let other = from.filter(|from| from != address).map(|from| {
        format!("<dt>This browser</dt><dd>{} <span class=\"soft\">(another address)</span></dd>", Text(from))
    });
    let body = format!(
        "<h1>A program wants to sign in as <bdi>{user}</bdi></h1>\
         <dl><dt>Cluster</dt><dd><bdi>{cluster}</bdi></dd><dt>SQL user</dt><dd><bdi>{user}</bdi></dd>\
         <dt>Program at</dt><dd>{address}</dd>{other}\
         <dt>Code</dt><dd class=\"code\">{code}</dd></dl>\
         <p>Continue only if your own terminal shows this code. If somebody sent you this link, or you did not just \
         start a SQL client, close this window: continuing would let that program in as you.</p>\
         <form method=\"post\" action=\"/sign-in/{id}\"><input type=\"hidden\" name=\"form\" value=\"{form}\">\
         <input type=\"hidden\" name=\"code\" value=\"{code}\">\
         <button type=\"submit\">Continue with <bdi>{provider}</bdi></button></form>",
        user = Text(user),
        cluster = Text(cluster),
        address = Text(address),
        other = other.unwrap_or_default(),
        code = Text(code),
        id = Text(id),
        form = Text(form),
        provider = Text(provider),
    );
    whole("Sign in", "", &body)
}

/// Leads on to the provider. Not a redirect: browsers apply `form-action` to redirects after a form, and a provider may
/// send its visitors through hosts that nobody here knows.
pub(super) fn onward(location: &str) -> String {
    let location = Text(location);
    let head = format!("<meta http-equiv=\"refresh\" content=\"0;url={location}\">");
    let body = format!(
        "<h1>Going on to the identity provider</h1>\
         <p><a class=\"button\" href=\"{location}\" rel=\"noreferrer\">Continue</a></p>"
    );
    whole("Sign in", &head, &body)
}

/// What a sign-in was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// A program that waited.
    Program,
    /// A session of the browser itself.
    Web,
}

impl Done {
    /// Where the page is that says so.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Program => "/oidc/v1/done/program",
            Self::Web => "/oidc/v1/done/web",
        }
    }

    /// Reads the end of the page's path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "program" => Some(Self::Program),
            "web" => Some(Self::Web),
            _ => None,
        }
    }
}

/// Says that it is done.
pub(super) fn done(done: Done) -> String {
    let what = match done {
        Done::Program => "Your program is connected.",
        Done::Web => "This browser is signed in for 12 hours.",
    };
    let body =
        format!("<h1>You are signed in</h1><p>{what}</p><p class=\"soft\">You can close this window.</p>");
    whole("Signed in", "", &body)
}

/// Says that it cannot be done.
pub(super) fn refused(heading: &str, text: &str) -> String {
    let body = format!("<h1>{}</h1><p>{}</p>", Text(heading), Text(text));
    whole(heading, "", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Waiting {
        Waiting {
            user: "maria".to_owned(),
            cluster: "shop-7".to_owned(),
            address: "192.0.2.1".parse().unwrap(),
            provider: "corp".to_owned(),
            code: "ABCD-EFGH".to_owned(),
        }
    }

    #[test]
    fn a_person_sees_who_wants_in_from_where_and_with_which_code() {
        let html = confirm("id_1", &waiting(), Some("192.0.2.1".parse().unwrap()), "t0ken");
        for part in
            ["maria", "shop-7", "192.0.2.1", "ABCD-EFGH", "Continue with <bdi>corp</bdi>", "/sign-in/id_1\""]
        {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<button").count(), 1);
        assert!(!html.contains("another address"));
        let elsewhere = confirm("id_1", &waiting(), Some("198.51.100.9".parse().unwrap()), "t0ken");
        assert!(elsewhere.contains("198.51.100.9 <span class=\"soft\">(another address)"));
    }

    #[test]
    fn no_value_becomes_markup_or_turns_the_text() {
        let hostile = "\"'><script>alert(1)</script>&\u{202e}\u{200b}\r\n\u{0}";
        let waiting =
            Waiting { user: hostile.into(), cluster: hostile.into(), provider: hostile.into(), ..waiting() };
        let pages = [
            confirm("x", &waiting, None, hostile),
            onward(&format!("https://a.example/?{hostile}")),
            refused(hostile, hostile),
        ];
        for html in pages {
            assert!(
                !html.contains("<script") && !html.contains("\"'>") && !html.contains('\u{202e}'),
                "{html}"
            );
            assert!(
                html.contains("&quot;&#39;&gt;&lt;script&gt;") && html.contains("&amp;\u{fffd}\u{fffd}"),
                "{html}"
            );
        }
    }

    #[test]
    fn pages_load_nothing_and_run_nothing() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"));
        for html in
            [confirm("x", &waiting(), None, "t"), done(Done::Program), done(Done::Web), refused("a", "b")]
        {
            for part in [
                "<script",
                "javascript:",
                "onclick",
                "onload",
                "style=",
                "src=",
                "http:",
                "https:",
                "@import",
            ] {
                assert!(!html.contains(part), "{part}: {html}");
            }
        }
    }
}
