//! Sign-ins with a browser that nobody finished, counted by where they come from: so that the operator sees who takes places
//! for nothing, in one line a minute and not in one for each.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use model::{ClusterHandle, Origin};

use crate::shares::Part;

/// Between two lines in the log.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Clusters and networks that are counted one by one; what comes from further ones counts in the sums alone.
const SOURCES_MAX: usize = 1_000;

/// How a waiting session ended whose person did not sign in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// Whoever waited at the terminal left.
    Left,
    /// Nobody came in time.
    Lapsed,
    /// It made room for others.
    PushedOut,
}

/// The sums since the log was last told.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sums: Sums,
    by_source: HashMap<(ClusterHandle, Part), u64>,
    told: Option<Instant>,
}

/// How many ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) left: u64,
    pub(crate) lapsed: u64,
    pub(crate) pushed_out: u64,
}

/// Where most of it comes from: which cluster, which network, and how many.
type Most = (ClusterHandle, Part, u64);

impl Tally {
    /// One more.
    pub(crate) fn note(&mut self, how: Abandoned, cluster: &ClusterHandle, from: &Origin) {
        match how {
            Abandoned::Left => self.sums.left += 1,
            Abandoned::Lapsed => self.sums.lapsed += 1,
            Abandoned::PushedOut => self.sums.pushed_out += 1,
        }
        let Some(widest) = Part::of(from).into_iter().next() else { return };
        let (source, has_room) = ((cluster.clone(), widest), self.by_source.len() < SOURCES_MAX);
        match self.by_source.get_mut(&source) {
            Some(count) => *count += 1,
            None if has_room => drop(self.by_source.insert(source, 1)),
            None => {}
        }
    }

    /// What to tell now, if there is something and the last time is long enough ago.
    fn take(&mut self, now: Instant) -> Option<(Sums, Option<Most>)> {
        let is_due = self.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY);
        if self.sums == Sums::default() || !is_due {
            return None;
        }
        self.told = Some(now);
        let most = self.by_source.drain().max_by_key(|(_, count)| *count);
        Some((std::mem::take(&mut self.sums), most.map(|((cluster, part), count)| (cluster, part, count))))
    }

    /// Tells the log, at most once a minute.
    pub(crate) fn tell(&mut self, now: Instant) {
        let Some((Sums { left, lapsed, pushed_out }, most)) = self.take(now) else { return };
        let (cluster, from, count) = match most {
            Some((cluster, from, count)) => (cluster.to_string(), from.to_string(), count),
            None => (String::new(), String::new(), 0),
        };
        if pushed_out > 0 {
            tracing::warn!(
                pushed_out, lapsed, left, most_at = %cluster, most_from = %from, most = count,
                "too many people are signing in with a browser, and the oldest of the most crowded network had to begin again; most are abandoned by one network, which the cluster's allowlist can keep out"
            );
        } else {
            tracing::info!(
                lapsed, left, most_at = %cluster, most_from = %from, most = count,
                "sign-ins with a browser were abandoned"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_abandoned_is_told_once_a_minute_with_where_most_of_it_comes_from() {
        let (mut tally, begun) = (Tally::default(), Instant::now());
        let cluster: ClusterHandle = "lazy-roach-3".parse().unwrap();
        let from = |text: &str| Origin::public(text.parse().unwrap());
        assert!(tally.take(begun).is_none(), "nothing happened");
        tally.note(Abandoned::Left, &cluster, &from("192.0.2.7"));
        let (sums, most) = tally.take(begun).unwrap();
        assert_eq!(sums, Sums { left: 1, ..Sums::default() });
        assert_eq!(most.map(|(_, part, count)| (part.to_string(), count)), Some(("192.0.2.0/24".into(), 1)));
        for last in 0..10_u8 {
            tally.note(Abandoned::PushedOut, &cluster, &from(&format!("2001:db8:7:{last}::1")));
        }
        tally.note(Abandoned::Lapsed, &cluster, &from("192.0.2.7"));
        assert!(tally.take(begun + TOLD_EVERY / 2).is_none(), "not so soon again");
        let (sums, most) = tally.take(begun + TOLD_EVERY).unwrap();
        assert_eq!(sums, Sums { lapsed: 1, pushed_out: 10, left: 0 });
        assert_eq!(
            most.map(|(_, part, count)| (part.to_string(), count)),
            Some(("2001:db8:7::/48".into(), 10))
        );
        assert!(tally.take(begun + 2 * TOLD_EVERY).is_none() && tally.by_source.is_empty());
    }

    #[test]
    fn sources_without_end_fill_no_memory() {
        let (mut tally, cluster) = (Tally::default(), "lazy-roach-3".parse().unwrap());
        for number in 0..2 * u32::try_from(SOURCES_MAX).unwrap() {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + (number << 8));
            tally.note(Abandoned::Lapsed, &cluster, &Origin::public(address.into()));
        }
        assert_eq!((tally.by_source.len(), tally.sums.lapsed), (SOURCES_MAX, 2 * SOURCES_MAX as u64));
    }
}
