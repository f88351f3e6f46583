//! The threads that serve raw accesses: each takes a fault and fills the page itself.
//!
//! There is always one that waits for the next fault: when the last one gets busy it sees to it that there is
//! another, up to a limit, and at the limit hands its fill to the fillers. So a slow fill delays no other page.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_host::{Fault, Waited};

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
}

/// What a worker that got a fault has to do about the others.
enum Successor {
    Exists,
    Spawn,
    /// There are as many as there may be: this one must not get stuck.
    None,
}

impl Workers {
    pub(crate) fn new(threads_max: NonZeroUsize) -> Workers {
        Workers { threads_max: threads_max.get(), state: Mutex::default(), ended: Condvar::new() }
    }

    /// Starts the first worker, unless there is one.
    pub(crate) fn start(&self, inner: &Arc<Inner>) {
        let first = {
            let mut state = lock(&self.state);
            let first = state.threads == 0;
            state.threads += usize::from(first);
            first
        };
        if first {
            spawn(inner);
        }
    }

    pub(crate) fn wait_for_end(&self) {
        drop(wait_while(&self.ended, lock(&self.state), END_WAIT_MAX, |s| s.threads > 0));
    }

    fn become_idle(&self) {
        lock(&self.state).idle += 1;
    }

    /// Called by a worker with a fault in its hands.
    fn become_busy(&self) -> Successor {
        let mut state = lock(&self.state);
        state.idle -= 1;
        if state.idle > 0 {
            Successor::Exists
        } else if state.threads < self.threads_max {
            state.threads += 1;
            Successor::Spawn
        } else {
            Successor::None
        }
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

    fn leave(&self, was_idle: bool) {
        let mut state = lock(&self.state);
        state.idle -= usize::from(was_idle);
        state.threads -= 1;
        drop(state);
        self.ended.notify_all();
    }
}

fn spawn(inner: &Arc<Inner>) {
    let shared = inner.clone();
    let spawned = thread::Builder::new().name("omnimap-fault".to_owned()).spawn(move || work(&shared));
    if let Err(error) = spawned {
        tracing::warn!(%error, "no further thread for faults");
        inner.workers().leave(false);
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
                let successor = workers.become_busy();
                if let Successor::Spawn = successor {
                    spawn(inner);
                }
                let may_block = !matches!(successor, Successor::None);
                let resolution = serve(inner, fault, Instant::now(), may_block);
                tracing::trace!(address = %fault.address, ?resolution, "fault");
                workers.become_idle();
            }
            Ok(None) => match inner.faults.wait(tick) {
                Ok(Waited::Ready) => {}
                Ok(Waited::TimedOut) => {
                    expire(inner);
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
    }
}

/// Without faults to serve, threads would sleep for ever, and holes could read as zeros.
fn lost(error: &omnimap_host::HostError) -> ! {
    tracing::error!(%error, "the stream of faults is lost (was its descriptor closed?); aborting");
    std::process::abort();
}

/// Fails the accesses that the store has left waiting for too long.
fn expire(inner: &Inner) {
    if let Some(oldest) = Instant::now().checked_sub(inner.options.fill_time_max) {
        for object in inner.objects() {
            object.expire_raw(oldest);
        }
    }
}

fn serve(inner: &Arc<Inner>, fault: Fault, since: Instant, may_block: bool) -> Resolution {
    let Some(located) = inner.space.locate(fault.address) else {
        count(None, &inner.counters, Counter::faults_unmapped, 1);
        // It will find out for itself (SIGSEGV), or whatever is mapped there now. Until the range is really gone it comes
        // back here: let the thread that unmaps go on.
        let _ = inner.faults.wake(fault.address, 1);
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
    let claim = object.claim(located.page, now, Some(waiter));
    inner.fill_ahead(object, plan.ahead);
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
            object.count(Counter::faults_filled, 1);
            inner.fill_for_waiter(fill, located.page);
            Resolution::Filled
        }
    }
}
