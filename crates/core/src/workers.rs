//! The threads that serve raw accesses: each takes a fault and fills the page itself.
//!
//! There is always one that waits for the next fault: when the last one gets busy it sees to it that there is
//! another, up to a limit, and at the limit hands its fill to the fillers. So a slow fill delays no other page.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_host::{Address, Fault, SignalsBlocked, Waited};

use crate::cache::Inner;
use crate::fill::For;
use crate::object::Claim;
use crate::readahead::Bounds;
use crate::stats::{Counter, Resolution, count};
use crate::sync::{Condvar, Mutex, lock, thread, wait_while};
use crate::transit::Waiter;

/// Workers that wait for a fault at a time; more would all be woken by each.
const IDLE_MAX: usize = 2;
/// How long a dropped cache waits for workers that are in a store's hands.
pub(crate) const END_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a failed page goes on failing for accesses that do not try again by themselves.
const FAILED_TIME_MAX: Duration = Duration::from_secs(1);

/// The threads, counted.
pub(crate) struct Workers {
    threads_max: usize,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    idle: usize,
    /// When somebody last looked for accesses that have waited too long.
    looked_at: Option<Instant>,
}

impl Workers {
    pub(crate) fn new(threads_max: NonZeroUsize) -> Workers {
        Workers { threads_max: threads_max.get(), state: Mutex::default(), ended: Condvar::new() }
    }

    /// Starts the first worker, unless there is one.
    pub(crate) fn start(&self, inner: &Arc<Inner>) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            if state.threads > 0 {
                return Ok(());
            }
            state.threads += 1;
        }
        spawn(inner)
    }

    pub(crate) fn wait_for_end(&self) {
        drop(wait_while(&self.ended, lock(&self.state), END_WAIT_MAX, |s| s.threads > 0));
    }

    fn become_idle(&self) {
        lock(&self.state).idle += 1;
    }

    /// Called by a worker with a fault in its hands; whether it may get stuck with it, for another waits for the next.
    fn become_busy(&self, inner: &Arc<Inner>) -> bool {
        {
            let mut state = lock(&self.state);
            state.idle -= 1;
            if state.idle > 0 {
                return true;
            }
            if state.threads >= self.threads_max {
                return false;
            }
            state.threads += 1;
        }
        spawn(inner).is_ok()
    }

    /// Called by an idle worker with nothing to do; `true` if it is one too many, and then it is gone.
    fn may_leave(&self) -> bool {
        let mut state = lock(&self.state);
        let surplus = state.idle > IDLE_MAX;
        if surplus {
            state.idle -= 1;
            state.threads -= 1;
        }
        surplus
    }

    /// Whether it is time, and the caller's turn, to look for accesses that have waited too long.
    fn is_time_to_look(&self, tick: Duration) -> bool {
        let mut state = lock(&self.state);
        let due = state.looked_at.is_none_or(|at| at.elapsed() >= tick);
        if due {
            state.looked_at = Some(Instant::now());
        }
        due
    }

    fn leave(&self, was_idle: bool) {
        let mut state = lock(&self.state);
        state.idle -= usize::from(was_idle);
        state.threads -= 1;
        drop(state);
        self.ended.notify_all();
    }
}

/// Starts a worker, which has been counted already.
fn spawn(inner: &Arc<Inner>) -> io::Result<()> {
    let shared = inner.clone();
    // The program's handlers must not run on our threads: they may touch a mapping.
    let _blocked = SignalsBlocked::new();
    let work = move || {
        // A fault that nobody serves is a thread that waits for ever.
        if catch_unwind(AssertUnwindSafe(|| work(&shared))).is_err() {
            tracing::error!("a panic while faults were served; aborting");
            std::process::abort();
        }
    };
    match thread::Builder::new().name("omnimap-fault".to_owned()).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "no further thread for faults");
            inner.workers().leave(false);
            Err(error)
        }
    }
}

fn work(inner: &Arc<Inner>) {
    let workers = inner.workers();
    // Often enough to notice that somebody has waited too long.
    let tick = (inner.options.fill_time_max / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    workers.become_idle();
    loop {
        match inner.faults.take() {
            Ok(Some(fault)) => {
                let may_block = workers.become_busy(inner);
                let resolution = serve(inner, fault, Instant::now(), may_block);
                tracing::trace!(address = %fault.address, ?resolution, "fault");
                workers.become_idle();
            }
            Ok(None) => match inner.faults.wait(tick) {
                Ok(Waited::Ready) => {}
                Ok(Waited::TimedOut) => {
                    if workers.may_leave() {
                        workers.ended.notify_all();
                        return;
                    }
                }
                Ok(Waited::Closed) => return workers.leave(true),
                Err(error) => lost(&error),
            },
            Err(error) => lost(&error),
        }
        if workers.is_time_to_look(tick) {
            expire(inner);
        }
    }
}

/// Without faults to serve, threads would sleep for ever, and holes could read as zeros.
fn lost(error: &omnimap_host::HostError) -> ! {
    tracing::error!(%error, "the stream of faults is lost (was its descriptor closed?); aborting");
    std::process::abort();
}

/// Fails the accesses that the store has left waiting for too long, and forgives those that failed a while ago.
fn expire(inner: &Inner) {
    let now = Instant::now();
    for object in inner.objects() {
        if let Some(oldest) = now.checked_sub(inner.options.fill_time_max) {
            object.expire_raw(oldest);
        }
        if let Some(oldest) = now.checked_sub(FAILED_TIME_MAX) {
            object.forgive(oldest);
        }
    }
}

fn serve(inner: &Arc<Inner>, fault: Fault, since: Instant, may_block: bool) -> Resolution {
    let Some(located) = inner.space.locate(fault.address) else {
        count(None, &inner.counters, Counter::faults_unmapped, 1);
        // It will find out for itself (SIGSEGV), or whatever is mapped there now. Until the range is really gone it comes
        // back here: let the thread that unmaps go on.
        let page_bytes = inner.page.bytes();
        let start = Address(fault.address.0 - fault.address.0 % page_bytes as usize);
        let _ = inner.faults.wake(start, page_bytes);
        thread::yield_now();
        return Resolution::Unmapped;
    };
    let object = &located.object;
    let bounds = Bounds {
        object: located.view_pages,
        chunk: inner.chunk_pages(object, located.page),
        window_pages_max: located.reader.window_pages_max,
    };
    let plan = lock(&located.reader.streams).on_fault(located.page, &bounds);
    let waiter = Waiter::Raw { address: located.address, page: located.page, since };
    let now = plan.now.part_around(located.page, inner.fill_pages_max());
    let claim = object.claim(located.page, now, Some(waiter.clone()));
    inner.fill_ahead(object, plan.ahead, &located.reader);
    match claim {
        Claim::Resident => {
            object.count(Counter::faults_resident, 1);
            inner.wake(object, &[waiter]);
            Resolution::Resident
        }
        Claim::Joined(_) => {
            object.count(Counter::faults_joined, 1);
            Resolution::Joined
        }
        Claim::Mine(fill) if may_block => match fill.run(For::Waiter(located.page)) {
            Ok(resolution) => {
                object.count(Counter::faults_filled, 1);
                resolution
            }
            Err(_) => Resolution::Failed,
        },
        Claim::Mine(fill) => {
            // The filler does not know that this is a fault; failed ones are counted where they fail.
            object.count(Counter::faults_filled, 1);
            inner.fill_for_waiter(fill, located.page);
            Resolution::Filled
        }
    }
}
