//! The end of a process that holds leases: it gives them back, and changes nothing any more.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held for reading while something is changed.
static CHANGES: RwLock<()> = RwLock::new(());

/// While it is held, this process changes nothing on object storage.
pub struct NoMoreChanges(#[expect(dead_code, reason = "it is held")] RwLockWriteGuard<'static, ()>);

/// Waits until what is being changed is done, and lets nothing else be changed.
pub(super) fn no_more_changes() -> NoMoreChanges {
    NoMoreChanges(CHANGES.write().unwrap_or_else(PoisonError::into_inner))
}

/// Held by whoever changes something.
pub(super) fn changing() -> RwLockReadGuard<'static, ()> {
    CHANGES.read().unwrap_or_else(PoisonError::into_inner)
}
