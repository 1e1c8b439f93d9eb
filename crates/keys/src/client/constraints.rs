//! What an authority's name constraints (RFC 5280, 4.2.1.10) say about the names in a certificate's subject. webpki applies
//! them to alternative names alone, so that an authority for `partner.example` could name whomever it likes in a common name.
//!
//! The standard limits no common name, since it is of no type. Here a common name counts below an authority with permitted
//! subtrees only if one of them holds it, as a DNS name or as an e-mail address by its form; so a plain name such as `maria`
//! counts below none. The e-mail addresses of a subject are limited as the standard says.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, GeneralSubtree, X509Certificate};

use super::parsed;

/// Longest DNS name, and longest label of it (RFC 1035, 2.3.4).
const DNS_NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// The constraints of a chain's authorities.
#[derive(Default)]
pub(super) struct Constraints(Vec<OfOne>);

/// Those of one authority.
struct OfOne {
    /// What it may name; none where only what it may not name is said.
    permitted: Option<Vec<Base>>,
    excluded: Vec<Base>,
}

/// What a subtree begins at.
enum Base {
    Dns(String),
    Email(String),
    /// Of a type that no name in a subject has by its form.
    Other,
}

/// A name of a subject by its form.
enum Form<'a> {
    Dns(&'a str),
    Email { local: &'a str, host: &'a str },
    Other,
}

impl Constraints {
    /// Those of these authorities. None where one of them cannot be read.
    pub(super) fn of<'a>(authorities: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> Option<Self> {
        let mut all = Vec::new();
        for der in authorities {
            let certificate = parsed(der)?;
            if let Some(found) = certificate.name_constraints().ok()? {
                let bases = |subtrees: &[GeneralSubtree<'_>]| subtrees.iter().map(Base::of).collect();
                all.push(OfOne {
                    permitted: found.value.permitted_subtrees.as_deref().map(bases),
                    excluded: found.value.excluded_subtrees.as_deref().map(bases).unwrap_or_default(),
                });
            }
        }
        Some(Self(all))
    }

    /// Whether none of the authorities has any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a certificate of these authorities may be named by this common name.
    pub(super) fn permit_common_name(&self, name: &str) -> bool {
        let form = Form::of(name);
        self.0.iter().all(|one| {
            !one.excluded.iter().any(|base| base.may_hold(name))
                && one.permitted.as_ref().is_none_or(|bases| bases.iter().any(|base| base.holds(&form)))
        })
    }

    /// Whether the e-mail addresses of the subject are such as the authorities may certify.
    pub(super) fn permit_emails_of(&self, certificate: &X509Certificate<'_>) -> bool {
        certificate.subject().iter_email().all(|attribute| {
            // What is no text is no address that anything permits.
            let address = attribute.as_str().unwrap_or_default();
            self.0.iter().all(|one| one.permits_email(address))
        })
    }
}

impl OfOne {
    fn permits_email(&self, address: &str) -> bool {
        let is_email = |base: &&Base| matches!(base, Base::Email(_));
        let form = Form::of(address);
        let is_excluded = self.excluded.iter().filter(is_email).any(|base| base.may_hold(address));
        let mut permitted = self.permitted.iter().flatten().filter(is_email).peekable();
        !is_excluded && (permitted.peek().is_none() || permitted.any(|base| base.holds(&form)))
    }
}

impl Base {
    fn of(subtree: &GeneralSubtree<'_>) -> Self {
        match subtree.base {
            GeneralName::DNSName(name) => Self::Dns(name.to_ascii_lowercase()),
            GeneralName::RFC822Name(name) => Self::Email(name.to_owned()),
            _ => Self::Other,
        }
    }

    /// Whether the subtree holds the name for certain.
    fn holds(&self, form: &Form<'_>) -> bool {
        match (self, form) {
            (Self::Dns(base), Form::Dns(name)) => is_below(name, base),
            (Self::Email(base), Form::Email { local, host }) => is_at(local, host, base),
            (Self::Dns(_) | Self::Email(_) | Self::Other, _) => false,
        }
    }

    /// Whether the subtree may hold the name, whatever form it has: what is excluded has no second spelling.
    fn may_hold(&self, name: &str) -> bool {
        match (self, name.rsplit_once('@')) {
            (Self::Dns(base), None) => is_below(name, base),
            (Self::Email(base), Some((local, host))) => base.is_empty() || is_at(local, host, base),
            (Self::Dns(_) | Self::Email(_) | Self::Other, _) => false,
        }
    }
}

impl<'a> Form<'a> {
    fn of(name: &'a str) -> Self {
        match name.split_once('@') {
            None if is_dns_name(name) => Self::Dns(name),
            Some((local, host))
                if !local.is_empty()
                    && local.bytes().all(|byte| byte.is_ascii_graphic())
                    && is_dns_name(host) =>
            {
                Self::Email { local, host }
            }
            _ => Self::Other,
        }
    }
}

/// Whether a DNS name is the base or below it. With a dot at its beginning the base itself is not meant; an empty one holds
/// everything.
fn is_below(name: &str, base: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let (name, base) = (name.trim_end_matches('.'), base.trim_end_matches('.'));
    match base.strip_prefix('.') {
        Some(_) => name.ends_with(base),
        None => {
            base.is_empty()
                || name.strip_suffix(base).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        }
    }
}

/// Whether an e-mail address is the base: a mailbox, all of a host, or with a dot at its beginning all of the hosts below.
fn is_at(local: &str, host: &str, base: &str) -> bool {
    let (mailbox, base_host) = match base.rsplit_once('@') {
        Some((mailbox, host)) => (Some(mailbox), host),
        None => (None, base),
    };
    let is_host = if base_host.starts_with('.') {
        is_below(host, &base_host.to_ascii_lowercase())
    } else {
        host.trim_end_matches('.').eq_ignore_ascii_case(base_host)
    };
    is_host && mailbox.is_none_or(|mailbox| mailbox == local)
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= DNS_NAME_BYTES_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(permitted: Option<&[&str]>, excluded: &[&str]) -> Constraints {
        let base = |text: &&str| match text.split_once(':').unwrap() {
            ("dns", name) => Base::Dns(name.to_ascii_lowercase()),
            ("email", name) => Base::Email(name.to_owned()),
            _ => Base::Other,
        };
        Constraints(vec![OfOne {
            permitted: permitted.map(|all| all.iter().map(base).collect()),
            excluded: excluded.iter().map(base).collect(),
        }])
    }

    #[test]
    fn a_common_name_is_one_that_a_permitted_subtree_holds() {
        let partner = limits(Some(&["dns:partner.example", "email:partner.example", "ip:"]), &[]);
        for good in ["partner.example", "db.partner.example", "DB.Partner.Example", "a@partner.example"] {
            assert!(partner.permit_common_name(good), "{good}");
        }
        for other in [
            "db.other.example",
            "notpartner.example",
            "partner.example.evil.net",
            "a@evil.example",
            "a@b@partner.example",
            "@partner.example",
            "a@db.partner.example",
            "maria",
            "Maria Muster.partner.example",
            "10.0.0.1",
            "..partner.example",
            "",
        ] {
            assert!(!partner.permit_common_name(other), "{other}");
        }
        // Permitted for addresses says nothing about e-mail, and the other way about.
        assert!(!limits(Some(&["dns:partner.example"]), &[]).permit_common_name("a@partner.example"));
        assert!(!limits(Some(&["email:partner.example"]), &[]).permit_common_name("partner.example"));
        assert!(!limits(Some(&["ip:"]), &[]).permit_common_name("maria"));
        assert!(limits(Some(&["dns:"]), &[]).permit_common_name("maria"));
        assert!(Constraints::default().permit_common_name("maria"));
    }

    #[test]
    fn bases_mean_what_the_standard_says() {
        for (base, good, other) in [
            ("dns:.corp.example", "a.corp.example", "corp.example"),
            ("email:.corp.example", "a@x.corp.example", "a@corp.example"),
            ("email:maria@corp.example", "maria@CORP.example", "Maria@corp.example"),
            ("email:corp.example", "a@corp.example", "a@x.corp.example"),
        ] {
            let one = limits(Some(&[base]), &[]);
            assert!(one.permit_common_name(good) && !one.permit_common_name(other), "{base}");
        }
    }

    #[test]
    fn what_is_excluded_has_no_second_spelling() {
        let not_corp = limits(None, &["dns:corp.example", "email:corp.example"]);
        for other in ["maria", "db.partner.example", "a@partner.example", "Maria Muster", "notcorp.example"] {
            assert!(not_corp.permit_common_name(other), "{other}");
        }
        for excluded in [
            "corp.example",
            "DB.CORP.EXAMPLE",
            "db.corp.example.",
            "*.corp.example",
            "x y.corp.example",
            "a@corp.example",
            "a b@corp.example",
            "a@b@corp.example",
            "a@CORP.example.",
        ] {
            assert!(!not_corp.permit_common_name(excluded), "{excluded}");
        }
        assert!(!limits(None, &["email:"]).permit_common_name("a@b.example"));
        assert!(!limits(None, &["dns:"]).permit_common_name("maria"));
    }
}
