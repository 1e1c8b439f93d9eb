//! The pages' verbs: what a browser sent is read and bounded, the desk decides, and a page says it.

use std::sync::Arc;

use api::{Code, ErrorBody};
use aws_lc_rs::constant_time;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::SecretText;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use super::cookie::{self, SameSite};
use super::desk::{Arrival, Callback, Departure, DeskRefused, Login, SignInDesk};
use super::{From, page, said};

type Desk = State<Arc<dyn SignInDesk>>;

/// A sign-in at a provider, and the answer to a form, take no longer than this.
const FLOW_SECONDS: u64 = 600;
const NAME_BYTES_MAX: usize = 256;
const STATE_BYTES_MAX: usize = 512;
/// What a browser keeps of a sign-in at a provider.
const STATE_COOKIE_BYTES_MAX: usize = 1_024;
const CODE_BYTES_MAX: usize = 4_096;
const ISSUER_BYTES_MAX: usize = 2_048;
const ERROR_CHARACTERS_MAX: usize = 128;
const TICKET_CHARACTERS_MAX: usize = 64;
const TOKEN_BYTES_MAX: usize = 64;
const FORM_BYTES: usize = 32;
/// 32 bytes in base64 without padding.
const FORM_CHARACTERS: usize = 43;

/// Begins a sign-in for a web session.
pub(super) async fn log_in(
    State(desk): Desk,
    Extension(From(from)): Extension<From>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let (Ok(Some(cluster)), Ok(provider)) =
        (field(&query, "cluster", NAME_BYTES_MAX), field(&query, "provider", NAME_BYTES_MAX))
    else {
        let text = "The address must say which cluster: /oidc/v1/login?cluster=NAME-NUMBER";
        return said(StatusCode::BAD_REQUEST, "Which cluster?", text);
    };
    let provider = provider.filter(|provider| !provider.is_empty());
    match desk.begin_login(Login { cluster, provider, from }).await {
        Ok(departure) => match depart(&departure) {
            Some((location, cookie)) => {
                let own = [(header::LOCATION, location), (header::SET_COOKIE, cookie)];
                make_room(&headers, (StatusCode::TEMPORARY_REDIRECT, own).into_response())
            }
            None => refuse(DeskRefused::NotBegun),
        },
        Err(refused) => refuse(refused),
    }
}

/// Finishes a sign-in: the provider sent the browser back (RFC 6749, section 4.1.2).
pub(super) async fn come_back(
    State(desk): Desk,
    Extension(From(from)): Extension<From>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let query = Zeroizing::new(query.unwrap_or_default());
    let (Ok(Some(state)), Ok(code), Ok(error), Ok(issuer)) = (
        field(&query, "state", STATE_BYTES_MAX),
        field(&query, "code", CODE_BYTES_MAX),
        field(&query, "error", CODE_BYTES_MAX),
        field(&query, "iss", ISSUER_BYTES_MAX),
    ) else {
        return refuse(DeskRefused::NotCompleted);
    };
    let outcome = match (code, error) {
        (Some(code), None) if !code.is_empty() => Ok(SecretText::new(code)),
        (None, Some(error)) => Err(plain(&error)),
        _ => return refuse(DeskRefused::NotCompleted),
    };
    let Some(name) = cookie::of_state(&state) else {
        return refuse(DeskRefused::NotCompleted);
    };
    let cookie = cookie::read(&headers, &name, STATE_COOKIE_BYTES_MAX);
    let mut response = match desk.finish(Callback { state, cookie, outcome, issuer, from }).await {
        Ok(Arrival::Ticket { user, cluster }) => {
            tracing::info!(target: "audit", ?user, ?cluster, "a waiting session was let in through a browser");
            arrived(page::Done::Program)
        }
        Ok(Arrival::Session { token, lasts, session }) => {
            let (user, cluster) = (&session.user, &session.cluster);
            let cookie = cookie::write(cookie::SESSION, token.expose(), lasts.as_secs(), SameSite::Lax);
            let Some(cookie) = cookie else {
                return refuse(DeskRefused::NotCompleted);
            };
            tracing::info!(target: "audit", ?user, ?cluster, "a web session was made");
            ([(header::SET_COOKIE, cookie)], arrived(page::Done::Web)).into_response()
        }
        Err(refused) => refuse(refused),
    };
    if let Some(gone) = cookie::write(&name, "", 0, SameSite::Lax) {
        response.headers_mut().append(header::SET_COOKIE, gone);
    }
    response
}

/// Away from the address with the code and the state: they stand in no history, and a page that is loaded again does not
/// ask for a second sign-in with them.
fn arrived(done: page::Done) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, done.path())]).into_response()
}

/// Says that the sign-in is done. Knows nobody: it is for whoever comes.
pub(super) async fn show_done(Path(what): Path<String>) -> Response {
    match page::Done::parse(&what) {
        Some(done) => Html(page::done(done)).into_response(),
        None => refuse(DeskRefused::Gone),
    }
}

/// Says whose session the browser has.
pub(super) async fn show_session(
    State(desk): Desk,
    Extension(From(from)): Extension<From>,
    headers: HeaderMap,
) -> Response {
    let session = match cookie::read(&headers, cookie::SESSION, TOKEN_BYTES_MAX) {
        Some(token) => desk.session(&token, from.as_ref()).await,
        None => None,
    };
    let Some(session) = session else {
        return nobody();
    };
    Json(json!({
        "cluster": session.cluster,
        "user": session.user,
        "provider": session.provider,
        "expires_at": session.expires_at.format(&Rfc3339).unwrap_or_default(),
    }))
    .into_response()
}

/// Ends the browser's session.
pub(super) async fn log_out(State(desk): Desk, headers: HeaderMap) -> Response {
    if is_from_elsewhere(&headers) {
        let body =
            ErrorBody::new(Code::PermissionDenied, "this may only be asked from the cloud's own pages");
        return (StatusCode::FORBIDDEN, Json(body)).into_response();
    }
    let is_ended = match cookie::read(&headers, cookie::SESSION, TOKEN_BYTES_MAX) {
        Some(token) => desk.log_out(&token).await,
        None => false,
    };
    let mut response = if is_ended { Json(json!({"logged_out": true})).into_response() } else { nobody() };
    if let Some(gone) = cookie::write(cookie::SESSION, "", 0, SameSite::Lax) {
        response.headers_mut().append(header::SET_COOKIE, gone);
    }
    response
}

/// Asks the person whether the waiting session is their own. Changes nothing.
pub(super) async fn show_ticket(
    State(desk): Desk,
    Extension(From(from)): Extension<From>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !is_ticket(&id) {
        return refuse(DeskRefused::Gone);
    }
    let waiting = match desk.ticket(&id, from.as_ref()).await {
        Ok(waiting) => waiting,
        Err(refused) => return refuse(refused),
    };
    let form = form_of(&headers).unwrap_or_else(new_form);
    let html = Html(page::confirm(&id, &waiting, from.map(|from| from.address), form.expose()));
    match cookie::write(cookie::FORM, form.expose(), FLOW_SECONDS, SameSite::Strict) {
        Some(cookie) => ([(header::SET_COOKIE, cookie)], html).into_response(),
        None => refuse(DeskRefused::NotBegun),
    }
}

/// Begins the sign-in, once a person has confirmed the code on a page that this browser was shown.
pub(super) async fn begin_ticket(
    State(desk): Desk,
    Extension(From(from)): Extension<From>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_ticket(&id) {
        return refuse(DeskRefused::Gone);
    }
    // Without this, a page elsewhere could press the button for its visitor, and whoever is signed in at the provider
    // already would let a stranger's program in without seeing anything.
    let body = std::str::from_utf8(&body).unwrap_or_default();
    let form = field(body, "form", FORM_CHARACTERS).ok().flatten();
    let is_own = match (form_of(&headers), form) {
        (Some(kept), Some(sent)) => is_same(kept.expose(), &sent),
        _ => false,
    };
    if !is_own || is_from_elsewhere(&headers) {
        let text = "The button must be pressed on the page that this browser was shown, with cookies allowed. Open \
                    the link from your terminal again.";
        return said(StatusCode::FORBIDDEN, "Not confirmed", text);
    }
    let waiting = match desk.ticket(&id, from.as_ref()).await {
        Ok(waiting) => waiting,
        Err(refused) => return refuse(refused),
    };
    let code = field(body, "code", NAME_BYTES_MAX).ok().flatten().unwrap_or_default();
    if !is_same(&waiting.code, &code) {
        let text = "The code is not that of the waiting program. Open the link from your terminal again.";
        return said(StatusCode::FORBIDDEN, "Not confirmed", text);
    }
    let departure = match desk.begin_ticket(&id, from.as_ref()).await {
        Ok(departure) => departure,
        Err(refused) => return refuse(refused),
    };
    match depart(&departure) {
        Some((_, cookie)) => {
            let page = Html(page::onward(&departure.location));
            make_room(&headers, ([(header::SET_COOKIE, cookie)], page).into_response())
        }
        None => refuse(DeskRefused::NotBegun),
    }
}

/// The way out and what the browser keeps meanwhile. `None` for what is no web address, or has no usable state.
fn depart(departure: &Departure) -> Option<(HeaderValue, HeaderValue)> {
    let location = Url::parse(&departure.location).ok()?;
    if !matches!(location.scheme(), "http" | "https") {
        tracing::error!(scheme = location.scheme(), "a provider's address is no web address");
        return None;
    }
    let state = location.query_pairs().find(|(name, _)| name == "state")?.1;
    let name = cookie::of_state(&state)?;
    let cookie = cookie::write(&name, departure.state_cookie.expose(), FLOW_SECONDS, SameSite::Lax)?;
    let mut location = HeaderValue::try_from(departure.location.as_str()).ok()?;
    location.set_sensitive(true);
    Some((location, cookie))
}

/// Takes the oldest sign-ins away that this browser has under way, where there are too many with this one.
fn make_room(headers: &HeaderMap, mut response: Response) -> Response {
    for name in cookie::states_to_go(headers) {
        if let Some(gone) = cookie::write(&name, "", 0, SameSite::Lax) {
            response.headers_mut().append(header::SET_COOKIE, gone);
        }
    }
    response
}

fn refuse(refused: DeskRefused) -> Response {
    let (status, heading) = match refused {
        DeskRefused::NotBegun | DeskRefused::NotCompleted => (StatusCode::BAD_REQUEST, "Not signed in"),
        DeskRefused::Forbidden | DeskRefused::Address => (StatusCode::FORBIDDEN, "Not signed in"),
        DeskRefused::Gone => (StatusCode::NOT_FOUND, "Nothing is waiting here"),
        DeskRefused::Busy => (StatusCode::SERVICE_UNAVAILABLE, "Not now"),
    };
    said(status, heading, &refused.to_string())
}

fn nobody() -> Response {
    let body = ErrorBody::new(Code::Unauthenticated, "there is no web session; sign in at /oidc/v1/login");
    (StatusCode::UNAUTHORIZED, Json(body)).into_response()
}

/// A parameter that may come once. `Err` for one that comes twice or is too long.
fn field(text: &str, name: &str, bytes_max: usize) -> Result<Option<String>, ()> {
    let mut values = form_urlencoded::parse(text.as_bytes()).filter(|(own, _)| own == name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some((_, value)), None) if value.len() <= bytes_max => Ok(Some(value.into_owned())),
        _ => Err(()),
    }
}

/// A provider's error code, fit for a log.
fn plain(error: &str) -> String {
    error.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(ERROR_CHARACTERS_MAX).collect()
}

fn is_ticket(id: &str) -> bool {
    (1..=TICKET_CHARACTERS_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn form_of(headers: &HeaderMap) -> Option<SecretText> {
    cookie::read(headers, cookie::FORM, FORM_CHARACTERS).filter(|form| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        form.expose().len() == FORM_CHARACTERS && form.expose().bytes().all(is_plain)
    })
}

fn new_form() -> SecretText {
    let mut bytes = Zeroizing::new([0; FORM_BYTES]);
    keys::fill_random(bytes.as_mut());
    SecretText::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))
}

/// Whether the browser says that another site, or another port of this host, asks (W3C Fetch Metadata). Browsers that
/// say nothing are held by the cookies alone.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site.as_bytes() != b"same-origin")
}

fn is_same(one: &str, other: &str) -> bool {
    constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}
