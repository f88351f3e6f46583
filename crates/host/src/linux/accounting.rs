//! How the kernel counts the pages of a memfd, and how that count stays below the budget.
//!
//! The kernel works out how many pages were freed from how many there are, and a page that is just being added hides one
//! that was just dropped (`shmem_recalc_inode`): `st_blocks` would be above the budget for a moment. So pages are either
//! dropped while none are added, or as many pages of the budget are left unused as may be hidden.

use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
    count: Mutex<u64>,
    fewer: Condvar,
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
        let count = self.adding.count.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |count: &mut u64| *count >= MISCOUNTED_PAGES_MAX;
        let mut count = self.adding.fewer.wait_while(count, full).unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        drop(count);
        MayAdd { adding: &self.adding, _not_exact }
    }

    /// The right to drop pages; waits while others are added, if they are to be counted exactly.
    pub(super) fn may_drop(&self, counted: Counted) -> Option<RwLockWriteGuard<'_, ()>> {
        (counted == Counted::Exactly).then(|| self.exact.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for MayAdd<'_> {
    fn drop(&mut self) {
        let mut count = self.adding.count.lock().unwrap_or_else(PoisonError::into_inner);
        let was_full = *count >= MISCOUNTED_PAGES_MAX;
        *count -= 1;
        drop(count);
        if was_full {
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
        let (one, other) = (Accounting::new(all.clone()), Accounting::new(all));
        let mut adding: Vec<_> = (0..MISCOUNTED_PAGES_MAX).map(|_| one.may_add()).collect();
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let other = &other;
            scope.spawn(move || {
                let _adding = other.may_add();
                tell.send(()).unwrap();
            });
            let early = told.recv_timeout(SOON);
            adding.pop();
            early.unwrap_err();
            told.recv_timeout(LIMIT).unwrap();
        });
    }
}
