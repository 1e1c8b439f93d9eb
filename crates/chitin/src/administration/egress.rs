//! Switching an engine's egress on and off: a wish in the state and rights in the engine, which must not come apart.
//!
//! The way is the wish; rights without it are worth nothing. So it is closed first and opened last, and rights whose way
//! could not be opened are taken back.

use std::time::Duration;

use control::Refusal;
use engine::Subscriptions;
use model::ClusterId;

use super::{Administrator, blocking, too_slow, within};

/// For an engine's outlets to be opened or closed.
const OUTLETS_MAX: Duration = Duration::from_secs(10);

impl Administrator {
    /// Lets the engine reach what rules name, or not. Returns when it holds, with what the operator should know.
    pub(super) async fn switch_engine_egress(
        &self,
        id: ClusterId,
        engine: bool,
    ) -> Result<Vec<String>, Refusal> {
        if engine && !self.host.can_listen_inside() {
            return Err(Refusal::wrong_state(
                "an engine's own network can be entered by root only; start Chitin as root to offer engine egress",
            ));
        }
        if !engine {
            self.wish_engine_egress(id, false).await?;
            let closed = async {
                let (_errand, open) = self.open(id).await?;
                within(open.close_foreign_data()).await
            };
            return match closed.await {
                Ok(()) => Ok(Vec::new()),
                Err(cause) => Err(Refusal::busy(format!(
                    "nothing leaves the engine any more, but the rights to foreign data could not be taken back, which are worth \
                     nothing without a way; to take them back, repeat it: {}",
                    cause.message()
                ))),
            };
        }
        let (_errand, open) = self.open(id).await?;
        let opened = async {
            let subscriptions = within(open.open_foreign_data()).await?;
            self.wish_engine_egress(id, true).await.map(|()| subscriptions)
        };
        let subscriptions = match opened.await {
            Ok(subscriptions) => subscriptions,
            Err(cause) => {
                let is_wished =
                    self.store.snapshot().get(&id).is_some_and(|entry| entry.cluster.egress.engine);
                if !is_wished && let Err(rest) = within(open.close_foreign_data()).await {
                    return Err(Refusal::busy(format!(
                        "nothing leaves the engine, but rights to foreign data may have been given in it and could not be taken \
                         back ({}); they are worth nothing without a way; to take them back: chitin egress engine CLUSTER off. \
                         What failed first: {}",
                        rest.reason(),
                        cause.reason()
                    )));
                }
                return Err(cause);
            }
        };
        let note = match subscriptions {
            Subscriptions::Open => return Ok(Vec::new()),
            Subscriptions::AfterRestart => {
                "subscriptions work once the engine was started anew: chitin cluster sleep, then chitin cluster wake"
            }
            Subscriptions::ForSuperusers => {
                "subscriptions are not possible: before PostgreSQL 16 only superusers can have them, and from 18 on they \
                 could write files of the engine's (sslkeylogfile); foreign tables (postgres_fdw) are possible"
            }
        };
        Ok(vec![note.to_owned()])
    }

    /// Writes the wish, and waits until it holds.
    async fn wish_engine_egress(&self, id: ClusterId, engine: bool) -> Result<(), Refusal> {
        let (store, now) = (self.store.clone(), self.clock.now());
        blocking(move || {
            store.edit(id, now, |cluster| -> Result<(), store::Error> {
                cluster.egress.engine = engine;
                Ok(())
            })
        })
        .await?;
        if self.outlets.settle(OUTLETS_MAX).await { Ok(()) } else { Err(too_slow()) }
    }
}
