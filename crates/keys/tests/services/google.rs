//! A small Google: the token endpoint, the credentials of service accounts, and Cloud KMS, as their references describe
//! them. No emulator of Cloud KMS is published, so this one stands in for it; it checks what the real one checks: the
//! assertion's signature and times, scopes, permissions, checksums, states of versions, and the authenticated data.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use model::KeptSecret;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub const ACCOUNT: &str = "chitin@project.iam.gserviceaccount.com";
pub const OTHER_ACCOUNT: &str = "kms-user@project.iam.gserviceaccount.com";
const KMS_SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";
const PLATFORM_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// What may be changed while it runs.
pub struct World {
    public_key: DecodingKey,
    token_uri: String,
    /// Tokens that are valid: whose, and for what.
    tokens: HashMap<String, (String, String)>,
    pub assertions: usize,
    /// Who may use the keys.
    pub users: HashSet<String>,
    /// Whether the account may act as the other.
    pub may_impersonate: bool,
    pub is_account_key_valid: bool,
    /// The key's versions, from 1; the last is the primary one.
    pub versions: Vec<Version>,
    pub key: String,
    /// What goes wrong with the next answers.
    pub fault: Fault,
}

#[derive(Clone)]
pub struct Version {
    material: [u8; 32],
    pub state: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Bytes change on the way here.
    BadCiphertextChecksum,
    BadPlaintextChecksum,
    /// The service did not look at the checksums.
    NotVerified,
    Status(u16),
    /// An answer of something that stands in between.
    Html(u16),
    /// An answer of another version's name.
    ForeignName,
}

pub struct Google {
    pub world: Arc<Mutex<World>>,
    pub address: String,
    pub key_file: KeptSecret,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Google {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One for all tests, because it takes long to make.
static ACCOUNT_KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Google {
    pub async fn start() -> Self {
        let pair = &*ACCOUNT_KEY;
        let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let token_uri = format!("{address}/token");
        let key_file = json!({
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "key-1",
            "private_key": pem("PRIVATE KEY", private.as_ref()),
            "client_email": ACCOUNT,
            "token_uri": token_uri,
        });
        let mut world = World {
            public_key: DecodingKey::from_rsa_pem(pem("PUBLIC KEY", public.as_ref()).as_bytes()).unwrap(),
            token_uri,
            tokens: HashMap::new(),
            assertions: 0,
            users: HashSet::from([ACCOUNT.to_owned()]),
            may_impersonate: false,
            is_account_key_valid: true,
            versions: Vec::new(),
            key: "projects/project/locations/europe-west3/keyRings/ring/cryptoKeys/shop".to_owned(),
            fault: Fault::None,
        };
        world.rotate();
        let world = Arc::new(Mutex::new(world));
        let router = axum::Router::new()
            .route("/token", post(token))
            .route("/v1/{*rest}", post(call))
            .with_state(world.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { world, address, key_file: KeptSecret::new(key_file.to_string()), server }
    }

    pub fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap());
    }
}

impl World {
    pub fn rotate(&mut self) {
        let mut material = [0; 32];
        keys::fill_random(&mut material);
        self.versions.push(Version { material, state: "ENABLED" });
    }

    /// As if all had ended.
    pub fn end_tokens(&mut self) {
        self.tokens.clear();
    }

    fn give(&mut self, account: &str, scope: &str) -> String {
        let token = format!("ya29.{}-{}", account, self.tokens.len());
        self.tokens.insert(token.clone(), (account.to_owned(), scope.to_owned()));
        token
    }
}

type Shared = State<Arc<Mutex<World>>>;

fn refuse(code: u16, status: &str, message: &str) -> Response {
    let body = json!({"error": {"code": code, "message": message, "status": status}});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}

fn grant_refused(description: &str) -> Response {
    let body = json!({"error": "invalid_grant", "error_description": description});
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

async fn token(State(world): Shared, body: String) -> Response {
    let mut world = world.lock().unwrap();
    let form: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[&world.token_uri]);
    validation.set_issuer(&[ACCOUNT]);
    validation.set_required_spec_claims(&["exp", "aud", "iss"]);
    validation.leeway = 60;
    world.assertions += 1;
    if !world.is_account_key_valid {
        return grant_refused("Invalid JWT Signature.");
    }
    let claims = match jsonwebtoken::decode::<Value>(&form["assertion"], &world.public_key, &validation) {
        Ok(decoded) => {
            assert_eq!(decoded.header.kid.as_deref(), Some("key-1"));
            decoded.claims
        }
        Err(cause) if *cause.kind() == jsonwebtoken::errors::ErrorKind::ExpiredSignature => {
            return grant_refused(
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your \
                 iat and exp values in the JWT claim.",
            );
        }
        Err(_) => return grant_refused("Invalid JWT Signature."),
    };
    let scope = claims["scope"].as_str().unwrap().to_owned();
    let token = world.give(ACCOUNT, &scope);
    Json(json!({"access_token": token, "expires_in": 3599, "token_type": "Bearer"})).into_response()
}

async fn call(
    State(world): Shared,
    Path(rest): Path<String>,
    headers: HeaderMap,
    body: Json<Value>,
) -> Response {
    let mut world = world.lock().unwrap();
    match world.fault {
        Fault::Status(code) => return refuse(code, "UNAVAILABLE", "The service is currently unavailable."),
        Fault::Html(code) => {
            return (StatusCode::from_u16(code).unwrap(), "<html>proxy</html>").into_response();
        }
        _ => {}
    }
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    let Some((account, scope)) = bearer
        .and_then(|value| value.strip_prefix("Bearer "))
        .and_then(|token| world.tokens.get(token))
        .cloned()
    else {
        return refuse(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.");
    };
    let (name, verb) = rest.rsplit_once(':').unwrap();
    if verb == "generateAccessToken" {
        assert_eq!(scope, PLATFORM_SCOPE);
        assert_eq!(body["scope"], json!([KMS_SCOPE]));
        if !world.may_impersonate || name != format!("projects/-/serviceAccounts/{OTHER_ACCOUNT}") {
            let message =
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).";
            return refuse(403, "PERMISSION_DENIED", message);
        }
        let token = world.give(OTHER_ACCOUNT, KMS_SCOPE);
        let ends = (OffsetDateTime::now_utc() + time::Duration::hours(1)).format(&Rfc3339).unwrap();
        return Json(json!({"accessToken": token, "expireTime": ends})).into_response();
    }
    assert_eq!(scope, KMS_SCOPE);
    if !world.users.contains(&account) {
        let message = format!(
            "Permission 'cloudkms.cryptoKeyVersions.useTo{verb}' denied on resource '{name}' (or it may not exist)."
        );
        return refuse(403, "PERMISSION_DENIED", &message);
    }
    if name != world.key {
        return refuse(404, "NOT_FOUND", &format!("CryptoKey {name} not found."));
    }
    match verb {
        "encrypt" => encrypt(&world, &body),
        "decrypt" => decrypt(&world, &body),
        _ => refuse(404, "NOT_FOUND", "no such method"),
    }
}

/// The bytes of a field, whose checksum must be right.
fn field(body: &Value, name: &str) -> Result<Vec<u8>, Box<Response>> {
    let bytes = STANDARD.decode(body[name].as_str().unwrap()).unwrap();
    let said = body[format!("{name}Crc32c")].as_str().unwrap();
    if said == crc32c::crc32c(&bytes).to_string() {
        Ok(bytes)
    } else {
        let message = format!("The checksum in field {name}_crc32c did not match the data in field {name}.");
        Err(Box::new(refuse(400, "INVALID_ARGUMENT", &message)))
    }
}

fn usable(world: &World, number: usize) -> Result<LessSafeKey, Box<Response>> {
    let version = &world.versions[number - 1];
    if version.state == "ENABLED" {
        return Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &version.material).unwrap()));
    }
    let name = format!("{}/cryptoKeyVersions/{number}", world.key);
    let message = format!("{name} is not enabled, current state is: {}.", version.state);
    Err(Box::new(refuse(400, "FAILED_PRECONDITION", &message)))
}

fn encrypt(world: &World, body: &Value) -> Response {
    let number = world.versions.len();
    let parts = (field(body, "plaintext"), field(body, "additionalAuthenticatedData"), usable(world, number));
    let (mut bytes, context, key) = match parts {
        (Ok(plain), Ok(context), Ok(key)) => (plain, context, key),
        (Err(refused), _, _) | (_, Err(refused), _) | (_, _, Err(refused)) => return *refused,
    };
    let mut nonce = [0; 12];
    keys::fill_random(&mut nonce);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut bytes)
        .unwrap();
    let sealed = [&[u8::try_from(number).unwrap()], nonce.as_slice(), &bytes].concat();
    let checksum = crc32c::crc32c(&sealed) ^ u32::from(world.fault == Fault::BadCiphertextChecksum);
    let is_verified = world.fault != Fault::NotVerified;
    let key = if world.fault == Fault::ForeignName { "projects/evil" } else { world.key.as_str() };
    Json(json!({
        "name": format!("{key}/cryptoKeyVersions/{number}"),
        "ciphertext": STANDARD.encode(&sealed),
        "ciphertextCrc32c": checksum.to_string(),
        "verifiedPlaintextCrc32c": is_verified,
        "verifiedAdditionalAuthenticatedDataCrc32c": is_verified,
        "protectionLevel": "SOFTWARE",
    }))
    .into_response()
}

fn decrypt(world: &World, body: &Value) -> Response {
    let invalid = || refuse(400, "INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.");
    let (sealed, context) = match (field(body, "ciphertext"), field(body, "additionalAuthenticatedData")) {
        (Ok(sealed), Ok(context)) => (sealed, context),
        (Err(refused), _) | (_, Err(refused)) => return *refused,
    };
    if sealed.len() < 29 || !(1..=world.versions.len()).contains(&usize::from(sealed[0])) {
        return invalid();
    }
    let key = match usable(world, usize::from(sealed[0])) {
        Ok(key) => key,
        Err(refused) => return *refused,
    };
    let nonce = Nonce::try_assume_unique_for_key(&sealed[1..13]).unwrap();
    let mut bytes = sealed[13..].to_vec();
    let Ok(plain) = key.open_in_place(nonce, Aad::from(context), &mut bytes) else { return invalid() };
    let checksum = crc32c::crc32c(plain) ^ u32::from(world.fault == Fault::BadPlaintextChecksum);
    Json(json!({"plaintext": STANDARD.encode(plain), "plaintextCrc32c": checksum.to_string(), "usedPrimary": true}))
        .into_response()
}
