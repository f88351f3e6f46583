//! How the kernel counts the pages of a memfd, and how that count stays below the budget.
//!
//! The kernel works out how many pages were freed from how many there are, and a page that is just being added hides one
//! that was just dropped (`shmem_recalc_inode`): `st_blocks` would be above the budget for a moment. So pages are either
//! dropped while none are added, or as many pages of the budget are left unused as may be hidden.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Counted, MISCOUNTED_PAGES_MAX};

/// Of one memory.
pub(super) struct Accounting {
    /// Shared by who adds pages, exclusive for who drops some that are to be counted exactly.
    exact: RwLock<()>,
    adding: Arc<Adding>,
}

/// Those who add pages to any memory of a host, each hiding one.
#[derive(Default)]
pub(super) struct Adding {
    state: Mutex<State>,
    fewer: Condvar,
}

#[derive(Default)]
struct State {
    adding: u64,
    waiting: u64,
}

/// The right to add pages, one at a time.
pub(super) struct MayAdd<'a> {
    adding: &'a Adding,
    _not_exact: RwLockReadGuard<'a, ()>,
}

impl Accounting {
    pub(super) fn new(adding: Arc<Adding>) -> Accounting {
        Accounting { exact: RwLock::default(), adding }
    }

    /// Waits while pages are dropped and counted exactly, and while too many add some.
    pub(super) fn may_add(&self) -> MayAdd<'_> {
        let _not_exact = self.exact.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.adding.state();
        while state.adding >= MISCOUNTED_PAGES_MAX {
            state.waiting += 1;
            state = self.adding.fewer.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.adding += 1;
        drop(state);
        MayAdd { adding: &self.adding, _not_exact }
    }

    /// The right to drop pages; waits while others are added, if they are to be counted exactly.
    pub(super) fn may_drop(&self, counted: Counted) -> Option<RwLockWriteGuard<'_, ()>> {
        (counted == Counted::Exactly).then(|| self.exact.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Adding {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MayAdd<'_> {
    fn drop(&mut self) {
        let mut state = self.adding.state();
        state.adding -= 1;
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.adding.fewer.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn only_what_is_counted_exactly_waits_for_those_who_add() {
        let accounting = Accounting::new(Arc::default());
        let adding = accounting.may_add();
        assert!(accounting.may_drop(Counted::Roughly).is_none());
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let accounting = &accounting;
            scope.spawn(move || {
                let _dropping = accounting.may_drop(Counted::Exactly);
                tell.send(()).unwrap();
            });
            let early = told.recv_timeout(SOON);
            drop(adding);
            early.unwrap_err();
            told.recv_timeout(LIMIT).unwrap();
        });
    }

    #[test]
    fn no_more_add_pages_than_may_be_miscounted_whatever_the_memory() {
        let all = Arc::new(Adding::default());
        let (one, other) = (Accounting::new(all.clone()), Arc::new(Accounting::new(all)));
        let mut adding: Vec<_> = (0..MISCOUNTED_PAGES_MAX).map(|_| one.may_add()).collect();
        let (tell, told) = mpsc::channel();
        for _ in 0..3 {
            let (tell, other) = (tell.clone(), other.clone());
            thread::spawn(move || {
                let _adding = other.may_add();
                tell.send(()).unwrap();
            });
        }
        told.recv_timeout(SOON).unwrap_err();
        // Several before anybody who waits has run: each of them lets one in.
        adding.truncate(adding.len() - 3);
        (0..3).for_each(|_| told.recv_timeout(LIMIT).unwrap());
    }
}
