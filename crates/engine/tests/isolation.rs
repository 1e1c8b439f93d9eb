//! What an engine that was taken over does with its own socket: nobody is led elsewhere by it.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use common::{Place, cluster, is_root, maria, place, session, skipped};
use model::{Cluster, Encryption, RoleName};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

const SOCKET: &str = ".s.PGSQL.5432";
const FIRST_UID: u32 = 1_900_000_000;
const FIRST_NODE_UID: u32 = 2_000_000_000;

fn run(place: &Place, cluster: &Cluster) -> PathBuf {
    place.folder.path().join("run").join(cluster.routing_id.to_string())
}

/// Two clusters with a user of the same name: one engine was taken over, the other is what it wants.
async fn two(first: u32) -> (Place, Cluster, Cluster) {
    let place = place(Some(Encryption::None)).await;
    let (taken, wanted) = (cluster(first), cluster(first + 1));
    for made in [&taken, &wanted] {
        place.host.create(made).await.unwrap();
        maria(&place.host.administration(made.id).await.unwrap()).await;
        drop(session(&place.host, made.id, "maria", "defaultdb").await);
    }
    (place, taken, wanted)
}

/// Puts the engine's own socket aside.
fn put_aside(run: &Path) {
    std::fs::rename(run.join(SOCKET), run.join("aside")).unwrap();
}

/// Nothing that should go to this cluster's engine goes anywhere.
async fn assert_leads_nowhere(place: &Place, cluster: &Cluster, what: &str) {
    let connector = place.host.connector(cluster.id).unwrap();
    let refused = connector.connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{what}: {refused}");
    let refused = place.host.administration(cluster.id).await.err().unwrap().to_string();
    assert!(refused.contains("the engine's socket was refused"), "{what}: {refused}");
    let paula: RoleName = "paula".parse().unwrap();
    // It asks the engine only where PostgreSQL is older than 16.
    let _ = place.host.admit(cluster.id, &paula).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_another_cluster_s_socket_leads_nowhere() {
    let (place, taken, wanted) = two(201).await;
    let (mine, theirs) = (run(&place, &taken), run(&place, &wanted));
    put_aside(&mine);
    let beside = PathBuf::from("..").join(wanted.routing_id.to_string()).join(SOCKET);
    symlink(beside, mine.join(SOCKET)).unwrap();
    assert!(UnixStream::connect(mine.join(SOCKET)).is_ok(), "whoever follows links is let in to the other");
    assert_leads_nowhere(&place, &taken, "a link").await;

    // The socket itself under a second name, which no engine can make, and whose owner it cannot change either.
    std::fs::remove_file(mine.join(SOCKET)).unwrap();
    std::fs::hard_link(theirs.join(SOCKET), mine.join(SOCKET)).unwrap();
    assert_leads_nowhere(&place, &taken, "a second name").await;

    let users = place.host.administration(wanted.id).await.unwrap().users().await.unwrap();
    let users: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(users, ["maria"], "nothing reached the other cluster");
    // What is its own is found again.
    std::fs::rename(mine.join("aside"), mine.join(SOCKET)).unwrap();
    place.host.administration(taken.id).await.unwrap();
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_or_a_file_instead_of_the_socket_leads_nowhere() {
    let place = place(Some(Encryption::None)).await;
    let taken = cluster(204);
    place.host.create(&taken).await.unwrap();
    let mine = run(&place, &taken);
    put_aside(&mine);
    std::fs::create_dir(mine.join(SOCKET)).unwrap();
    assert_leads_nowhere(&place, &taken, "a folder").await;
    std::fs::remove_dir(mine.join(SOCKET)).unwrap();
    std::fs::write(mine.join(SOCKET), "").unwrap();
    assert_leads_nowhere(&place, &taken, "a file").await;
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_outside_of_the_sandbox_answers_for_no_engine_whichever_user_it_runs_as() {
    let place = place(Some(Encryption::None)).await;
    let taken = cluster(206);
    place.host.create(&taken).await.unwrap();
    let (mine, owner) = (run(&place, &taken), FIRST_UID + taken.routing_id.get());
    put_aside(&mine);
    let users = if is_root() { vec![None, Some(owner)] } else { vec![None] };
    for user in users {
        let _ = std::fs::remove_file(mine.join(SOCKET));
        let at = mine.join(SOCKET);
        // Who listens is who answers (unix(7), SO_PEERCRED).
        let listening = thread::spawn(move || {
            if let Some(user) = user {
                set_thread_res_uid(None, Uid::from_raw(user), None).unwrap();
            }
            UnixListener::bind(at).unwrap()
        });
        let listener = listening.join().unwrap();
        std::fs::set_permissions(mine.join(SOCKET), Permissions::from_mode(0o777)).unwrap();
        if is_root() {
            chown(mine.join(SOCKET), Some(owner), Some(owner)).unwrap();
        }
        assert_leads_nowhere(&place, &taken, &format!("as {user:?}")).await;
        listener.set_nonblocking(true).unwrap();
        let (mut heard, mut word) = (listener.accept().unwrap().0, [0]);
        assert_eq!(std::io::Read::read(&mut heard, &mut word).unwrap(), 0, "it was told nothing");
    }
    place.host.shutdown().await;
}

#[test]
fn without_root_nobody_is_led_elsewhere_either() {
    if !is_root() {
        return skipped("this is no root, so every other test shows it");
    }
    common::pass_as_nobody(
        &[
            "--exact",
            "a_link_to_another_cluster_s_socket_leads_nowhere",
            "two_clouds_of_one_machine_reach_their_own_engines_only",
            "the_connector_of_a_run_that_ended_reaches_no_later_one",
        ],
        3,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_opens_no_session_to_what_was_meant_for_another() {
    if !is_root() {
        skipped("only root can give each engine a node of its own");
        return;
    }
    let (place, one, other) = two(208).await;
    let at = run(&place, &one).join(SOCKET);
    let node = |cluster: &Cluster| FIRST_NODE_UID + cluster.routing_id.get();
    let engine = FIRST_UID + one.routing_id.get();
    for (uid, is_let_in) in [(node(&one), true), (node(&other), false), (0, false), (engine, false)] {
        let stream = connect_as(uid, at.clone());
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let mut config = tokio_postgres::Config::new();
        config.user("maria").dbname("defaultdb");
        let opened = config.connect_raw(stream, tokio_postgres::NoTls).await;
        assert_eq!(opened.is_ok(), is_let_in, "{uid}: {:?}", opened.err());
    }
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clouds_of_one_machine_reach_their_own_engines_only() {
    // Both give their first cluster the same number, and so the same OS user.
    let (here, there) = (place(Some(Encryption::None)).await, place(Some(Encryption::None)).await);
    let (mine, theirs) = (cluster(211), cluster(211));
    here.host.create(&mine).await.unwrap();
    there.host.create(&theirs).await.unwrap();
    let socket = run(&here, &mine);
    put_aside(&socket);
    std::fs::hard_link(run(&there, &theirs).join(SOCKET), socket.join(SOCKET)).unwrap();
    assert_leads_nowhere(&here, &mine, "the other cloud's socket").await;
    here.host.shutdown().await;
    there.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connector_of_a_run_that_ended_reaches_no_later_one() {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(213);
    place.host.create(&cluster).await.unwrap();
    let before = place.host.connector(cluster.id).unwrap();
    before.connect().await.unwrap();
    place.host.stop(cluster.id).await.unwrap();
    assert!(place.host.connector(cluster.id).is_none());
    assert!(before.connect().await.is_err());
    place.host.start(&cluster).await.unwrap();
    assert!(before.connect().await.is_err(), "a cancel of an old session hits no new one");
    place.host.connector(cluster.id).unwrap().connect().await.unwrap();
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_whose_path_is_longer_than_a_socket_s_may_be_has_engines() {
    let folder = common::folder();
    let long = folder.path().join("x".repeat(200));
    std::fs::create_dir(&long).unwrap();
    let host = common::open(&long, Some(Encryption::None)).await.unwrap();
    let cluster = cluster(215);
    host.create(&cluster).await.unwrap();
    host.administration(cluster.id).await.unwrap().checkpoint().await.unwrap();
    host.shutdown().await;
}

/// A connection as this OS user, by a thread that takes it on and ends.
fn connect_as(uid: u32, path: PathBuf) -> UnixStream {
    let connecting = thread::spawn(move || {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
        // The folder is open to the engine alone, its socket to whoever got there.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let found = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&found);
        let stream = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        set_thread_res_uid(None, Uid::from_raw(uid), None).unwrap();
        connect(&stream, &SocketAddrUnix::new(format!("/proc/self/fd/{number}")).unwrap()).unwrap();
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true).unwrap();
        stream
    });
    connecting.join().unwrap()
}
