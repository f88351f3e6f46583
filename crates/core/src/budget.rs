//! The hard limit: pages that may be resident or about to be.

use std::time::Instant;

use crate::sync::{Condvar, Mutex, lock, wait_while};

/// Pages to spend. Every resident page, and every page for which bytes are on their way, holds one.
pub(crate) struct Budget {
    pages: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u64,
    /// Those of the spent ones whose bytes are on their way.
    filling: u64,
    /// Counts whatever may let a waiter go on: freed pages, and pages that can be evicted from now on.
    changes: u64,
    waiting: u64,
}

/// A moment in the life of a budget; what changes after it wakes who waits from it on.
#[derive(Clone, Copy)]
pub(crate) struct Moment(u64);

/// At most this part is on its way at a time: the rest stays long enough to be read, however many threads want in.
const FILLING_SHARE: u64 = 2;

impl Budget {
    pub(crate) fn new(pages: u64) -> Budget {
        let state = Mutex::new(State { free: pages, filling: 0, changes: 0, waiting: 0 });
        Budget { pages, state, changed: Condvar::new() }
    }

    /// All pages, spent or not.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages that are resident.
    pub(crate) fn resident(&self) -> u64 {
        let state = lock(&self.state);
        self.pages - state.free - state.filling
    }

    /// Spends at most `count` pages on a fill; gives how many, how many more were not free (rather than too many being
    /// filled), and from when on to wait.
    pub(crate) fn take(&self, count: u64) -> (u64, u64, Moment) {
        let mut state = lock(&self.state);
        let allowed = count.min((self.pages / FILLING_SHARE).saturating_sub(state.filling));
        let taken = state.free.min(allowed);
        state.free -= taken;
        state.filling += taken;
        (taken, allowed - taken, Moment(state.changes))
    }

    /// Gives back pages of a fill that did not come to be.
    pub(crate) fn give_up(&self, count: u64) {
        if count > 0 {
            self.change(|state| {
                state.free += count;
                state.filling -= count;
            });
        }
    }

    /// Pages of a fill are resident now.
    pub(crate) fn arrived(&self, count: u64) {
        self.change(|state| state.filling -= count);
    }

    /// Takes [`arrived`](Self::arrived) back.
    pub(crate) fn not_arrived(&self, count: u64) {
        self.change(|state| state.filling += count);
    }

    /// Gives back pages that were resident.
    pub(crate) fn release(&self, count: u64) {
        if count > 0 {
            self.change(|state| state.free += count);
        }
    }

    /// Tells those who wait that there are pages to evict now.
    pub(crate) fn evictable(&self) {
        self.change(|_| ());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        debug_assert!(state.free + state.filling <= self.pages, "more was given back than taken");
        state.changes += 1;
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits for a change after `since`; `false` if there is none until `deadline`.
    pub(crate) fn wait(&self, since: Moment, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let limit = deadline.saturating_duration_since(Instant::now());
        let (mut state, in_time) = wait_while(&self.changed, state, limit, |s| s.changes == since.0);
        state.waiting -= 1;
        in_time
    }
}
