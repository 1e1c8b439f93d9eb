//! Tests of rules: what PostgreSQL's manual says they mean, and what an attacker or a tired operator writes.

use std::net::IpAddr;

use super::*;

fn rules(text: &str) -> Rules {
    Rules::parse(text).unwrap_or_else(|mistake| panic!("{mistake}\n{text}"))
}

fn mistake(text: &str) -> Mistake {
    match Rules::parse(text) {
        Err(mistake) => mistake,
        Ok(_) => panic!("accepted:\n{text}"),
    }
}

fn met(rules: &Rules, user: &str, database: &str, roles: &[&str], address: &str) -> Option<(u32, Method)> {
    let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
    let address: IpAddr = address.parse().unwrap();
    let client = Client { user, database, roles: &roles, address };
    rules.find(&client).map(|rule| (rule.line(), rule.method()))
}

/// Whether a rule with these columns lets somebody through to its method.
fn lets(columns: &str, user: &str, database: &str, roles: &[&str], address: &str) -> bool {
    met(&rules(&format!("host {columns} cert\n")), user, database, roles, address).is_some()
}

#[test]
fn the_default_is_a_certificate_or_a_password_for_everybody() {
    let standard = Rules::standard();
    assert_eq!(standard.iter().count(), 1);
    assert_eq!(met(&standard, "maria", "shop", &[], "203.0.113.7"), Some((1, Method::CertPassword)));
    assert_eq!(met(&standard, "x", "y", &[], "2001:db8::1"), Some((1, Method::CertPassword)));
    assert_eq!(standard.notes(), Vec::<String>::new());
}

#[test]
fn the_first_rule_that_matches_decides_and_none_refuses() {
    let rules = rules(
        "# the office\n\n\
         host    all  tom    all             reject\n\
         hostssl shop maria  203.0.113.0/24  cert   # by certificate\n\
         host    shop maria  all             scram-sha-256\n",
    );
    assert_eq!(met(&rules, "tom", "shop", &[], "203.0.113.7"), Some((3, Method::Reject)));
    assert_eq!(met(&rules, "maria", "shop", &[], "203.0.113.7"), Some((4, Method::Cert)));
    assert_eq!(met(&rules, "maria", "shop", &[], "203.0.114.7"), Some((5, Method::ScramSha256)));
    assert_eq!(met(&rules, "maria", "bank", &[], "203.0.113.7"), None);
    assert_eq!(met(&rules, "lea", "shop", &[], "203.0.113.7"), None);
    let texts: Vec<&str> = rules.iter().map(Rule::text).collect();
    assert_eq!(texts[1], "hostssl shop maria  203.0.113.0/24  cert");
}

#[test]
fn names_lists_quotes_and_keywords_mean_what_postgresql_says() {
    let at = "10.0.0.1";
    assert!(lets("a,b,c all all", "u", "b", &[], at));
    assert!(mistake("host a, b , c all all cert").message.contains("comma"), "it would be a column further");
    assert!(lets("a, b all all", "u", "b", &[], at), "blanks after a comma");
    assert!(lets("\"my db\",b all all", "u", "my db", &[], at));
    assert!(lets("\"a\"\"b\" all all", "u", "a\"b", &[], at));
    assert!(lets("\"a,b\" all all", "u", "a,b", &[], at) && !lets("\"a,b\" all all", "u", "a", &[], at));
    assert!(lets("\"a#b\" all all", "u", "a#b", &[], at));
    assert!(lets("a\"b c\" all all", "u", "ab c", &[], at));
    // Quoted keywords are names.
    assert!(!lets("\"all\" all all", "u", "shop", &[], at) && lets("\"all\" all all", "u", "all", &[], at));
    assert!(
        !lets("all \"all\" all", "u", "shop", &[], at) && lets("all \"all\" all", "all", "shop", &[], at)
    );
    assert!(!lets("\"sameuser\" all all", "u", "u", &[], at));
    assert!(
        lets("all \"+dba\" all", "+dba", "x", &[], at) && !lets("all \"+dba\" all", "u", "x", &["dba"], at)
    );
    // Names keep their case, and a keyword is written small.
    assert!(!lets("all Maria all", "maria", "x", &[], at));
    assert!(!lets("ALL all all", "u", "shop", &[], at));
    assert!(lets("all maria,+dba all", "tom", "x", &["dba"], at));
}

#[test]
fn roles_and_same_names_go_by_membership() {
    let at = "10.0.0.1";
    assert!(lets("all +dba all", "lea", "x", &["staff", "dba"], at));
    assert!(lets("all +dba all", "dba", "x", &[], at), "a role is a member of itself");
    assert!(!lets("all +dba all", "lea", "x", &["dbas", "db", "DBA"], at));
    assert!(lets("all +\"my role\" all", "lea", "x", &["my role"], at));
    assert!(lets("sameuser all all", "maria", "maria", &[], at));
    assert!(!lets("sameuser all all", "maria", "tom", &["tom"], at));
    for word in ["samerole", "samegroup"] {
        assert!(lets(&format!("{word} all all"), "maria", "sales", &["sales"], at));
        assert!(lets(&format!("{word} all all"), "maria", "maria", &[], at));
        assert!(!lets(&format!("{word} all all"), "maria", "sales", &[], at));
    }
    assert!(!lets("replication all all", "maria", "replication", &[], at));
    assert!(lets("\"replication\" all all", "maria", "replication", &[], at));
}

#[test]
fn regular_expressions_match_anywhere_unless_anchored_as_in_postgresql() {
    let at = "10.0.0.1";
    assert!(lets("/shop all all", "u", "my-shop-2", &[], at));
    assert!(lets("/^shop$ all all", "u", "shop", &[], at) && !lets("/^shop$ all all", "u", "shops", &[], at));
    assert!(lets("\"/^db\\d{2,4}$\" all all", "u", "db123", &[], at), "a comma needs quotes");
    assert!(lets("all /^ci_,+dba all", "ci_1", "x", &[], at));
    assert!(lets("all /^\\w+@example\\.org$ all", "maria@example.org", "x", &[], at));
    assert!(rules("host /shop all all cert\n").notes()[0].starts_with("line 1: `/shop`"));
    assert!(rules("host /^shop$ all all cert\n").notes().is_empty());
}

#[test]
fn addresses_are_ranges_and_ipv4_inside_ipv6_is_ipv4() {
    for (range, inside, outside) in [
        ("203.0.113.0/24", "203.0.113.255", "203.0.114.0"),
        ("203.0.113.7/32", "203.0.113.7", "203.0.113.8"),
        ("203.0.113.0/24", "::ffff:203.0.113.7", "::ffff:203.0.114.7"),
        ("203.0.113.7/24", "203.0.113.1", "203.0.114.1"),
        ("203.0.113.0 255.255.255.0", "203.0.113.9", "203.0.112.9"),
        ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
        ("2001:db8:: ffff:ffff::", "2001:db8:1::1", "2001:db9::1"),
        ("::ffff:203.0.113.0/120", "203.0.113.7", "203.0.114.7"),
        ("0.0.0.0/0", "203.0.113.7", "2001:db8::1"),
        ("::/0", "2001:db8::1", "203.0.113.7"),
        ("::/0", "2001:db8::1", "::ffff:203.0.113.7"),
    ] {
        assert!(lets(&format!("all all {range}"), "u", "d", &[], inside), "{range} {inside}");
        assert!(!lets(&format!("all all {range}"), "u", "d", &[], outside), "{range} {outside}");
    }
    assert!(lets("all all all", "u", "d", &[], "203.0.113.7") && lets("all all all", "u", "d", &[], "::1"));
    assert_eq!(
        rules("host all all 203.0.113.7/24 cert\n").notes(),
        ["line 1: `203.0.113.7/24` means 203.0.113.0/24"]
    );
}

#[test]
fn every_connection_is_over_tls_so_some_types_never_match() {
    let text = "local all all cert\nhostnossl all all all cert\nhostgssenc all all all cert\nhostnogssenc all all all jwt\n";
    let rules = rules(text);
    assert_eq!(met(&rules, "u", "d", &[], "10.0.0.1"), Some((4, Method::Jwt)));
    let notes = rules.notes();
    assert_eq!(notes.len(), 3);
    assert_eq!(notes[0], "line 1: `local` never matches: every connection comes over TLS");
}

#[test]
fn rules_that_do_nothing_are_noted() {
    let notes =
        rules("host all root,pg_x all cert\nhost all all all cert\nhost all tom all reject\n").notes();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].starts_with("line 1: nobody signs in as `root`"));
    assert_eq!(notes[2], "line 3: never reached, because line 2 matches every client");
    assert!(rules("host all tom all reject\nhost all all all cert\n").notes().is_empty());
    // What the engine would cut is nobody's name: no client can say it.
    for long in [
        format!("host {} all all reject\n", "d".repeat(64)),
        format!("host all {} all reject\n", "u".repeat(64)),
    ] {
        assert!(rules(&long).notes()[0].contains("has at most 63 bytes"), "{long}");
    }
}

#[test]
fn a_line_goes_on_after_a_backslash_and_places_stay_right() {
    let continued = rules("host all \\\n  maria \\\r\n all cert\r\nhost all tom all reject");
    assert_eq!(met(&continued, "maria", "d", &[], "::1"), Some((1, Method::Cert)));
    assert_eq!(met(&continued, "tom", "d", &[], "::1"), Some((4, Method::Reject)));
    let wrong = mistake("host all \\\n  maria \\\n all trust\n");
    assert_eq!((wrong.line, wrong.column), (3, 6));
    // A comment that is continued swallows the next line, as in PostgreSQL.
    let swallowed = rules("# note \\\nhost all all all cert\nhost all all all reject\n");
    assert_eq!(met(&swallowed, "maria", "d", &[], "::1"), Some((3, Method::Reject)));
}

#[test]
fn mistakes_have_their_place_and_a_way_out() {
    for (text, place, part) in [
        ("host all all all cert\nhost all all all trust\n", (2, 18), "`trust`"),
        ("host all all all md5", (1, 18), "`md5`"),
        ("host all all all ldap", (1, 18), "`ldap`"),
        ("host all all all gss", (1, 18), "`gss`"),
        ("host all all all Cert", (1, 18), "unknown method"),
        ("hots all all all cert", (1, 1), "unknown type `hots`"),
        ("include other.conf", (1, 1), "`include`"),
        ("host @names all all cert", (1, 6), "@file"),
        ("host all @names all cert", (1, 10), "@file"),
        ("host all", (1, 9), "the user is missing"),
        ("host all  # x", (1, 11), "the user is missing"),
        ("host all all all", (1, 17), "the method is missing"),
        ("local all all", (1, 14), "the method is missing"),
        ("host all all example.org cert", (1, 14), "hostname"),
        ("host all all .example.org cert", (1, 14), "hostname"),
        ("host all all \"all\" cert", (1, 14), "hostname"),
        ("host all all samehost cert", (1, 14), "`samehost`"),
        ("host all all samenet cert", (1, 14), "`samenet`"),
        ("host all all 10.0.0.0/33 cert", (1, 14), "not an address range"),
        ("host all all 010.0.0.0/8 cert", (1, 14), "not an address range"),
        ("host all all 10.0.0.0/08 cert", (1, 14), "not an address range"),
        ("host all all 10.0.0.0/+8 cert", (1, 14), "not an address range"),
        ("host all all fe80::1%eth0/64 cert", (1, 14), "not an address range"),
        ("host all all 10.0.0.1 cert", (1, 23), "not a mask"),
        ("host all all 10.0.0.1", (1, 14), "without a range"),
        ("host all all 10.0.0.0 255.0.255.0 cert", (1, 23), "not a mask"),
        ("host all all 10.0.0.0 ffff:: cert", (1, 23), "same kind"),
        ("host all all 10.0.0.0/8,10.1.0.0/16 cert", (1, 14), "list"),
        ("host all all all cert,jwt", (1, 18), "list"),
        ("host \"all all all cert", (1, 6), "quote"),
        ("host \"\" all all cert", (1, 6), "empty value"),
        ("host a,,b all all cert", (1, 8), "after the comma"),
        ("host ,a all all cert", (1, 6), "before it"),
        ("host all all all cert,", (1, 23), "after the comma"),
        ("host all + all cert", (1, 10), "after `+`"),
        ("host all /( all cert", (1, 10), "regular expression"),
        ("host / all all cert", (1, 6), "empty"),
        ("host all /(?=x) all cert", (1, 10), "regular expression"),
        ("host all /(a{100}){100} all cert", (1, 10), "too large"),
        ("host\u{a0}all all all cert", (1, 5), "U+00A0"),
        ("\u{feff}host all all all cert", (1, 1), "U+FEFF"),
        ("host all ma\u{202e}ria all cert", (1, 12), "U+202E"),
        ("host all all all cert \0", (1, 23), "U+0000"),
        ("# nothing\n", (1, 1), "no entries"),
        ("", (1, 1), "no entries"),
        ("host all all all cert \\", (1, 22), "middle of a line"),
    ] {
        let found = mistake(text);
        assert_eq!((found.line, found.column), place, "{text:?}: {found}");
        assert!(found.message.contains(part), "{text:?}: {found}");
    }
    let trust = mistake("host all all all cert\nhost all all all trust\n");
    assert!(trust.to_string().starts_with("line 2, column 18: "), "{trust}");
    assert!(trust.hint.unwrap().contains("scram-sha-256"));
}

#[test]
fn options_are_those_of_the_method() {
    let options = |rest: &str| rules(&format!("host all all all {rest}\n")).rules[0].options().clone();
    assert_eq!(options("cert"), RuleOptions::default());
    let cert = options("cert map=people clientname=DN clientcert=verify-full");
    assert_eq!(
        (cert.map.as_deref(), cert.clientname, cert.clientcert),
        (Some("people"), ClientName::Dn, None)
    );
    for (text, wanted) in [
        ("SAN-DNS", ClientName::SanDns),
        ("SAN-EMAIL", ClientName::SanEmail),
        ("SAN-URI", ClientName::SanUri),
    ] {
        assert_eq!(options(&format!("cert-scram-sha-256 clientname={text}")).clientname, wanted);
    }
    assert_eq!(options("scram-sha-256 clientcert=verify-ca").clientcert, Some(ClientCert::VerifyCa));
    let full = options("password clientcert=verify-full map=\"my map\"");
    assert_eq!((full.clientcert, full.map.as_deref()), (Some(ClientCert::VerifyFull), Some("my map")));
    assert_eq!(options("jwt provider=corp").provider.unwrap().as_str(), "corp");
    let oauth = options("oauth issuer=https://login.example.org/a \"scope=openid email\" map=x");
    assert_eq!(oauth.issuer.as_deref(), Some("https://login.example.org/a"));
    assert_eq!(oauth.scope.as_deref(), Some("openid email"));
    assert_eq!(options("browser scope=\"openid groups\"").scope.as_deref(), Some("openid groups"));
    for (rest, part) in [
        ("reject map=x", "does not take"),
        ("scram-sha-256 provider=x", "does not take"),
        ("cert scope=openid", "does not take"),
        ("cert-password clientcert=verify-full", "does not take"),
        ("jwt clientcert=verify-full", "does not take"),
        ("jwt scope=openid", "does not take"),
        ("oauth validator=x", "does not take"),
        ("cert ldapserver=x", "does not take"),
        ("cert map", "not an option"),
        ("cert map =x", "not an option"),
        ("cert map=", "no value"),
        ("cert map=a map=b", "twice"),
        ("cert map=a,b", "list"),
        ("cert clientname=cn", "clientname"),
        ("cert clientname=SAN-IP", "clientname"),
        ("cert clientcert=1", "clientcert"),
        ("cert clientcert=verify-ca", "in full"),
        ("password map=x", "nothing to compare"),
        ("password clientcert=verify-ca clientname=DN", "nothing to compare"),
        ("jwt provider=a issuer=https://a.example.org", "both"),
        ("jwt provider=2x", "name"),
        ("jwt issuer=login.example.org", "not an issuer"),
        ("jwt issuer=javascript:x", "not an issuer"),
        ("jwt issuer=https://a.example.org?x", "not an issuer"),
        ("oauth \"scope=a  b\"", "scope"),
    ] {
        let found = mistake(&format!("host all all all {rest}\n"));
        assert!(found.message.contains(part), "{rest}: {found}");
        assert!(found.column >= 18, "{rest}: {found}");
    }
}

#[test]
fn rules_from_before_that_name_no_type_of_alternative_name_are_read_and_no_more_set() {
    let text = "host all all all cert\nhost all all all cert clientname=SAN map=people\n";
    let read = rules(text);
    assert_eq!(read.rules[1].options().clientname, ClientName::San);
    assert!(
        read.notes().iter().any(|note| note.starts_with("line 2: `clientname=SAN`")),
        "{:?}",
        read.notes()
    );
    let refused = Rules::parse_new(text).unwrap_err();
    assert_eq!(refused.line, 2);
    assert!(refused.hint.unwrap().contains("SAN-EMAIL"));
    assert!(Rules::parse_new(&text.replace("SAN", "SAN-URI")).is_ok());
}

#[test]
fn methods_have_one_name_and_say_what_they_take() {
    for method in Method::ALL {
        assert_eq!(method.as_str().parse(), Ok(method));
        assert_eq!(method.takes(method), method != Method::Reject, "{method}");
    }
    assert_eq!("cert-scram-sha-256".parse(), Ok(Method::CertPassword));
    assert!("trust".parse::<Method>().is_err() && "CERT".parse::<Method>().is_err());
    assert!(Method::CertPassword.takes(Method::ScramSha256) && !Method::ScramSha256.takes(Method::Cert));
    assert!(!Method::Cert.takes(Method::Password) && !Method::Reject.takes(Method::Reject));
}

#[test]
fn an_explanation_ends_with_the_rule_that_decides() {
    let rules = rules(
        "host all maria 203.0.113.0/24 cert\nhost bank all all jwt\nlocal all all cert\n\
         host all +dba all browser\nhost all all all scram-sha-256\nhost all all all reject\n",
    );
    let client =
        Client { user: "maria", database: "shop", roles: &[], address: "198.51.100.1".parse().unwrap() };
    let steps = rules.explain(&client, Some(Method::Cert));
    assert_eq!(steps.len(), 5, "what comes after the decision is not looked at");
    for (step, part) in
        steps.iter().zip(["address", "database", "`local` never", "member of", "does not take cert"])
    {
        assert!(step.why.contains(part), "{}: {}", step.text, step.why);
    }
    let decided: Vec<u32> = steps.iter().filter(|step| step.is_match).map(|step| step.line).collect();
    assert_eq!(decided, [5]);
    assert_eq!(rules.find(&client).map(Rule::line), Some(5));
    assert!(!rules.explain(&client, Some(Method::Password))[4].why.contains("does not take"));
}

#[test]
fn what_strangers_send_is_bounded() {
    let long = "host all all all cert\n".repeat(RULES_MAX + 1);
    assert!(mistake(&long).message.contains("more than 1000 rules"));
    assert_eq!(rules(&"host all all all cert\n".repeat(RULES_MAX)).iter().count(), RULES_MAX);
    assert!(mistake(&"#".repeat(256 * 1024 + 1)).message.contains("256 KiB"));
    assert!(mistake(&format!("host {} all all cert", "x".repeat(257))).message.contains("256 characters"));
    assert!(mistake(&format!("host {}x all all cert", "x,".repeat(256))).message.contains("list of more"));
    let patterns = "host all /^x$ all cert\n".repeat(101);
    assert_eq!(mistake(&patterns).line, 101);
}

/// The operator's rules and a tenant's roles, both as many as there may be, and a stranger who asks.
#[test]
fn many_rules_about_many_roles_are_looked_at_in_no_time() {
    let names: Vec<String> = (0..256).map(|number| format!("+r{number}")).collect();
    let text = format!("host all {} all cert\n", names.join(",")).repeat(100) + "host all +last all cert\n";
    let rules = rules(&text);
    let held: Vec<String> =
        (0..32_768).map(|number| format!("h{number}")).chain(["last".to_owned()]).collect();
    let held: Vec<&str> = held.iter().map(String::as_str).collect();
    let start = std::time::Instant::now();
    assert_eq!(met(&rules, "u", "d", &held, "::1"), Some((101, Method::Cert)));
    // Each name compared with each role would be 800 million comparisons.
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

/// A pattern that takes exponential time elsewhere.
#[test]
fn a_pattern_cannot_be_made_to_take_long() {
    let rules = rules("host all /^(a+)+$ all cert\n");
    let name = format!("{}b", "a".repeat(62));
    let start = std::time::Instant::now();
    assert_eq!(met(&rules, &name, "d", &[], "::1"), None);
    // Elsewhere it takes longer than anybody lives.
    assert!(start.elapsed() < std::time::Duration::from_secs(60));
}

/// Texts put together from pieces that mean something, by a fixed sequence: what the fuzz target finds fastest.
#[test]
fn no_text_makes_the_reader_stumble() {
    const PIECES: [&str; 32] = [
        "host",
        "local",
        "all",
        "\"",
        "\"\"",
        ",",
        "#",
        "\\",
        "\n",
        "\r\n",
        "/^(a|b)$",
        "/",
        "+dba",
        "+",
        "@x",
        "10.0.0.0/8",
        "10.0.0.1",
        "255.0.0.0",
        "::/0",
        "cert",
        "jwt",
        "map=x",
        "=",
        "provider=a",
        "scope=\"a b\"",
        "ä",
        "\0",
        "\u{202e}",
        "\t",
        "hostssl all all all cert",
        "sameuser",
        "reject",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let roles = ["dba".to_owned()];
    let (mut read, mut refused) = (0, 0);
    for _ in 0..50_000 {
        let mut text = String::new();
        for _ in 0..draw(12) {
            text.push_str(PIECES[draw(PIECES.len())]);
            text.push_str(["", " ", " "][draw(3)]);
        }
        match Rules::parse(&text) {
            Err(mistake) => {
                refused += 1;
                let line = text.split('\n').nth(mistake.line as usize - 1).unwrap_or_default();
                assert!(mistake.column as usize <= line.chars().count() + 1, "{text:?}: {mistake}");
            }
            Ok(rules) => {
                read += 1;
                let client =
                    Client { user: "a", database: "a", roles: &roles, address: "10.0.0.1".parse().unwrap() };
                let steps = rules.explain(&client, None);
                let decided = steps.iter().find(|step| step.is_match).map(|step| step.line);
                assert_eq!(decided, rules.find(&client).map(Rule::line), "{text:?}");
                for rule in rules.iter().filter(|rule| !rule.text().ends_with('\\')) {
                    let again = Rules::parse(rule.text()).unwrap();
                    assert_eq!(again.iter().next().map(Rule::options), Some(rule.options()), "{text:?}");
                }
            }
        }
        let _ = crate::identity_map::IdentityMap::parse(&text);
    }
    assert!(read > 100 && refused > 1_000, "{read} {refused}");
}
