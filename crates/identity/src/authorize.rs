//! From a good token to a SQL user and roles: the identity map, and groups.

use std::collections::{BTreeMap, BTreeSet};

use model::RoleName;
use unicode_normalization::UnicodeNormalization;

use crate::identity_map::IdentityMap;
use crate::token::{Claims, TokenRefused, quoted};

/// Whether the token lets its holder in as `user`, and the user if so.
///
/// `option` is the `map=` of the rule. Without it the map that is named like the issuer decides, if there is one
/// (CockroachDB's `server.identity_map.configuration`), else the token must name the user itself, letter by letter: two
/// people of one provider may differ in case only. A map that the rule names and nobody has written lets nobody in. Reserved
/// users, `root` among them, are refused whatever a map says.
pub fn authorize(
    claims: &Claims,
    map: &IdentityMap,
    option: Option<&str>,
    user: &str,
) -> Result<RoleName, TokenRefused> {
    let reserved = || {
        TokenRefused::InvalidIdentity(format!(
            "cannot use JWT auth to login to a reserved user {}",
            quoted(user)
        ))
    };
    let wanted: RoleName = user.parse().map_err(|_| reserved())?;
    // Other spellings of a reserved name could only be meant to look like it.
    if wanted.is_reserved() || fold(user).parse::<RoleName>().is_ok_and(|folded| folded.is_reserved()) {
        return Err(reserved());
    }
    let issuer = claims.provider.issuer.as_str();
    let name = option.unwrap_or(issuer);
    let is_named = |principal: &String| {
        if option.is_some() || map.has(name) { map.permits(name, principal, user) } else { principal == user }
    };
    if claims.principals.iter().any(is_named) {
        return Ok(wanted);
    }
    let named: Vec<_> = claims.principals.iter().take(8).map(|principal| quoted(principal)).collect();
    let missing = if option.is_some() && !map.has(name) {
        format!("; there is no identity map {}", quoted(name))
    } else {
        String::new()
    };
    Err(TokenRefused::InvalidPrincipal(format!(
        "token issued for {named:?} and login was for {}{missing}",
        quoted(user)
    )))
}

/// The roles that the token's groups give, sorted; `None` where the provider has no `group_claim`. Which of them exist is
/// for the caller to see.
///
/// Groups are compared in lower case and in NFC, as CockroachDB does. A group gives the role that the provider's
/// `group_roles` names for it, else the role of its own name. `admin` is given only by `group_roles`, other reserved roles
/// never. A list without any group refuses.
pub fn roles(claims: &Claims) -> Result<Option<Vec<RoleName>>, TokenRefused> {
    let Some(groups) = &claims.groups else {
        return Ok(None);
    };
    if groups.is_empty() {
        return Err(TokenRefused::EmptyGroupList);
    }
    let mapped: BTreeMap<String, &String> =
        claims.provider.group_roles.iter().map(|(group, role)| (fold(group), role)).collect();
    let mut roles = BTreeSet::new();
    for group in groups {
        let folded = fold(group);
        let role = mapped.get(&folded).copied();
        let Ok(name) = role.unwrap_or(&folded).parse::<RoleName>() else {
            continue;
        };
        let is_admin_by_map = role.is_some() && name.as_str() == model::ADMIN_ROLE;
        if is_admin_by_map || !name.is_reserved() {
            roles.insert(name);
        }
    }
    Ok(Some(roles.into_iter().collect()))
}

/// Lower case and NFC. Lower case can take letters apart, so they are put together last.
fn fold(text: &str) -> String {
    text.nfc().collect::<String>().to_lowercase().nfc().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::token::testing::{ISSUER, NOW, provider};

    fn claims(principals: &[&str]) -> Claims {
        Claims {
            provider: Arc::new(provider()),
            principals: principals.iter().map(|&principal| principal.to_owned()).collect(),
            groups: None,
            expires_at: NOW,
            subject: "s".into(),
        }
    }

    fn granted(group_roles: &[(&str, &str)], groups: &[&str]) -> Result<Option<Vec<String>>, TokenRefused> {
        let mut provider = provider();
        provider.group_claim = Some("groups".into());
        provider.group_roles =
            group_roles.iter().map(|&(group, role)| (group.to_owned(), role.to_owned())).collect();
        let mut claims = claims(&["maria"]);
        claims.provider = Arc::new(provider);
        claims.groups = Some(groups.iter().map(|&group| group.to_owned()).collect());
        roles(&claims).map(|roles| roles.map(|roles| roles.into_iter().map(String::from).collect()))
    }

    #[test]
    fn without_a_map_the_token_names_the_user() {
        let none = IdentityMap::default();
        let named = |principals: &[&str], user| authorize(&claims(principals), &none, None, user);
        assert_eq!(named(&["maria"], "maria").unwrap().as_str(), "maria");
        assert_eq!(named(&["x", "maria"], "maria").unwrap().as_str(), "maria");
        for other in ["mari", "maria2", "MARIA", "maria "] {
            let refused = named(&["maria"], other).unwrap_err();
            assert_eq!(refused.to_string(), "JWT authentication: invalid principal");
            let detail = format!("token issued for [\"maria\"] and login was for {other}");
            assert_eq!(refused.detail(), Some(detail.as_str()));
        }
    }

    #[test]
    fn a_map_named_like_the_issuer_or_by_the_rule_decides() {
        let text = format!("{ISSUER} /^(.*)@example\\.com$ \\1\nother maria anna\n");
        let map = IdentityMap::parse(&text).unwrap();
        let mail = claims(&["maria@example.com"]);
        assert_eq!(authorize(&mail, &map, None, "maria").unwrap().as_str(), "maria");
        assert!(authorize(&mail, &map, None, "maria@example.com").is_err());
        assert!(authorize(&claims(&["maria"]), &map, None, "maria").is_err());
        assert_eq!(authorize(&claims(&["maria"]), &map, Some("other"), "anna").unwrap().as_str(), "anna");
        assert!(authorize(&mail, &map, Some("other"), "maria").is_err());
        // The regular expression is for the whole value.
        assert!(authorize(&claims(&["maria@example.com.evil.net"]), &map, None, "maria").is_err());
    }

    #[test]
    fn a_map_that_nobody_wrote_lets_nobody_in() {
        let refused =
            authorize(&claims(&["maria"]), &IdentityMap::default(), Some("missing"), "maria").unwrap_err();
        assert!(refused.detail().unwrap().ends_with("there is no identity map missing"), "{refused:?}");
    }

    #[test]
    fn internal_identities_are_refused_whatever_a_map_says() {
        let map = IdentityMap::parse(&format!("{ISSUER} /^(.*)$ \\1\n")).unwrap();
        for user in
            ["root", "admin", "chitin", "postgres", "node", "pg_monitor", "ROOT", "Chitin", "", "a\0b"]
        {
            for map in [&map, &IdentityMap::default()] {
                let refused = authorize(&claims(&[user]), map, None, user).unwrap_err();
                assert_eq!(refused.to_string(), "JWT authentication: invalid identity", "{user}");
            }
        }
    }

    #[test]
    fn groups_give_roles_by_map_or_by_name() {
        let given =
            granted(&[("Sales (EU)", "sales"), ("ops", "operators")], &["SALES (eu)", "ops", "Readers"]);
        assert_eq!(given.unwrap().unwrap(), ["operators", "readers", "sales"]);
        // Composed and decomposed are the same group.
        assert_eq!(granted(&[("caf\u{e9}", "bar")], &["CAFE\u{301}"]).unwrap().unwrap(), ["bar"]);
        assert_eq!(granted(&[], &["readers", "READERS"]).unwrap().unwrap(), ["readers"]);
    }

    #[test]
    fn a_group_named_admin_gives_admin_only_if_the_operator_says_so() {
        assert_eq!(granted(&[], &["admin", "Admin", "root", "pg_monitor", "r"]).unwrap().unwrap(), ["r"]);
        assert_eq!(granted(&[("dba", "admin")], &["DBA"]).unwrap().unwrap(), ["admin"]);
        let others = [("dba", "root"), ("dbb", "pg_read_server_files"), ("dbc", "chitin"), ("dbd", "public")];
        assert_eq!(granted(&others, &["dba", "dbb", "dbc", "dbd"]).unwrap().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn no_group_at_all_refuses() {
        let refused = granted(&[("dba", "admin")], &[]).unwrap_err();
        assert_eq!(refused.to_string(), "JWT authorization: empty group list");
        assert_eq!(granted(&[], &["\0", &"x".repeat(64)]).unwrap().unwrap(), Vec::<String>::new());
        assert_eq!(roles(&claims(&["maria"])).unwrap(), None);
    }
}
