//! The hard limit: pages that may be resident or about to be.

use std::time::Instant;

use omnimap_host::{Counted, MISCOUNTED_PAGES_MAX};

use crate::sync::{Condvar, Mutex, lock, wait_while};

/// Pages to spend. Every resident page, and every page for which bytes are on their way, holds one.
pub(crate) struct Budget {
    pages: u64,
    reserve: u64,
    /// Pages that are left unused once there were too few, because as many may be counted that are gone already.
    unused: u64,
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
    /// All have been spent, and many at a time have not become free since.
    spent: bool,
    replenishing: bool,
    /// There were too few pages, and have been some in use ever since: what is dropped may be counted for as long as others are
    /// added.
    was_short: bool,
}

/// What a fill got.
pub(crate) struct Taken {
    pub(crate) pages: u64,
    /// How many more were not free (rather than too many being filled).
    pub(crate) not_free: u64,
    /// From when on to wait for more.
    pub(crate) since: Moment,
    /// It is the caller's to see to it that the [reserve](Budget::missing) is replenished.
    pub(crate) replenish: bool,
}

/// A moment in the life of a budget; what changes after it wakes who waits from it on.
#[derive(Clone, Copy)]
pub(crate) struct Moment(u64);

/// At most this part is on its way at a time: the rest stays long enough to be read, however many threads want in.
const FILLING_SHARE: u64 = 2;

/// The part of a budget that is kept free once it has been spent, so that a fill need not evict first; small ones have none.
const RESERVE_SHARE: u64 = 1024;
const RESERVE_PAGES_MAX: u64 = 64;
/// Pages are left unused if they are at most this part of a budget.
const UNUSED_SHARE: u64 = 512;

impl Budget {
    pub(crate) fn new(pages: u64) -> Budget {
        let state = State {
            free: pages,
            filling: 0,
            changes: 0,
            waiting: 0,
            spent: false,
            replenishing: false,
            was_short: false,
        };
        let reserve = (pages / RESERVE_SHARE).min(RESERVE_PAGES_MAX);
        let unused = if pages / UNUSED_SHARE >= MISCOUNTED_PAGES_MAX { MISCOUNTED_PAGES_MAX } else { 0 };
        Budget { pages, reserve, unused, state: Mutex::new(state), changed: Condvar::new() }
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

    /// Spends at most `count` pages on a fill.
    pub(crate) fn take(&self, count: u64) -> Taken {
        let mut state = lock(&self.state);
        let allowed = count.min((self.pages / FILLING_SHARE).saturating_sub(state.filling));
        let unused = if state.was_short { self.unused } else { 0 };
        let pages = state.free.saturating_sub(unused).min(allowed);
        state.free -= pages;
        state.filling += pages;
        state.spent |= pages < allowed;
        state.was_short |= pages < allowed;
        let replenish = state.spent && state.free < self.unused + self.reserve && !state.replenishing;
        state.replenishing |= replenish;
        Taken { pages, not_free: allowed - pages, since: Moment(state.changes), replenish }
    }

    /// How pages that are about to be dropped have to be counted.
    pub(crate) fn counted(&self) -> Counted {
        let state = lock(&self.state);
        // From then on no fewer are left.
        let enough = self.unused > 0 && state.was_short && state.free >= self.unused;
        if enough { Counted::Roughly } else { Counted::Exactly }
    }

    /// How many pages are to be evicted by whoever replenishes the reserve; at none his duty is over.
    pub(crate) fn missing(&self) -> u64 {
        let mut state = lock(&self.state);
        let missing =
            if state.spent { (self.unused + 2 * self.reserve).saturating_sub(state.free) } else { 0 };
        state.replenishing = missing > 0;
        missing
    }

    /// The reserve cannot be replenished now.
    pub(crate) fn give_up_replenishing(&self) {
        lock(&self.state).replenishing = false;
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
        state.spent &= state.free <= self.unused + 4 * self.reserve;
        state.was_short &= state.free < self.pages;
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// Spends pages that arrive at once; tells whether the reserve is to be replenished.
    fn spend(budget: &Budget, pages: u64) -> bool {
        let taken = budget.take(pages);
        budget.arrived(taken.pages);
        taken.replenish
    }

    #[test]
    fn a_budget_that_did_not_suffice_keeps_a_reserve_until_much_is_free() {
        let pages = 64 << 10;
        let budget = Budget::new(pages);
        assert!(!spend(&budget, pages / 2) && !spend(&budget, pages / 2));
        assert_eq!(budget.missing(), 0, "what just fits stays");
        assert!(spend(&budget, 1), "it did not suffice");
        assert!(!spend(&budget, 1), "somebody replenishes already");
        let wanted = MISCOUNTED_PAGES_MAX + 2 * RESERVE_PAGES_MAX;
        assert_eq!(budget.missing(), wanted);
        budget.release(wanted);
        assert_eq!(budget.missing(), 0);
        assert!(!spend(&budget, RESERVE_PAGES_MAX) && spend(&budget, 1), "again, when half of it is spent");
        budget.give_up_replenishing();
        assert!(spend(&budget, 1), "it was given up");
        budget.release(1024);
        assert_eq!(budget.missing(), 0, "there is room again");
        assert!(!spend(&budget, 1000));
    }

    #[test]
    fn pages_are_left_unused_once_there_were_too_few() {
        let pages = UNUSED_SHARE * MISCOUNTED_PAGES_MAX;
        let budget = Budget::new(pages);
        assert!(!spend(&budget, pages / 2) && !spend(&budget, pages / 2), "all of them can be used");
        spend(&budget, 1);
        assert_eq!(budget.counted(), Counted::Exactly, "nothing is unused yet");
        budget.release(MISCOUNTED_PAGES_MAX + 1);
        assert_eq!(budget.counted(), Counted::Roughly);
        assert_eq!((budget.take(2).pages, budget.take(1).pages), (1, 0));
        budget.arrived(1);
        budget.release(pages / 2);
        spend(&budget, pages / 2);
        assert_eq!(budget.take(1).pages, 0, "although there was room in between");
        assert_eq!(budget.counted(), Counted::Roughly);
        budget.release(pages - MISCOUNTED_PAGES_MAX);
        spend(&budget, pages / 2);
        assert_eq!(budget.take(pages).pages, pages / 2, "none was left, and the count is exact again");
    }

    #[test]
    fn of_a_small_budget_all_pages_are_used() {
        let pages = UNUSED_SHARE * MISCOUNTED_PAGES_MAX - 1;
        let budget = Budget::new(pages);
        spend(&budget, pages / 2);
        spend(&budget, pages / 2);
        spend(&budget, 100);
        budget.release(100);
        assert_eq!((budget.take(100).pages, budget.counted()), (100, Counted::Exactly));
    }

    #[test]
    fn a_small_budget_has_no_reserve() {
        let budget = Budget::new(RESERVE_SHARE - 1);
        assert!(!spend(&budget, 511) && !spend(&budget, 511) && !spend(&budget, 2));
        assert_eq!(budget.missing(), 0);
    }
}
