//! Who of the outside may be which SQL user: a map in the syntax of PostgreSQL's `pg_ident.conf` (its manual, 21.2).
//!
//! A line is MAP EXTERNAL SQL-USER. EXTERNAL is the name that a certificate or a token carries, or `/` and a regular
//! expression; SQL-USER may then hold `\1` for what the expression's first group matched. Many lines may name the same map,
//! and a client is let in if any of them allows the user that it asks for.
//!
//! Two things are stricter than in PostgreSQL, because a mistake here lets somebody in as somebody else: an expression must
//! match the whole name (`/example.org` would otherwise match `example.org.attacker.net`), and SQL-USER is one name: `all`,
//! `+role` and regular expressions are refused there. No line makes anybody a reserved user.

use std::collections::HashMap;

use model::RoleName;

use crate::hba::Mistake;
use crate::hba::lex::{self, Line, Word};
use crate::hba::pattern::{PATTERNS_MAX, Pattern};

/// Most lines of one cluster's map.
pub const LINES_MAX: usize = 1_000;
/// Longest external name that is looked at, in bytes; a longer one is nobody's.
pub const EXTERNAL_BYTES_MAX: usize = 1_024;

const COLUMNS: &str = r"a line is MAP EXTERNAL SQL-USER, for instance: people /^(.*)@example\.org$ \1";

/// A cluster's identity map. The default maps nobody.
#[derive(Clone, Debug, Default)]
pub struct IdentityMap {
    maps: HashMap<String, Vec<Entry>>,
}

#[derive(Clone, Debug)]
struct Entry {
    external: External,
    user: User,
}

#[derive(Clone, Debug)]
enum External {
    Named(String),
    Like(Pattern),
}

#[derive(Clone, Debug)]
enum User {
    Named(String),
    /// What stands before and after the first group's match.
    Around(String, String),
}

impl IdentityMap {
    /// Reads a map. An empty text maps nobody.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let mut maps: HashMap<String, Vec<Entry>> = HashMap::new();
        let mut patterns = 0;
        for line in lex::lines(text, LINES_MAX, "lines")? {
            let (map, entry) = read(&line)?;
            if matches!(entry.external, External::Like(_)) {
                patterns += 1;
                if patterns > PATTERNS_MAX {
                    return Err(line.place.mistake(format!("more than {PATTERNS_MAX} regular expressions")));
                }
            }
            maps.entry(map).or_default().push(entry);
        }
        Ok(Self { maps })
    }

    /// Whether any line names the map.
    pub fn has(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// Whether the map lets who has this external name be this SQL user. Names are compared exactly. A reserved user is
    /// nobody's, and neither is what cannot be a user's name.
    pub fn permits(&self, map: &str, external: &str, user: &str) -> bool {
        self.candidates(map, external).any(|candidate| candidate == user)
    }

    /// The SQL users that who has this external name may be, each once, in the order of the lines.
    pub fn users(&self, map: &str, external: &str) -> Vec<String> {
        let mut users: Vec<String> = Vec::new();
        for user in self.candidates(map, external) {
            if !users.contains(&user) {
                users.push(user);
            }
        }
        users
    }

    fn candidates(&self, map: &str, external: &str) -> impl Iterator<Item = String> {
        let entries = self.maps.get(map).filter(|_| external.len() <= EXTERNAL_BYTES_MAX);
        entries
            .into_iter()
            .flatten()
            .filter_map(move |entry| entry.user(external))
            .filter(|user| user.parse().is_ok_and(|role: RoleName| !role.is_reserved()))
    }
}

impl Entry {
    fn user(&self, external: &str) -> Option<String> {
        match (&self.external, &self.user) {
            (External::Named(name), User::Named(user)) => (name == external).then(|| user.clone()),
            (External::Like(pattern), User::Named(user)) => pattern.is_match(external).then(|| user.clone()),
            (External::Like(pattern), User::Around(before, after)) => {
                // A group that took no part gives no name.
                let group = pattern.captures(external)?.get(1)?;
                Some(format!("{before}{}{after}", group.as_str()))
            }
            (External::Named(_), User::Around(..)) => None,
        }
    }
}

fn read(line: &Line) -> Result<(String, Entry), Mistake> {
    let mut fields = line.fields.iter();
    let mut next = |what: &str| {
        let field = fields.next().ok_or_else(|| line.end.hinted(format!("the {what} is missing"), COLUMNS));
        field.and_then(|field| field.single(&format!("the {what}")))
    };
    let (map, external, user) = (next("map")?, next("external name")?, next("SQL user")?);
    if let Some(more) = fields.next() {
        return Err(more
            .place
            .hinted("a line has three values", "put a value that holds blanks or commas in double quotes"));
    }
    if ["include", "include_if_exists", "include_dir"].into_iter().any(|word| map.is_keyword(word)) {
        return Err(map.place.hinted(
            format!("`{}` is refused: a map reads nothing of the machine", map.text),
            "write the lines here",
        ));
    }
    let external_read = match external.text.strip_prefix('/') {
        Some(source) => External::Like(Pattern::whole(source, external.place)?),
        None => External::Named(external.text.clone()),
    };
    let entry = Entry { user: sql_user(user, &external_read)?, external: external_read };
    Ok((map.text.clone(), entry))
}

fn sql_user(word: &Word, external: &External) -> Result<User, Mistake> {
    let text = word.text.as_str();
    if word.is_keyword("all") || text.starts_with('/') || (text.starts_with('+') && !word.is_quoted) {
        return Err(word.place.hinted(
            format!("`{text}` is refused: one line gives one SQL user"),
            r"name the user, or build it from a group of the external name: people /^(.*)@example\.org$ \1",
        ));
    }
    if let Some((before, after)) = text.split_once(r"\1") {
        let groups = match external {
            External::Like(pattern) => pattern.groups(),
            External::Named(_) => 0,
        };
        if groups == 0 {
            return Err(word.place.hinted(
                r"`\1` stands for a group, and the external name has none",
                r"write a regular expression with a group, for instance /^(.*)@example\.org$",
            ));
        }
        if before.contains('\\') || after.contains('\\') {
            return Err(word.place.mistake(r"only one `\1` can be used, and no other group"));
        }
        return Ok(User::Around(before.to_owned(), after.to_owned()));
    }
    let role: RoleName = text.parse().map_err(|wrong| word.place.mistake(format!("{wrong}")))?;
    if role.is_reserved() {
        return Err(word.place.mistake(format!("nobody signs in as `{text}`: the name is reserved")));
    }
    if text.contains('\\') {
        return Err(word
            .place
            .mistake(r"of a regular expression's groups only the first, `\1`, can be used"));
    }
    Ok(User::Named(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> IdentityMap {
        IdentityMap::parse(text).unwrap_or_else(|mistake| panic!("{mistake}\n{text}"))
    }

    #[test]
    fn names_and_patterns_say_who_may_be_whom() {
        let map = map("# staff\n\
             people  maria.muster             maria\n\
             people  maria.muster             shop_admin  # a second hat\n\
             people  /^(.*)@example\\.org$     \\1\n\
             people  /^ci-([a-z]+)$           robot_\\1_x\n\
             certs   \"CN=maria,O=Shop\"        maria\n\
             https://login.example.org  /(.*)  \\1\n");
        assert!(map.permits("people", "maria.muster", "maria"));
        assert_eq!(map.users("people", "maria.muster"), ["maria", "shop_admin"]);
        assert_eq!(map.users("people", "tom@example.org"), ["tom"]);
        assert_eq!(map.users("people", "ci-build"), ["robot_build_x"]);
        assert!(map.permits("certs", "CN=maria,O=Shop", "maria"));
        assert!(map.has("https://login.example.org") && !map.has("other"));
        assert!(map.permits("https://login.example.org", "lea", "lea"));
        for (name, external, user) in [
            ("people", "maria.muster", "tom"),
            ("people", "Maria.Muster", "maria"),
            ("people", "maria.muster", "Maria"),
            ("people", "maria.muster ", "maria"),
            ("people", "tom@example.org", "lea"),
            ("people", "CN=maria,O=Shop", "maria"),
            ("other", "maria.muster", "maria"),
            ("", "", ""),
        ] {
            assert!(!map.permits(name, external, user), "{name} {external} {user}");
        }
    }

    #[test]
    fn a_pattern_must_match_the_whole_name() {
        let map = map("m /([a-z]+)@example\\.org \\1\nm /a|ab x\nm /(?m)^(\\w+)$ y\n");
        assert_eq!(map.users("m", "tom@example.org"), ["tom"]);
        for attack in
            ["tom@example.org.attacker.net", "x tom@example.org", "tom@example.org\n", "a\ntom@example.org"]
        {
            assert!(map.users("m", attack).is_empty(), "{attack:?}");
        }
        assert_eq!(map.users("m", "ab"), ["x", "y"], "the alternative that matches the whole name is found");
        assert!(map.users("m", "abc d").is_empty());
        assert!(map.users("m", "evil\nmaria").is_empty());
        // Would end the group that anchors it.
        for escape in ["m /a)|(?:b x", "m /a)|(b x", "m \"/(?x)a #\" x", "m /a\\ x"] {
            assert!(IdentityMap::parse(escape).is_err(), "{escape}");
        }
    }

    #[test]
    fn nobody_becomes_a_reserved_user_or_something_that_is_no_name() {
        let map = map("m /(.*) \\1\nm /x(.*) pg_\\1\nm /(y)?z user_\\1\n");
        for reserved in
            ["root", "node", "chitin", "postgres", "admin", "public", "pg_monitor", "chitin_x", "none"]
        {
            assert!(!map.permits("m", reserved, reserved), "{reserved}");
            assert!(map.users("m", reserved).is_empty(), "{reserved}");
        }
        assert_eq!(map.users("m", "xmonitor"), ["xmonitor"]);
        assert_eq!(map.users("m", "z"), ["z"], "a group that took no part gives no name");
        assert!(map.users("m", "").is_empty());
        for odd in ["a\0b", "a\nb", &"a".repeat(64), &"a".repeat(2_000)] {
            assert!(map.users("m", odd).is_empty(), "{odd:?}");
        }
        assert!(map.permits("m", "Root", "Root"), "another name, as PostgreSQL sees it");
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, place, part) in [
            ("people maria\n", (1, 13), "SQL user is missing"),
            ("people\n", (1, 7), "external name is missing"),
            ("a b c\npeople maria tom lea\n", (2, 18), "three values"),
            ("people a,b maria", (1, 8), "list"),
            ("people /( maria", (1, 8), "regular expression"),
            ("people / maria", (1, 8), "empty"),
            ("people maria \\1", (1, 14), "has none"),
            ("people /maria \\1", (1, 15), "has none"),
            ("people /(a)(b) \\1\\2", (1, 16), "only one"),
            ("people /(a)(b) \\1\\1", (1, 16), "only one"),
            ("people /(a)(b) \\2", (1, 16), "only the first"),
            ("people maria all", (1, 14), "refused"),
            ("people maria +dba", (1, 14), "refused"),
            ("people maria /^x", (1, 14), "refused"),
            ("people maria root", (1, 14), "reserved"),
            ("people maria pg_x", (1, 14), "reserved"),
            ("include other.conf x", (1, 1), "`include`"),
            ("people \"maria tom", (1, 8), "quote"),
            ("\0", (1, 1), "U+0000"),
        ] {
            let found = IdentityMap::parse(text).unwrap_err();
            assert_eq!((found.line, found.column), place, "{text:?}: {found}");
            assert!(found.message.contains(part), "{text:?}: {found}");
        }
        assert!(!map("").has("") && !map("# nothing\n").has("people"));
        assert!(map("people maria \"all\"\n").permits("people", "maria", "all"));
    }

    #[test]
    fn what_strangers_send_is_bounded() {
        assert!(IdentityMap::parse(&"m a b\n".repeat(LINES_MAX)).is_ok());
        let many = IdentityMap::parse(&"m a b\n".repeat(LINES_MAX + 1)).unwrap_err();
        assert_eq!(many.line, 1_001);
        assert_eq!(IdentityMap::parse(&"m /a b\n".repeat(101)).unwrap_err().line, 101);
        let map = map("m /((a+)+)+ b\n");
        let start = std::time::Instant::now();
        assert!(!map.permits("m", &format!("{}!", "a".repeat(1_000)), "b"));
        // Elsewhere it takes longer than anybody lives.
        assert!(start.elapsed() < std::time::Duration::from_secs(60));
    }
}
