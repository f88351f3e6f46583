//! The hard limit: pages that may be resident or about to be.

use std::time::Duration;

use crate::sync::{Condvar, Mutex, lock, wait_while};

/// Pages to spend. Every resident page, and every page for which bytes are on their way, holds one.
pub(crate) struct Budget {
    pages: u64,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    free: u64,
    /// Counts whatever may let a waiter go on: freed pages, and pages that can be evicted from now on.
    changes: u64,
    waiting: u64,
}

/// A moment in the life of a budget; what changes after it wakes who waits from it on.
#[derive(Clone, Copy)]
pub(crate) struct Moment(u64);

impl Budget {
    pub(crate) fn new(pages: u64) -> Budget {
        let state = Mutex::new(State { free: pages, changes: 0, waiting: 0 });
        Budget { pages, state, freed: Condvar::new() }
    }

    /// All pages, spent or not.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages not spent.
    pub(crate) fn free(&self) -> u64 {
        lock(&self.state).free
    }

    /// Spends at most `count` pages; gives how many, and from when on to wait if that is too few.
    pub(crate) fn take(&self, count: u64) -> (u64, Moment) {
        let mut state = lock(&self.state);
        let taken = state.free.min(count);
        state.free -= taken;
        (taken, Moment(state.changes))
    }

    /// Gives pages back.
    pub(crate) fn release(&self, count: u64) {
        if count > 0 {
            self.change(|state| state.free += count);
        }
        debug_assert!(self.free() <= self.pages, "more was released than taken");
    }

    /// Tells those who wait that there are pages to evict now.
    pub(crate) fn evictable(&self) {
        self.change(|_| ());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        state.changes += 1;
        if state.waiting > 0 {
            self.freed.notify_all();
        }
    }

    /// Waits for a change after `since`; `false` if there is none within `limit`.
    pub(crate) fn wait(&self, since: Moment, limit: Duration) -> bool {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let (mut state, in_time) = wait_while(&self.freed, state, limit, |s| s.changes == since.0);
        state.waiting -= 1;
        in_time
    }
}
