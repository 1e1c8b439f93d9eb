//! `chitin provider`: list, set, remove.

use std::io::Read;

use api::{IdentityProvider, Password, PutIdentityProvider, SecretText};
use model::ClusterId;

use crate::cloud::Cloud;
use crate::command::{ProviderCommand, ProviderSet};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, facts, table};
use crate::text;

/// Longest client secret that is read.
const SECRET_BYTES_MAX: usize = 1_024;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: ProviderCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        ProviderCommand::List { cluster } => {
            let scope = scope(cloud, cluster.as_deref()).await?;
            let found = cloud.api.providers(scope).await?;
            if found.is_empty() && !printer.is_json() {
                output::say("there is no provider yet; add one: chitin provider set NAME --issuer URL");
                return Ok(());
            }
            printer.result(&found, || listed(&found))
        }
        ProviderCommand::Set(wanted) => {
            let files = Files::read(&wanted)?;
            let scope = scope(cloud, wanted.cluster.as_deref()).await?;
            let known = cloud.api.providers(scope).await?;
            // A cluster's list has those of the cloud too, which are not the cluster's to change.
            let known = known
                .into_iter()
                .find(|one| one.name == wanted.name.as_str() && one.cluster_id.is_some() == scope.is_some());
            let name = wanted.name.clone();
            let request = changed(known, *wanted, files)?;
            let spinner = printer.spinner("trying it at the provider");
            let set = cloud.api.put_provider(scope, name.as_str(), &request).await;
            spinner.finish_and_clear();
            let set = set?;
            printer.result(&set, || shown(&set))
        }
        ProviderCommand::Remove { name, cluster } => {
            let scope = scope(cloud, cluster.as_deref()).await?;
            let removed = cloud.api.delete_provider(scope, name.as_str()).await;
            let removed = removed.map_err(|error| Failure::from(error).listed_by("chitin provider list"))?;
            printer.result(&removed, || format!("tokens of {name} are refused from now on"))
        }
    }
}

async fn scope(cloud: &Cloud, cluster: Option<&str>) -> Result<Option<ClusterId>, Failure> {
    match cluster {
        Some(cluster) => Ok(Some(cloud.cluster(cluster).await?.id)),
        None => Ok(None),
    }
}

/// What the command line names and does not hold.
#[derive(Default)]
struct Files {
    secret: Option<SecretText>,
    jwks: Option<String>,
    ca_pem: Option<String>,
}

impl Files {
    fn read(wanted: &ProviderSet) -> Result<Self, Failure> {
        let secret = match (wanted.client_secret_stdin, wanted.no_client_secret) {
            (true, _) => Some(secret(text::private_input()?)?),
            (false, true) => Some(SecretText::new(String::new())),
            (false, false) => None,
        };
        // An empty path takes away what was there, as an empty value does elsewhere.
        let file = |path: &Option<std::path::PathBuf>| match path {
            Some(path) if path.as_os_str().is_empty() => Ok(Some(String::new())),
            Some(path) => text::read(path, model::SIGN_IN_TEXT_BYTES_MAX).map(Some),
            None => Ok(None),
        };
        Ok(Self { secret, jwks: file(&wanted.jwks)?, ca_pem: file(&wanted.provider_ca)? })
    }
}

/// One line without its end.
fn secret(from: impl Read) -> Result<SecretText, Failure> {
    let mut text = String::new();
    from.take(u64::try_from(SECRET_BYTES_MAX + 2).unwrap_or(u64::MAX)).read_to_string(&mut text)?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.len() > SECRET_BYTES_MAX || line.contains('\n') {
        return Err(Failure::new(
            Kind::Usage,
            format!("standard input must hold one line with the secret, at most {SECRET_BYTES_MAX} bytes"),
        ));
    }
    Ok(SecretText::new(line.to_owned()))
}

/// What is to be sent: what is known, changed by what was said.
fn changed(
    known: Option<IdentityProvider>,
    wanted: ProviderSet,
    files: Files,
) -> Result<PutIdentityProvider, Failure> {
    let mut request = match (known, &wanted.issuer) {
        (Some(known), _) => PutIdentityProvider::from(known),
        (None, Some(_)) => PutIdentityProvider::default(),
        (None, None) => {
            let what = format!("there is no provider `{}` yet, and a new one needs its issuer", wanted.name);
            return Err(Failure::new(Kind::Usage, what)
                .next(format!("chitin provider set {} --issuer URL", wanted.name)));
        }
    };
    replace(&mut request.client_id, wanted.client_id);
    replace(&mut request.claim, wanted.claim);
    replace(&mut request.group_claim, wanted.group_claim);
    replace(&mut request.ca_pem, files.ca_pem);
    // Keys are given or looked up at one place; saying the one unsays the other.
    if files.jwks.is_some() {
        request.jwks_uri = None;
    } else if wanted.jwks_uri.is_some() {
        request.jwks = None;
    }
    replace(&mut request.jwks, files.jwks);
    replace(&mut request.jwks_uri, wanted.jwks_uri);
    if let Some(issuer) = wanted.issuer {
        request.issuer = issuer;
    }
    if let Some(secret) = files.secret {
        request.client_secret = Some(Password::new(secret));
    }
    let filled = |values: Vec<String>| values.into_iter().filter(|value| !value.is_empty());
    if let Some(audiences) = wanted.audience {
        request.audiences = filled(audiences).collect();
    }
    if let Some(scopes) = wanted.scope {
        let further = filled(scopes).filter(|scope| scope != "openid");
        request.scopes = std::iter::once("openid".to_owned()).chain(further).collect();
    }
    if let Some(pairs) = wanted.group_role {
        let count = pairs.iter().filter(|(group, _)| !group.is_empty()).count();
        request.group_roles = pairs.into_iter().filter(|(group, _)| !group.is_empty()).collect();
        if request.group_roles.len() != count {
            return Err(Failure::new(Kind::Usage, "a group was named twice; one group gives one role"));
        }
    }
    request.clock_skew_seconds = wanted.clock_skew.or(request.clock_skew_seconds);
    request.provisions = wanted.provision.unwrap_or(request.provisions);
    request.force = wanted.force;
    Ok(request)
}

/// What was said; an empty text takes away what was there.
fn replace(known: &mut Option<String>, said: Option<String>) {
    if let Some(said) = said {
        *known = Some(said).filter(|said| !said.is_empty());
    }
}

fn listed(providers: &[IdentityProvider]) -> String {
    let rows = providers.iter().map(|one| {
        let scope = if one.cluster_id.is_some() { "cluster" } else { "cloud" };
        let browser = if one.client_id.is_some() { "yes" } else { "no" };
        let makes = if one.provisions { "yes" } else { "no" };
        [one.name.clone(), scope.to_owned(), one.issuer.clone(), browser.to_owned(), makes.to_owned()]
    });
    table(["PROVIDER", "OF", "ISSUER", "BROWSER", "MAKES USERS"], rows)
}

fn shown(one: &IdentityProvider) -> String {
    let keys = match (&one.jwks, &one.jwks_uri) {
        (Some(_), _) => "given".to_owned(),
        (None, Some(uri)) => uri.clone(),
        (None, None) => "discovered".to_owned(),
    };
    let roles: Vec<String> = one.group_roles.iter().map(|(group, role)| format!("{group}={role}")).collect();
    facts([
        ("provider", one.name.clone()),
        ("of", if one.cluster_id.is_some() { "one cluster" } else { "the cloud" }.to_owned()),
        ("issuer", one.issuer.clone()),
        ("client id", one.client_id.clone().unwrap_or_default()),
        ("client secret", if one.has_client_secret { "kept, never shown" } else { "none" }.to_owned()),
        ("audiences", one.audiences.join(", ")),
        ("claim", one.claim.clone()),
        ("keys", keys),
        ("own roots", if one.ca_pem.is_some() { "yes" } else { "" }.to_owned()),
        ("scopes", one.scopes.join(" ")),
        ("clock skew", format!("{} s", one.clock_skew_seconds)),
        ("group claim", one.group_claim.clone().unwrap_or_default()),
        ("group roles", roles.join(", ")),
        ("makes users", if one.provisions { "yes" } else { "no" }.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;
    use time::OffsetDateTime;

    use super::*;

    fn wanted(line: &str) -> ProviderSet {
        #[derive(Parser)]
        struct Program {
            #[command(flatten)]
            set: ProviderSet,
        }
        Program::try_parse_from(format!("set corp {line}").split_whitespace()).unwrap().set
    }

    fn known() -> IdentityProvider {
        IdentityProvider {
            name: "corp".to_owned(),
            cluster_id: None,
            issuer: "https://login.example.org".to_owned(),
            client_id: Some("chitin".to_owned()),
            has_client_secret: true,
            audiences: vec!["sql".to_owned()],
            claim: "email".to_owned(),
            jwks: Some("{}".to_owned()),
            jwks_uri: None,
            ca_pem: None,
            scopes: vec!["openid".to_owned(), "groups".to_owned()],
            clock_skew_seconds: 60,
            group_claim: Some("groups".to_owned()),
            group_roles: BTreeMap::from([("dba".to_owned(), "admin".to_owned())]),
            provisions: true,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn merged(line: &str) -> PutIdentityProvider {
        changed(Some(known()), wanted(line), Files::default()).unwrap()
    }

    #[test]
    fn what_is_not_said_stays_and_an_empty_value_takes_away() {
        let same = serde_json::to_value(merged("")).unwrap();
        assert_eq!(same, serde_json::to_value(PutIdentityProvider::from(known())).unwrap());
        let less = merged("--client-id= --group-claim= --group-role= --audience= --provision false");
        assert_eq!((less.client_id, less.group_claim, less.provisions), (None, None, false));
        assert!(less.group_roles.is_empty() && less.audiences.is_empty());
        assert_eq!((less.claim.as_deref(), less.clock_skew_seconds), (Some("email"), Some(60)));
        assert!(!less.force && merged("--force").force, "it is tried unless something else is said");
        let more =
            merged("--scope email --scope openid --group-role CN=a,O=b=admin --group-role sales=readers");
        assert_eq!(more.scopes, ["openid", "email"]);
        assert_eq!(more.group_roles["CN=a,O=b"], "admin");
        assert_eq!(more.group_roles.len(), 2);
    }

    #[test]
    fn keys_come_from_one_place() {
        let there = merged("--jwks-uri https://login.example.org/keys");
        assert_eq!((there.jwks, there.jwks_uri.is_some()), (None, true));
        let mut elsewhere = known();
        (elsewhere.jwks, elsewhere.jwks_uri) = (None, Some("https://x".to_owned()));
        let files = Files { jwks: Some("{\"keys\":[]}".to_owned()), ..Files::default() };
        let here = changed(Some(elsewhere), wanted(""), files).unwrap();
        assert_eq!((here.jwks.is_some(), here.jwks_uri), (true, None));
    }

    #[test]
    fn a_new_provider_needs_its_issuer_and_a_group_one_role() {
        let refused = changed(None, wanted("--client-id a"), Files::default()).unwrap_err();
        assert_eq!(refused.kind, Kind::Usage);
        assert!(changed(None, wanted("--issuer https://a"), Files::default()).is_ok());
        let twice = changed(Some(known()), wanted("--group-role a=b --group-role a=c"), Files::default());
        assert_eq!(twice.unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn a_secret_is_one_line_and_is_not_shown() {
        assert_eq!(secret("abc\r\n".as_bytes()).unwrap().expose(), "abc");
        for wrong in ["", "\n", "a\nb\n", &"x".repeat(1_025)] {
            assert!(secret(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let text = shown(&known());
        assert!(text.contains("kept, never shown") && text.contains("dba=admin"), "{text}");
    }
}
