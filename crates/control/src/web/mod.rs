//! Where people sign in with a browser: the only part of the API's port, besides the root certificate, that asks for no
//! key. So it is bounded by itself: per address, in every length, and in time.

mod cookie;
mod desk;
mod page;
mod sessions;
#[cfg(test)]
mod tests;
mod verbs;
mod visitors;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use model::Origin;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

pub use desk::{Arrival, Callback, Departure, DeskRefused, Login, SignInDesk, Waiting, WebSession};
pub use sessions::WebSessions;

use visitors::Visitors;

const LOGIN: &str = "/oidc/v1/login";
const CALLBACK: &str = "/oidc/v1/callback";
const SESSION: &str = "/oidc/v1/session";
const LOGOUT: &str = "/oidc/v1/logout";
const TICKETS: &str = "/sign-in/";
/// Codes of some providers are thousands of characters.
const QUERY_BYTES_MAX: usize = 8_192;
const PATH_BYTES_MAX: usize = 256;
const BODY_BYTES_MAX: usize = 4_096;
const BODY_MAX: Duration = Duration::from_secs(10);
/// For the desk, which may have to ask a provider twice or thrice.
const VERB_MAX: Duration = Duration::from_secs(45);

/// The pages, and who counts their visitors.
#[derive(Clone)]
pub(crate) struct Web {
    verbs: Router,
    visitors: Arc<Visitors>,
}

/// Who asks, as far as it is known.
#[derive(Clone)]
struct From(Option<Origin>);

/// Whether the path is one of ours.
pub(crate) fn serves(uri: &Uri) -> bool {
    let path = uri.path();
    path.starts_with("/oidc/v1/") || path.starts_with(TICKETS)
}

impl Web {
    /// The pages before this desk.
    pub(crate) fn new(desk: Arc<dyn SignInDesk>) -> Self {
        let verbs = Router::new()
            .route(LOGIN, get(verbs::log_in))
            .route(CALLBACK, get(verbs::come_back))
            .route("/oidc/v1/done/{what}", get(verbs::show_done))
            .route(SESSION, get(verbs::show_session))
            .route(LOGOUT, post(verbs::log_out))
            .route("/sign-in/{id}", get(verbs::show_ticket).post(verbs::begin_ticket))
            .with_state(desk);
        Self { verbs, visitors: Arc::default() }
    }

    /// Answers a request that [`serves`] said is ours.
    pub(crate) async fn answer(&self, request: Request) -> Response {
        finish(self.pass(request).await)
    }

    async fn pass(&self, request: Request) -> Response {
        let from = request.extensions().get::<Origin>().cloned();
        let address = from.as_ref().map(|from| from.address);
        if let Err(pause) = self.visitors.take(address, Instant::now()) {
            let text = "You asked too often. Wait a moment, then try again.";
            let mut response = said(StatusCode::TOO_MANY_REQUESTS, "Too many requests", text);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(pause.as_secs() + 1));
            return response;
        }
        // `HEAD` is left out: it would begin or finish a sign-in that nobody sees.
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return said(StatusCode::METHOD_NOT_ALLOWED, "Not served", "This method is not served here.");
        }
        let query = request.uri().query().unwrap_or_default().len();
        if query > QUERY_BYTES_MAX || request.uri().path().len() > PATH_BYTES_MAX {
            return said(
                StatusCode::URI_TOO_LONG,
                "Too long",
                "This address is longer than one of ours can be.",
            );
        }
        let (mut head, body) = request.into_parts();
        let Ok(Ok(body)) = timeout(BODY_MAX, to_bytes(body, BODY_BYTES_MAX)).await else {
            return said(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Too long",
                "What was sent is too long, or took too long.",
            );
        };
        head.extensions.insert(From(from));
        let verbs = self.verbs.clone();
        // A state and a code count once: what was begun with them is finished, also when the browser hangs up.
        let verb = tokio::spawn(verbs.oneshot(Request::from_parts(head, Body::from(body))));
        match timeout(VERB_MAX, verb).await {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(panic)) => {
                tracing::error!(%panic, "a sign-in page failed");
                said(StatusCode::INTERNAL_SERVER_ERROR, "Something failed", "The cloud's log says what.")
            }
            Err(_) => said(
                StatusCode::GATEWAY_TIMEOUT,
                "It took too long",
                "The identity provider may be slow. Try again in a moment.",
            ),
        }
    }
}

/// What a browser is shown while the program stops.
pub(crate) fn stopping() -> Response {
    let text = "This cloud is being stopped. When it runs again, begin the sign-in once more.";
    let mut response = said(StatusCode::SERVICE_UNAVAILABLE, "The cloud is stopping", text);
    crate::stopping::wait(&mut response);
    finish(response)
}

/// A page with a refusal.
fn said(status: StatusCode, heading: &str, text: &str) -> Response {
    (status, Html(page::refused(heading, text))).into_response()
}

/// Headers of every answer. What the router refused by itself gets a page.
fn finish(mut response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error && !response.headers().contains_key(header::CONTENT_TYPE) {
        let allow = response.headers().get(header::ALLOW).cloned();
        response =
            said(status, "Not found", "There is nothing here. Check the link that your program showed.");
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, page::POLICY.clone());
    let fixed = [
        ("strict-transport-security", "max-age=31536000; includeSubDomains"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
        ("cache-control", "no-store"),
    ];
    for (name, value) in fixed {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}
