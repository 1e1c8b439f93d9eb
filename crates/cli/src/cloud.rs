//! The running cloud as commands see it: the API's client, and its errors turned into failures with a next step.

use api::{Client, Cluster, Error};
use model::ClusterId;

use crate::command::Global;
use crate::discovery::{self, Root};
use crate::failure::{Failure, Kind};

/// gRPC's `UNAVAILABLE`: on a deletion, it goes on by itself.
pub const UNAVAILABLE: u16 = 14;

/// A cloud that was found.
pub struct Cloud {
    /// Its API.
    pub api: Client,
    /// Where the API answers.
    pub url: String,
    /// The root certificate; none means the machine's own trust anchors.
    pub root: Option<Root>,
}

impl Cloud {
    /// Finds the cloud that the options mean. Nothing is sent yet.
    pub fn find(global: &Global) -> Result<Self, Failure> {
        let found = discovery::find(global)?;
        let key = api::SecretText::new(found.api_key);
        let mut api = Client::new(&found.url, key, found.root.as_ref().map(|root| root.pem.as_str()))?;
        if let Some(operator) = &found.operator {
            api = api.through(operator);
        }
        Ok(Self { api, url: found.url, root: found.root })
    }

    /// The cluster that a name, a `NAME-ID` handle or an id means.
    pub async fn cluster(&self, text: &str) -> Result<Cluster, Failure> {
        if let Ok(id) = text.parse::<ClusterId>() {
            return Ok(self.api.cluster(id).await?);
        }
        // A name may look like another cluster's handle; a name is what was said first.
        let clusters = self.api.clusters().await?;
        let found = clusters
            .iter()
            .find(|cluster| cluster.name == text)
            .or_else(|| clusters.iter().find(|cluster| cluster.handle() == text));
        found.cloned().ok_or_else(|| missing(text, &clusters))
    }
}

fn missing(text: &str, clusters: &[Cluster]) -> Failure {
    let text: String = text.chars().take(64).collect();
    let known: Vec<&str> = clusters.iter().take(5).map(|cluster| cluster.name.as_str()).collect();
    let next = if known.is_empty() {
        "there is none yet; create one: chitin cluster create NAME".to_owned()
    } else {
        format!("look at what there is ({}, …): chitin cluster list", known.join(", "))
    };
    Failure::new(Kind::NotFound, format!("there is no cluster `{text}`")).next(next)
}

/// Why it cannot be looked any more what becomes of something that the cloud has on record.
pub fn goes_on(what: &str, look: &str, error: Error) -> Failure {
    let why = match error {
        Error::Stopping { .. } => Failure::new(Kind::Failed, "Chitin is stopping"),
        Error::Unreachable { url, reason } => {
            Failure::new(Kind::Unreachable, format!("no cloud answers any more at {url} ({reason})"))
        }
        other => return other.into(),
    };
    let what =
        format!("{}; {what} is on record: what is not done by then goes on at the next start", why.what);
    Failure { what, ..why }.next(format!("chitin start; then look with: {look}"))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Unreachable { url, reason } => Self::new(
                Kind::Unreachable,
                format!("no cloud answers at {url}: {reason}"),
            )
            .next(
                "is it running? chitin start; or say where it is: --data DIR, or CHITIN_URL with CHITIN_CA",
            ),
            Error::Stopping { message } => {
                Self::new(Kind::Failed, message).next("start it again where it ran: chitin start")
            }
            Error::NotFound { message } => Self::new(Kind::NotFound, message).next("chitin cluster list"),
            Error::Refused { status: 401 | 403, message, .. } => Self::new(Kind::Failed, message)
                .next("the API key is not this cloud's: check --data, or CHITIN_API_KEY"),
            Error::Refused { message, .. } => Self::new(Kind::Failed, message),
            Error::Unexpected(message) => {
                Self::new(Kind::Failed, message).next("look at the cloud's log, then: chitin status")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_record_is_said_to_go_on_when_the_cloud_stops_or_is_gone() {
        let gone = || Error::Unreachable { url: "https://x".to_owned(), reason: "refused".to_owned() };
        let stopping = || Error::Stopping { message: "Chitin is stopping".to_owned() };
        for (error, kind) in [(gone(), Kind::Unreachable), (stopping(), Kind::Failed)] {
            let failure = goes_on("my-shop", "chitin cluster show my-shop", error);
            assert_eq!(failure.kind, kind);
            assert!(
                failure.what.contains("my-shop is on record") && failure.what.contains("next start"),
                "{failure}"
            );
            assert!(failure.next.unwrap().contains("chitin cluster show my-shop"));
        }
        let other = Error::NotFound { message: "no".to_owned() };
        assert_eq!(goes_on("my-shop", "", other).what, "no");
    }

    #[test]
    fn errors_of_the_api_become_exit_codes() {
        let unreachable = Error::Unreachable { url: "https://x".to_owned(), reason: "refused".to_owned() };
        assert_eq!(Failure::from(unreachable).kind, Kind::Unreachable);
        assert_eq!(Failure::from(Error::NotFound { message: "no".to_owned() }).kind, Kind::NotFound);
        let stopping =
            Failure::from(Error::Stopping { message: "Chitin is stopping: nothing was changed".to_owned() });
        assert_eq!(stopping.kind, Kind::Failed);
        assert!(stopping.what.contains("is stopping") && stopping.next.unwrap().contains("chitin start"));
        let refused = Error::Refused { status: 409, code: 6, message: "the name is taken".to_owned() };
        assert_eq!(Failure::from(refused), Failure::new(Kind::Failed, "the name is taken"));
        let unknown = Error::Refused { status: 401, code: 16, message: "unknown key".to_owned() };
        assert!(Failure::from(unknown).next.unwrap().contains("CHITIN_API_KEY"));
    }
}
