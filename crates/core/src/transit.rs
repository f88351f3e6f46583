//! Pages on their way in or out, and who waits for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_host::{Address, HostError};
use omnimap_store::StoreError;

use crate::prefetch::Pieces;
use crate::sync::{Condvar, Mutex, MutexGuard, lock, wait_while};
use crate::units::{PageIndex, PageRange};

/// A fill or an eviction under way. Its pages are Filling, or Evicting, until it ends.
pub(crate) struct Transit {
    state: Mutex<TransitState>,
    ended: Condvar,
}

/// What changes about a transit. Also locked while its end is being arranged.
pub(crate) struct TransitState {
    /// Shrinks when part of a fill is given up.
    pub(crate) range: PageRange,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) outcome: Option<Outcome>,
    /// Threads in [`Transit::wait`]: waking nobody costs a system call all the same.
    sleepers: u32,
}

/// Who waits for a page.
#[derive(Clone)]
pub(crate) enum Waiter {
    /// A thread stopped by the kernel at an address (of a page's beginning).
    Raw { address: Address, page: PageIndex, since: Instant },
    /// A thread in [`Transit::wait`].
    Checked { page: PageIndex },
    /// A prefetch that wants to know when this is over.
    Prefetch { page: PageIndex, pieces: Arc<Pieces> },
}

impl Waiter {
    pub(crate) fn page(&self) -> PageIndex {
        match self {
            Waiter::Raw { page, .. } | Waiter::Checked { page } | Waiter::Prefetch { page, .. } => *page,
        }
    }
}

/// How a transit ended for its pages.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// In memory; each checked waiter has a pin on its page.
    Arrived,
    /// Look again.
    Retry,
    /// The bytes could not be had.
    Failed(Cause),
}

/// Why bytes could not be had.
#[derive(Debug, Clone)]
pub(crate) enum Cause {
    Store(Arc<StoreError>),
    Host(Arc<HostError>),
    NoRoom,
    /// The object ends before it.
    BeyondEnd,
}

/// What a checked waiter is told.
pub(crate) enum Waited {
    /// The page is in memory and pinned for the waiter.
    Pinned,
    Retry,
    Failed(Cause),
    TimedOut,
}

impl TransitState {
    /// Adds a waiter; a thread that was interrupted by a signal and faults again stands there already.
    pub(crate) fn join(&mut self, waiter: Option<Waiter>) {
        if let Some(Waiter::Raw { address, .. }) = waiter {
            let same = |w: &Waiter| matches!(w, Waiter::Raw { address: a, .. } if *a == address);
            if self.waiters.iter().any(same) {
                return;
            }
        }
        self.waiters.extend(waiter);
    }
}

impl Transit {
    pub(crate) fn new(range: PageRange, waiter: Option<Waiter>) -> Arc<Transit> {
        let state = TransitState { range, waiters: waiter.into_iter().collect(), outcome: None, sleepers: 0 };
        Arc::new(Transit { state: Mutex::new(state), ended: Condvar::new() })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, TransitState> {
        lock(&self.state)
    }

    pub(crate) fn covers(&self, page: PageIndex) -> bool {
        self.lock().range.contains(page)
    }

    /// To be called after the state was changed, with it locked.
    pub(crate) fn notify(&self, state: &TransitState) {
        if state.sleepers > 0 {
            self.ended.notify_all();
        }
    }

    /// Waits until it is over, whatever became of it; whether it was in time.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        state.sleepers += 1;
        let (mut state, in_time) = wait_while(&self.ended, state, limit, |s| s.outcome.is_none());
        state.sleepers -= 1;
        in_time
    }

    /// Waits for the fate of a page for which a [`Waiter::Checked`] stands in the list.
    pub(crate) fn wait(&self, page: PageIndex, limit: Duration) -> Waited {
        let under_way = |s: &mut TransitState| s.outcome.is_none() && s.range.contains(page);
        let mut state = self.lock();
        state.sleepers += 1;
        let (mut state, _) = wait_while(&self.ended, state, limit, under_way);
        state.sleepers -= 1;
        if !state.range.contains(page) {
            return Waited::Retry;
        }
        match state.outcome.clone() {
            Some(Outcome::Arrived) => Waited::Pinned,
            Some(Outcome::Retry) => Waited::Retry,
            Some(Outcome::Failed(cause)) => Waited::Failed(cause),
            None => {
                let ours = |w: &Waiter| matches!(w, Waiter::Checked { page: p } if *p == page);
                if let Some(at) = state.waiters.iter().position(ours) {
                    state.waiters.swap_remove(at);
                }
                Waited::TimedOut
            }
        }
    }
}
