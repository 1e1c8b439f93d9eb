//! What every request passes: bounds, the key, the rate, the contract's version; and what every answer carries.

use std::sync::Arc;
use std::time::Duration;

use api::{Code, ErrorBody};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use identity::api_key::ApiKeyText;
use model::Origin;
use store::ApiKey;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

use crate::rate::{Bounds, Rate};
use crate::rejected::Rejected;
use crate::web::{self, Web};
use crate::{Refusal, State, stopping};

/// Only keys that were proven are counted, so strangers cannot fill the memory.
const PER_KEY: Bounds = Bounds { per_second: 10.0, burst: 50.0, counted_max: 1_024 };
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// For a body to arrive.
const BODY_MAX: Duration = Duration::from_secs(30);
/// For the verb. Clients wait a little longer.
const VERB_MAX: Duration = Duration::from_secs(130);
/// Of a body that nobody will look at: of a stranger's, and of a caller's.
const IGNORED_BYTES_MAX: usize = 64 * 1024;
const IGNORED_OF_CALLER_BYTES_MAX: usize = 4 * BODY_BYTES_MAX;
const IGNORED_MAX: Duration = Duration::from_secs(1);
const PATH_BYTES_MAX: usize = 4_096;
const AUTHORIZATION_BYTES_MAX: usize = 256;
const LATEST: &str = "latest";

/// Marks an answer: whoever asked has shown a key that counts. Without it a connection lives for seconds, also with a web
/// session: those are the users' of all clusters, who could take the places that the operator's connections have.
#[derive(Clone, Copy, Debug)]
pub struct Authenticated;

/// Puts the door before the verbs. They see only requests that passed, with the body whole.
pub(crate) fn close(state: State, verbs: Router) -> Router {
    let (rate, web) = (Arc::new(Rate::new(PER_KEY)), Web::new(state.desk.clone()));
    let rejected = Arc::new(Rejected::default());
    Router::new().fallback(move |request: Request| {
        let (state, rate, web, verbs) = (state.clone(), rate.clone(), web.clone(), verbs.clone());
        let rejected = rejected.clone();
        async move {
            let under_way = state.stopping.begin();
            // People with a browser have no key; these pages are bounded by themselves.
            if web::serves(request.uri()) {
                if under_way.is_none() {
                    return web::stopping();
                }
                tokio::select! {
                    biased;
                    response = web.answer(request) => response,
                    () = state.stopping.given_up() => web::stopping(),
                }
            } else {
                pass(state, rate, &rejected, verbs, (request, under_way.is_some())).await
            }
        }
    })
}

/// The pages alone; everything else does not exist.
pub(crate) fn pages(web: Web) -> Router {
    Router::new().fallback(move |request: Request| {
        let web = web.clone();
        async move {
            if web::serves(request.uri()) {
                web.answer(request).await
            } else {
                ignore(request.into_body(), IGNORED_BYTES_MAX).await;
                finish(StatusCode::NOT_FOUND.into_response(), None)
            }
        }
    })
}

async fn pass(
    state: State,
    rate: Arc<Rate<String>>,
    rejected: &Arc<Rejected>,
    verbs: Router,
    (mut request, is_in_time): (Request, bool),
) -> Response {
    let version = request.headers().get("cc-version").cloned();
    let (method, is_certificate) = (request.method().clone(), is_certificate(&request));
    if is_certificate {
        return finish(certificate(&state), version.as_ref());
    }
    if let Some(uri) = without_leading_slashes(request.uri()) {
        *request.uri_mut() = uri;
    }
    let path: String = request.uri().path().chars().take(512).collect();
    let caller = match authenticate(&state, &request) {
        Ok(caller) => caller,
        Err(refusal) => {
            // Who shows none is no more than lost.
            if request.headers().contains_key(header::AUTHORIZATION) {
                let known =
                    presented(&request).and_then(|key| state.store.snapshot().api_key(key.id()).cloned());
                let from = request.extensions().get::<Origin>();
                rejected.note(from, known.as_ref().map(|known| known.name.as_str()));
            }
            ignore(request.into_body(), IGNORED_BYTES_MAX).await;
            return finish(refusal.into_response(), version.as_ref());
        }
    };
    let response = match rate.take(caller.id.as_str(), None, Instant::now()) {
        Ok(()) if !is_in_time => {
            ignore(request.into_body(), IGNORED_OF_CALLER_BYTES_MAX).await;
            stopping::refused()
        }
        Ok(()) => tokio::select! {
            biased;
            answered = answer(verbs, request, version.as_ref()) => {
                answered.unwrap_or_else(IntoResponse::into_response)
            }
            () = state.stopping.given_up() => stopping::unfinished(&state, &method, &path),
        },
        Err(pause) => {
            ignore(request.into_body(), IGNORED_OF_CALLER_BYTES_MAX).await;
            let mut response = Refusal::new(Code::ResourceExhausted, "rate limit exceeded").into_response();
            let seconds = pause.as_secs() + 1;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
    };
    if !matches!(method, Method::GET | Method::HEAD) {
        let status = response.status().as_u16();
        // Paths hold names of clusters, users and databases, never secrets.
        tracing::info!(target: "audit", who = caller.name, key = %caller.id, %method, path, status, "API call");
    }
    let mut response = finish(response, version.as_ref());
    response.extensions_mut().insert(Authenticated);
    response
}

/// The verb's own answer, or what keeps it from being asked.
async fn answer(verbs: Router, request: Request, version: Option<&HeaderValue>) -> Result<Response, Refusal> {
    let is_known = version.is_none_or(|version| {
        [api::VERSION, LATEST, ""].iter().any(|known| version.as_bytes() == known.as_bytes())
    });
    if !is_known {
        return Err(Refusal::new(Code::InvalidArgument, "invalid Cc-Version"));
    }
    if request.uri().path_and_query().is_some_and(|path| path.as_str().len() > PATH_BYTES_MAX) {
        return Err(Refusal::invalid("the path and query are longer than 4096 bytes"));
    }
    let (head, body) = request.into_parts();
    let too_long = || Refusal::invalid("the body is longer than 1 MiB");
    let length =
        head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        ignore(body, IGNORED_OF_CALLER_BYTES_MAX).await;
        return Err(too_long());
    }
    let body: Bytes = timeout(BODY_MAX, to_bytes(body, BODY_BYTES_MAX))
        .await
        .map_err(|_| Refusal::new(Code::DeadlineExceeded, "the body took too long to arrive"))?
        .map_err(|_| too_long())?;
    // The verb runs on when its client hangs up: what was begun is finished, and logged as what it became.
    let verb = tokio::spawn(verbs.oneshot(Request::from_parts(head, Body::from(body))));
    match timeout(VERB_MAX, verb).await {
        Ok(Ok(Ok(response))) => Ok(response),
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(panic)) => Err(Refusal::internal(panic)),
        Err(_) => Err(Refusal::new(
            Code::DeadlineExceeded,
            "the call took too long; it may still be carried out, so look before you repeat it",
        )),
    }
}

/// Reads a body away. A refusal before the body's end makes HTTP/2 reset the stream, and common clients (curl 7.88) then
/// report a broken connection in place of the refusal.
async fn ignore(body: Body, bytes_max: usize) {
    let mut body = body.into_data_stream();
    let all = async {
        let mut left = bytes_max;
        while let Some(Ok(piece)) = body.next().await {
            let Some(less) = left.checked_sub(piece.len()) else { break };
            left = less;
        }
    };
    let _ = timeout(IGNORED_MAX, all).await;
}

/// Who asks. All refusals are one sentence, and a key that does not exist costs what a wrong one costs.
fn authenticate(state: &State, request: &Request) -> Result<Arc<ApiKey>, Refusal> {
    let refused = || {
        Refusal::new(
            Code::Unauthenticated,
            "the API key is missing or not valid; send it as `Authorization: Bearer KEY`",
        )
    };
    let key = presented(request).ok_or_else(refused)?;
    let known = state.store.snapshot().api_key(key.id()).cloned();
    let digest = known.as_ref().map_or([0; 32], |known| known.digest);
    match known {
        Some(known) if key.matches(&digest) => Ok(known),
        Some(_) => Err(refused()),
        None => {
            let _ = key.matches(&digest);
            Err(refused())
        }
    }
}

/// The key that a request shows, if it has the form of one.
fn presented(request: &Request) -> Option<ApiKeyText> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let text = value.to_str().ok().filter(|text| text.len() <= AUTHORIZATION_BYTES_MAX)?;
    let (scheme, key) = text.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { ApiKeyText::parse(key.trim()) } else { None }
}

/// Clients whose base URL ends in a slash ask for `//api/v1/…`.
fn without_leading_slashes(uri: &Uri) -> Option<Uri> {
    let text = uri.path_and_query()?.as_str();
    text.starts_with("//").then(|| format!("/{}", text.trim_start_matches('/')).parse().ok())?
}

/// `GET /clusters/{id}/cert`: the one path without a key, because clients fetch the root before they trust anything.
fn is_certificate(request: &Request) -> bool {
    let path: Vec<&str> = request.uri().path().trim_start_matches('/').split('/').collect();
    request.method() == Method::GET && matches!(path.as_slice(), ["clusters", id, "cert"] if !id.is_empty())
}

fn certificate(state: &State) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    ([kind], state.settings.ca_pem.clone()).into_response()
}

/// Headers of every answer. What the router refused by itself gets the contract's body.
fn finish(mut response: Response, version: Option<&HeaderValue>) -> Response {
    let status = response.status();
    if (status.is_client_error() || status.is_server_error()) && !is_json(&response) {
        let (code, message) = match status {
            StatusCode::METHOD_NOT_ALLOWED => (Code::Unimplemented, "this method is not served at this path"),
            StatusCode::NOT_FOUND => (Code::NotFound, "there is nothing at this path"),
            _ => (Code::InvalidArgument, "invalid argument: the path or query cannot be read"),
        };
        let allow = response.headers().get(header::ALLOW).cloned();
        response = (status, axum::Json(ErrorBody::new(code, message))).into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    let fixed = [
        ("strict-transport-security", "max-age=31536000; includeSubDomains"),
        ("content-security-policy", "sandbox"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let echoed = version.filter(|version| version.as_bytes() == api::VERSION.as_bytes());
    let version = echoed.cloned().unwrap_or(HeaderValue::from_static(api::VERSION));
    headers.insert("cc-version", version);
    response
}

fn is_json(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}
