//! An allowlist as one question that costs the same with ten lines and with a million: may this address in, now?
//!
//! Lines may overlap, and an address is let in if any line that contains it opens the surface. So the lines are laid out
//! once as spans of addresses that do not overlap, each of which knows the latest moment of all lines above it; a question
//! is then one search.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{AllowlistEntry, Surface};
use time::OffsetDateTime;

/// One cluster's allowlist, read. Without entries it admits nobody.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    ipv4: Spans<u32>,
    ipv6: Spans<u128>,
    /// Each moment at which an entry expires, the earliest first, once each.
    expiries: Vec<OffsetDateTime>,
    len: usize,
}

impl Matcher {
    /// Lays the entries out. Takes some tenths of a microsecond an entry; for when a list has changed, not for each client.
    pub fn new(entries: &[AllowlistEntry]) -> Self {
        let mut expiries: Vec<_> = entries.iter().filter_map(|entry| entry.expires_at).collect();
        expiries.sort_unstable();
        expiries.dedup();
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for entry in entries {
            let until = Until::of(entry.expires_at, &expiries);
            let opened = Opened {
                sql: if entry.sql { until } else { Until::NEVER_OPEN },
                web: if entry.ui { until } else { Until::NEVER_OPEN },
            };
            match IpNet::from(entry.range) {
                IpNet::V4(net) => {
                    ipv4.push(Line {
                        first: net.network().to_bits(),
                        last: net.broadcast().to_bits(),
                        opened,
                    });
                }
                IpNet::V6(net) => {
                    ipv6.push(Line {
                        first: net.network().to_bits(),
                        last: net.broadcast().to_bits(),
                        opened,
                    });
                }
            }
        }
        let ipv4 = Spans::new(ipv4, |address| address.checked_add(1));
        let ipv6 = Spans::new(ipv6, |address| address.checked_add(1));
        Self { ipv4, ipv6, expiries, len: entries.len() }
    }

    /// Whether any entry that contains the address opens the surface at this moment. An IPv4-mapped IPv6 address counts
    /// as IPv4, and no IPv6 entry lets an IPv4 address in.
    pub fn admits(&self, address: IpAddr, surface: Surface, now: OffsetDateTime) -> bool {
        let opened = match model::canonical(address) {
            IpAddr::V4(address) => self.ipv4.at(address.to_bits()),
            IpAddr::V6(address) => self.ipv6.at(address.to_bits()),
        };
        let until = match surface {
            Surface::Sql => opened.sql,
            Surface::Web => opened.web,
        };
        until.is_after(now, &self.expiries)
    }

    /// The earliest moment later than `now` at which an entry expires, and with it perhaps somebody's right to stay.
    pub fn next_expiry(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.expiries.get(self.expiries.partition_point(|expiry| *expiry <= now)).copied()
    }

    /// How many entries it was made from.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it was made from no entry, and so admits nobody.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Until when a surface is open: never at all, until an expiry (its position plus one), or always. The greater, the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Until(u32);

impl Until {
    const NEVER_OPEN: Self = Self(0);
    const ALWAYS: Self = Self(u32::MAX);

    fn of(expiry: Option<OffsetDateTime>, expiries: &[OffsetDateTime]) -> Self {
        match expiry {
            None => Self::ALWAYS,
            Some(expiry) => {
                // The first that is not earlier is this one: all are in the list.
                let position = expiries.partition_point(|known| *known < expiry);
                u32::try_from(position + 1).map_or(Self::NEVER_OPEN, Self)
            }
        }
    }

    fn is_after(self, now: OffsetDateTime, expiries: &[OffsetDateTime]) -> bool {
        match self {
            Self::NEVER_OPEN => false,
            Self::ALWAYS => true,
            Self(number) => expiries.get(number as usize - 1).is_some_and(|end| now < *end),
        }
    }
}

/// Until when each surface is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opened {
    sql: Until,
    web: Until,
}

impl Opened {
    const TO_NOBODY: Self = Self { sql: Until::NEVER_OPEN, web: Until::NEVER_OPEN };

    fn or(self, other: Self) -> Self {
        Self { sql: self.sql.max(other.sql), web: self.web.max(other.web) }
    }
}

/// An entry as addresses of one family, both ends included.
struct Line<A> {
    first: A,
    last: A,
    opened: Opened,
}

/// Addresses of one family in order. A span reaches to the next one's start, the last one to the end; what lies before
/// the first belongs to nobody.
#[derive(Clone, Debug)]
struct Spans<A> {
    starts: Vec<A>,
    opened: Vec<Opened>,
    /// Every [`FANOUT`]th start, every `FANOUT`th of those, and so on until few are left; the fewest last. A search goes
    /// through them first: they stay in the processor's caches, where a million starts do not.
    marks: Vec<Vec<A>>,
}

/// So many starts lie in few cache lines, which the processor fetches at once.
const FANOUT: usize = 16;

impl<A> Default for Spans<A> {
    fn default() -> Self {
        Self { starts: Vec::new(), opened: Vec::new(), marks: Vec::new() }
    }
}

impl<A: Copy + Ord> Spans<A> {
    /// Walks the addresses from the first to the last. Of two ranges, one contains the other or they are apart, so the
    /// lines that contain an address are a stack: the widest at the bottom, and the top knows what all of them open.
    fn new(mut lines: Vec<Line<A>>, after: impl Fn(A) -> Option<A>) -> Self {
        lines.sort_unstable_by(|one, other| one.first.cmp(&other.first).then(other.last.cmp(&one.last)));
        let mut spans = Self::default();
        let mut around: Vec<(A, Opened)> = Vec::new();
        let leave = |spans: &mut Self, around: &mut Vec<(A, Opened)>, last: A| {
            around.pop();
            // After the last address of all there is nothing to begin.
            if let Some(start) = after(last) {
                spans.begin(start, around.last().map_or(Opened::TO_NOBODY, |(_, opened)| *opened));
            }
        };
        for line in lines {
            while let Some((last, _)) = around.last().copied().filter(|(last, _)| *last < line.first) {
                leave(&mut spans, &mut around, last);
            }
            let opened = around.last().map_or(line.opened, |(_, opened)| opened.or(line.opened));
            spans.begin(line.first, opened);
            around.push((line.last, opened));
        }
        while let Some((last, _)) = around.last().copied() {
            leave(&mut spans, &mut around, last);
        }
        spans.starts.shrink_to_fit();
        spans.opened.shrink_to_fit();
        let thinned = |level: &[A]| {
            (level.len() > FANOUT).then(|| level.iter().step_by(FANOUT).copied().collect::<Vec<A>>())
        };
        spans.marks = std::iter::successors(thinned(&spans.starts), |level| thinned(level)).collect();
        spans
    }

    /// Ends the present span and begins one here. What begins at the same address as the one before replaces it, and what
    /// opens the same goes on.
    fn begin(&mut self, start: A, opened: Opened) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.opened.pop();
        }
        if *self.opened.last().unwrap_or(&Opened::TO_NOBODY) != opened {
            self.starts.push(start);
            self.opened.push(opened);
        }
    }

    fn at(&self, address: A) -> Opened {
        // How many of a level have begun, given how many of the level above. Counting all of a few is quicker than halving
        // them: no step waits for the one before.
        let begun = |level: &[A], above: usize| {
            let from = above.saturating_sub(1) * FANOUT;
            let near = &level[from..level.len().min(from + FANOUT)];
            from + near.iter().filter(|start| **start <= address).count()
        };
        let above = self.marks.iter().rev().fold(0, |above, level| begun(level, above));
        begun(&self.starts, above).checked_sub(1).map_or(Opened::TO_NOBODY, |position| self.opened[position])
    }
}

#[cfg(test)]
mod tests;
