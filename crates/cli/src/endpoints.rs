//! `chitin endpoint`: service, list, add, accept, reject, remove, owner.

use api::{
    AddPrivateEndpointConnection, Cluster, EndpointDecision, EndpointStatus, PrivateEndpointConnection,
    PrivateEndpointService, TrustedOwner,
};

use crate::cloud::Cloud;
use crate::command::{EndpointCommand, OneEndpoint, OneOwner, OwnedEndpoint, OwnerCommand};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, facts, table};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: EndpointCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        EndpointCommand::Service { cluster, create } => service(cloud, &cluster, create, printer).await,
        EndpointCommand::List(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let endpoints = cloud.api.endpoint_connections(cluster.id).await?;
            if endpoints.is_empty() && !printer.is_json() {
                let name = &cluster.name;
                output::say(&format!(
                    "no private endpoint leads to {name}; add one: chitin endpoint add {name} ENDPOINT"
                ));
                return Ok(());
            }
            printer.result(&endpoints, || listed(&endpoints))
        }
        EndpointCommand::Add(OwnedEndpoint { one, owner }) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let wanted = AddPrivateEndpointConnection { endpoint_id: one.endpoint, external_owner_id: owner };
            let added = cloud.api.add_endpoint_connection(cluster.id, &wanted).await?;
            printer.result(&added, || became(&cluster.name, &added))
        }
        EndpointCommand::Accept(OwnedEndpoint { one, owner }) => {
            decide(cloud, &one, EndpointDecision::Available, owner, printer).await
        }
        EndpointCommand::Reject(one) => decide(cloud, &one, EndpointDecision::Rejected, None, printer).await,
        EndpointCommand::Remove(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let removed = cloud.api.delete_endpoint_connection(cluster.id, &one.endpoint).await?;
            printer.result(&removed, || format!("{} leads to {} no more", one.endpoint, cluster.name))
        }
        EndpointCommand::Owner(command) => owner(cloud, command, printer).await,
    }
}

async fn service(cloud: &Cloud, text: &str, create: bool, printer: Printer) -> Result<(), Failure> {
    let cluster = cloud.cluster(text).await?;
    let answer = if create {
        cloud.api.create_endpoint_services(cluster.id).await?
    } else {
        cloud.api.endpoint_services(cluster.id).await?
    };
    match answer.services.first() {
        None if !printer.is_json() => {
            let name = &cluster.name;
            output::say(&format!(
                "{name} has no private endpoint service; make it: chitin endpoint service {name} --create"
            ));
            Ok(())
        }
        first => {
            printer.result(&answer, || first.map(|first| served(&cluster, first)).unwrap_or_default())?;
            if first.is_some_and(|first| first.listener.is_none()) && !printer.is_json() {
                output::say(
                    "note: this cloud has no listener for private endpoints; only those of kind wireguard: can come in",
                );
            }
            Ok(())
        }
    }
}

/// Accepts or rejects. The answer has the status from before, so what became of it is asked for.
async fn decide(
    cloud: &Cloud,
    one: &OneEndpoint,
    decision: EndpointDecision,
    owner: Option<String>,
    printer: Printer,
) -> Result<(), Failure> {
    let cluster = cloud.cluster(&one.cluster).await?;
    let before = cloud.api.decide_endpoint_connection(cluster.id, &one.endpoint, decision, owner).await?;
    let all = cloud.api.endpoint_connections(cluster.id).await?;
    let found = all.into_iter().find(|endpoint| endpoint.endpoint_id == before.endpoint_id);
    let now = found.ok_or_else(|| {
        Failure::new(Kind::Failed, "somebody removed the endpoint in the same moment")
            .next(format!("chitin endpoint list {}", cluster.name))
    })?;
    printer.result(&now, || became(&cluster.name, &now))
}

async fn owner(cloud: &Cloud, command: OwnerCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        OwnerCommand::List(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let owners = cloud.api.trusted_owners(cluster.id).await?;
            if owners.is_empty() && !printer.is_json() {
                let name = &cluster.name;
                output::say(&format!(
                    "{name} trusts every owner; trust certain ones only: chitin endpoint owner add {name} ACCOUNT"
                ));
                return Ok(());
            }
            printer.result(&owners, || {
                let row = |owner: &TrustedOwner| {
                    [owner.external_owner_id.clone(), owner.created_at.date().to_string()]
                };
                table(["OWNER", "ADDED"], owners.iter().map(row))
            })
        }
        OwnerCommand::Add(OneOwner { cluster, owner }) => {
            let cluster = cloud.cluster(&cluster).await?;
            let added = cloud.api.add_trusted_owner(cluster.id, &owner).await?;
            printer.result(&added, || format!("{} trusts {owner}", cluster.name))
        }
        OwnerCommand::Remove(OneOwner { cluster, owner }) => {
            let cluster = cloud.cluster(&cluster).await?;
            let known = cloud.api.trusted_owners(cluster.id).await?;
            let entry = known.iter().find(|known| known.external_owner_id == owner).ok_or_else(|| {
                Failure::new(Kind::NotFound, format!("{} does not trust {owner} by name", cluster.name))
                    .next(format!("chitin endpoint owner list {}", cluster.name))
            })?;
            let removed = cloud.api.delete_trusted_owner(cluster.id, entry.id).await?;
            printer.result(&removed, || {
                let name = &cluster.name;
                let rest = if known.len() == 1 { "; it trusts every owner now" } else { "" };
                format!(
                    "{name} trusts {owner} no more{rest}\nnext: what was rejected: chitin endpoint list {name}"
                )
            })
        }
    }
}

fn served(cluster: &Cluster, service: &PrivateEndpointService) -> String {
    facts([
        ("service", service.name.clone()),
        ("id", service.endpoint_service_id.clone()),
        ("status", service.status.clone()),
        ("listener", service.listener.clone().unwrap_or_default()),
        ("name", cluster.sql_dns.clone()),
        ("next", format!("chitin endpoint add {} ENDPOINT", cluster.name)),
    ])
}

fn became(cluster: &str, endpoint: &PrivateEndpointConnection) -> String {
    let id = &endpoint.endpoint_id;
    match endpoint.status {
        EndpointStatus::Available => format!("{id} may come in to {cluster}"),
        EndpointStatus::Rejected => format!("{id} was rejected; it may not come in to {cluster}"),
        EndpointStatus::Expired => {
            format!("{id} is expired\nnext: chitin endpoint add {cluster} {id}")
        }
        EndpointStatus::PendingAcceptance => match &endpoint.external_owner_id {
            Some(owner) => format!(
                "{id} waits: its owner {owner} is not trusted\nnext: chitin endpoint owner add {cluster} {owner}, then: \
                 chitin endpoint accept {cluster} {id}"
            ),
            None => format!(
                "{id} waits: whose it is was not said, and {cluster} trusts certain owners only\n\
                 next: chitin endpoint accept {cluster} {id} --owner ACCOUNT"
            ),
        },
    }
}

fn listed(endpoints: &[PrivateEndpointConnection]) -> String {
    let row = |endpoint: &PrivateEndpointConnection| {
        let owner = endpoint.external_owner_id.clone().unwrap_or_default();
        [endpoint.endpoint_id.clone(), endpoint.status.as_str().to_owned(), owner]
    };
    table(["ENDPOINT", "STATUS", "OWNER"], endpoints.iter().map(row))
}

#[cfg(test)]
mod tests {
    use model::Provider;

    use super::*;

    fn endpoint(status: EndpointStatus, owner: Option<&str>) -> PrivateEndpointConnection {
        PrivateEndpointConnection {
            endpoint_id: "vpce-0abcdef0".to_owned(),
            cloud_provider: Provider::Aws,
            region_name: "local".to_owned(),
            region: "local".to_owned(),
            endpoint_service_id: "id".to_owned(),
            service_name: "com.chitin.my-shop-2".to_owned(),
            status,
            external_owner_id: owner.map(str::to_owned),
        }
    }

    #[test]
    fn an_endpoint_that_does_not_come_in_says_why_and_what_to_do() {
        let unsaid = became("my-shop", &endpoint(EndpointStatus::PendingAcceptance, None));
        assert!(unsaid.ends_with("chitin endpoint accept my-shop vpce-0abcdef0 --owner ACCOUNT"), "{unsaid}");
        let untrusted = became("my-shop", &endpoint(EndpointStatus::PendingAcceptance, Some("012345678901")));
        assert!(untrusted.contains("chitin endpoint owner add my-shop 012345678901"), "{untrusted}");
        let expired = became("my-shop", &endpoint(EndpointStatus::Expired, None));
        assert!(expired.contains("chitin endpoint add my-shop vpce-0abcdef0"), "{expired}");
        let all = [endpoint(EndpointStatus::Available, None), endpoint(EndpointStatus::Rejected, None)];
        assert!(listed(&all).contains("available") && listed(&all).contains("rejected"));
    }
}
