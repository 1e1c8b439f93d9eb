//! Trying what is set of a provider before it counts: what it publishes, and the client secret as far as that goes without a
//! person.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use model::{Clock, Fetcher, IdentityProvider};
use oauth2::{AuthorizationCode, RedirectUrl, RequestTokenError};

use super::{client, pkce, random, send};
use crate::token::{Discovery, Tokens, quoted};

/// Looks up what sign-ins need of the provider: its keys, where they are not given; for browsers its endpoints; and, where a
/// client secret is kept, whether the token endpoint accepts it. `redirect_url` is our own callback.
///
/// # Errors
/// A text for the operator, without the secret.
pub async fn try_out(
    provider: &Arc<IdentityProvider>,
    redirect_url: &str,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
) -> Result<(), String> {
    // Its own, so that nothing of what is tried is kept for sign-ins.
    let tokens = Tokens::new(fetcher.clone(), clock);
    tokens.load_keys(provider).await?;
    if provider.client_id.is_none() {
        return Ok(());
    }
    let said = |why: String| format!("{}: {why}", quoted(&provider.issuer));
    let discovery = tokens.discovery(provider).await.map_err(said)?;
    // That the endpoints are there which a browser needs.
    client(provider, &discovery).map_err(|refused| refused.detail().unwrap_or_default().to_owned())?;
    if provider.client_secret.is_none() {
        return Ok(());
    }
    try_secret(provider, &discovery, redirect_url, fetcher).await.map_err(said)
}

/// Asks for a token with a code that nobody was given. A provider looks at who asks before it looks at the code (RFC 6749,
/// section 4.1.3), so the kind of its refusal tells whether it accepts the secret.
async fn try_secret(
    provider: &Arc<IdentityProvider>,
    discovery: &Discovery,
    redirect_url: &str,
    fetcher: Arc<dyn Fetcher>,
) -> Result<(), String> {
    let redirect_url =
        RedirectUrl::new(redirect_url.to_owned()).map_err(|_| "our own address is not a URL".to_owned())?;
    let client = client(provider, discovery)
        .map_err(|refused| refused.detail().unwrap_or_default().to_owned())?
        .set_redirect_uri(redirect_url);
    let request = client
        .exchange_code(AuthorizationCode::new(random().expose().to_owned()))
        .set_pkce_verifier(pkce(&random()));
    let status = Arc::new(AtomicU16::new(0));
    let (seen, provider) = (status.clone(), provider.clone());
    let http = move |request| {
        let (sent, seen) = (send(fetcher.clone(), provider.clone(), request), seen.clone());
        async move {
            let answer = sent.await;
            if let Ok(answer) = &answer {
                seen.store(answer.status().as_u16(), Ordering::Relaxed);
            }
            answer
        }
    };
    let Err(refused) = request.request_async(&http).await else {
        return Err("the provider gives a token for a code that was made up; do not trust it".to_owned());
    };
    let status = status.load(Ordering::Relaxed);
    match refused {
        RequestTokenError::Request(failure) => Err(failure.0),
        RequestTokenError::ServerResponse(said) => match said.error().as_ref() {
            "invalid_client" => Err("the provider does not accept the client id with this secret (invalid_client); give \
                                     the secret that belongs to the client id"
                .to_owned()),
            "unauthorized_client" => Err("the provider does not let this client sign people in (unauthorized_client); \
                                          allow it the authorization code flow"
                .to_owned()),
            // It knows us, and not the code.
            _ => Ok(()),
        },
        // An answer of another form says as much by its status, or nothing.
        RequestTokenError::Parse(..) | RequestTokenError::Other(_) => match status {
            401 => Err("the provider does not accept the client id with this secret (HTTP status 401); give the secret \
                        that belongs to the client id"
                .to_owned()),
            500.. => Err(format!("the token endpoint answers with HTTP status {status}")),
            _ => Ok(()),
        },
    }
}
