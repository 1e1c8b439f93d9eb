//! The pages before a desk that knows one cluster, one waiting session and one web session.

use std::sync::Mutex;

use async_trait::async_trait;
use axum::http::HeaderMap;
use keys::SecretText;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;

const STATE_TEXT: &str = "s0123456789-abcdef_XYZ";
const STATE_COOKIE: &str = "__Host-chitin_state_s0123456789-abcd";
const TOKEN: &str = "tokentokentokentokentokentokentokentokentok";
const LOCATION: &str = "https://idp.example/authorize?client_id=1&state=s0123456789-abcdef_XYZ&x=%22";

#[derive(Default)]
struct Double {
    heard: Mutex<Vec<String>>,
    location: Mutex<Option<String>>,
    arrival: Mutex<Option<DeskRefused>>,
}

impl Double {
    fn heard(&self, what: impl Into<String>) {
        self.heard.lock().unwrap().push(what.into());
    }

    fn departure(&self) -> Departure {
        let location = self.location.lock().unwrap().clone().unwrap_or(LOCATION.to_owned());
        Departure { location, state_cookie: SecretText::new(STATE_TEXT.to_owned()) }
    }
}

fn session() -> WebSession {
    WebSession {
        cluster: "shop-7".to_owned(),
        user: "maria".to_owned(),
        provider: "corp".to_owned(),
        expires_at: OffsetDateTime::UNIX_EPOCH,
    }
}

#[async_trait]
impl SignInDesk for Double {
    async fn begin_login(&self, login: Login) -> Result<Departure, DeskRefused> {
        self.heard(format!(
            "login {} {:?} {:?}",
            login.cluster,
            login.provider,
            login.from.map(|from| from.address)
        ));
        if login.cluster == "shop-7" { Ok(self.departure()) } else { Err(DeskRefused::NotBegun) }
    }

    async fn finish(&self, callback: Callback) -> Result<Arrival, DeskRefused> {
        let cookie = callback.cookie.map(|cookie| cookie.expose().to_owned());
        let outcome = callback.outcome.map(|code| code.expose().to_owned());
        self.heard(format!("finish {} {cookie:?} {outcome:?} {:?}", callback.state, callback.issuer));
        if let Some(refused) = *self.arrival.lock().unwrap() {
            return Err(refused);
        }
        match (cookie.as_deref(), outcome.as_deref()) {
            (Some(STATE_TEXT), Ok("web")) => Ok(Arrival::Session {
                token: SecretText::new(TOKEN.to_owned()),
                lasts: Duration::from_secs(43_200),
                session: session(),
            }),
            (Some(STATE_TEXT), Ok("sql")) => {
                Ok(Arrival::Ticket { user: "maria".to_owned(), cluster: "shop-7".to_owned() })
            }
            _ => Err(DeskRefused::NotCompleted),
        }
    }

    async fn ticket(&self, id: &str, _from: Option<&Origin>) -> Result<Waiting, DeskRefused> {
        if id != "ticket-1" {
            return Err(DeskRefused::Gone);
        }
        Ok(Waiting {
            user: "<b>maria".to_owned(),
            cluster: "shop-7".to_owned(),
            address: "192.0.2.1".parse().unwrap(),
            provider: "corp".to_owned(),
            code: "ABCD-EFGH".to_owned(),
        })
    }

    async fn begin_ticket(&self, id: &str, from: Option<&Origin>) -> Result<Departure, DeskRefused> {
        self.heard(format!("begin {id} {:?}", from.map(|from| from.address)));
        Ok(self.departure())
    }

    async fn session(&self, token: &SecretText, _from: Option<&Origin>) -> Option<WebSession> {
        (token.expose() == TOKEN).then(session)
    }

    async fn log_out(&self, token: &SecretText) -> bool {
        token.expose() == TOKEN
    }
}

struct World {
    desk: Arc<Double>,
    web: Web,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    /// Whether the connection may live on.
    is_authenticated: bool,
    text: String,
}

impl Answer {
    fn cookies(&self) -> Vec<String> {
        let values = self.headers.get_all(header::SET_COOKIE);
        values.iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    /// The value of the one cookie that this answer sets.
    fn cookie(&self, name: &str) -> String {
        let cookies = self.cookies();
        let found = cookies.iter().find_map(|cookie| cookie.strip_prefix(&format!("{name}=")));
        found.unwrap().split(';').next().unwrap().to_owned()
    }
}

impl World {
    fn new() -> Self {
        let desk = Arc::new(Double::default());
        Self { web: Web::new(desk.clone()), desk }
    }

    async fn send(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body.to_owned())).unwrap();
        request.extensions_mut().insert(Origin::public([192, 0, 2, 1].into()));
        assert!(serves(request.uri()), "{uri}");
        let (head, body) = self.web.answer(request).await.into_parts();
        let text = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
        let is_authenticated = head.extensions.get::<crate::Authenticated>().is_some();
        Answer { status: head.status.as_u16(), headers: head.headers, is_authenticated, text }
    }

    async fn get(&self, uri: &str) -> Answer {
        self.send("GET", uri, &[], "").await
    }

    async fn back(&self, query: &str, cookies: &str) -> Answer {
        self.send("GET", &format!("{CALLBACK}?{query}"), &[("cookie", cookies)], "").await
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.desk.heard.lock().unwrap())
    }
}

#[tokio::test]
async fn signing_in_leads_to_the_provider_and_leaves_a_cookie() {
    let world = World::new();
    let answer = world.get("/oidc/v1/login?cluster=shop-7&provider=corp").await;
    assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (307, LOCATION));
    let expected =
        format!("{STATE_COOKIE}={STATE_TEXT}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=600");
    assert_eq!(answer.cookies(), [expected]);
    assert_eq!(world.heard(), ["login shop-7 Some(\"corp\") Some(192.0.2.1)"]);
    assert_eq!(world.get("/oidc/v1/login?cluster=shop-7").await.status, 307);
    assert_eq!(world.heard(), ["login shop-7 None Some(192.0.2.1)"]);
}

#[tokio::test]
async fn a_sign_in_that_cannot_begin_says_no_more_than_that() {
    let world = World::new();
    let unknown = world.get("/oidc/v1/login?cluster=other-9").await;
    assert_eq!(unknown.status, 400);
    assert!(unknown.text.contains("OIDC: unable to initiate authentication"), "{}", unknown.text);
    assert!(unknown.cookies().is_empty());
    world.heard();
    let long = format!("/oidc/v1/login?cluster={}", "a".repeat(257));
    for wrong in ["/oidc/v1/login", "/oidc/v1/login?cluster=a&cluster=b", long.as_str()] {
        assert_eq!(world.get(wrong).await.status, 400, "{wrong}");
    }
    assert!(world.heard().is_empty(), "nobody was asked");
}

#[tokio::test]
async fn no_parameter_leads_a_browser_elsewhere() {
    let world = World::new();
    let query = "cluster=shop-7&redirect=https://evil.example&next=//evil.example&return_to=/x&location=y";
    let answer = world.get(&format!("/oidc/v1/login?{query}")).await;
    assert_eq!(answer.headers["location"].to_str().unwrap(), LOCATION);
    for odd in
        ["javascript:alert(1)?state=s0123456789-abcdef", "data:text/html,x", "https://idp.example/", "/x"]
    {
        *world.desk.location.lock().unwrap() = Some(odd.to_owned());
        let answer = world.get("/oidc/v1/login?cluster=shop-7").await;
        assert_eq!((answer.status, answer.headers.contains_key("location")), (400, false), "{odd}");
    }
}

#[tokio::test]
async fn coming_back_makes_a_session_once_the_desk_agrees() {
    let world = World::new();
    let cookies = format!("other=1; {STATE_COOKIE}={STATE_TEXT}");
    let answer =
        world.back(&format!("state={STATE_TEXT}&code=web&iss=https%3A%2F%2Fidp.example"), &cookies).await;
    // The code and the state do not stay in the address bar.
    assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (303, "/oidc/v1/done/web"));
    let done = world.get("/oidc/v1/done/web").await;
    assert!(done.status == 200 && done.text.contains("You can close this window"), "{}", done.text);
    assert_eq!(world.get("/oidc/v1/done/other").await.status, 404);
    let expected =
        format!("__Host-chitin_session={TOKEN}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=43200");
    let gone = format!("{STATE_COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0");
    assert_eq!(answer.cookies(), [expected, gone]);
    let heard = format!("finish {STATE_TEXT} Some({STATE_TEXT:?}) Ok(\"web\") Some(\"https://idp.example\")");
    assert_eq!(world.heard(), [heard]);
    assert!(!answer.text.contains(TOKEN));
}

#[tokio::test]
async fn t53_coming_back_without_this_browser_s_cookie_is_no_sign_in() {
    let world = World::new();
    let other = "__Host-chitin_state_ffffffffffffffff=ffffffffffffffff";
    for cookies in ["", other, "__Host-chitin_state_s0123456789-abcd="] {
        let answer = world.back(&format!("state={STATE_TEXT}&code=web"), cookies).await;
        assert_eq!(answer.status, 400, "{cookies}");
        assert!(answer.text.contains("OIDC: unable to complete authentication"), "{}", answer.text);
        assert!(!answer.cookies().iter().any(|cookie| cookie.contains("chitin_session")));
        assert_eq!(world.heard(), [format!("finish {STATE_TEXT} None Ok(\"web\") None")]);
    }
}

#[tokio::test]
async fn malformed_answers_of_providers_never_reach_the_desk() {
    let world = World::new();
    let cookies = format!("{STATE_COOKIE}={STATE_TEXT}");
    let (state, long) = (format!("state={STATE_TEXT}"), "a".repeat(4_097));
    let wrong = [
        String::new(),
        "code=web".to_owned(),
        state.clone(),
        format!("{state}&code="),
        format!("{state}&code=web&error=x"),
        format!("{state}&{state}&code=web"),
        format!("{state}&code=web&code=web"),
        format!("{state}&code={long}"),
        "state=short&code=web".to_owned(),
        "state=s0123456789%3babcdef&code=web".to_owned(),
        format!("state={}&code=web", "a".repeat(513)),
    ];
    for query in &wrong {
        assert_eq!(world.back(query, &cookies).await.status, 400, "{query}");
    }
    assert!(world.heard().is_empty());
    let answer = world.back(&format!("{state}&error=access_denied%0a%1b[31m"), &cookies).await;
    assert_eq!(answer.status, 400);
    assert!(!answer.text.contains("access_denied"));
    assert_eq!(
        world.heard(),
        [format!("finish {STATE_TEXT} Some({STATE_TEXT:?}) Err(\"access_denied[31m\") None")]
    );
    let long = world.back(&format!("{state}&code={}", "a".repeat(9_000)), &cookies).await;
    assert_eq!(long.status, 414);
}

#[tokio::test]
async fn what_the_desk_refuses_has_its_status() {
    let world = World::new();
    let cases = [
        (DeskRefused::NotCompleted, 400),
        (DeskRefused::Forbidden, 403),
        (DeskRefused::Gone, 404),
        (DeskRefused::Busy, 503),
    ];
    for (refused, status) in cases {
        *world.desk.arrival.lock().unwrap() = Some(refused);
        let answer = world.back(&format!("state={STATE_TEXT}&code=web"), "").await;
        assert_eq!(answer.status, status);
        assert!(answer.text.contains(&refused.to_string()), "{}", answer.text);
    }
}

#[tokio::test]
async fn t53_a_person_confirms_what_waits_and_goes_on_to_the_provider() {
    let world = World::new();
    let page = world.get("/sign-in/ticket-1").await;
    assert_eq!(page.status, 200);
    assert!(world.heard().is_empty(), "looking changes nothing");
    for part in ["&lt;b&gt;maria", "shop-7", "192.0.2.1", "ABCD-EFGH", "Continue with <bdi>corp</bdi>"] {
        assert!(page.text.contains(part), "{part}");
    }
    let form = page.cookie("__Host-chitin_form");
    assert!(page.cookies()[0].contains("SameSite=Strict") && page.text.contains(&form));
    let cookie = format!("__Host-chitin_form={form}");
    let headers = [
        ("cookie", cookie.as_str()),
        ("sec-fetch-site", "same-origin"),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let answer =
        world.send("POST", "/sign-in/ticket-1", &headers, &format!("form={form}&code=ABCD-EFGH")).await;
    assert_eq!(answer.status, 200);
    let refresh =
        "<meta http-equiv=\"refresh\" content=\"0;url=https://idp.example/authorize?client_id=1&amp;state=";
    assert!(answer.text.contains(refresh), "{}", answer.text);
    assert_eq!(answer.cookie(STATE_COOKIE), STATE_TEXT);
    assert_eq!(world.heard(), ["begin ticket-1 Some(192.0.2.1)"]);
    let done =
        world.back(&format!("state={STATE_TEXT}&code=sql"), &format!("{STATE_COOKIE}={STATE_TEXT}")).await;
    assert_eq!((done.status, done.headers["location"].to_str().unwrap()), (303, "/oidc/v1/done/program"));
    let said = world.get("/oidc/v1/done/program").await;
    assert!(said.text.contains("Your program is connected") && said.text.contains("close this window"));
    assert!(
        !done.cookies().iter().any(|cookie| cookie.contains("chitin_session")),
        "no web session comes of it"
    );
    // A second tab keeps the form of the first one alive.
    let again = world.send("GET", "/sign-in/ticket-1", &[("cookie", &cookie)], "").await;
    assert_eq!(again.cookie("__Host-chitin_form"), form);
}

#[tokio::test]
async fn t53_no_other_site_presses_the_button() {
    let world = World::new();
    let form = world.get("/sign-in/ticket-1").await.cookie("__Host-chitin_form");
    let (cookie, body) = (format!("__Host-chitin_form={form}"), format!("form={form}&code=ABCD-EFGH"));
    let other = "x".repeat(43);
    let (other_cookie, other_body) =
        (format!("__Host-chitin_form={other}"), format!("form={other}&code=ABCD-EFGH"));
    let (own, site) = (("cookie", cookie.as_str()), "sec-fetch-site");
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[], &body),
        (&[own], "code=ABCD-EFGH"),
        (&[own], &other_body),
        (&[("cookie", &other_cookie)], &body),
        (&[own, (site, "cross-site")], &body),
        (&[own, (site, "same-site")], &body),
        (&[own, (site, "none")], &body),
        (&[own], &body.replace("ABCD", "WXYZ")),
        (&[own], &body.replace("&code=ABCD-EFGH", "")),
    ];
    for (headers, body) in cases {
        let answer = world.send("POST", "/sign-in/ticket-1", headers, body).await;
        assert_eq!((answer.status, answer.cookies().len()), (403, 0), "{headers:?} {body}");
    }
    let short = [("cookie", "__Host-chitin_form=a")];
    assert_eq!(world.send("POST", "/sign-in/ticket-1", &short, "form=a&code=ABCD-EFGH").await.status, 403);
    assert!(world.heard().is_empty());
}

#[tokio::test]
async fn t53_guessed_tickets_are_nothing() {
    let world = World::new();
    let long = format!("/sign-in/{}", "a".repeat(65));
    for wrong in
        ["/sign-in/ticket-2", "/sign-in/", "/sign-in/a/b", "/sign-in/%3Cb%3E", "/sign-in/..%2f", &long]
    {
        let answer = world.get(wrong).await;
        assert_eq!(answer.status, 404, "{wrong}");
        assert!(!answer.text.contains("<b>") && !answer.text.is_empty(), "{wrong}");
    }
}

#[tokio::test]
async fn a_session_is_shown_and_ended() {
    let world = World::new();
    let own = format!("__Host-chitin_session={TOKEN}");
    let shown = world.send("GET", SESSION, &[("cookie", &own)], "").await;
    let expected = json!({"cluster": "shop-7", "user": "maria", "provider": "corp", "expires_at": "1970-01-01T00:00:00Z"});
    assert_eq!((shown.status, serde_json::from_str::<Value>(&shown.text).unwrap()), (200, expected));
    // Users of clusters are many, and take no places of those who have a key.
    assert!(!shown.is_authenticated && !world.get("/oidc/v1/login?cluster=shop-7").await.is_authenticated);
    for cookies in ["", "__Host-chitin_session=guess", "chitin_session=x"] {
        let answer = world.send("GET", SESSION, &[("cookie", cookies)], "").await;
        assert_eq!((answer.status, answer.is_authenticated), (401, false), "{cookies}");
        assert_eq!(serde_json::from_str::<Value>(&answer.text).unwrap()["code"], 16);
        assert_eq!(world.send("POST", LOGOUT, &[("cookie", cookies)], "").await.status, 401);
    }
    let elsewhere = [("cookie", own.as_str()), ("sec-fetch-site", "cross-site")];
    assert_eq!(world.send("POST", LOGOUT, &elsewhere, "").await.status, 403);
    assert_eq!(world.send("GET", LOGOUT, &[("cookie", &own)], "").await.status, 405);
    let ended = world.send("POST", LOGOUT, &[("cookie", &own), ("sec-fetch-site", "same-origin")], "").await;
    assert_eq!((ended.status, ended.text.as_str()), (200, "{\"logged_out\":true}"));
    assert!(
        ended.cookies()[0].starts_with("__Host-chitin_session=; ")
            && ended.cookies()[0].ends_with("Max-Age=0")
    );
}

#[tokio::test]
async fn every_answer_is_held_in_a_tight_frame() {
    let world = World::new();
    for (method, uri) in [
        ("GET", "/sign-in/ticket-1"),
        ("GET", "/sign-in/none"),
        ("GET", "/oidc/v1/login"),
        ("GET", CALLBACK),
        ("GET", SESSION),
        ("GET", "/oidc/v1/nothing"),
        ("DELETE", "/sign-in/ticket-1"),
        ("HEAD", "/oidc/v1/login"),
        ("GET", "/oidc/v1/login?cluster=shop-7"),
        ("POST", CALLBACK),
    ] {
        let answer = world.send(method, uri, &[], "").await;
        let header = |name: &str| answer.headers[name].to_str().unwrap();
        let policy = header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert_eq!((header("x-frame-options"), header("referrer-policy")), ("DENY", "no-referrer"), "{uri}");
        assert_eq!(
            (header("x-content-type-options"), header("cache-control")),
            ("nosniff", "no-store"),
            "{uri}"
        );
        assert!(header("strict-transport-security").starts_with("max-age="), "{uri}");
        if answer.status >= 400 && uri != SESSION {
            assert_eq!(header("content-type"), "text/html; charset=utf-8", "{uri}");
        }
    }
    assert_eq!(world.send("HEAD", "/oidc/v1/login?cluster=shop-7", &[], "").await.status, 405);
    assert_eq!(world.heard(), ["login shop-7 None Some(192.0.2.1)"], "HEAD begins nothing");
}

#[tokio::test]
async fn one_address_cannot_ask_without_end_and_bodies_are_short() {
    let world = World::new();
    assert_eq!(world.send("POST", "/sign-in/ticket-1", &[], &"a".repeat(4_097)).await.status, 413);
    let long = format!("/sign-in/{}", "a".repeat(300));
    assert_eq!(world.get(&long).await.status, 414);
    let mut last = 0;
    for _ in 0..70 {
        let answer = world.get("/sign-in/guess").await;
        last = answer.status;
        if last == 429 {
            assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
            break;
        }
    }
    assert_eq!(last, 429);
}

#[tokio::test]
async fn t57_visitors_in_one_private_network_use_up_nobody_else_s_turns() {
    let desk: Arc<dyn SignInDesk> = Arc::new(Double::default());
    let doors = [crate::pages(desk.clone()), crate::pages(desk)];
    let ask = async |door: usize| {
        let way = model::Way::Private(model::ClusterId::random());
        let from = Origin { address: "192.168.5.9".parse().unwrap(), way };
        let mut request = Request::get(SESSION).body(Body::empty()).unwrap();
        request.extensions_mut().insert(from);
        doors[door].clone().oneshot(request).await.unwrap().status()
    };
    let mut last = StatusCode::OK;
    for _ in 0..100 {
        last = ask(0).await;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    assert_ne!(
        ask(1).await,
        StatusCode::TOO_MANY_REQUESTS,
        "the same address in another network pays for it"
    );
}
