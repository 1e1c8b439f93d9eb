//! The gate between "nobody is here, let it sleep" and "here I am, is it awake?".

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Whoever wakes a cluster passes; whoever puts one to sleep closes. While the gate is closed nobody passes, so that a
/// client is either counted before the engine is marked as stopping, or sees that mark and asks for a new start.
#[derive(Debug, Default)]
pub struct Gate(RwLock<()>);

impl Gate {
    /// Passes: while the guard lives, no engine is marked as stopping.
    pub async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().await
    }

    /// Closes the gate. To be held for the moment of one write only.
    pub async fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().await
    }
}
