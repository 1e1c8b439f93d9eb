//! Signing in with a browser: a person in Chromium while psql waits, and everybody who would like to take the place of either.

use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::sign_in::cloud;
use house::api::{Answer, curl};
use house::browser::{Person, Visit};
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine::assert_within;
use house::provider::Provider;
use house::wire::Message;
use house::{Caller, Cluster, Refusal, Wire};
use serde_json::{Value, json};

pub(super) fn stage(name: &str) -> (Cluster<'static>, Provider) {
    let provider = Provider::start("ES256");
    provider.register(cloud());
    let one = cloud().cluster(name, &[]);
    one.set_provider("corp", &provider.settings()).ok();
    one.set_rules("host all all all browser\n");
    (one, provider)
}

/// What the notice told: the page's address and the code.
#[derive(Clone, Debug)]
pub(super) struct Told {
    url: String,
    code: String,
}

impl Told {
    fn from(text: &str) -> Self {
        let url =
            text.split_whitespace().find(|word| word.starts_with("https://")).expect("an address").to_owned();
        let is_code = |word: &&str| {
            word.len() == 9
                && word
                    .chars()
                    .enumerate()
                    .all(|(at, c)| if at == 4 { c == '-' } else { c.is_ascii_alphanumeric() })
        };
        let code =
            text.split_whitespace().find(is_code).unwrap_or_else(|| panic!("no code in {text:?}")).to_owned();
        Self { url, code }
    }

    fn ticket(&self) -> &str {
        self.url.rsplit('/').next().expect("the ticket ends the address")
    }
}

/// psql that waits for its person.
struct Psql {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Psql {
    fn start(one: &Cluster<'_>) -> Self {
        let mut command =
            one.client("psql", &["-X", "-A", "-t", "-c", "select 'signed in as ' || session_user"]);
        command.env_remove("PGPASSWORD").env("PGCONNECT_TIMEOUT", "200");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("psql starts");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines, said: String::new() }
    }

    /// Waits for the notice.
    fn told(&mut self) -> Told {
        let until = Instant::now() + PATIENCE;
        while !(self.said.contains("https://") && self.said.contains("the code ")) {
            let left = until.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no address in {:?}", self.said));
            self.said += &(line + "\n");
        }
        Told::from(&self.said)
    }

    /// Waits for its end: what it printed, or everything it complained about.
    fn ends(mut self) -> Result<String, String> {
        let status = eventually("psql ends", PATIENCE, || self.child.try_wait().expect("ours"));
        let mut printed = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut printed).expect("text");
        for line in &self.lines {
            self.said += &(line + "\n");
        }
        if status.success() { Ok(printed) } else { Err(self.said.clone()) }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A raw connection that waits for its person.
fn waits(one: &Cluster<'_>) -> (Wire, Told) {
    waits_from(one, fresh_address())
}

pub(super) fn waits_from(one: &Cluster<'_>, source: IpAddr) -> (Wire, Told) {
    let mut wire = one.knock_as(&Caller::default().from(source)).expect("the gateway listens");
    loop {
        let message: Message = wire.receive().expect("a message");
        match message.tag {
            b'R' => assert_eq!(message.body, [0, 0, 0, 0]),
            b'N' => {
                let notice = Refusal::from_body(&message.body);
                assert_eq!(notice.fields.get(&'S').map(String::as_str), Some("NOTICE"));
                let told = Told::from(&notice.message);
                return (wire, told);
            }
            _ => panic!("nothing else may come before the person has signed in: {message:?}"),
        }
    }
}

/// How the gateway ends a wait.
fn refused(wire: &mut Wire) -> Refusal {
    wire.socket().set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    wire.expect_ready().expect_err("nobody may be let in")
}

/// Whether nothing has come yet: no session, no refusal.
fn still_waits(wire: &mut Wire) -> bool {
    let socket = wire.socket();
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut byte = [0];
    let seen = socket.peek(&mut byte);
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    seen.is_err()
}

/// The page of a ticket, its button, the provider's form.
pub(super) fn as_person(told: &Told, name: &str) -> Person {
    Person::default()
        .goes_to(&told.url)
        .looks("ticket")
        .clicks("button")
        .reads("Sign-in")
        .looks("form")
        .signs_in_as(name)
}

/// A request without a browser, from an address that has not asked before; the answer's headers stand before its body.
fn bare(method: &str, url: &str, more: &[&str]) -> Answer {
    bare_from(&fresh_address().to_string(), method, url, more)
}

pub(super) fn bare_from(address: &str, method: &str, url: &str, more: &[&str]) -> Answer {
    let mut command = Command::new("curl");
    command
        .args(["-i", "-4", "--interface", address, "-X", method, "--cacert"])
        .arg(cloud().root_certificate());
    curl(command.args(more).arg(url), None)
}

/// The statuses of so many requests for one page, sent in one piece over one connection from a fresh address.
fn statuses_of_many(path: &str, count: usize) -> Vec<u16> {
    let address = fresh_address();
    let mut wire = cloud().connect(cloud().http_address(), Some(address)).expect("the API listens");
    wire.handshake(cloud().trust(), "localhost").expect("the API speaks TLS 1.3");
    let ask = |more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    wire.send_raw((ask("").repeat(count - 1) + &ask("Connection: close\r\n")).as_bytes())
        .expect("it is read");
    let mut bytes = Vec::new();
    // The end may be ragged; what was answered is what counts.
    let _ = wire.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let statuses = text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)?.parse().ok());
    let statuses: Vec<u16> = statuses.collect();
    assert_eq!(statuses.len(), count, "not every request was answered: {text}");
    statuses
}

/// Presses a ticket's button without a browser, as an attacker would; returns where the page leads.
fn press(told: &Told) -> String {
    let jar = tempfile::NamedTempFile::new().expect("a scratch file");
    let jar = jar.path().to_str().expect("ASCII");
    let page = bare("GET", &told.url, &["-c", jar]);
    assert_eq!(page.status, 200, "{}", page.text);
    let value = |name: &str| {
        let (_, rest) = page.text.split_once(&format!("name=\"{name}\" value=\"")).expect("a hidden field");
        format!("{name}={}", rest.split('"').next().expect("a value"))
    };
    let fields = [value("form"), value("code")];
    let all = ["-b", jar, "--data-urlencode", &fields[0], "--data-urlencode", &fields[1]];
    let onward = bare("POST", &told.url, &all);
    assert_eq!(onward.status, 200, "{}", onward.text);
    let (_, rest) = onward.text.split_once("url=").expect("a page that leads on");
    rest.split('"').next().expect("an address").replace("&amp;", "&")
}

pub(super) fn header(answer: &Answer, name: &str) -> Option<String> {
    let head = answer.text.split("\r\n\r\n").next().unwrap_or_default();
    let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

pub fn t53_psql_waits_while_its_person_signs_in_with_a_browser() {
    let (one, _provider) = stage("browser-psql");
    let mut psql = Psql::start(&one);
    let told = psql.told();
    let visit = as_person(&told, "maria").reads("close this window").at(cloud()).ok();
    let page = visit.page("ticket");
    for part in ["maria", "browser-psql", "127.0.0.1", "corp", told.code.as_str()] {
        assert!(page.text.contains(part), "{part} is not on the page:\n{}", page.text);
    }
    assert!(visit.page("form").text.contains("Sign-in"), "{}", visit.page("form").text);
    let complaints: Vec<&String> =
        visit.complaints.iter().filter(|text| text.contains("Content Security Policy")).collect();
    assert!(complaints.is_empty(), "the browser was kept from something: {complaints:?}");
    assert_eq!(psql.ends().expect("signed in"), "signed in as maria\n");
    assert!(!visit.last.url.contains("code="), "nothing secret stays in the address bar: {}", visit.last.url);
}

pub fn a_client_that_waits_wakes_its_cluster_only_when_its_person_has_signed_in() {
    let (one, _provider) = stage("browser-sleep");
    one.sleep();
    let (mut wire, told) = waits(&one);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(one.phase(), "asleep", "whoever has proven nothing starts nothing");
    as_person(&told, "maria").reads("close this window").at(cloud()).ok();
    wire.expect_ready().unwrap();
    assert_eq!(wire.value("select session_user"), "maria");
}

pub fn another_person_does_not_sign_in_for_the_user() {
    let (one, _provider) = stage("browser-other");
    let mut psql = Psql::start(&one);
    let told = psql.told();
    let visit = as_person(&told, "bob").at(cloud());
    assert!(
        !visit.last.text.contains("close this window") || visit.last.status >= 400,
        "{}",
        visit.last.text
    );
    let said = psql.ends().expect_err("bob is not maria");
    assert!(said.contains("FATAL"), "{said}");
    assert!(!said.contains("bob"), "whoever waits does not learn who it was: {said}");
    // Users of the house cannot be asked for at all.
    for user in ["root", "chitin", "postgres", "admin"] {
        let who = one.with_user(user, "");
        let refusal = who.knock_as(&Caller::default()).unwrap().expect_refusal();
        assert_eq!(refusal.code, "28000", "{user}: {refusal:?}");
    }
}

pub fn t53_a_ticket_is_used_once_and_cannot_be_guessed() {
    let (one, _provider) = stage("browser-once");
    let (mut wire, told) = waits(&one);
    assert!(told.ticket().len() >= 22, "at least 128 bits: {}", told.ticket());
    let (_other_wire, other) = waits(&one);
    assert_ne!(told.ticket(), other.ticket());
    let shared = told.ticket().bytes().zip(other.ticket().bytes()).take_while(|(a, b)| a == b).count();
    assert!(shared < 6, "tickets are not counted up");
    let visit = as_person(&told, "maria").reads("close this window").at(cloud()).ok();
    wire.expect_ready().unwrap();
    // The ticket again, its form again, and the way back from the provider again.
    for (method, url) in [("GET", told.url.clone()), ("POST", told.url.clone())] {
        let answer = bare(method, &url, &[]);
        assert!([403, 404, 410].contains(&answer.status), "{method} {url}: {}", answer.text);
    }
    let callback = visit.visited.iter().find(|url| url.contains("/oidc/v1/callback")).expect("the way back");
    let again = Person::default().goes_to(callback).at(cloud());
    assert!([400, 403].contains(&again.last.status), "{}: {}", again.last.status, again.last.text);
    assert!(bare("GET", callback, &[]).status >= 400);
    // Guesses, near and far.
    let mut near = told.ticket().to_owned();
    near.pop();
    for guess in [
        near.as_str(),
        "0",
        &"A".repeat(22),
        &"A".repeat(43),
        "..%2f..%2fadmin-key",
        "%00",
        &"a".repeat(5_000),
    ] {
        for method in ["GET", "POST"] {
            let answer = bare(method, &cloud().web(&format!("/sign-in/{guess}")), &["--path-as-is"]);
            assert!((400..500).contains(&answer.status), "{method} {guess}: {}", answer.status);
            assert!(!answer.text.contains("browser-once"), "{guess}");
        }
    }
}

pub fn t53_whoever_waits_is_bound_to_the_browser_that_began() {
    let (one, provider) = stage("browser-bound");
    // The attacker opens a ticket as maria, presses the button himself, and sends maria only the provider's address.
    let (mut wire, told) = waits(&one);
    let place = press(&told);
    assert!(place.starts_with(&format!("{}/auth?", provider.issuer())), "{place}");
    let visit = Person::default().goes_to(&place).signs_in_as("maria").at(cloud());
    assert!([400, 403].contains(&visit.last.status), "another browser finished it: {}", visit.last.text);
    assert!(still_waits(&mut wire), "the attacker was let in");
    // A state of the attacker's own making, without and with a cookie.
    for more in [&[][..], &["-H", "Cookie: oidc_state=x; __Host-oidc_state=x; __Host-chitin_state=x"]] {
        for query in ["state=x&code=y", "code=y", "state=x", "", "error=access_denied&state=x"] {
            let answer = bare("GET", &cloud().web(&format!("/oidc/v1/callback?{query}")), more);
            assert_eq!(answer.status, 400, "{query}: {}", answer.text);
            assert!(!answer.text.contains(provider.issuer()), "the reason is for the log");
        }
    }
    assert!(still_waits(&mut wire));
}

pub fn t53_one_ticket_never_completes_another() {
    let (one, _first) = stage("browser-first");
    let (other, _second) = stage("browser-second");
    let (mut mine, told) = waits(&one);
    let (mut neighbours, _) = waits(&one);
    let (mut theirs, other_told) = waits(&other);
    as_person(&other_told, "maria").reads("close this window").at(cloud()).ok();
    theirs.expect_ready().unwrap();
    assert!(
        still_waits(&mut mine) && still_waits(&mut neighbours),
        "another cluster's ticket completed this one"
    );
    as_person(&told, "maria").reads("close this window").at(cloud()).ok();
    mine.expect_ready().unwrap();
    assert!(still_waits(&mut neighbours), "another ticket of the same user was completed");
    // A person's session on the web is no answer either: the button must be pressed.
    let visit = Person::default()
        .goes_to(&cloud().web(&format!("/oidc/v1/login?cluster={}", one.handle)))
        .signs_in_as("maria")
        .goes_to(&told.url)
        .at(cloud());
    assert!(visit.last.status >= 400, "{}", visit.last.text);
    assert!(still_waits(&mut neighbours));
}

pub fn t53_a_ticket_lapses_and_dies_with_its_client() {
    let (one, _provider) = stage("browser-lapse");
    let (gone, told) = waits(&one);
    assert_eq!(bare("GET", &told.url, &[]).status, 200);
    drop(gone);
    eventually("the page goes with its client", PATIENCE, || {
        (bare("GET", &told.url, &[]).status >= 400).then_some(())
    });
    // A client that speaks while it waits.
    let (mut wire, told) = waits(&one);
    wire.send(b'Q', b"select 1\0").unwrap();
    assert_eq!(refused(&mut wire).code, "08P01");
    assert!(bare("GET", &told.url, &[]).status >= 400);
    // A person who does not come.
    let (mut wire, told) = waits(&one);
    let begun = Instant::now();
    let refusal = refused(&mut wire);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(100), "{waited:?}");
    assert_within(Duration::from_secs(140), begun, "the ticket lapses");
    assert_eq!(refusal.code, "28000", "{refusal:?}");
    let visit = as_person(&told, "maria").at(cloud());
    assert!(visit.error.is_some(), "a page that has lapsed has no button");
}

pub fn nobody_waits_where_no_provider_is_for_browsers() {
    let one = cloud().cluster("browser-none", &[]);
    one.set_rules("host all all all browser\n");
    let refusal = one.knock_as(&Caller::default()).unwrap().expect_refusal();
    assert_eq!(refusal.code, "28000", "{refusal:?}");
    // Many wait at once, within bounds: the oldest of a network that comes in a flood has to begin again, not the newcomer.
    let (one, _provider) = stage("browser-many");
    let mut waiting = Vec::new();
    for _ in 0..300 {
        let mut wire = one.knock_as(&Caller::default().from(fresh_address())).expect("the gateway listens");
        let first = wire.receive().expect("a message");
        if first.tag == b'E' {
            break;
        }
        waiting.push(wire);
    }
    assert_eq!(waiting.len(), 300, "a newcomer was refused");
    let mut person = waiting.pop().expect("the newest");
    let ended =
        |wire: &mut Wire| wire.socket().set_nonblocking(true).is_ok() && wire.socket().peek(&mut [0]).is_ok();
    let over = eventually("the oldest hear that it is over", PATIENCE, || {
        let over = waiting.iter_mut().filter_map(|wire| ended(wire).then_some(())).count();
        (over >= 100).then_some(over)
    });
    println!("  {} waited at once", 300 - over);
    assert!(over < 290 && still_waits(&mut person), "{over} of 300 had to begin again");
    crate::sign_in::cluster().sign_in();
}

pub fn pages_are_plain_and_closed() {
    let (one, provider) = stage("browser-pages");
    let strange = one.with_user("<img src=x onerror=alert(1)>&\"'", "");
    let (_wire, told) = waits(&strange);
    let page = bare("GET", &told.url, &[]);
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(!page.text.contains("<img") && page.text.contains("&lt;img"), "{}", page.text);
    assert!(!page.text.to_lowercase().contains("<script"), "no scripts at all");
    let policy = header(&page, "content-security-policy").expect("a policy");
    for part in ["default-src 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe-"), "{policy}");
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
    ] {
        assert!(header(&page, name).is_some_and(|found| found.contains(value)), "{name}: {}", page.text);
    }
    // Forms of other sites press no button.
    let foreign = bare(
        "POST",
        &told.url,
        &["-H", "Origin: https://evil.example.org", "-H", "Sec-Fetch-Site: cross-site"],
    );
    assert!((400..500).contains(&foreign.status), "{}", foreign.text);
    // Nothing leads anywhere but to the provider.
    for more in [
        "&next=https://evil.example.org",
        "&redirect_uri=https://evil.example.org",
        "&return_to=//evil.example.org",
    ] {
        let answer = bare("GET", &cloud().web(&format!("/oidc/v1/login?cluster={}{more}", one.handle)), &[]);
        if let Some(place) = header(&answer, "location") {
            assert!(place.starts_with(&format!("{}/auth?", provider.issuer())), "{place}");
            assert!(!place.contains("evil"), "{place}");
        }
    }
    for query in
        ["", "?cluster=no-such-cluster-9", "?cluster=../../x", "?cluster=browser-pages-0&provider=nobody"]
    {
        let answer = bare("GET", &cloud().web(&format!("/oidc/v1/login{query}")), &[]);
        assert!((400..500).contains(&answer.status), "{query}: {}", answer.status);
    }
    // Nobody asks for ever. All at once, since a visitor gets five turns a second back.
    let answers = statuses_of_many("/oidc/v1/session", 150);
    assert!(answers.contains(&429) && answers[0] == 401, "{answers:?}");
    // What needs a key still needs it.
    assert_eq!(bare("GET", &cloud().web("/api/v1/clusters"), &[]).status, 401);
    assert_eq!(bare("GET", &cloud().web("/sign-in/../api/v1/clusters"), &["--path-as-is"]).status / 100, 4);
}

fn cookie(visit: &Visit, name: &str) -> Option<Value> {
    visit.cookies.as_array()?.iter().find(|cookie| cookie["name"] == name).cloned()
}

pub fn the_web_side_makes_a_session_and_ends_it() {
    let (one, provider) = stage("browser-web");
    let login = cloud().web(&format!("/oidc/v1/login?cluster={}&provider=corp", one.handle));
    let begun = bare("GET", &login, &[]);
    assert!([302, 303, 307].contains(&begun.status), "{}", begun.text);
    let place = header(&begun, "location").expect("the provider");
    for part in [
        "response_type=code",
        "code_challenge_method=S256",
        "code_challenge=",
        "state=",
        "nonce=",
        "scope=openid",
    ] {
        assert!(place.contains(part), "{part} is not in {place}");
    }
    let state = header(&begun, "set-cookie").expect("a cookie");
    for part in ["Secure", "HttpOnly", "SameSite=Lax"] {
        assert!(state.contains(part), "{part} is not in {state}");
    }
    let session = cloud().web("/oidc/v1/session");
    assert!([401, 403].contains(&bare("GET", &session, &[]).status));
    let visit = Person::default()
        .goes_to(&login)
        .signs_in_as("maria")
        .looks("after")
        .goes_to(&session)
        .at(cloud())
        .ok();
    assert_eq!(visit.last.status, 200, "{}", visit.last.text);
    assert!(
        visit.last.text.contains("maria") && visit.last.text.contains("browser-web"),
        "{}",
        visit.last.text
    );
    let kept = cookie(&visit, "__Host-chitin_session").expect("a session");
    assert_eq!((&kept["secure"], &kept["httpOnly"]), (&json!(true), &json!(true)), "{kept}");
    assert_eq!(kept["sameSite"], "Lax");
    let value = kept["value"].as_str().expect("a value").to_owned();
    assert!(value.len() >= 43, "32 random bytes: {value}");
    assert!(!cloud().log().contains(&value), "a session stands in the log");
    let with = format!("Cookie: __Host-chitin_session={value}");
    assert_eq!(bare("GET", &session, &["-H", &with]).status, 200);
    // A page elsewhere cannot end it; its person can.
    let logout = cloud().web("/oidc/v1/logout");
    assert_eq!(bare("POST", &logout, &["-H", &with, "-H", "Sec-Fetch-Site: cross-site"]).status, 403);
    assert_eq!(bare("GET", &session, &["-H", &with]).status, 200);
    assert!(bare("GET", &logout, &["-H", &with]).status >= 400, "an image must not end a session");
    let ended = bare("POST", &logout, &["-H", &with, "-H", "Sec-Fetch-Site: same-origin"]);
    assert!(ended.status < 400, "{}", ended.text);
    assert!([401, 403].contains(&bare("GET", &session, &["-H", &with]).status), "ended for good");
    // A user that does not exist gets no session.
    let visit = Person::default().goes_to(&login).signs_in_as("nobody_here").at(cloud());
    assert_eq!(visit.last.status, 403, "{}", visit.last.text);
    assert!(cookie(&visit, "__Host-chitin_session").is_none());
    // A provider that is down.
    provider.set_fault("*", &json!("down"));
    let fresh = Provider::start("ES256");
    fresh.register(cloud());
    fresh.set_fault("*", &json!("down"));
    one.set_provider("corp", &fresh.settings()).ok();
    let answer = bare("GET", &login, &[]);
    assert!((400..=503).contains(&answer.status), "{}", answer.text);
    assert!(answer.text.contains("OIDC: unable to initiate authentication"), "{}", answer.text);
}

pub fn a_provider_that_lies_signs_nobody_in() {
    let (one, provider) = stage("browser-lies");
    let login = cloud().web(&format!("/oidc/v1/login?cluster={}", one.handle));
    for (path, faults) in [("/token", &["garbage", "down", "huge"][..]), ("/jwks", &["garbage", "status"])] {
        for fault in faults {
            // A fresh one each time: what is known of the old one is kept.
            let liar = Provider::start("RS256");
            liar.register(cloud());
            one.set_provider("corp", &liar.settings()).ok();
            liar.set_fault(path, &json!(fault));
            let visit = Person::default().goes_to(&login).signs_in_as("maria").at(cloud());
            assert!([400, 502, 503].contains(&visit.last.status), "{path} {fault}: {}", visit.last.status);
            assert!(
                visit.last.text.contains("OIDC: unable to complete authentication"),
                "{}",
                visit.last.text
            );
            assert!(cookie(&visit, "__Host-chitin_session").is_none());
        }
    }
    // A provider that rotated its key while the person was signing in is no liar.
    one.set_provider("corp", &provider.settings()).ok();
    Person::default().goes_to(&login).signs_in_as("maria").at(cloud()).ok();
}

pub fn the_web_lets_in_only_where_a_token_would_be_let_into_sql() {
    let (one, provider) = stage("browser-web-rules");
    let login = cloud().web(&format!("/oidc/v1/login?cluster={}&provider=corp", one.handle));
    let mut settings = provider.settings_with(&json!({ "group_claim": "groups" }));
    settings["provisions"] = true.into();
    one.set_provider("corp", &settings).ok();
    for rules in [
        "host all all all scram-sha-256\n",
        "host all maria all reject\nhost all all all browser\n",
        "host all all 203.0.113.0/24 browser\n",
        "host all all all browser issuer=https://elsewhere.example\n",
    ] {
        one.set_rules(rules);
        let visit = Person::default().goes_to(&login).signs_in_as("maria").at(cloud());
        assert_eq!(visit.last.status, 403, "{rules}: {}", visit.last.text);
        assert!(cookie(&visit, "__Host-chitin_session").is_none(), "{rules}");
    }
    // Nobody was made and nothing was granted on the way.
    let mut admin = {
        one.set_rules("host all all all scram-sha-256\n");
        one.welcome(&Caller::with(&one.password))
    };
    let visit = Person::default().goes_to(&login).signs_in_as("nobody_here").at(cloud());
    assert_eq!(visit.last.status, 403, "{}", visit.last.text);
    assert_eq!(admin.value("select count(*) from pg_roles where rolname = 'nobody_here'"), "0");
    // A cluster that does not exist sends people to a provider of the cloud, if there is one, or nowhere.
    let missing = cloud().web("/oidc/v1/login?cluster=not-there-99999998");
    let begun = bare("GET", &missing, &[]);
    assert!([307, 400].contains(&begun.status), "{}", begun.text);
}

pub fn rules_that_change_while_somebody_waits_count() {
    let (one, _provider) = stage("browser-changed");
    let (mut wire, told) = waits(&one);
    one.set_rules("host all maria all reject\nhost all all all browser\n");
    let _ = as_person(&told, "maria").at(cloud());
    let refusal = refused(&mut wire);
    assert_eq!(refusal.message, "authentication rejected by configuration", "{refusal:?}");
}
