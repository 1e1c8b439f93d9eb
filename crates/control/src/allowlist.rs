//! Who may connect, by address. A change holds for new sessions when it is answered.

use api::{Allowlist, AllowlistChange, AllowlistEntry, PageQuery};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use model::{AddressRange, Cluster};
use time::OffsetDateTime;

use crate::page::Page;
use crate::{Refusal, State, input};

const NAME_CHARACTERS_MAX: usize = 256;

/// Lists the lines.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Allowlist>, Refusal> {
    let page = Page::read("allowlist", &query)?;
    let entry = input::cluster(&state.store, &id)?;
    let lines =
        entry.cluster.allowlist.iter().map(|line| (line.range.to_string(), AllowlistEntry::from(line)));
    let (allowlist, pagination) = page.cut(lines);
    Ok(Json(Allowlist { allowlist, propagating: false, pagination }))
}

/// Adds a line.
pub(crate) async fn add(
    Shared(state): Shared<State>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<AllowlistEntry>, Refusal> {
    let request: AllowlistEntry = input::body(&body)?;
    let range = range(&request.cidr_ip, &request.cidr_mask.to_string())?;
    let mut line = line(range, request.name.clone(), request.ui, request.sql)?;
    line.expires_at = expiry(request.expires_at, &state)?;
    let (id, entries_max) =
        (input::cluster(&state.store, &id)?.cluster.id, state.settings.allowlist_entries_max);
    input::edit(&state, id, move |cluster| {
        if cluster.allowlist.iter().any(|known| known.range == range) {
            return Err(Refusal::exists(format!(
                "the allowlist has {range} already; edit that entry instead"
            )));
        }
        append(cluster, line, entries_max)
    })
    .await?;
    Ok(Json(request))
}

/// Adds or replaces a line.
pub(crate) async fn put(
    Shared(state): Shared<State>,
    Path((id, ip, mask)): Path<(String, String, String)>,
    body: Bytes,
) -> Result<Json<AllowlistEntry>, Refusal> {
    let request: AllowlistChange = input::body(&body)?;
    let (Some(ui), Some(sql)) = (request.ui, request.sql) else {
        return Err(Refusal::invalid("`ui` and `sql` are needed"));
    };
    let range = range(&ip, &mask)?;
    let mut line = line(range, request.name.unwrap_or_default(), ui, sql)?;
    line.expires_at = expiry(request.expires_at, &state)?;
    let answer = AllowlistEntry::from(&line);
    let (id, entries_max) =
        (input::cluster(&state.store, &id)?.cluster.id, state.settings.allowlist_entries_max);
    input::edit(&state, id, move |cluster| {
        match cluster.allowlist.iter_mut().find(|known| known.range == range) {
            Some(known) => {
                *known = line;
                Ok(())
            }
            None => append(cluster, line, entries_max),
        }
    })
    .await?;
    Ok(Json(answer))
}

/// Changes a line; what is absent stays.
pub(crate) async fn edit(
    Shared(state): Shared<State>,
    Path((id, ip, mask)): Path<(String, String, String)>,
    body: Bytes,
) -> Result<Json<AllowlistEntry>, Refusal> {
    let request: AllowlistChange = input::body(&body)?;
    let range = range(&ip, &mask)?;
    if request.never_expires && request.expires_at.is_some() {
        return Err(Refusal::invalid("`expires_at` and `never_expires` exclude each other"));
    }
    let expires_at = expiry(request.expires_at, &state)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let changed = input::edit(&state, id, move |cluster| {
        let known =
            cluster.allowlist.iter_mut().find(|known| known.range == range).ok_or_else(|| missing(range))?;
        let name = request.name.unwrap_or_else(|| known.name.clone());
        let kept = known.expires_at.filter(|_| !request.never_expires);
        *known = line(range, name, request.ui.unwrap_or(known.ui), request.sql.unwrap_or(known.sql))?;
        known.expires_at = expires_at.or(kept);
        Ok(AllowlistEntry::from(&*known))
    })
    .await?;
    Ok(Json(changed))
}

/// Removes a line.
pub(crate) async fn remove(
    Shared(state): Shared<State>,
    Path((id, ip, mask)): Path<(String, String, String)>,
) -> Result<Json<AllowlistEntry>, Refusal> {
    let range = range(&ip, &mask)?;
    let id = input::cluster(&state.store, &id)?.cluster.id;
    let removed = input::edit(&state, id, move |cluster| {
        let at =
            cluster.allowlist.iter().position(|known| known.range == range).ok_or_else(|| missing(range))?;
        Ok(AllowlistEntry::from(&cluster.allowlist.remove(at)))
    })
    .await?;
    Ok(Json(removed))
}

fn append(cluster: &mut Cluster, line: model::AllowlistEntry, entries_max: usize) -> Result<(), Refusal> {
    if cluster.allowlist.len() >= entries_max {
        return Err(Refusal::wrong_state(format!(
            "the allowlist has {} entries, and {entries_max} is the most; remove one first, or start the cloud with a \
             larger --allowlist-max",
            cluster.allowlist.len()
        )));
    }
    cluster.allowlist.push(line);
    Ok(())
}

/// A moment that is still to come.
fn expiry(wanted: Option<OffsetDateTime>, state: &State) -> Result<Option<OffsetDateTime>, Refusal> {
    if wanted.is_some_and(|end| end <= state.clock.now()) {
        return Err(Refusal::invalid("`expires_at` has passed; give a moment to come, or remove the entry"));
    }
    Ok(wanted)
}

fn missing(range: AddressRange) -> Refusal {
    Refusal::not_found(format!("the allowlist has no entry {range}"))
}

fn range(ip: &str, mask: &str) -> Result<AddressRange, Refusal> {
    // A slash in the address would make a second mask of it.
    if ip.contains('/') || !mask.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::invalid(
            "an entry is written as address and prefix length, for instance 203.0.113.0 and 24",
        ));
    }
    format!("{ip}/{mask}").parse().map_err(|error| Refusal::invalid(format_args!("{error}")))
}

fn line(range: AddressRange, name: String, ui: bool, sql: bool) -> Result<model::AllowlistEntry, Refusal> {
    if name.chars().count() > NAME_CHARACTERS_MAX || name.chars().any(char::is_control) {
        return Err(Refusal::invalid("an entry's name has at most 256 characters and no control characters"));
    }
    Ok(model::AllowlistEntry { range, name, sql, ui, expires_at: None })
}
