//! Private clusters: seen from their own network, and from nowhere else.

use std::net::IpAddr;
use std::sync::OnceLock;

use house::cloud::{HTTP_PORT, PATIENCE, SQL_PORT};
use house::command::{Finished, run, run_with, status_code};
use house::provider::Provider;
use house::scram::{self, Exchange};
use house::wire::AT_ONCE;
use house::wire::{PROTOCOL_3_0, cancel_request, startup, text};
use house::{Caller, Cluster, Host, Refusal, Wire};

use crate::private::world::{
    assert_cut, assert_unreachable, attempt, enter, on, peer, private, show, soon, status, world,
};

/// A private cluster that tests share, with a host that is joined and one that is not.
struct Bank {
    cluster: Cluster<'static>,
    door: IpAddr,
    office: Host,
    stranger: Host,
}

fn bank() -> &'static Bank {
    static BANK: OnceLock<Bank> = OnceLock::new();
    BANK.get_or_init(|| {
        let (office, stranger) = (world().hosts.host(), world().hosts.host());
        let cluster = private(&world().cloud, "my-bank", "10.77.0.0/24");
        peer(&cluster, "office", &office, &[]);
        Bank { cluster, door: IpAddr::from([10, 77, 0, 1]), office, stranger }
    })
}

/// A cluster that does not exist, with everything else as this one has it, and a handle that is as long.
fn ghost_of<'cloud>(one: &Cluster<'cloud>) -> Cluster<'cloud> {
    let (name, number) = one.handle.rsplit_once('-').expect("a handle ends with its number");
    let handle = format!("{}-{number}", "z".repeat(name.len()));
    Cluster { handle, ..one.clone() }
}

/// How a client names its cluster.
const WAYS: [&str; 4] = ["options", "database", "server name", "all of them"];

/// Everything that the public door says to a client from its first byte on, with what is drawn by lot left out.
fn hear(from: &Host, one: &Cluster<'_>, way: &str) -> Vec<String> {
    let handle = &one.handle;
    let is = |this: &str| way == this || way == "all of them";
    let mut heard = Vec::new();
    let mut wire = world().public(from).expect("the public door listens");
    heard.push(format!("{:?}", wire.ask_for_tls()));
    let name = if is("server name") { format!("{handle}.localhost") } else { "localhost".to_owned() };
    let shaken = wire.handshake(world().cloud.trust(), &name);
    heard.push(format!("{shaken:?}"));
    if shaken.is_err() {
        return heard;
    }
    let database = if is("database") { format!("{handle}.defaultdb") } else { "defaultdb".to_owned() };
    let options = format!("--cluster={handle}");
    let mut parameters = vec![("user", one.user.as_str()), ("database", database.as_str())];
    if is("options") {
        parameters.push(("options", &options));
    }
    wire.send_raw(&startup(PROTOCOL_3_0, &parameters)).expect("the door reads the startup message");
    match wire.receive() {
        Ok(request) => {
            heard.push(format!("{request:?}"));
            if request.tag == b'R' {
                heard.extend(prove_nothing(&mut wire));
            }
        }
        Err(error) => heard.push(error.to_string()),
    }
    heard.push(format!("closed: {}", wire.is_closed_within(AT_ONCE)));
    heard
}

/// An exchange without a password.
fn prove_nothing(wire: &mut Wire) -> Vec<String> {
    let exchange = Exchange::unbound("");
    let refusal = |refusal: Refusal| format!("{refusal:?}");
    let asked = match scram::ask(wire, &exchange) {
        Ok((challenge, _, first)) => {
            let (salt, nonce) = (challenge.salt.len(), challenge.nonce.len());
            format!("{} iterations, {salt}, {nonce}, {}", challenge.iterations, first.len())
        }
        Err(said) => return vec![refusal(said)],
    };
    // A proof of the right length that proves nothing.
    let last = format!("c=biws,r=none,p={}", "A".repeat(43) + "=");
    wire.send(b'p', last.as_bytes()).expect("the door reads a proof");
    vec![asked, wire.expect_message().map_or_else(refusal, |message| format!("{message:?}"))]
}

pub fn t57_a_private_cluster_looks_from_outside_like_one_that_does_not_exist() {
    let Bank { cluster, stranger, office, .. } = bank();
    let ghost = ghost_of(cluster);
    for from in [stranger, office, &world().home] {
        for way in WAYS {
            let (said, of_ghost) = (hear(from, cluster, way), hear(from, &ghost, way));
            assert!(said.len() >= 2, "{way}: {said:?}");
            assert_eq!(said, of_ghost, "{way}, from {}", from.name());
        }
        // With the right password too, every step done right.
        let refusals = [cluster, &ghost]
            .map(|one| world().enter_publicly(one, from).map(drop).expect_err("it is private, or not there"));
        assert_eq!(refusals[0], refusals[1]);
        assert_eq!(refusals[0].code, "28P01", "{refusals:?}");
    }
    for from in [stranger, &world().home] {
        assert_unreachable(from, bank().door);
    }
    // The same client from inside is let in: nothing but the way differed.
    assert_eq!(enter(cluster, office, bank().door).value("select 1"), "1");
}

/// What a web page answers, head and body, without what differs each time.
fn page(from: &Host, address: IpAddr, path: &str, handle: &str) -> String {
    let mut command = from.command("curl");
    command.args(["-sSi", "--max-time", "30", "--cacert"]).arg(world().cloud.root_certificate());
    command.args(["--resolve", &format!("localhost:{HTTP_PORT}:{address}")]);
    let answer = run(command.arg(format!("https://localhost:{HTTP_PORT}{path}"))).ok();
    let kept = answer.lines().filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
    kept.collect::<Vec<_>>().join("\n").replace(handle, "HANDLE")
}

pub fn the_pages_of_a_private_cluster_are_in_its_network_only_and_the_api_is_not_there() {
    let Bank { cluster, door, office, stranger } = bank();
    let provider = world().home.within(|| Provider::start("ES256"));
    cluster.set_provider("corp", &provider.settings()).ok();
    let ghost = ghost_of(cluster);
    let public = world().home.ipv4();
    let login = |one: &Cluster<'_>, from, at| {
        page(from, at, &format!("/oidc/v1/login?cluster={}", one.handle), &one.handle)
    };
    for from in [stranger, office] {
        assert_eq!(login(cluster, from, public), login(&ghost, from, public), "from {}", from.name());
    }
    let inside = login(cluster, office, *door);
    assert!(inside.contains(" 307") && inside.contains(provider.issuer()), "{inside}");
    assert!(!login(cluster, office, public).contains(" 307"));
    assert!(!login(&ghost, office, *door).contains(" 307"));

    // The API's key counts at the public door, and nowhere inside.
    let key = std::fs::read_to_string(world().cloud.data().join("admin-key")).expect("the key");
    let api = |from: &Host, at: IpAddr| {
        let mut command = from.command("curl");
        command.args(["--max-time", "60", "--cacert"]);
        command.arg(world().cloud.root_certificate());
        command.args(["--resolve", &format!("localhost:{HTTP_PORT}:{at}")]);
        command.args(["-H", &format!("Authorization: Bearer {}", key.trim())]);
        status_code(command.arg(format!("https://localhost:{HTTP_PORT}/api/v1/clusters"))).ok()
    };
    assert_eq!(api(office, public), "200");
    assert_eq!(api(office, *door), "404");
}

pub fn t64_cancel_keys_of_private_sessions_do_nothing_at_the_public_door() {
    let Bank { cluster, door, office, stranger } = bank();
    let mut wire = enter(cluster, office, *door);
    let (process, secret) = wire.cancel_key.clone().expect("a key");
    wire.send(b'Q', &text("select pg_sleep(2)")).unwrap();
    for from in [stranger, office, &world().home] {
        let mut outside = world().public(from).expect("the public door listens");
        outside.ask_for_tls().unwrap();
        outside.handshake(world().cloud.trust(), "localhost").unwrap();
        let _ = outside.send_raw(&cancel_request(process, &secret));
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut outside, &mut answer);
        assert!(answer.is_empty(), "a cancel is never answered: {answer:?}");
    }
    wire.results().expect("nobody outside cancels it");

    wire.begin("select pg_sleep(600)", &mut enter(cluster, office, *door));
    let mut inside = office.connect((*door, SQL_PORT).into(), None).expect("the front door listens");
    inside.ask_for_tls().unwrap();
    inside.handshake(world().cloud.trust(), "localhost").unwrap();
    inside.send_raw(&cancel_request(process, &secret)).unwrap();
    assert_eq!(wire.results().unwrap_err().code, "57014");
}

/// Runs a statement with psql on a host, with the full check of the certificate.
fn psql(one: &Cluster<'_>, from: &Host, connection: &str) -> Finished {
    let mut command = from.command("psql");
    command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", "select 6 * 7", connection]);
    command.env("PGPASSWORD", &one.password).env("PGCONNECT_TIMEOUT", "20");
    run_with(&mut command, b"", PATIENCE)
}

pub fn inside_the_certificate_is_for_the_address_and_the_name_and_the_url_works_as_it_is() {
    let Bank { cluster, door, office, stranger } = bank();
    let own = format!(
        "port={SQL_PORT} user={} dbname=defaultdb sslmode=verify-full sslrootcert={}",
        cluster.user,
        world().cloud.root_certificate().display()
    );
    let handle = &cluster.handle;
    for way in [
        format!("host={door} {own} options=--cluster={handle}"),
        // Only one cluster can be meant here.
        format!("host={handle}.localhost hostaddr={door} {own}"),
        format!("host=localhost hostaddr={door} {own} options=--cluster={handle}"),
    ] {
        assert_eq!(psql(cluster, office, &way).ok().trim(), "42", "{way}");
    }
    let url = world().cloud.chitin(["cluster", "url", &cluster.name, &cluster.user]).ok();
    assert_eq!(psql(cluster, office, url.trim()).ok().trim(), "42", "{url}");
    // Another name is refused by the client: the certificate is for no other.
    let wrong = format!("host=other-bank.example hostaddr={door} {own} options=--cluster={handle}");
    let said = psql(cluster, office, &wrong).refused();
    assert!(said.contains("does not match host name"), "{said}");
    psql(cluster, stranger, &format!("{url} connect_timeout=2")).refused();
    let verified = world().cloud.chitin(["verify", &cluster.name]);
    assert_eq!(verified.code(), 1, "{}", verified.stdout);
    assert!(
        verified.stderr.contains("is private") && verified.stderr.contains("cluster visibility"),
        "{}",
        verified.stderr
    );
}

pub fn another_private_clusters_network_leads_to_no_other_cluster() {
    let Bank { cluster, door, office, .. } = bank();
    let branch = world().hosts.host();
    let other = private(&world().cloud, "other-bank", "10.78.0.0/24");
    peer(&other, "branch", &branch, &[]);
    let other_door = IpAddr::from([10, 78, 0, 1]);
    enter(&other, &branch, other_door);
    assert_unreachable(&branch, *door);
    assert_unreachable(office, other_door);
    // Even who sends its packets there all the same.
    let made = on(&branch, "ip -o link");
    let link = made.split(": ").find(|word| word.starts_with("ct")).expect("a link of the peering");
    let link = link.split('@').next().expect("a name");
    on(&branch, &format!("ip route add {door} via {other_door} dev {link} onlink"));
    assert_unreachable(&branch, *door);
    // At its own front door the first cluster is as good as none.
    let ghost = ghost_of(cluster);
    let refusals = [cluster, &ghost].map(|one| {
        let wire = branch.connect((other_door, SQL_PORT).into(), None).expect("the front door listens");
        one.enter_over(wire, &Caller::with(&one.password)).map(drop).expect_err("not this cluster")
    });
    assert_eq!(refusals[0], refusals[1]);
    // One host may be joined with both.
    peer(&other, "office", office, &[]);
    enter(&other, office, other_door);
    enter(cluster, office, *door);
}

pub fn t59_a_cluster_that_becomes_private_cuts_public_sessions_and_goes_back() {
    let (office, stranger) = (world().hosts.host(), world().hosts.host());
    let cloud = &world().cloud;
    let one = cloud.cluster("turning-shop", &[]);
    let visibility = |what: &[&str]| {
        let all = [&["cluster", "visibility", &one.name], what].concat();
        run_with(&mut cloud.command_of(&all), b"", PATIENCE).ok()
    };
    visibility(&["public", "--cidr", "10.79.0.0/24"]);
    let door = IpAddr::from([10, 79, 0, 1]);
    peer(&one, "office", &office, &[]);

    // Public and private at once.
    let mut inside = enter(&one, &office, door);
    let sign_in = || world().enter_publicly(&one, &stranger);
    let (mut idle, mut busy) = (sign_in().expect("public"), sign_in().expect("public"));
    let (process, secret) = idle.cancel_key.clone().expect("a key");
    busy.send(b'Q', &text("select pg_sleep(600)")).unwrap();

    visibility(&["private"]);
    for wire in [&mut idle, &mut busy] {
        assert_cut(wire, "terminating connection: the cluster is private now");
    }
    assert_eq!(inside.value("select 1"), "1", "who is inside stays");
    let ghost = ghost_of(&one);
    let refusals = [&one, &ghost]
        .map(|one| world().enter_publicly(one, &stranger).map(drop).expect_err("private, or not there"));
    assert_eq!(refusals[0], refusals[1]);
    for way in WAYS {
        assert_eq!(hear(&stranger, &one, way), hear(&stranger, &ghost, way), "{way}");
    }
    let mut late = world().public(&stranger).expect("the public door listens");
    late.ask_for_tls().unwrap();
    late.handshake(cloud.trust(), "localhost").unwrap();
    let _ = late.send_raw(&cancel_request(process, &secret));
    enter(&one, &office, door);

    visibility(&["public"]);
    let mut outside = sign_in().expect("public again");
    assert_eq!(outside.value("select 1"), "1");
    assert_eq!(inside.value("select 1"), "1", "the peering goes on");
    enter(&one, &office, door);
    // Without its last peering a public cluster has no network of its own.
    cloud.chitin(["peering", "delete", &one.name, "office"]).ok();
    soon("the network is gone", || attempt(&office, door, SQL_PORT).is_err());
    assert_eq!(outside.value("select 1"), "1");
}

pub fn t73_a_private_cluster_sleeps_and_wakes_by_a_sign_in_from_inside() {
    let office = world().hosts.host();
    let one = world().cloud.cluster("drowsy-bank", &["--visibility", "private", "--cidr", "10.80.0.0/24"]);
    peer(&one, "office", &office, &[]);
    let door = IpAddr::from([10, 80, 0, 1]);
    let mut awake = enter(&one, &office, door);
    awake.value("select 1");
    one.sleep();
    assert_cut(&mut awake, "terminating connection: the operator put the cluster to sleep");
    assert!(one.engine_processes().is_empty(), "it sleeps");
    assert_eq!(status(&show(&one, "office")), "active", "its network stays");
    // Nobody wakes it from outside, with the right password neither.
    world().enter_publicly(&one, &world().hosts.host()).map(drop).expect_err("it is private");
    assert_eq!(one.phase(), "asleep");
    assert_eq!(enter(&one, &office, door).value("select 1"), "1");
    assert_eq!(one.phase(), "running");
}

pub fn ranges_that_cannot_be_a_private_network_are_refused_with_the_next_step() {
    let cloud = &world().cloud;
    bank();
    for (range, why) in [
        ("10.77.0.0/16", "overlaps 10.77.0.0/24"),
        ("8.8.8.0/24", "private"),
        ("10.90.0.1/24", "10.90.0.0/24"),
        ("10.90.0.0/33", ""),
    ] {
        let said = cloud
            .chitin(["cluster", "create", "no-bank", "--visibility", "private", "--cidr", range])
            .refused();
        assert!(said.contains(why), "{range}: {said}");
    }
    let said = cloud.chitin(["cluster", "show", "no-bank"]).refused();
    assert!(said.contains("no-bank"), "{said}");
}
