//! Threads and locks, so that a model checker can take their place (`--cfg shuttle`).
//!
//! # Lock order
//! A thread that holds one of these takes only ones further right:
//! ```text
//! MappedView::held > MemoryObject::pages
//! MemoryObject::copying > MemoryObject::pages
//! MemoryObject::writing > AddressSpace::views > MemoryObject::pages > Transit::state > PageCache::replacement
//!                                                                                    > Budget::state
//!                                                                   > MemoryObject::views
//!                                                                   > Kept::pages
//! Streams, Fillers::state, Shares::state, Pieces::state, Sweeping, Turns, Pace, Collapsing, PageCache::objects: leaves,
//! held alone
//! ```
//! No lock is held across a call of a store.

#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};

use std::io;
use std::sync::PoisonError;
use std::time::Duration;

/// Starts a thread that takes no signals and is waited for by nobody.
#[cfg(not(shuttle))]
pub(crate) fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    omnimap_host::start_thread(name, work)
}

/// The same, as the model checker has threads.
#[cfg(shuttle)]
pub(crate) fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Locks. A panic elsewhere while it was held is no reason to stop here: what is behind each lock is consistent
/// between any two statements, and stores run without one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], shared.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], exclusive.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits to be notified.
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Waits while `condition` holds, at most `limit`; `false` if the time was up first.
pub(crate) fn wait_while<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> (MutexGuard<'a, T>, bool) {
    let (guard, timeout) =
        condvar.wait_timeout_while(guard, limit, condition).unwrap_or_else(PoisonError::into_inner);
    (guard, !timeout.timed_out())
}
