//! Signing in through a browser: OpenID Connect's authorization code flow with PKCE (RFC 7636), state and nonce.
//!
//! A flow is known by its state, counts once and for ten minutes, and belongs to the browser that holds its cookie: whoever
//! gets hold of an address with a code in it, or slips somebody the address of a flow of his own, has nothing. The cookie is
//! the flow: sealed for its state, with a key that lives in memory and for minutes. So nothing is kept here of who has only
//! begun, and no number of strangers takes anybody's place.

mod flow;
mod trial;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::{RotatingKey, SecretText, fill_random};
use model::{Clock, FetchBody, Fetcher, Hidden, IdentityProvider};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AuthType, AuthUrl, AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken, EndpointNotSet,
    EndpointSet, ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, StandardRevocableToken, StandardTokenResponse, TokenResponse,
    TokenUrl, http,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::token::{Claims, Discovery, Kind, Question, Tokens, fetch, quoted};
use flow::{Flow, Used};
pub use trial::try_out;

/// For how long a flow may take, from its beginning to its end.
pub const FLOW_LIFE: Duration = Duration::from_secs(600);
/// Longest code that is looked at, in bytes.
pub const PARAMETER_BYTES_MAX: usize = 4_096;
/// Longest cookie, in characters.
pub const COOKIE_CHARACTERS_MAX: usize = 1_024;

/// Flows, each for something.
pub struct Flows<P> {
    tokens: Arc<Tokens>,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
    key: RotatingKey,
    used: Used,
    begun: AtomicU64,
    finished: AtomicU64,
    purpose: std::marker::PhantomData<fn() -> P>,
}

/// A flow that was begun.
#[derive(Debug)]
pub struct Begun {
    /// Where the browser must go: the provider's page.
    pub location: Url,
    /// What the browser must keep in a cookie and bring back: at most [`COOKIE_CHARACTERS_MAX`] letters, digits, `-` and `_`, as
    /// many for every purpose.
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

impl<P: Send + Serialize + DeserializeOwned> Flows<P> {
    /// None yet.
    pub fn new(tokens: Arc<Tokens>, fetcher: Arc<dyn Fetcher>, clock: Arc<dyn Clock>) -> Self {
        let (key, used) = (RotatingKey::new(FLOW_LIFE), Used::default());
        let (begun, finished) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { tokens, fetcher, clock, key, used, begun, finished, purpose: std::marker::PhantomData }
    }

    /// Begins a flow. `redirect_url` is our own callback, as it is registered with the provider.
    pub async fn begin(
        &self,
        provider: Arc<IdentityProvider>,
        redirect_url: &str,
        purpose: P,
    ) -> Result<Begun, OidcRefused> {
        let failed = |why: String| OidcRefused::Initiate(format!("{}: {why}", quoted(&provider.issuer)));
        let discovery = self.tokens.discovery(&provider).await.map_err(failed)?;
        let own = RedirectUrl::new(redirect_url.to_owned())
            .map_err(|_| failed("our own address is not a URL".to_owned()))?;
        let client = client(&provider, &discovery)?.set_redirect_uri(own);
        let too_long = || failed("our own address, or what the sign-in is for, is too long".to_owned());
        let flow = Flow::new(&provider, redirect_url, purpose, self.clock.now()).ok_or_else(too_long)?;
        let state = random();
        let state_cookie = flow.seal(&self.key, state.expose()).ok_or_else(too_long)?;
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&pkce(&flow.verifier()));
        let mut request = client
            .authorize_url(|| CsrfToken::new(state.expose().to_owned()))
            .set_pkce_challenge(challenge)
            .add_extra_param("nonce", flow.nonce().expose().to_owned());
        // Without this scope there would be no ID token, whatever a document says.
        let asked = provider.scopes.iter().map(String::as_str).filter(|scope| *scope != "openid");
        for scope in std::iter::once("openid").chain(asked) {
            request = request.add_scope(Scope::new(scope.to_owned()));
        }
        let (location, _) = request.url();
        self.begun.fetch_add(1, Ordering::Relaxed);
        Ok(Begun { location, state_cookie })
    }

    /// Ends a flow with what the provider sent along with the browser: the state, the code and, where it sends one, its
    /// issuer (RFC 9207). `cookie` is what [`Begun::state_cookie`] was; `providers` says which ones count for a purpose now, of
    /// which the one to which the person was sent must be, unchanged. Once a person was vouched for, the state is used up; a
    /// code is used up by the provider.
    pub async fn finish(
        &self,
        state: &str,
        cookie: Option<&str>,
        code: &str,
        iss: Option<&str>,
        providers: impl FnOnce(&P) -> Vec<Arc<IdentityProvider>>,
    ) -> Result<(Claims, P), OidcRefused> {
        let flow: Flow<P> = Flow::open(&self.key, state, cookie, self.clock.now())?;
        let used = OidcRefused::NoFlow("the state was used");
        if self.used.contains(state) {
            return Err(used);
        }
        let provider = flow.provider_among(providers(&flow.purpose));
        let provider =
            provider.ok_or(OidcRefused::NoFlow("its provider was changed or removed meanwhile"))?;
        let issuer = &provider.issuer;
        let failed = |why: String| OidcRefused::Complete(format!("{}: {why}", quoted(issuer)));
        if code.is_empty() || code.len() > PARAMETER_BYTES_MAX {
            return Err(failed("there is no code".to_owned()));
        }
        let discovery = self.tokens.discovery(&provider).await.map_err(failed)?;
        // Else the code of one provider could be sent to another (RFC 9700, section 4.4).
        if iss.map_or(discovery.names_issuer, |said| said != issuer) {
            return Err(failed("the answer is another issuer's".to_owned()));
        }
        let answer = self.exchange(&flow, &provider, &discovery, code).await.map_err(failed)?;
        let id_token = answer.extra_fields().id_token.clone().map(SecretText::new);
        let id_token = id_token.ok_or_else(|| failed("the answer has no ID token".to_owned()))?;
        let access_token = SecretText::new(answer.access_token().secret().clone());
        let nonce = flow.nonce();
        let kind = Kind::IdToken { nonce: nonce.expose(), access_token: Some(&access_token) };
        let verified = self.tokens.verify(std::slice::from_ref(&provider), &id_token, kind).await;
        let claims = verified
            .map_err(|refused| failed(format!("{refused}: {}", refused.detail().unwrap_or("no details"))))?;
        // Of two that come at once, too, only one gets this far.
        if !self.used.insert(state, flow.until, self.clock.now()) {
            return Err(used);
        }
        self.finished.fetch_add(1, Ordering::Relaxed);
        Ok((claims, flow.purpose))
    }

    /// How many began, and how many of some time ended with a person who was vouched for, since this was last asked. The
    /// others were abandoned, or are under way.
    pub fn take_counts(&self) -> (u64, u64) {
        (self.begun.swap(0, Ordering::Relaxed), self.finished.swap(0, Ordering::Relaxed))
    }

    /// What a flow was for that its person broke off at the provider (`error=access_denied`).
    pub fn give_up(&self, state: &str, cookie: Option<&str>) -> Result<P, OidcRefused> {
        Flow::open(&self.key, state, cookie, self.clock.now()).map(|flow| flow.purpose)
    }

    async fn exchange(
        &self,
        flow: &Flow<P>,
        provider: &Arc<IdentityProvider>,
        discovery: &Discovery,
        code: &str,
    ) -> Result<Answer, String> {
        let redirect_url = RedirectUrl::new(flow.redirect_url.clone());
        let client = client(provider, discovery)
            .map_err(|refused| refused.detail().unwrap_or("it has no client id any more").to_owned())?
            .set_redirect_uri(redirect_url.map_err(|_| "our own address is not a URL".to_owned())?);
        let request = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(pkce(&flow.verifier()));
        // A copy, so that what is sent does not borrow what it is for.
        let (fetcher, provider) = (self.fetcher.clone(), provider.clone());
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
