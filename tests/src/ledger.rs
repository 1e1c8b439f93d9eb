//! What was acknowledged, written down outside of the cluster, to be compared with what is in it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::cloud::{Cluster, PATIENCE};
use crate::command::{SetAtEnd, eventually};

const WRITERS: u64 = 4;
/// What each writer has written before anything is done to it.
const ROWS_BEFORE: u64 = 20;
/// Before a writer tries to sign in again.
const PAUSE: Duration = Duration::from_millis(50);

/// Rows that several sessions write to a table of a cluster, and up to which one each was told that it is committed.
pub struct Ledger<'cloud> {
    cluster: Cluster<'cloud>,
    acknowledged: Vec<AtomicU64>,
}

impl<'cloud> Ledger<'cloud> {
    /// An empty one, whose table is made now.
    pub fn open(cluster: &Cluster<'cloud>) -> Self {
        let table = "create table ledger (writer int, number bigint, primary key (writer, number))";
        cluster.sign_in().query(table).expect("a table");
        Self { cluster: cluster.clone(), acknowledged: (0..WRITERS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Does something while every writer writes. Each signs in again when its session ends.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _end = SetAtEnd(&is_over);
            for writer in 0..self.acknowledged.len() {
                let is_over = &is_over;
                scope.spawn(move || self.write_until(writer, is_over));
            }
            self.goes_on();
            work()
        })
    }

    /// Waits until every writer has written more than it has by now.
    #[track_caller]
    pub fn goes_on(&self) {
        let before: Vec<u64> = self.acknowledged.iter().map(|last| last.load(Ordering::SeqCst)).collect();
        eventually("every writer writes", PATIENCE, || {
            let mut both = self.acknowledged.iter().zip(&before);
            both.all(|(last, before)| last.load(Ordering::SeqCst) > before + ROWS_BEFORE).then_some(())
        });
    }

    fn write_until(&self, writer: usize, is_over: &AtomicBool) {
        let last = &self.acknowledged[writer];
        while !is_over.load(Ordering::SeqCst) {
            let Ok(mut wire) = self.cluster.try_sign_in_from(Ipv4Addr::LOCALHOST.into()) else {
                std::thread::sleep(PAUSE);
                continue;
            };
            while !is_over.load(Ordering::SeqCst) {
                let number = last.load(Ordering::SeqCst) + 1;
                // The one whose answer was lost with the session before may be there.
                let insert = format!("insert into ledger values ({writer}, {number}) on conflict do nothing");
                if wire.query(&insert).is_err() {
                    break;
                }
                last.store(number, Ordering::SeqCst);
            }
        }
    }

    /// Every acknowledged row is there, and none but one of each writer's whose answer was lost.
    #[track_caller]
    pub fn is_kept(&self) {
        let mut wire = eventually("sign-in works", PATIENCE, || self.cluster.try_sign_in().ok());
        for (writer, last) in self.acknowledged.iter().enumerate() {
            let last = last.load(Ordering::SeqCst);
            let mut count = |which: &str| {
                wire.value(&format!("select count(*) from ledger where writer = {writer} and number {which}"))
            };
            assert_eq!(
                count(&format!("between 1 and {last}")),
                last.to_string(),
                "writer {writer} lost commits"
            );
            assert_eq!(count(&format!("> {}", last + 1)), "0", "writer {writer} never wrote these");
        }
    }
}
