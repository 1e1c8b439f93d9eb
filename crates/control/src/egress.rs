//! What may leave a cluster. A change holds when it is answered, so no rule is ever pending.

use api::{
    AddEgressRule, ChangedEgressRule, EditEgressRule, Egress, EgressRules, EgressVerdict, LeftOut, PageQuery,
    SetEgressPolicy, SetEngineEgress, ShownEgressRule, TestEgress,
};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use axum::response::{IntoResponse, Response};
use model::{
    AddressRange, Cluster, ClusterId, EGRESS_DESCRIPTION_CHARACTERS_MAX, EGRESS_KEY_BYTES_MAX,
    EGRESS_PORTS_MAX, EGRESS_RULES_MAX, EgressDestination, EgressPolicy, EgressRule, EgressRuleName,
    FqdnName, Outlets, Plan,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::page::Page;
use crate::{Refusal, State, input};

/// A repeated request finds what the first one made within this time.
const REPEAT_MAX: Duration = Duration::minutes(10);

/// A refusal after which a client gives up. Clients of these calls wait for hours where a refusal holds the letters
/// `lock` or a word of theirs for a change under way, so no word with them passes, whoever wrote it.
#[derive(Debug)]
pub(crate) struct Final(Refusal);

impl From<Refusal> for Final {
    fn from(refusal: Refusal) -> Self {
        let is_taken_for_a_reason_to_wait = |word: &str| {
            let word = word.to_ascii_lowercase();
            word.contains("lock") || word.contains("policy_updating")
        };
        let words = refusal.message.split(' ');
        let words: Vec<&str> =
            words.map(|word| if is_taken_for_a_reason_to_wait(word) { "…" } else { word }).collect();
        Self(Refusal::new(refusal.code, words.join(" ")))
    }
}

impl IntoResponse for Final {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// Lists the rules by name.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<EgressRules>, Final> {
    let page = Page::read("egress rules", &query)?;
    let entry = input::cluster(&state.store, &id)?;
    let (id, rules) = (entry.cluster.id, &entry.cluster.egress.rules);
    let (rules, pagination) =
        page.cut(rules.iter().map(|rule| (rule.name.to_string(), api::EgressRule::new(id, rule))));
    Ok(Json(EgressRules { rules, pagination }))
}

/// Adds a rule.
pub(crate) async fn add(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<ChangedEgressRule>, Final> {
    let request: AddEgressRule = input::body(&body)?;
    let now = state.clock.now();
    let rule = EgressRule {
        id: Uuid::new_v4(),
        name: request.name.parse().map_err(|error| Refusal::invalid(format_args!("{error}")))?,
        destination: destination(&request.kind, &request.destination)?,
        written: request.destination,
        ports: ports(request.ports.unwrap_or_default())?,
        description: description(request.description)?,
        // What is stored and what is answered must be the same instant, to the digit.
        created_at: now.replace_nanosecond(now.microsecond() * 1_000).unwrap_or(now),
        idempotency_key: key(request.idempotency_key)?,
    };
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let kept = input::edit(&state, id, move |cluster| append(cluster, rule, now)).await?;
    Ok(Json(changed(id, &kept)))
}

/// Shows a rule.
pub(crate) async fn show(
    Shared(state): Shared<State>,
    Path((id, rule_id)): Path<(String, String)>,
) -> Result<Json<ShownEgressRule>, Final> {
    let rule_id = rule_id_of(&rule_id)?;
    let entry = input::cluster(&state.store, &id)?;
    let rule = entry.cluster.egress.rule(rule_id).ok_or_else(missing)?;
    Ok(Json(ShownEgressRule { rule: api::EgressRule::new(entry.cluster.id, rule) }))
}

/// Changes a rule; what is absent stays.
pub(crate) async fn edit(
    Shared(state): Shared<State>,
    Path((id, rule_id)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<ChangedEgressRule>, Final> {
    let request: EditEgressRule = input::body(&body)?;
    let rule_id = rule_id_of(&rule_id)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let kept = input::edit(&state, id, move |cluster| {
        let rules = &mut cluster.egress.rules;
        let at = rules.iter().position(|rule| rule.id == rule_id).ok_or_else(missing)?;
        let edited = edited(&rules[at], request)?;
        if rules.iter().any(|other| other.id != rule_id && other.is_like(&edited)) {
            return Err(alike());
        }
        rules[at] = edited.clone();
        Ok(edited)
    })
    .await?;
    Ok(Json(changed(id, &kept)))
}

/// Removes a rule.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path((id, rule_id)): Path<(String, String)>,
) -> Result<Json<ChangedEgressRule>, Final> {
    let rule_id = rule_id_of(&rule_id)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let removed = input::edit(&state, id, move |cluster| {
        let rules = &mut cluster.egress.rules;
        let at = rules.iter().position(|rule| rule.id == rule_id).ok_or_else(missing)?;
        Ok(rules.remove(at))
    })
    .await?;
    Ok(Json(changed(id, &removed)))
}

/// Sets the policy.
pub(crate) async fn set_policy(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<serde_json::Value>, Final> {
    let request: SetEgressPolicy = input::body(&body)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    input::edit(&state, id, move |cluster| {
        cluster.egress.policy =
            if request.allow_all { EgressPolicy::AllowAll } else { EgressPolicy::DefaultDeny };
        Ok(())
    })
    .await?;
    Ok(Json(serde_json::json!({})))
}

/// Shows all of it.
pub(crate) async fn describe(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
) -> Result<Json<Egress>, Refusal> {
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(whole(&entry.cluster, Vec::new())))
}

/// Lets the engine reach what rules name, or not.
pub(crate) async fn set_engine(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Egress>, Refusal> {
    let request: SetEngineEgress = input::body(&body)?;
    let entry = input::made(&state.store, &id)?;
    if request.engine && entry.cluster.plan == Plan::Serverless {
        return Err(Refusal::wrong_state(
            "a serverless cluster's engine reaches nothing: it shares the machine's way out with strangers; use a \
             dedicated cluster for engine egress",
        ));
    }
    let notes = state.administration.set_engine_egress(entry.cluster.id, request.engine).await?;
    let entry = input::cluster(&state.store, &id)?;
    Ok(Json(whole(&entry.cluster, notes)))
}

fn whole(cluster: &Cluster, notes: Vec<String>) -> Egress {
    let egress = &cluster.egress;
    let mut rules: Vec<_> = egress.rules.iter().map(|rule| api::EgressRule::new(cluster.id, rule)).collect();
    rules.sort_by(|left, right| left.name.cmp(&right.name));
    let outlets = if egress.engine { egress.outlets() } else { Outlets::default() };
    let left_out = |(rule, reason): (EgressRuleName, &str)| LeftOut {
        rule: rule.to_string(),
        reason: reason.to_owned(),
    };
    Egress {
        policy: egress.policy,
        rules,
        engine: egress.engine,
        outlets: outlets.offered.iter().map(|outlet| format!("{}:{}", outlet.host, outlet.port)).collect(),
        left_out: outlets.left_out.into_iter().map(left_out).collect(),
        notes,
    }
}

/// Says whether a destination would be let through.
pub(crate) async fn test(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<EgressVerdict>, Refusal> {
    let request: TestEgress = input::body(&body)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    state.administration.test_egress(id, &request.destination).await.map(Json)
}

fn changed(id: ClusterId, rule: &EgressRule) -> ChangedEgressRule {
    let rule = api::EgressRule::new(id, rule);
    ChangedEgressRule { described: rule.clone(), rule }
}

fn append(cluster: &mut Cluster, rule: EgressRule, now: OffsetDateTime) -> Result<EgressRule, Refusal> {
    let rules = &mut cluster.egress.rules;
    let repeated = rules.iter().find(|known| {
        known.idempotency_key.is_some()
            && known.idempotency_key == rule.idempotency_key
            && input::is_repeated(known.created_at, now, REPEAT_MAX)
    });
    if let Some(known) = repeated {
        let is_same =
            known.name == rule.name && known.description == rule.description && known.is_like(&rule);
        return if is_same {
            Ok(known.clone())
        } else {
            Err(Refusal::exists(
                "the idempotency key belongs to another egress rule; send another key for another rule",
            ))
        };
    }
    if rules.iter().any(|known| known.name == rule.name) {
        return Err(Refusal::exists(
            "an egress rule with this name already exists; edit it, or choose another name",
        ));
    }
    if rules.iter().any(|known| known.is_like(&rule)) {
        return Err(alike());
    }
    if rules.len() >= EGRESS_RULES_MAX {
        return Err(Refusal::wrong_state(format!(
            "the cluster has {EGRESS_RULES_MAX} egress rules, which is the most; remove one first"
        )));
    }
    rules.push(rule.clone());
    Ok(rule)
}

fn edited(rule: &EgressRule, change: EditEgressRule) -> Result<EgressRule, Refusal> {
    let mut rule = rule.clone();
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    match (filled(change.kind), filled(change.destination)) {
        (None, None) => {}
        (kind, Some(written)) => {
            let kind = kind.unwrap_or_else(|| rule.destination.kind().to_owned());
            rule.destination = destination(&kind, &written)?;
            rule.written = written;
        }
        (Some(kind), None) if kind == rule.destination.kind() => {}
        (Some(_), None) => {
            return Err(Refusal::invalid("another type needs another destination; give both"));
        }
    }
    if let Some(text) = change.description {
        rule.description = description(text)?;
    }
    if let Some(numbers) = change.ports {
        rule.ports = ports(numbers)?;
    }
    Ok(rule)
}

/// Reads a destination that may be reached at all.
fn destination(kind: &str, text: &str) -> Result<EgressDestination, Refusal> {
    match kind {
        "FQDN" => {
            let name: FqdnName = text
                .parse()
                .map_err(|error| Refusal::invalid(format_args!("the destination is no name: {error}")))?;
            Ok(EgressDestination::Fqdn(name))
        }
        "CIDR" => {
            let range: AddressRange = text
                .parse()
                .map_err(|error| Refusal::invalid(format_args!("the destination is no range: {error}")))?;
            if let Some(kind) = model::never_reached_range(range) {
                return Err(Refusal::invalid(format_args!(
                    "{range} is never reached ({kind}), so a rule for it would promise what does not happen"
                )));
            }
            Ok(EgressDestination::Cidr(range))
        }
        _ => Err(Refusal::invalid("type is FQDN or CIDR")),
    }
}

fn ports(numbers: Vec<i64>) -> Result<Vec<u16>, Refusal> {
    if numbers.len() > EGRESS_PORTS_MAX {
        return Err(Refusal::invalid(format_args!(
            "a rule has at most {EGRESS_PORTS_MAX} ports; leave them out for every port"
        )));
    }
    let mut ports: Vec<u16> = Vec::with_capacity(numbers.len());
    for number in numbers {
        match u16::try_from(number) {
            Ok(port) if port != 0 && !ports.contains(&port) => ports.push(port),
            _ => return Err(Refusal::invalid("ports are numbers from 1 to 65535, each once")),
        }
    }
    Ok(ports)
}

fn description(text: String) -> Result<String, Refusal> {
    if text.chars().count() > EGRESS_DESCRIPTION_CHARACTERS_MAX || text.chars().any(char::is_control) {
        return Err(Refusal::invalid(format_args!(
            "a description has at most {EGRESS_DESCRIPTION_CHARACTERS_MAX} characters and no control characters"
        )));
    }
    Ok(text)
}

fn key(text: Option<String>) -> Result<Option<String>, Refusal> {
    let text = text.filter(|text| !text.is_empty());
    if text.as_ref().is_some_and(|text| text.len() > EGRESS_KEY_BYTES_MAX) {
        return Err(Refusal::invalid(format_args!(
            "an idempotency key has at most {EGRESS_KEY_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

fn rule_id_of(text: &str) -> Result<Uuid, Refusal> {
    text.parse().map_err(|_| Refusal::invalid("an egress rule's id is a UUID"))
}

fn missing() -> Refusal {
    Refusal::not_found("the cluster has no egress rule with this id")
}

fn alike() -> Refusal {
    Refusal::exists(
        "an egress rule with this destination and these ports already exists; edit that rule instead",
    )
}
