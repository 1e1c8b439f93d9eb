//! Signing in through a browser: OpenID Connect's authorization code flow with PKCE (RFC 7636), state and nonce.
//!
//! A flow is known by its state, counts once and for ten minutes, and belongs to the browser that holds its cookie: whoever
//! gets hold of an address with a code in it, or slips somebody the address of a flow of his own, has nothing.

mod trial;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::{SecretText, fill_random};
use model::{Clock, FetchBody, Fetcher, Hidden, IdentityProvider, Origin};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AuthType, AuthUrl, AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken, EndpointNotSet,
    EndpointSet, ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, StandardRevocableToken, StandardTokenResponse, TokenResponse,
    TokenUrl, http,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use url::Url;

use crate::digest_of;
use crate::shares::{Part, Shares};
use crate::token::{Claims, Discovery, Kind, Question, Tokens, fetch, quoted};
pub use trial::try_out;

/// For how long a flow may take, from its beginning to its end.
pub const FLOW_LIFE: Duration = Duration::from_secs(600);
/// Most flows under way. When there are more, the oldest of the most crowded network is forgotten.
pub const FLOWS_MAX: usize = 10_000;
/// Longest code, state, cookie or issuer that is looked at, in bytes.
pub const PARAMETER_BYTES_MAX: usize = 4_096;

/// Flows under way, each with what it is for.
pub struct Flows<P> {
    tokens: Arc<Tokens>,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
    pending: Mutex<Pending<P>>,
}

/// By the digest of their state, so that the time of a look-up tells nothing of a state; and by where their browsers are.
struct Pending<P> {
    flows: HashMap<[u8; 32], Flow<P>>,
    shares: Shares<[u8; 32]>,
}

struct Flow<P> {
    provider: Arc<IdentityProvider>,
    redirect_url: RedirectUrl,
    nonce: SecretText,
    verifier: SecretText,
    cookie: SecretText,
    until: OffsetDateTime,
    purpose: P,
}

/// A flow that was begun.
#[derive(Debug)]
pub struct Begun {
    /// Where the browser must go: the provider's page.
    pub location: Url,
    /// What the browser must keep in a cookie and bring back: 43 letters, digits, `-` and `_`.
    pub state_cookie: SecretText,
}

/// Why a flow did not begin or end. Its text is for the client; [`Self::detail`] is for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OidcRefused {
    /// The provider cannot be used with a browser: its document has no client id.
    #[error("OIDC: disabled")]
    Disabled,
    /// The flow could not begin, because of the provider or its document.
    #[error("OIDC: unable to initiate authentication")]
    Initiate(String),
    /// There is no such flow for this browser: unknown, used, too late, or another browser's.
    #[error("OIDC: unable to complete authentication")]
    NoFlow(&'static str),
    /// The provider, or its token, did not say who the person is.
    #[error("OIDC: unable to complete authentication")]
    Complete(String),
}

impl OidcRefused {
    /// More for the operator's log. Nothing in it is secret.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Disabled => None,
            Self::NoFlow(detail) => Some(detail),
            Self::Initiate(detail) | Self::Complete(detail) => Some(detail),
        }
    }
}

/// The one field of a token response that OAuth alone does not know. It does not print.
#[derive(Deserialize, Serialize)]
struct IdToken {
    id_token: Option<String>,
}

impl fmt::Debug for IdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdToken")
    }
}

impl ExtraTokenFields for IdToken {}

type Answer = StandardTokenResponse<IdToken, BasicTokenType>;
type OidcClient = Client<
    BasicErrorResponse,
    Answer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

impl<P: Send> Flows<P> {
    /// None yet.
    pub fn new(tokens: Arc<Tokens>, fetcher: Arc<dyn Fetcher>, clock: Arc<dyn Clock>) -> Self {
        let pending = Pending { flows: HashMap::new(), shares: Shares::default() };
        Self { tokens, fetcher, clock, pending: Mutex::new(pending) }
    }

    /// Begins a flow for a browser that comes from there. `redirect_url` is our own callback, as it is registered with the
    /// provider.
    pub async fn begin(
        &self,
        provider: Arc<IdentityProvider>,
        redirect_url: &str,
        from: &Origin,
        purpose: P,
    ) -> Result<Begun, OidcRefused> {
        let failed = |why: String| OidcRefused::Initiate(format!("{}: {why}", quoted(&provider.issuer)));
        let discovery = self.tokens.discovery(&provider).await.map_err(failed)?;
        let redirect_url = RedirectUrl::new(redirect_url.to_owned())
            .map_err(|_| failed("our own address is not a URL".to_owned()))?;
        let client = client(&provider, &discovery)?.set_redirect_uri(redirect_url.clone());
        let [state, nonce, verifier, cookie] = std::array::from_fn(|_| random());
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&pkce(&verifier));
        let mut request = client
            .authorize_url(|| CsrfToken::new(state.expose().to_owned()))
            .set_pkce_challenge(challenge)
            .add_extra_param("nonce", nonce.expose().to_owned());
        // Without this scope there would be no ID token, whatever a document says.
        let asked = provider.scopes.iter().map(String::as_str).filter(|scope| *scope != "openid");
        for scope in std::iter::once("openid").chain(asked) {
            request = request.add_scope(Scope::new(scope.to_owned()));
        }
        let (location, _) = request.url();
        let now = self.clock.now();
        let until = now + FLOW_LIFE;
        let flow = Flow { provider, redirect_url, nonce, verifier, cookie: cookie.clone(), until, purpose };
        self.lock().insert(digest_of(state.expose()), flow, Part::of(from), now);
        Ok(Begun { location, state_cookie: cookie })
    }

    /// Ends a flow with what the provider sent along with the browser: the state, the code and, where it sends one, its
    /// issuer (RFC 9207). `cookie` is what [`Begun::state_cookie`] was. Whatever comes of it, the state is used up.
    pub async fn finish(
        &self,
        state: &str,
        cookie: Option<&str>,
        code: &str,
        iss: Option<&str>,
    ) -> Result<(Claims, P), OidcRefused> {
        let flow = self.take(state, cookie)?;
        let issuer = &flow.provider.issuer;
        let failed = |why: String| OidcRefused::Complete(format!("{}: {why}", quoted(issuer)));
        if code.is_empty() || code.len() > PARAMETER_BYTES_MAX {
            return Err(failed("there is no code".to_owned()));
        }
        let discovery = self.tokens.discovery(&flow.provider).await.map_err(failed)?;
        // Else the code of one provider could be sent to another (RFC 9700, section 4.4).
        if iss.map_or(discovery.names_issuer, |said| said != issuer) {
            return Err(failed("the answer is another issuer's".to_owned()));
        }
        let answer = self.exchange(&flow, &discovery, code).await.map_err(failed)?;
        let id_token = answer.extra_fields().id_token.clone().map(SecretText::new);
        let id_token = id_token.ok_or_else(|| failed("the answer has no ID token".to_owned()))?;
        let access_token = SecretText::new(answer.access_token().secret().clone());
        let kind = Kind::IdToken { nonce: flow.nonce.expose(), access_token: Some(&access_token) };
        let verified = self.tokens.verify(std::slice::from_ref(&flow.provider), &id_token, kind).await;
        let claims = verified
            .map_err(|refused| failed(format!("{refused}: {}", refused.detail().unwrap_or("no details"))))?;
        Ok((claims, flow.purpose))
    }

    /// Forgets a flow that its person broke off at the provider (`error=access_denied`), and gives what it was for.
    pub fn give_up(&self, state: &str, cookie: Option<&str>) -> Result<P, OidcRefused> {
        self.take(state, cookie).map(|flow| flow.purpose)
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.lock().flows.len()
    }

    fn take(&self, state: &str, cookie: Option<&str>) -> Result<Flow<P>, OidcRefused> {
        if state.len().max(cookie.map_or(0, str::len)) > PARAMETER_BYTES_MAX {
            return Err(OidcRefused::NoFlow("state or cookie are too long"));
        }
        let flow = self.lock().take(&digest_of(state));
        let flow = flow.ok_or(OidcRefused::NoFlow("the state is unknown, or was used"))?;
        let cookie = cookie.ok_or(OidcRefused::NoFlow("the browser brought no cookie"))?;
        if self.clock.now() >= flow.until {
            return Err(OidcRefused::NoFlow("it took too long"));
        }
        constant_time::verify_slices_are_equal(cookie.as_bytes(), flow.cookie.expose().as_bytes())
            .map_err(|_| OidcRefused::NoFlow("the cookie belongs to another flow"))?;
        Ok(flow)
    }

    async fn exchange(&self, flow: &Flow<P>, discovery: &Discovery, code: &str) -> Result<Answer, String> {
        let client = client(&flow.provider, discovery)
            .map_err(|refused| refused.detail().unwrap_or("it has no client id any more").to_owned())?
            .set_redirect_uri(flow.redirect_url.clone());
        let request = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(pkce(&flow.verifier));
        // A copy, so that what is sent does not borrow what it is for.
        let (fetcher, provider) = (self.fetcher.clone(), flow.provider.clone());
        let http = move |request| send(fetcher.clone(), provider.clone(), request);
        request.request_async(&http).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(said) => {
                format!("the provider refused the code: {}", quoted(said.error().as_ref()))
            }
            RequestTokenError::Request(failure) => failure.0,
            // What was answered may hold tokens.
            RequestTokenError::Parse(..) => "the answer cannot be read".to_owned(),
            RequestTokenError::Other(why) => quoted(&why),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pending<P>> {
        // No step in between can panic.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> Pending<P> {
    fn insert(&mut self, key: [u8; 32], flow: Flow<P>, from: Vec<Part>, now: OffsetDateTime) {
        // All live equally long, so the oldest lapses first.
        while let Some(oldest) = self.shares.oldest().copied()
            && self.flows.get(&oldest).is_none_or(|flow| flow.until <= now)
        {
            self.take(&oldest);
        }
        if self.flows.len() >= FLOWS_MAX
            && let Some(first) = self.shares.first_to_go(&[])
        {
            self.take(&first);
        }
        self.shares.insert(key, from);
        self.flows.insert(key, flow);
    }

    fn take(&mut self, key: &[u8; 32]) -> Option<Flow<P>> {
        self.shares.remove(key);
        self.flows.remove(key)
    }
}

impl<P> fmt::Debug for Flows<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flows")
    }
}

fn client(provider: &IdentityProvider, discovery: &Discovery) -> Result<OidcClient, OidcRefused> {
    let id = provider.client_id.clone().filter(|id| !id.is_empty()).ok_or(OidcRefused::Disabled)?;
    let lacks = |what: &str| {
        OidcRefused::Initiate(format!("{}: it has no {what} endpoint", quoted(&provider.issuer)))
    };
    let authorize = discovery.authorization_endpoint.clone().ok_or_else(|| lacks("authorization"))?;
    let token = discovery.token_endpoint.clone().ok_or_else(|| lacks("token"))?;
    let client = Client::new(ClientId::new(id))
        .set_auth_uri(AuthUrl::from_url(authorize))
        .set_token_uri(TokenUrl::from_url(token))
        .set_auth_type(if discovery.secret_in_body { AuthType::RequestBody } else { AuthType::BasicAuth });
    Ok(match &provider.client_secret {
        Some(secret) => client.set_client_secret(ClientSecret::new(secret.clone())),
        None => client,
    })
}

/// Why nothing was sent or answered.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unsent(String);

/// Carries a request of the OAuth library to whoever may open connections.
async fn send(
    fetcher: Arc<dyn Fetcher>,
    provider: Arc<IdentityProvider>,
    request: HttpRequest,
) -> Result<HttpResponse, Unsent> {
    let unsent = |why: &str| Unsent(why.to_owned());
    let authorization = match request.headers().get(http::header::AUTHORIZATION) {
        Some(value) => Some(Hidden(value.to_str().map_err(|_| unsent("odd credentials"))?.to_owned())),
        None => None,
    };
    let url = request.uri().to_string();
    let body = FetchBody { kind: "application/x-www-form-urlencoded", bytes: Hidden(request.into_body()) };
    let question = Question { url: &url, body: Some(body), authorization };
    let answer = fetch(&*fetcher, &provider, question).await.map_err(Unsent)?;
    let mut response = http::Response::builder().status(answer.status);
    if !answer.kind.is_empty() {
        response = response.header(http::header::CONTENT_TYPE, answer.kind);
    }
    response.body(answer.body).map_err(|_| unsent("the answer is no HTTP response"))
}

/// 256 random bits as 43 characters that may stand in a URL, a cookie and a code verifier (RFC 7636, section 4.1).
fn random() -> SecretText {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    fill_random(bytes.as_mut());
    SecretText::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))
}

fn pkce(verifier: &SecretText) -> PkceCodeVerifier {
    PkceCodeVerifier::new(verifier.expose().to_owned())
}

#[cfg(test)]
mod tests;
