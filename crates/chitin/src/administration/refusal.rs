//! Why a cluster's engine cannot be asked, as the API says it.

use control::Refusal;
use gateway::directory::NotReady;
use model::ClusterId;

use super::too_slow;

/// Of an engine that did not come up.
pub(super) fn of_engine(reason: NotReady, id: ClusterId) -> Refusal {
    match reason {
        NotReady::Gone => Refusal::no_cluster(id),
        NotReady::KeyRevoked => Refusal::wrong_state(
            "the key that encrypts the cluster's data was revoked; it starts again when the key may be used again",
        ),
        NotReady::StorageUsedUp => Refusal::wrong_state(
            "the cluster stores more than its limit, and was stopped; give it more with: chitin cluster update NAME --storage GIB",
        ),
        NotReady::KeyServiceSilent => Refusal::busy(
            "the service that keeps the key of the cluster's data gives no answer; see: chitin key list",
        ),
        NotReady::KeyServiceNotLettingIn => Refusal::busy(
            "the service that keeps the key of the cluster's data does not accept the credentials that are set for it; \
                 see: chitin key list, and set others: chitin key service set",
        ),
        NotReady::Failed | NotReady::NotGranted | NotReady::Unasked => {
            Refusal::busy("the cluster's engine could not be started; `chitin cluster show` says why")
        }
        NotReady::TimedOut => too_slow(),
    }
}
