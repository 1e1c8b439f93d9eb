//! Which cluster a client means: database prefix, `--cluster` option, or server name.
//!
//! Precedence and texts are those of CockroachDB's SQL proxy (`pkg/ccl/sqlproxyccl/proxy_handler.go`), with one rule
//! more: a server name that names a cluster must agree with the other two.

use std::fmt;

use model::{ClusterHandle, DatabaseName, InvalidHandle, RoleName};
use wire::startup::Startup;

use crate::refusal::Refusal;

/// Where a client wants to go, and what goes on to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) handle: ClusterHandle,
    pub(crate) user: RoleName,
    pub(crate) database: DatabaseName,
    /// Parameters for the engine, without `user`, `database` and what names the cluster.
    pub(crate) parameters: Vec<(String, String)>,
    /// The client says that what it sends as a password is a token (CockroachDB's `--crdb:jwt_auth_enabled=true`).
    pub(crate) brings_token: bool,
}

/// Why a client's words lead to no cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unroutable {
    Missing,
    Invalid { text: String, reason: InvalidHandle },
    Different,
    ManyFlags,
    Flag,
    Database,
    Options,
}

impl fmt::Display for Unroutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing cluster identifier"),
            Self::Invalid { text, .. } => write!(f, "invalid cluster identifier '{text}'"),
            Self::Different => f.write_str("multiple different cluster identifiers provided"),
            Self::ManyFlags => f.write_str("multiple cluster flags provided"),
            Self::Flag => f.write_str("invalid cluster flag"),
            Self::Database => f.write_str("invalid database param"),
            Self::Options => f.write_str("invalid command-line argument in options"),
        }
    }
}

impl Unroutable {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Invalid { reason: InvalidHandle::Name, .. } => {
                "Is the part before the last dash a valid cluster name?"
            }
            Self::Invalid { reason: InvalidHandle::RoutingId, .. } => {
                "Is the part after the last dash a valid tenant ID?"
            }
            Self::Invalid { reason: InvalidHandle::NoRoutingId, .. } => {
                "Did you forget to include your tenant ID in the cluster identifier?"
            }
            Self::Options => "Only -c name=value and --name=value are accepted.",
            _ => {
                "Cluster identifiers come in the form of <name>-<tenant ID> (e.g. lazy-roach-3); say it in the host name, in options=--cluster=..., or before a dot in the database name."
            }
        }
    }
}

/// What a session gets that names no database.
const DATABASE_DEFAULT: &str = model::DEFAULT_DATABASE;
/// The option by which a client says that its password is a token.
const TOKEN_OPTION: &str = "crdb:jwt_auth_enabled";
/// Longest part of a client's own text that an error repeats.
const ECHO_CHARS_MAX: usize = 64;

/// Parameters that would change who the session is or what it may do; only the gateway sets them.
const RESERVED: &[&str] = &[
    "role",
    "session_authorization",
    "session_preload_libraries",
    "local_preload_libraries",
    "is_superuser",
    "ignore_system_indexes",
    "post_auth_delay",
    "pre_auth_delay",
];

/// Reads the client's words. What comes out are names that the engine takes as they are: it cuts a longer one, and rules
/// that saw the whole would have judged another user or database than the one that is opened. `server_name` is the TLS server name, if the client sent one.
pub(crate) fn route(startup: &Startup, server_name: Option<&str>) -> Result<Route, Refusal> {
    if startup.get("replication").is_some_and(|value| !matches!(value, "" | "0" | "false" | "off" | "no")) {
        return Err(Refusal::Replication);
    }
    let (in_database, database) = split_database(startup.get("database").unwrap_or_default())?;
    let Options { cluster: in_options, kept: options, brings_token } =
        split_options(startup.get("options").unwrap_or_default())?;
    let named = match (in_database, in_options) {
        (Some(one), Some(other)) if one != other => return Err(Refusal::Route(Unroutable::Different)),
        (one, other) => one.or(other),
    };
    let by_server_name = server_name.and_then(handle_in_server_name);
    let handle = match (named, by_server_name) {
        (Some(text), by_server_name) => {
            let handle = parse(&text)?;
            if by_server_name.is_some_and(|other| other != handle) {
                return Err(Refusal::Route(Unroutable::Different));
            }
            handle
        }
        (None, Some(handle)) => handle,
        (None, None) => return Err(Refusal::Route(Unroutable::Missing)),
    };
    let user = startup.get("user").filter(|user| !user.is_empty()).ok_or(Refusal::NoUser)?;
    let user = user.parse().map_err(Refusal::UserName)?;
    let database = database.parse().map_err(Refusal::DatabaseName)?;
    let mut parameters = Vec::new();
    for (name, value) in startup.parameters() {
        if !matches!(name, "user" | "database" | "options" | "replication") {
            check_parameter(name)?;
            parameters.push((name.to_owned(), value.to_owned()));
        }
    }
    if !options.is_empty() {
        parameters.push(("options".to_owned(), options));
    }
    Ok(Route { handle, user, database, parameters, brings_token })
}

/// The cluster that the first label of a server name means. Many clients send a server name without meaning anything
/// by it, so one that names no cluster is ignored.
pub(crate) fn handle_in_server_name(server_name: &str) -> Option<ClusterHandle> {
    let (label, domain) = server_name.split_once('.')?;
    if domain.is_empty() { None } else { label.to_ascii_lowercase().parse().ok() }
}

fn split_database(database: &str) -> Result<(Option<String>, String), Refusal> {
    if database.is_empty() {
        return Ok((None, DATABASE_DEFAULT.to_owned()));
    }
    let Some((cluster, rest)) = database.split_once('.') else {
        return Ok((None, database.to_owned()));
    };
    if cluster.is_empty() || rest.is_empty() || rest.contains('.') {
        return Err(Refusal::Route(Unroutable::Database));
    }
    Ok((Some(cluster.to_owned()), rest.to_owned()))
}

/// What `options` says.
struct Options {
    cluster: Option<String>,
    /// What goes on to the engine.
    kept: String,
    brings_token: bool,
}

/// Takes what is for us out of `options` and checks that the rest only sets parameters that clients may set.
fn split_options(options: &str) -> Result<Options, Refusal> {
    let unroutable = |what| Refusal::Route(what);
    let mut cluster = None;
    let mut kept = Vec::new();
    let mut brings_token = false;
    let mut words = split_words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next().ok_or(unroutable(Unroutable::Options))?
        } else if let Some(setting) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            setting.to_owned()
        } else {
            return Err(unroutable(Unroutable::Options));
        };
        let (name, value) = setting.split_once('=').ok_or(unroutable(Unroutable::Options))?;
        if name == "cluster" {
            if value.is_empty() {
                return Err(unroutable(Unroutable::Flag));
            }
            if cluster.replace(value.to_owned()).is_some() {
                return Err(unroutable(Unroutable::ManyFlags));
            }
            continue;
        }
        if name == TOKEN_OPTION {
            brings_token = match value {
                "true" | "on" | "1" => true,
                "false" | "off" | "0" => false,
                _ => return Err(unroutable(Unroutable::Options)),
            };
            continue;
        }
        check_parameter(name)?;
        kept.push(format!("-c {}", escape(&setting)));
    }
    Ok(Options { cluster, kept: kept.join(" "), brings_token })
}

fn check_parameter(name: &str) -> Result<(), Refusal> {
    let spelled = name.to_ascii_lowercase().replace('-', "_");
    let is_name = !spelled.is_empty()
        && spelled.len() <= 63
        && spelled.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.');
    let is_ours = spelled.starts_with("chitin.") || RESERVED.contains(&spelled.as_str());
    if is_name && !is_ours {
        return Ok(());
    }
    Err(Refusal::Parameter(name.chars().filter(|c| !c.is_control()).take(ECHO_CHARS_MAX).collect()))
}

fn parse(text: &str) -> Result<ClusterHandle, Refusal> {
    text.parse().map_err(|reason| {
        let text = text.chars().filter(|c| !c.is_control()).take(ECHO_CHARS_MAX).collect();
        Refusal::Route(Unroutable::Invalid { text, reason })
    })
}

/// Words as PostgreSQL's `pg_split_opts` finds them: white space separates, a backslash keeps the next character.
fn split_words(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.get_or_insert_default().extend(characters.next()),
            space if space.is_ascii_whitespace() || space == '\x0b' => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

fn escape(word: &str) -> String {
    let mut escaped = String::with_capacity(word.len());
    for character in word.chars() {
        if character == '\\' || character.is_ascii_whitespace() || character == '\x0b' {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(parameters: &[(&str, &str)], server_name: Option<&str>) -> Result<Route, Refusal> {
        let user = parameters.iter().all(|(name, _)| *name != "user").then_some(("user", "maria"));
        let encoded = wire::startup::encode(user.into_iter().chain(parameters.iter().copied()));
        route(&Startup::parse(0, &encoded[8..]).unwrap(), server_name)
    }

    fn unroutable(parameters: &[(&str, &str)], server_name: Option<&str>) -> Unroutable {
        match routed(parameters, server_name) {
            Err(Refusal::Route(unroutable)) => unroutable,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cluster_is_named_in_three_ways() {
        for (parameters, server_name) in [
            (vec![("database", "lazy-roach-3.shop")], None),
            (vec![("database", "shop"), ("options", "--cluster=lazy-roach-3")], None),
            (vec![("database", "shop"), ("options", "-c cluster=lazy-roach-3")], Some("localhost")),
            (vec![("database", "shop"), ("options", "-ccluster=lazy-roach-3")], Some("db.example.org")),
            (vec![("database", "shop")], Some("lazy-roach-3.localhost")),
            (vec![("database", "shop")], Some("Lazy-Roach-3.localhost")),
        ] {
            let route = routed(&parameters, server_name).unwrap();
            assert_eq!(
                (route.handle.to_string().as_str(), route.database.as_str()),
                ("lazy-roach-3", "shop")
            );
            assert_eq!(route.parameters, []);
        }
        assert_eq!(routed(&[], Some("lazy-roach-3.localhost")).unwrap().database.as_str(), "defaultdb");
    }

    #[test]
    fn names_that_the_engine_would_cut_are_refused_wherever_they_are_said() {
        let named = Some("lazy-roach-3.localhost");
        let (longest, longer) = ("a".repeat(63), "a".repeat(64));
        // 32 characters of two bytes each.
        let wide = "ä".repeat(32);
        let route = routed(&[("user", &longest), ("database", &longest)], named).unwrap();
        assert_eq!((route.user.as_str(), route.database.as_str()), (longest.as_str(), longest.as_str()));
        for odd in [&longer, &wide, &"a".repeat(60_000), &"a\nb".to_owned()] {
            let user = routed(&[("user", odd)], named);
            assert!(matches!(user, Err(Refusal::UserName(_))), "{user:?}");
            let database = routed(&[("database", odd)], named);
            assert!(matches!(database, Err(Refusal::DatabaseName(_))), "{database:?}");
            let prefixed = routed(&[("database", &format!("lazy-roach-3.{odd}"))], None);
            assert!(matches!(prefixed, Err(Refusal::DatabaseName(_))), "{prefixed:?}");
            let flagged = routed(&[("database", odd), ("options", "--cluster=lazy-roach-3")], None);
            assert!(matches!(flagged, Err(Refusal::DatabaseName(_))), "{flagged:?}");
        }
        assert_eq!(routed(&[("user", "")], named), Err(Refusal::NoUser));
    }

    #[test]
    fn texts_are_cockroachdb_s() {
        assert_eq!(unroutable(&[], None).to_string(), "missing cluster identifier");
        assert_eq!(unroutable(&[], Some("localhost")), Unroutable::Missing);
        assert_eq!(unroutable(&[], Some("not_a_cluster.localhost")), Unroutable::Missing);
        let both = [("database", "lazy-roach-3.shop"), ("options", "--cluster=lazy-roach-4")];
        assert_eq!(unroutable(&both, None).to_string(), "multiple different cluster identifiers provided");
        let flag = [("options", "--cluster=lazy-roach-3")];
        assert_eq!(unroutable(&flag, Some("lazy-roach-4.localhost")), Unroutable::Different);
        let twice = [("options", "--cluster=lazy-roach-3 --cluster=lazy-roach-3")];
        assert_eq!(unroutable(&twice, None).to_string(), "multiple cluster flags provided");
        assert_eq!(unroutable(&[("options", "--cluster=")], None).to_string(), "invalid cluster flag");
        for database in ["a.b.c", ".b", "a."] {
            assert_eq!(unroutable(&[("database", database)], None).to_string(), "invalid database param");
        }
        for (text, hint) in
            [("lazyroach", "forget"), ("lazy-roach-x", "tenant ID"), ("Lazy-roach-3", "cluster name")]
        {
            let invalid = unroutable(&[("options", &format!("--cluster={text}"))], None);
            assert_eq!(invalid.to_string(), format!("invalid cluster identifier '{text}'"));
            assert!(invalid.hint().contains(hint), "{text}: {}", invalid.hint());
        }
    }

    #[test]
    fn t41_parameters_that_change_who_the_session_is_are_refused() {
        let named = Some("lazy-roach-3.localhost");
        for (name, value) in [
            ("role", "chitin"),
            ("ROLE", "chitin"),
            ("session_authorization", "chitin"),
            ("session_preload_libraries", "x"),
            ("chitin.user", "x"),
            ("crdb:remote_addr", "10.0.0.1"),
            ("crdb:session_revival_token_base64", "x"),
            ("options", "-c role=chitin"),
            ("options", "--session-authorization=chitin"),
            ("options", "-crole=chitin"),
            ("options", "-c session\\_authorization=chitin"),
        ] {
            assert!(matches!(routed(&[(name, value)], named), Err(Refusal::Parameter(_))), "{name}={value}");
        }
        assert_eq!(unroutable(&[("options", "-d 5")], named), Unroutable::Options);
        assert_eq!(unroutable(&[("options", "-c")], named), Unroutable::Options);
        assert_eq!(routed(&[("replication", "database")], named), Err(Refusal::Replication));
    }

    #[test]
    fn a_client_may_say_that_it_brings_a_token() {
        let named = Some("lazy-roach-3.localhost");
        for (options, expected) in [
            ("--crdb:jwt_auth_enabled=true", true),
            ("-c crdb:jwt_auth_enabled=on --geqo=off", true),
            ("--crdb:jwt_auth_enabled=false", false),
            ("--geqo=off", false),
        ] {
            let route = routed(&[("options", options)], named).unwrap();
            assert_eq!(route.brings_token, expected, "{options}");
            assert!(route.parameters.iter().all(|(_, value)| !value.contains("crdb")));
        }
        let maybe = unroutable(&[("options", "--crdb:jwt_auth_enabled=maybe")], named);
        assert_eq!(maybe, Unroutable::Options);
        // Only as an option: as a parameter it is one that clients may not set.
        let parameter = routed(&[("crdb:jwt_auth_enabled", "true")], named);
        assert!(matches!(parameter, Err(Refusal::Parameter(_))));
    }

    #[test]
    fn ordinary_settings_go_on_to_the_engine() {
        let parameters = [
            ("application_name", "psql"),
            ("options", "-c search_path=a,b --cluster=lazy-roach-3 -c my.note=two\\ words --geqo=off"),
        ];
        let route = routed(&parameters, None).unwrap();
        let expected = [
            ("application_name", "psql"),
            ("options", "-c search_path=a,b -c my.note=two\\ words -c geqo=off"),
        ];
        let parameters: Vec<_> = route.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(parameters, expected);
    }
}
