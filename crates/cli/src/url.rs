//! The connection string of a user: the cloud's own, with the path of the root certificate on this machine.

use api::Cluster;

use crate::cloud::Cloud;
use crate::failure::Failure;

/// The connection string, without the password.
pub async fn of(cloud: &Cloud, cluster: &Cluster, user: &str, database: &str) -> Result<String, Failure> {
    let answer = cloud.api.connection_string(cluster.id, Some(user), Some(database)).await?;
    let root = cloud.root.as_ref().map(|root| root.path.to_string_lossy().into_owned());
    Ok(with_root(&answer.connection_string, root.as_deref()))
}

/// The URL with `sslrootcert` set to a file of this machine: the cloud cannot know where that is.
fn with_root(url: &str, root: Option<&str>) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let is_root = |part: &&str| part.starts_with("sslrootcert=");
    let mut parts: Vec<String> =
        query.split('&').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if let Some(root) = root {
        parts.retain(|part| !is_root(&part.as_str()));
        parts.push(format!("sslrootcert={}", encode(root)));
    }
    if parts.is_empty() { base.to_owned() } else { format!("{base}?{}", parts.join("&")) }
}

/// Percent-encodes all but what is safe in a query and readable in a path.
fn encode(text: &str) -> String {
    text.split('/').map(api::encode_segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_file_on_this_machine() {
        let url =
            "postgresql://maria@localhost:26257/defaultdb?options=--cluster%3Dmy-shop-2&sslmode=verify-full";
        assert_eq!(with_root(url, None), url);
        let expected = format!("{url}&sslrootcert=/srv/my%20cloud/ca.pem");
        assert_eq!(with_root(url, Some("/srv/my cloud/ca.pem")), expected);
        let elsewhere = format!("{url}&sslrootcert=/there/ca.pem");
        assert_eq!(with_root(&elsewhere, Some("/srv/my cloud/ca.pem")), expected);
    }
}
