//! Attacks from an address that the allowlist does not let in. Where every address is let in, the list is narrowed for a
//! moment to our own; a journal puts it back whatever happens.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::{AllowlistChange, AllowlistEntry, Client};
use model::{AddressRange, ClusterId};

use super::row::{Row, Verdict};
use super::session::{Claim, Session, enter, sign_in};
use super::target::{ANSWER_MAX, Target};
use super::wire::Fault;

const FEATURE: &str = "IP allowlist";
const REFUSED: &str = "a foreign address is refused";
const CUT: &str = "a closed address loses its open sessions";
/// Another address of this machine's loopback network, which nobody uses.
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77));
/// For a change of the list to be in force: the design allows 200 ms.
pub const IN_FORCE_MAX: Duration = Duration::from_millis(500);
/// What our own lines are called.
const OUR_NAME: &str = "chitin verify, temporary";

/// What must be done to put an allowlist back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    Remove(AddressRange),
    Admit(AddressRange),
}

/// A cluster's allowlist and what was changed of it.
#[derive(Debug)]
pub struct Journal<'a> {
    api: &'a Client,
    cluster: ClusterId,
    undo: Mutex<Vec<Undo>>,
}

impl<'a> Journal<'a> {
    /// A journal without changes.
    pub fn new(api: &'a Client, cluster: ClusterId) -> Self {
        Self { api, cluster, undo: Mutex::new(Vec::new()) }
    }

    /// Lets an address in, if it is not.
    pub async fn admit(&self, address: IpAddr) -> Result<bool, Fault> {
        let entries = self.entries().await?;
        if entries.iter().any(|entry| admits(entry, address)) {
            return Ok(false);
        }
        let range: AddressRange =
            address.to_string().parse().map_err(|error| Fault::Setup(format!("{error}")))?;
        if let Some(known) = entries.iter().find(|entry| range_of(entry) == Some(range)) {
            return Err(Fault::Setup(format!(
                "the allowlist closes our own address {range} (line `{}`); open it to verify from here",
                known.name
            )));
        }
        self.add(range).await?;
        Ok(true)
    }

    /// Closes every line that lets the address in, keeping our own address in.
    async fn close(&self, foreign: IpAddr, ours: IpAddr) -> Result<(), Fault> {
        let entries = self.entries().await?;
        if !entries.iter().any(|entry| admits(entry, ours) && !admits(entry, foreign)) {
            let range: AddressRange =
                ours.to_string().parse().map_err(|error| Fault::Setup(format!("{error}")))?;
            self.add(range).await?;
        }
        for range in entries.iter().filter(|entry| admits(entry, foreign)).filter_map(range_of) {
            self.note(Undo::Admit(range));
            self.set_sql(range, false).await?;
        }
        Ok(())
    }

    /// Puts the allowlist back as it was.
    pub async fn restore(&self) -> Result<(), Fault> {
        let undo = std::mem::take(&mut *self.undo.lock().unwrap_or_else(PoisonError::into_inner));
        let mut failed = Vec::new();
        for step in undo.into_iter().rev() {
            let done = match step {
                Undo::Admit(range) => self.set_sql(range, true).await,
                Undo::Remove(range) => {
                    self.api.delete_allowlist_entry(self.cluster, range).await.map(drop).map_err(setup)
                }
            };
            if let Err(fault) = done {
                failed.push(match step {
                    Undo::Admit(range) => {
                        format!("chitin allowlist edit CLUSTER {range} --sql true ({fault})")
                    }
                    Undo::Remove(range) => format!("chitin allowlist remove CLUSTER {range} ({fault})"),
                });
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Fault::Setup(failed.join("; "))) }
    }

    async fn entries(&self) -> Result<Vec<AllowlistEntry>, Fault> {
        self.api.allowlist(self.cluster).await.map_err(setup)
    }

    /// The undo is noted before the change: an interruption in between undoes what was not done, which harms nothing.
    async fn add(&self, range: AddressRange) -> Result<(), Fault> {
        self.note(Undo::Remove(range));
        let entry = AllowlistEntry {
            cidr_ip: range.address().to_string(),
            cidr_mask: range.prefix_bits(),
            name: OUR_NAME.to_owned(),
            ui: false,
            sql: true,
            // Long after every attack: it goes also where we are killed.
            expires_at: Some(time::OffsetDateTime::now_utc() + OPEN_MAX),
        };
        self.api.add_allowlist_entry(self.cluster, &entry).await.map(drop).map_err(setup)
    }

    async fn set_sql(&self, range: AddressRange, sql: bool) -> Result<(), Fault> {
        let change = AllowlistChange { sql: Some(sql), ..AllowlistChange::default() };
        self.api.edit_allowlist_entry(self.cluster, range, &change).await.map(drop).map_err(setup)
    }

    fn note(&self, undo: Undo) {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner).push(undo);
    }
}

/// How long a line of ours stays that nobody took away.
const OPEN_MAX: time::Duration = time::Duration::hours(1);

/// Every attack of this file.
pub async fn attack(target: &Target, honest: Claim<'_>, journal: &Journal<'_>) -> Vec<Row> {
    if !matches!(target.address.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        let why =
            "can be attacked only from a second address; from there: chitin sql CLUSTER must be refused";
        return vec![Verdict::missing(why).on(FEATURE, REFUSED), Verdict::missing(why).on(FEATURE, CUT)];
    }
    let (refused, cut) = match from_outside(target, honest, journal).await {
        Ok(verdicts) => verdicts,
        Err(fault) => {
            let failed = Verdict::from(Err::<Verdict, _>(fault));
            (failed.clone(), failed)
        }
    };
    vec![refused.on(FEATURE, REFUSED), cut.on(FEATURE, CUT)]
}

async fn from_outside(
    target: &Target,
    honest: Claim<'_>,
    journal: &Journal<'_>,
) -> Result<(Verdict, Verdict), Fault> {
    let foreign = Claim { source: Some(FOREIGN), ..honest };
    let is_open = journal.entries().await?.iter().any(|entry| admits(entry, FOREIGN));
    if !is_open {
        let refused = try_foreign(target, honest, foreign, "").await?;
        return Ok((refused, Verdict::missing("the foreign address was closed already; no session to cut")));
    }
    let before = enter(target, foreign).await?;
    let ours = target.connect(None).await?.local_addr()?.ip();
    let closed = journal.close(FOREIGN, ours).await;
    let verdicts = match closed {
        Ok(()) => {
            tokio::time::sleep(IN_FORCE_MAX).await;
            let cut = is_cut(before).await;
            let refused = try_foreign(target, honest, foreign, " (list narrowed for this check)").await;
            refused.map(|refused| (refused, cut))
        }
        Err(fault) => Err(fault),
    };
    journal.restore().await?;
    verdicts
}

async fn try_foreign(
    target: &Target,
    honest: Claim<'_>,
    foreign: Claim<'_>,
    how: &str,
) -> Result<Verdict, Fault> {
    let attempt = sign_in(target, foreign).await;
    // A control: at the same moment, our own address is welcome.
    enter(target, honest).await?;
    Ok(match attempt {
        Ok(attempt) if attempt.session.is_some() => Verdict::failed(format!("{FOREIGN} was let in{how}")),
        Ok(attempt) => match attempt.refusal {
            Some(refusal) if refusal.code == "28000" && attempt.asked.is_empty() => {
                Verdict::proven(format!("from {FOREIGN}{how}, right password never asked: {refusal}"))
            }
            refusal => Verdict::failed(format!(
                "{FOREIGN} was not refused for its address: {}",
                refusal.unwrap_or_default()
            )),
        },
        Err(Fault::Io(error)) => Verdict::proven(format!("from {FOREIGN}{how}: {error}")),
        Err(fault) => return Err(fault),
    })
}

async fn is_cut(mut session: Session) -> Verdict {
    match session.wire.query("select 1", ANSWER_MAX).await {
        Ok(answer) => match answer.error {
            Some(refusal) => Verdict::proven(refusal.to_string()),
            None => Verdict::failed(format!(
                "{} ms after its address was closed, a session still answers",
                IN_FORCE_MAX.as_millis()
            )),
        },
        Err(fault) if fault.is_end() => Verdict::proven("the session had ended"),
        Err(fault) => Verdict::failed(fault.to_string()),
    }
}

fn admits(entry: &AllowlistEntry, address: IpAddr) -> bool {
    entry.sql && range_of(entry).is_some_and(|range| range.contains(address))
}

fn range_of(entry: &AllowlistEntry) -> Option<AddressRange> {
    format!("{}/{}", entry.cidr_ip, entry.cidr_mask).parse().ok()
}

fn setup(error: api::Error) -> Fault {
    Fault::Setup(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ip: &str, mask: u8, sql: bool) -> AllowlistEntry {
        AllowlistEntry {
            cidr_ip: ip.to_owned(),
            cidr_mask: mask,
            name: String::new(),
            ui: false,
            sql,
            expires_at: None,
        }
    }

    #[test]
    fn only_a_line_with_sql_lets_an_address_in() {
        assert!(admits(&entry("0.0.0.0", 0, true), FOREIGN));
        assert!(!admits(&entry("0.0.0.0", 0, false), FOREIGN));
        assert!(!admits(&entry("127.0.0.1", 32, true), FOREIGN));
        assert!(!admits(&entry("nonsense", 0, true), FOREIGN));
    }
}
