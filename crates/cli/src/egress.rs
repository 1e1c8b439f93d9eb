//! `chitin egress`: show, policy, add, edit, remove, test.

use api::{AddEgressRule, EditEgressRule, Egress, EgressAddress, EgressRule, EgressVerdict};
use model::{AddressRange, ClusterId, EgressPolicy, InvalidRange};

use crate::cloud::Cloud;
use crate::command::{EgressCommand, EgressEdit, PolicyName, Switch};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, facts, table};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: EgressCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        EgressCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let egress = cloud.api.egress(cluster.id).await?;
            printer.result(&egress, || shown(&egress))?;
            warn(&egress, printer);
            if egress.policy == EgressPolicy::AllowAll && !egress.rules.is_empty() && !printer.is_json() {
                let name = &cluster.name;
                output::say(&format!(
                    "note: rules have no effect until: chitin egress policy {name} default-deny"
                ));
            }
            Ok(())
        }
        EgressCommand::Policy { cluster, policy } => {
            let cluster = cloud.cluster(&cluster).await?;
            cloud.api.set_egress_policy(cluster.id, policy == PolicyName::AllowAll).await?;
            let egress = cloud.api.egress(cluster.id).await?;
            let name = &cluster.name;
            printer.result(&egress, || match policy {
                PolicyName::AllowAll => format!("{name} may reach what the cloud lets through for anybody"),
                PolicyName::DefaultDeny => format!("{name} may reach only what its rules name"),
            })?;
            if policy == PolicyName::DefaultDeny && egress.rules.is_empty() && !printer.is_json() {
                output::say(&format!(
                    "note: {name} has no rule, so nothing leaves: responders and identity providers are not asked; name \
                     them with: chitin egress add {name} NAME DESTINATION"
                ));
            }
            Ok(())
        }
        EgressCommand::Add(add) => {
            // Read before anything is asked, so that a slip costs nothing.
            let kind = kind(&add.destination)?;
            let cluster = cloud.cluster(&add.cluster).await?;
            let rule = AddEgressRule {
                name: add.name,
                kind: kind.to_owned(),
                destination: add.destination,
                description: add.description,
                ports: numbers(&add.port),
                idempotency_key: None,
            };
            let made = cloud.api.add_egress_rule(cluster.id, &rule).await?;
            printer.result(&made, || listed(std::slice::from_ref(&made)))
        }
        EgressCommand::Edit(edit) => {
            let change = change(&edit)?;
            let cluster = cloud.cluster(&edit.cluster).await?;
            let rule = find(cloud, cluster.id, &edit.rule).await?;
            let changed = cloud.api.edit_egress_rule(cluster.id, &rule.id, &change).await?;
            printer.result(&changed, || listed(std::slice::from_ref(&changed)))
        }
        EgressCommand::Remove { cluster, rule } => {
            let cluster = cloud.cluster(&cluster).await?;
            let rule = find(cloud, cluster.id, &rule).await?;
            let removed = cloud.api.delete_egress_rule(cluster.id, &rule.id).await?;
            printer.result(&removed, || {
                format!("removed the rule {} of {}: {}", removed.name, cluster.name, removed.destination)
            })
        }
        EgressCommand::Engine { cluster, switch } => {
            let cluster = cloud.cluster(&cluster).await?;
            let spinner = printer.spinner("telling the engine");
            let told = cloud.api.set_engine_egress(cluster.id, switch == Switch::On).await;
            spinner.finish_and_clear();
            let egress = told?;
            printer.result(&egress, || shown(&egress))?;
            warn(&egress, printer);
            Ok(())
        }
        EgressCommand::Test { cluster, destination } => {
            let cluster = cloud.cluster(&cluster).await?;
            let verdict = cloud.api.test_egress(cluster.id, destination).await?;
            printer.result(&verdict, || told(&verdict))
        }
    }
}

fn warn(egress: &Egress, printer: Printer) {
    if printer.is_json() {
        return;
    }
    for left_out in &egress.left_out {
        output::say(&format!(
            "note: the engine is not offered the rule {}: {}",
            left_out.rule, left_out.reason
        ));
    }
    for note in &egress.notes {
        output::say(&format!("note: {note}"));
    }
}

async fn find(cloud: &Cloud, id: ClusterId, text: &str) -> Result<EgressRule, Failure> {
    let rules = cloud.api.egress(id).await?.rules;
    let found =
        rules.iter().find(|rule| rule.name == text).or_else(|| rules.iter().find(|rule| rule.id == text));
    found.cloned().ok_or_else(|| {
        Failure::new(Kind::NotFound, format!("there is no egress rule `{text}`"))
            .next("look at what there is: chitin egress show CLUSTER")
    })
}

/// What kind of destination a text is. A range with host bits is a slip, and not a name.
fn kind(destination: &str) -> Result<&'static str, Failure> {
    match destination.parse::<AddressRange>() {
        Ok(_) => Ok("CIDR"),
        Err(slip @ InvalidRange::HostBits { .. }) => Err(Failure::new(Kind::Usage, slip.to_string())),
        Err(InvalidRange::Malformed(_)) if destination.contains('/') => Ok("CIDR"),
        Err(InvalidRange::Malformed(_)) => Ok("FQDN"),
    }
}

fn numbers(ports: &[u16]) -> Option<Vec<i64>> {
    (!ports.is_empty()).then(|| ports.iter().copied().map(i64::from).collect())
}

fn change(edit: &EgressEdit) -> Result<EditEgressRule, Failure> {
    let kind = edit.destination.as_deref().map(kind).transpose()?;
    let change = EditEgressRule {
        kind: kind.map(str::to_owned),
        destination: edit.destination.clone(),
        description: edit.description.clone(),
        ports: if edit.every_port { Some(Vec::new()) } else { numbers(&edit.port) },
    };
    if change == EditEgressRule::default() {
        return Err(Failure::new(Kind::Usage, "nothing to change was said")
            .next("say --destination, --port, --every-port or --description"));
    }
    Ok(change)
}

fn shown(egress: &Egress) -> String {
    let engine = match (egress.engine, egress.outlets.is_empty()) {
        (false, _) => "reaches nothing".to_owned(),
        (true, true) => "may reach what rules name, and none names a host with ports".to_owned(),
        (true, false) => format!("may reach {}", egress.outlets.join(", ")),
    };
    let head = facts([("policy", egress.policy.as_str().to_owned()), ("engine", engine)]);
    if egress.rules.is_empty() {
        return head;
    }
    format!("{head}\n\n{}", listed(&egress.rules))
}

fn listed(rules: &[EgressRule]) -> String {
    let row = |rule: &EgressRule| {
        let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
        let ports = if ports.is_empty() { "every".to_owned() } else { ports.join(", ") };
        [rule.name.clone(), rule.kind.clone(), rule.destination.clone(), ports, rule.description.clone()]
    };
    table(["NAME", "TYPE", "DESTINATION", "PORTS", "DESCRIPTION"], rules.iter().map(row))
}

fn told(verdict: &EgressVerdict) -> String {
    let outcome = if verdict.is_permitted { "would be let through" } else { "refused" };
    let head = facts([
        ("outcome", outcome.to_owned()),
        ("destination", verdict.destination.clone()),
        ("policy", verdict.policy.as_str().to_owned()),
        ("reason", verdict.reason.clone().unwrap_or_default()),
    ]);
    if verdict.addresses.is_empty() {
        return head;
    }
    let row = |one: &EgressAddress| {
        let mark = if one.is_permitted { "yes" } else { "no" }.to_owned();
        let (rule, why) = (one.rule.clone().unwrap_or_default(), one.reason.clone().unwrap_or_default());
        [one.address.to_string(), mark, rule, why]
    };
    let rows = table(["ADDRESS", "PERMITTED", "RULE", "WHY NOT"], verdict.addresses.iter().map(row));
    format!("{head}\n\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit() -> EgressEdit {
        EgressEdit {
            cluster: "my-shop".to_owned(),
            rule: "provider".to_owned(),
            destination: None,
            port: Vec::new(),
            every_port: false,
            description: None,
        }
    }

    #[test]
    fn a_destination_says_by_itself_what_it_is() {
        for range in ["203.0.113.0/24", "203.0.113.7", "2001:db8::/32", "203.0.113.0/33"] {
            assert_eq!(kind(range), Ok("CIDR"), "{range}");
        }
        assert_eq!(kind("login.example.com"), Ok("FQDN"));
        let slip = kind("10.1.2.3/8").unwrap_err();
        assert!(slip.kind == Kind::Usage && slip.what.contains("did you mean 10.0.0.0/8"), "{slip}");
    }

    #[test]
    fn an_edit_says_what_changes_and_every_port_is_said_and_not_left_out() {
        assert_eq!(change(&edit()).unwrap_err().kind, Kind::Usage);
        let every = change(&EgressEdit { every_port: true, ..edit() }).unwrap();
        assert_eq!((every.ports, every.kind), (Some(Vec::new()), None));
        let some = change(&EgressEdit { port: vec![443], ..edit() }).unwrap();
        assert_eq!((some.ports, some.destination), (Some(vec![443]), None));
        let moved = change(&EgressEdit { destination: Some("203.0.113.0/24".to_owned()), ..edit() }).unwrap();
        assert_eq!((moved.kind.as_deref(), moved.ports), (Some("CIDR"), None));
    }

    #[test]
    fn an_engine_that_reaches_nothing_is_told_from_one_that_may() {
        let mut egress = Egress {
            policy: EgressPolicy::AllowAll,
            rules: Vec::new(),
            engine: false,
            outlets: Vec::new(),
            left_out: Vec::new(),
            notes: Vec::new(),
        };
        assert!(shown(&egress).ends_with("engine  reaches nothing"), "{}", shown(&egress));
        egress.engine = true;
        assert!(shown(&egress).contains("none names a host"), "{}", shown(&egress));
        egress.outlets = vec!["db.example.com:5432".to_owned()];
        assert!(shown(&egress).ends_with("engine  may reach db.example.com:5432"), "{}", shown(&egress));
    }

    #[test]
    fn a_refused_destination_is_never_taken_for_a_permitted_one() {
        let address = |is_permitted, reason: Option<&str>| EgressAddress {
            address: "203.0.113.7".parse().unwrap(),
            is_permitted,
            rule: Some("provider".to_owned()),
            reason: reason.map(str::to_owned),
        };
        let mut verdict = EgressVerdict {
            destination: "login.example.com:443".to_owned(),
            policy: EgressPolicy::DefaultDeny,
            is_permitted: true,
            reason: None,
            addresses: vec![address(true, None)],
        };
        assert!(told(&verdict).starts_with("outcome      would be let through"), "{}", told(&verdict));
        verdict.is_permitted = false;
        verdict.addresses.push(address(false, Some("it is a private network")));
        let text = told(&verdict);
        assert!(text.starts_with("outcome      refused") && text.contains("private network"), "{text}");
    }
}
