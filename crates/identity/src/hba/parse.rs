//! Reads rules: every column, every option, every mistake with its place.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use model::{DatabaseName, RoleName};

use super::lex::{self, Field, Line, Place, Word};
use super::matching::{Addresses, Databases, Transport, Users};
use super::pattern::{PATTERNS_MAX, Pattern};
use super::{ClientCert, ClientName, Method, Mistake, RULES_MAX, Rule, RuleOptions, Rules};

const COLUMNS: &str =
    "a rule is TYPE DATABASE USER ADDRESS METHOD [OPTIONS], for instance: host all all all cert-password";

pub(super) const SAN_TYPES: &str =
    "say which type of alternative name counts: clientname=SAN-DNS, SAN-EMAIL or SAN-URI";

pub(super) fn rules(text: &str) -> Result<Rules, Mistake> {
    let mut reader = Reader { patterns: 0, notes: Vec::new() };
    let mut rules = Vec::new();
    let mut everybody: Option<u32> = None;
    for line in lex::lines(text, RULES_MAX, "rules")? {
        let rule = reader.rule(&line)?;
        match everybody {
            Some(first) => reader.notes.push(format!(
                "line {}: never reached, because line {first} matches every client",
                rule.line
            )),
            None if rule.matches_everybody() => everybody = Some(rule.line),
            None => {}
        }
        rules.push(rule);
    }
    if rules.is_empty() {
        let start = Place { line: 1, column: 1 };
        return Err(start.hinted(
            "no entries",
            "set an empty text for the default; to let nobody in write: host all all all reject",
        ));
    }
    Ok(Rules { rules, notes: reader.notes })
}

struct Reader {
    patterns: usize,
    notes: Vec<String>,
}

impl Reader {
    fn rule(&mut self, line: &Line) -> Result<Rule, Mistake> {
        let mut fields = line.fields.iter();
        let mut next = |what: &str| {
            fields.next().ok_or_else(|| line.end.hinted(format!("the {what} is missing"), COLUMNS))
        };
        let kind = next("type")?.single("the type")?;
        let (transport, has_address) = transport(kind)?;
        let databases = next("database")?;
        let users = next("user")?;
        let databases =
            databases.words.iter().map(|word| self.database(word)).collect::<Result<Vec<_>, _>>()?;
        let users = users.words.iter().map(|word| self.user(word)).collect::<Result<Vec<_>, _>>()?;
        let addresses = if has_address {
            let word = next("address")?.single("the address")?;
            match address(word)? {
                Written::All => Addresses::All,
                Written::Range(range) => Addresses::Range(self.range(range, word)),
                Written::Alone(alone) => {
                    let hint = format!(
                        "write {alone}/{}, or a mask after it",
                        if alone.is_ipv4() { 32 } else { 128 }
                    );
                    let missing = |_| word.place.hinted("an address without a range", hint.clone());
                    let mask = next("mask").map_err(missing)?.single("the mask")?;
                    Addresses::Range(self.range(masked(alone, mask, &hint)?, word))
                }
            }
        } else {
            Addresses::All
        };
        let method = method(next("method")?.single("the method")?)?;
        let rest: Vec<&Field> = fields.collect();
        let options = options(method, &rest)?;
        if options.clientname == ClientName::San {
            self.note(line.place, format!("`clientname=SAN` counts names of every type; {SAN_TYPES}"));
        }
        if let Transport::Foreign(name) = transport {
            self.note(line.place, format!("`{name}` never matches: every connection comes over TLS"));
        }
        let place = line.place;
        Ok(Rule {
            line: place.line,
            text: line.text.clone(),
            transport,
            databases,
            users,
            addresses,
            method,
            options,
        })
    }

    fn note(&mut self, place: Place, text: String) {
        self.notes.push(format!("line {}: {text}", place.line));
    }

    /// A word that begins with `/` is a regular expression, also in quotes, as in PostgreSQL. It matches where any part
    /// of the name does.
    fn pattern(&mut self, word: &Word) -> Result<Option<Pattern>, Mistake> {
        let Some(source) = word.text.strip_prefix('/') else { return Ok(None) };
        self.patterns += 1;
        if self.patterns > PATTERNS_MAX {
            return Err(word.place.mistake(format!("more than {PATTERNS_MAX} regular expressions")));
        }
        let pattern = Pattern::anywhere(source, word.place)?;
        if !source.contains('^') && !source.contains('$') {
            let name = pattern.source();
            self.note(
                word.place,
                format!(
                    "`/{name}` matches every name that holds it somewhere; `/^{name}$` matches whole names"
                ),
            );
        }
        Ok(Some(pattern))
    }

    fn database(&mut self, word: &Word) -> Result<Databases, Mistake> {
        no_file(word)?;
        if let Some(pattern) = self.pattern(word)? {
            return Ok(Databases::Like(pattern));
        }
        Ok(match word.text.as_str() {
            name if word.is_quoted => self.named(name, word.place),
            "all" => Databases::All,
            "sameuser" => Databases::SameUser,
            "samerole" | "samegroup" => Databases::SameRole,
            "replication" => {
                let text = "`replication` never matches: physical replication is not offered; a database of that name is written \"replication\"";
                self.note(word.place, text.to_owned());
                Databases::Replication
            }
            name => self.named(name, word.place),
        })
    }

    fn named(&mut self, name: &str, place: Place) -> Databases {
        if name.parse::<DatabaseName>().is_err() {
            self.note(place, format!("`{name}` never matches: a database name has at most 63 bytes"));
        }
        Databases::Named(name.to_owned())
    }

    fn user(&mut self, word: &Word) -> Result<Users, Mistake> {
        no_file(word)?;
        if word.is_keyword("all") {
            return Ok(Users::All);
        }
        if let Some(pattern) = self.pattern(word)? {
            return Ok(Users::Like(pattern));
        }
        if let Some(role) = word.text.strip_prefix('+').filter(|_| !word.is_quoted) {
            if role.is_empty() {
                return Err(word.place.hinted("a role is missing after `+`", "write +ROLE without a space"));
            }
            return Ok(Users::MemberOf(role.to_owned()));
        }
        let name = word.text.clone();
        match name.parse::<RoleName>() {
            Ok(role) if !role.is_reserved() => {}
            Ok(_) => self.note(word.place, format!("nobody signs in as `{name}`: the name is reserved")),
            Err(_) => {
                self.note(word.place, format!("`{name}` never matches: a user name has at most 63 bytes"));
            }
        }
        Ok(Users::Named(name))
    }

    /// The range, IPv4 inside IPv6 turned into IPv4, host bits cleared as PostgreSQL ignores them.
    fn range(&mut self, range: IpNet, word: &Word) -> IpNet {
        let net = match range {
            IpNet::V6(six) if six.prefix_len() >= 96 => six
                .addr()
                .to_ipv4_mapped()
                .and_then(|four| Ipv4Net::new(four, six.prefix_len() - 96).ok())
                .map_or(range, IpNet::V4),
            _ => range,
        };
        let plain = net.trunc();
        if plain != net {
            self.note(word.place, format!("`{}` means {plain}", word.text));
        }
        plain
    }
}

fn no_file(word: &Word) -> Result<(), Mistake> {
    if word.text.starts_with('@') && !word.is_quoted {
        return Err(word.place.hinted(
            "`@file` is refused: rules read nothing of the machine",
            "write the names here, with commas between them",
        ));
    }
    Ok(())
}

/// The transport, and whether an address column follows.
fn transport(word: &Word) -> Result<(Transport, bool), Mistake> {
    Ok(match word.text.as_str() {
        "host" | "hostssl" | "hostnogssenc" => (Transport::Ours, true),
        "hostnossl" => (Transport::Foreign("hostnossl"), true),
        "hostgssenc" => (Transport::Foreign("hostgssenc"), true),
        "local" => (Transport::Foreign("local"), false),
        "include" | "include_if_exists" | "include_dir" => {
            return Err(word.place.hinted(
                format!("`{}` is refused: rules read nothing of the machine", word.text),
                "write the rules here",
            ));
        }
        other => {
            return Err(word.place.hinted(
                format!("unknown type `{other}`"),
                "write host; hostssl, hostnogssenc, hostnossl, hostgssenc and local are known too",
            ));
        }
    })
}

enum Written {
    All,
    Range(IpNet),
    Alone(IpAddr),
}

fn address(word: &Word) -> Result<Written, Mistake> {
    if word.is_keyword("all") {
        return Ok(Written::All);
    }
    if word.is_keyword("samehost") || word.is_keyword("samenet") {
        return Err(word.place.hinted(
            format!(
                "`{}` is refused: it would mean the networks of the machine that runs the cloud",
                word.text
            ),
            "write the range, for instance 10.0.0.0/8",
        ));
    }
    if let Some(range) = range(&word.text) {
        return Ok(Written::Range(range));
    }
    if let Ok(alone) = word.text.parse::<IpAddr>() {
        return Ok(Written::Alone(alone));
    }
    let hint = "write a range, for instance 203.0.113.0/24 or 2001:db8::/48, or all";
    let begins = word.text.split('/').next().unwrap_or_default();
    let is_number = begins.contains(':') || begins.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let message = if is_number {
        format!("`{}` is not an address range", word.text)
    } else {
        format!(
            "`{}` is a hostname: rules go by address, because names are looked up elsewhere and can be forged",
            word.text
        )
    };
    Err(word.place.hinted(message, hint))
}

/// Leading zeros are refused: some read them as octal, others as decimal.
fn range(text: &str) -> Option<IpNet> {
    let (address, bits) = text.split_once('/')?;
    let is_plain = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits = bits.parse().ok().filter(|_| is_plain)?;
    IpNet::new(address.parse().ok()?, bits).ok()
}

fn masked(address: IpAddr, mask: &Word, hint: &str) -> Result<IpNet, Mistake> {
    let parsed: IpAddr = mask.text.parse().map_err(|_| {
        mask.place
            .hinted(format!("`{}` is not a mask, which an address without a range needs", mask.text), hint)
    })?;
    // A mask of IPv4 inside IPv6 is not one of IPv6.
    let (address, parsed) = match (address, parsed) {
        (IpAddr::V6(six), IpAddr::V4(_)) => (six.to_ipv4_mapped().map_or(address, IpAddr::V4), parsed),
        both => both,
    };
    let ones = ipnet::ip_mask_to_prefix(parsed).map_err(|_| {
        mask.place.mistake(format!("`{}` is not a mask: its ones are not at the beginning", mask.text))
    })?;
    if address.is_ipv4() != parsed.is_ipv4() {
        return Err(mask.place.mistake("address and mask are not of the same kind"));
    }
    IpNet::new(address, ones).map_err(|_| mask.place.mistake(format!("`{}` is not a mask", mask.text)))
}

fn method(word: &Word) -> Result<Method, Mistake> {
    let name = word.text.as_str();
    name.parse().map_err(|invalid| match Method::instead_of(name) {
        Some(hint) => word.place.hinted(format!("the method `{name}` is refused"), hint),
        None => word.place.hinted(format!("unknown method `{name}`"), format!("{invalid}")),
    })
}

fn options(method: Method, fields: &[&Field]) -> Result<RuleOptions, Mistake> {
    let mut options = RuleOptions::default();
    let mut seen: Vec<(&str, Place)> = Vec::new();
    for field in fields {
        let word = field.single("an option")?;
        let Some((name, value)) = word.text.split_once('=') else {
            return Err(word.place.hinted(
                format!("`{}` is not an option", word.text),
                "an option is NAME=VALUE without spaces around `=`",
            ));
        };
        let known = allowed(method);
        if !known.contains(&name) {
            let hint = match known {
                [] => format!("the method {method} takes no options"),
                known => format!("the method {method} takes {}", known.join(", ")),
            };
            return Err(word
                .place
                .hinted(format!("the method {method} does not take the option `{name}`"), hint));
        }
        if seen.iter().any(|(before, _)| *before == name) {
            return Err(word.place.mistake(format!("the option `{name}` is given twice")));
        }
        if value.is_empty() {
            return Err(word.place.mistake(format!("the option `{name}` has no value")));
        }
        seen.push((name, word.place));
        set(&mut options, method, name, value, word.place)?;
    }
    let place_of =
        |names: &[&str]| seen.iter().find(|(name, _)| names.contains(name)).map(|(_, place)| *place);
    if let (Some(_), Some(place)) = (place_of(&["issuer"]), place_of(&["provider"])) {
        return Err(place.mistake("`provider` and `issuer` both say whose tokens count; give one of them"));
    }
    let by_password = matches!(method, Method::ScramSha256 | Method::Password);
    if by_password
        && options.clientcert != Some(ClientCert::VerifyFull)
        && let Some(place) = place_of(&["map", "clientname"])
    {
        return Err(place.hinted(
            format!("without a certificate's name there is nothing to compare under {method}"),
            "add clientcert=verify-full, or remove it",
        ));
    }
    Ok(options)
}

/// Which options a method takes.
fn allowed(method: Method) -> &'static [&'static str] {
    match method {
        Method::ScramSha256 => &["clientcert", "clientname", "map"],
        Method::Password => &["clientcert", "clientname", "map", "provider", "issuer"],
        Method::Cert => &["map", "clientname", "clientcert"],
        Method::CertPassword => &["map", "clientname", "provider", "issuer"],
        Method::Jwt => &["map", "provider", "issuer"],
        Method::Oauth | Method::Browser => &["map", "provider", "issuer", "scope"],
        Method::Reject => &[],
    }
}

fn set(
    options: &mut RuleOptions,
    method: Method,
    name: &str,
    value: &str,
    place: Place,
) -> Result<(), Mistake> {
    match name {
        "map" => options.map = Some(value.to_owned()),
        "clientname" => {
            options.clientname = match value {
                "CN" => ClientName::Cn,
                "DN" => ClientName::Dn,
                "SAN-DNS" => ClientName::SanDns,
                "SAN-EMAIL" => ClientName::SanEmail,
                "SAN-URI" => ClientName::SanUri,
                "SAN" => ClientName::San,
                _ => {
                    return Err(place.hinted(
                        format!("`clientname` cannot be `{value}`"),
                        "write CN, DN, SAN-DNS, SAN-EMAIL or SAN-URI",
                    ));
                }
            };
        }
        "clientcert" => {
            options.clientcert = match value {
                // The method looks at the certificate already.
                "verify-full" if method == Method::Cert => None,
                "verify-full" => Some(ClientCert::VerifyFull),
                "verify-ca" if method == Method::Cert => {
                    return Err(place.hinted(
                        "under cert the certificate is always verified in full",
                        "remove clientcert",
                    ));
                }
                "verify-ca" => Some(ClientCert::VerifyCa),
                _ => {
                    return Err(place.hinted(
                        format!("`clientcert` cannot be `{value}`"),
                        "write verify-ca or verify-full",
                    ));
                }
            };
        }
        "provider" => {
            let name = value
                .parse()
                .map_err(|wrong: model::InvalidProviderName| place.mistake(wrong.to_string()))?;
            options.provider = Some(name);
        }
        "issuer" => {
            let is_url = url::Url::parse(value).is_ok_and(|url| {
                matches!(url.scheme(), "https" | "http") && url.query().is_none() && url.fragment().is_none()
            });
            if !is_url {
                return Err(place.hinted(
                    format!("`{value}` is not an issuer"),
                    "write it exactly as tokens carry it in `iss`, for instance https://login.example.org",
                ));
            }
            options.issuer = Some(value.to_owned());
        }
        _ => {
            // RFC 6749, 3.3.
            let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
            if !value.split(' ').all(|scope| !scope.is_empty() && scope.bytes().all(is_plain)) {
                return Err(place.hinted("`scope` is not a list of scopes", "write scope=\"openid email\""));
            }
            options.scope = Some(value.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_mapped_range_is_the_range_of_ipv4() {
        let mut reader = Reader { patterns: 0, notes: Vec::new() };
        let word = Word { text: String::new(), is_quoted: false, place: Place { line: 1, column: 1 } };
        let four = reader.range("::ffff:203.0.113.0/120".parse().unwrap(), &word);
        assert_eq!(four, IpNet::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)), 24).unwrap());
        let six = reader.range("::/0".parse().unwrap(), &word);
        assert!(!six.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(reader.notes.len(), 0);
    }
}
