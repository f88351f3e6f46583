//! The threads that serve raw accesses.
//!
//! One of them, the leader, waits for faults, and claims pages for them. A fill that may take time it makes itself, but
//! first it lets a follower lead, so that a slow fill delays no other page. Only one thread waits in the kernel, so that
//! a fault wakes one. When there may be no more threads, the leader hands the fill to the fillers.
//!
//! Where the machine lets the threads that raised faults serve them, they do as a leader that need not lead, and hand to the
//! fillers what takes long.

use std::hint;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_host::{Access, Address, Fault, FaultServer, FaultStream, Sharing, Waited, die};
use omnimap_store::Answers;

use crate::address_space::Located;
use crate::cache::Inner;
use crate::fill::{Fill, For};
use crate::object::{Claim, Intent};
use crate::stats::{Counter, Resolution, count};
use crate::sync::{Condvar, Mutex, lock, start_thread, thread, wait_while};
use crate::transit::Waiter;

/// How long a follower without work stays.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a dropped cache waits for workers that are in a store's hands.
pub(crate) const END_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a worker looks for the next fault before it sleeps: about what being woken costs.
const SPIN_TIME_MAX: Duration = Duration::from_micros(100);
/// Who runs again so soon after he had nothing to do would have found the fault by looking: that, and being woken on a virtual
/// machine whose processors halt.
const SOON_TIME_MAX: Duration = Duration::from_micros(250);
/// Looking for a shorter time than this finds nothing.
const SPIN_TIME_MIN: Duration = Duration::from_micros(2);
/// After faults have had to wait for a fill, so many fills are made while another thread leads.
const CROWDED_FILLS: u32 = 64;
/// How long a failed page goes on failing for accesses that do not try again by themselves.
const FAILED_TIME_MAX: Duration = Duration::from_secs(1);

/// The threads, counted.
pub(crate) struct Workers {
    threads_max: usize,
    state: Mutex<State>,
    /// There is no leader, or the followers are to end.
    vacant: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    /// Whether somebody waits for faults, or is about to.
    led: bool,
    followers: usize,
    closed: bool,
    /// When somebody last looked for accesses that have waited too long.
    looked_at: Option<Instant>,
    /// Fills for which the lead is still to be handed over.
    crowded: u32,
}

impl Workers {
    pub(crate) fn new(threads_max: NonZeroUsize) -> Workers {
        Workers {
            threads_max: threads_max.get(),
            state: Mutex::default(),
            vacant: Condvar::new(),
            ended: Condvar::new(),
        }
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

    /// Lets the followers end; the leader is told by the stream of faults.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.vacant.notify_all();
    }

    pub(crate) fn wait_for_end(&self) {
        drop(wait_while(&self.ended, lock(&self.state), END_WAIT_MAX, |s| s.threads > 0));
    }

    /// Waits until there is no leader, and becomes it; `false` if the worker is not needed any more, and then it is gone.
    fn lead(&self) -> bool {
        let mut state = lock(&self.state);
        state.followers += 1;
        loop {
            let (again, in_time) = wait_while(&self.vacant, state, IDLE_TIME_MAX, |s| s.led && !s.closed);
            state = again;
            // One stays, however long there is nothing to do: the next fault should not wait for a thread.
            if state.closed || (!in_time && state.followers > 1) {
                break;
            }
            if !state.led {
                state.led = true;
                state.followers -= 1;
                return true;
            }
        }
        state.followers -= 1;
        state.threads -= 1;
        drop(state);
        self.ended.notify_all();
        false
    }

    /// Lets another lead; `false` if there can be no other, and the caller goes on leading.
    fn hand_over(&self, inner: &Arc<Inner>) -> bool {
        {
            let mut state = lock(&self.state);
            if state.followers > 0 {
                state.led = false;
                drop(state);
                self.vacant.notify_one();
                return true;
            }
            if state.threads >= self.threads_max {
                return false;
            }
            state.threads += 1;
            state.led = false;
        }
        let spawned = spawn(inner).is_ok();
        if !spawned {
            // Unless a follower came meanwhile, and leads.
            let mut state = lock(&self.state);
            return std::mem::replace(&mut state.led, true);
        }
        spawned
    }

    /// Faults have waited for a fill that they have nothing to do with.
    pub(crate) fn note_crowd(&self) {
        lock(&self.state).crowded = CROWDED_FILLS;
    }

    /// Whether faults would probably wait for the next fill.
    fn is_crowded(&self) -> bool {
        let mut state = lock(&self.state);
        let crowded = state.crowded > 0;
        state.crowded = state.crowded.saturating_sub(1);
        crowded
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

    /// The caller, who leads or has just been counted, is gone.
    fn leave(&self, leading: bool) {
        let mut state = lock(&self.state);
        state.led &= !leading;
        state.threads -= 1;
        drop(state);
        self.ended.notify_all();
    }
}

/// Starts a worker, which has been counted already.
fn spawn(inner: &Arc<Inner>) -> io::Result<()> {
    let shared = inner.clone();
    let work = move || {
        // A fault that nobody serves is a thread that waits for ever.
        if catch_unwind(AssertUnwindSafe(|| work(&shared))).is_err() {
            die("a panic while faults were served");
        }
    };
    start_thread("omnimap-fault", work).inspect_err(|error| {
        tracing::warn!(%error, "no further thread for faults");
        inner.workers().leave(false);
    })
}

fn work(inner: &Arc<Inner>) {
    let workers = inner.workers();
    // Often enough to notice that somebody has waited too long.
    let tick = (inner.options.fill_time_max / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut spin = Spin::default();
    while workers.lead() {
        // Leads until a fill takes it out of the lead.
        loop {
            match spin.take(&*inner.faults) {
                Ok(Some(fault)) => {
                    if !serve(inner, fault, By::Leader) {
                        break;
                    }
                }
                Ok(None) => {
                    let begin = Instant::now();
                    match inner.faults.wait(tick) {
                        Ok(Waited::Ready | Waited::TimedOut) => spin.slept(begin.elapsed()),
                        Ok(Waited::Closed) => return workers.leave(true),
                        Err(error) => lost(&error),
                    }
                }
                Err(error) => lost(&error),
            }
            if workers.is_time_to_look(tick) {
                expire(inner);
            }
        }
    }
}

/// Looks for faults for a while before sleeping, as long as that has paid lately.
#[derive(Default)]
struct Spin {
    time: Duration,
}

impl Spin {
    fn take(&self, faults: &dyn FaultStream) -> omnimap_host::Result<Option<Fault>> {
        let first = faults.take()?;
        if first.is_some() || self.time.is_zero() {
            return Ok(first);
        }
        let begin = Instant::now();
        while begin.elapsed() < self.time {
            hint::spin_loop();
            let found = faults.take()?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Looking did not suffice. A fault that came soon would have been found by who had looked longer, and the next may
    /// come as soon.
    fn slept(&mut self, time: Duration) {
        let came_soon = self.time + time <= SOON_TIME_MAX;
        self.time = if came_soon && self.time < SPIN_TIME_MAX { SPIN_TIME_MAX } else { self.time / 2 };
        if self.time < SPIN_TIME_MIN {
            self.time = Duration::ZERO;
        }
    }
}

/// Without faults to serve, threads would sleep for ever, and holes could read as zeros.
fn lost(error: &omnimap_host::HostError) -> ! {
    die(&format!("faults can no longer be served (did something close all descriptors?): {error}"));
}

/// Fails the accesses that the store has left waiting for too long, and forgives those that failed a while ago.
fn expire(inner: &Arc<Inner>) {
    inner.write_back_old();
    inner.consider_large_pages();
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

impl FaultServer for Inner {
    fn serve(self: Arc<Self>, fault: Fault) {
        // As in the thread of a worker.
        if catch_unwind(AssertUnwindSafe(|| serve(&self, fault, By::Itself))).is_err() {
            die("a panic while a fault was served");
        }
    }
}

/// Who serves a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Leader,
    /// The thread that raised it.
    Itself,
}

/// What became of a fault, and whether the worker that served it leads still.
struct Served {
    resolution: Resolution,
    leads: bool,
}

/// Serves a fault; whether a worker leads still.
fn serve(inner: &Arc<Inner>, fault: Fault, by: By) -> bool {
    let served = resolve(inner, fault, Instant::now(), by);
    tracing::trace!(address = %fault.address, resolution = ?served.resolution, ?by, "fault");
    if fault.access != Access::Read {
        inner.limit_dirty();
    }
    served.leads
}

fn resolve(inner: &Arc<Inner>, fault: Fault, since: Instant, by: By) -> Served {
    let leading = |resolution| Served { resolution, leads: true };
    let Some(located) = inner.space.locate(fault.address) else {
        count(None, &inner.counters, Counter::faults_unmapped, 1);
        // It will find out for itself (SIGSEGV), or whatever is mapped there now. Until the range is really gone it comes
        // back here: let the thread that unmaps go on.
        let page_bytes = inner.page.bytes();
        let start = Address(fault.address.0 - fault.address.0 % page_bytes as usize);
        let _ = inner.faults.wake(start, page_bytes);
        thread::yield_now();
        return leading(Resolution::Unmapped);
    };
    let object = &located.object;
    let bounds = inner.bounds(object, located.view_pages, located.page, &located.reader);
    let plan = lock(&located.reader.streams).on_fault(located.page, &bounds);
    let waiter = Waiter::Raw { address: located.address, page: located.page, since };
    let now = plan.now.part_around(located.page, inner.fill_pages_max(object));
    // A store through a private view changes its own copy, and the object not at all.
    let access = if located.sharing == Sharing::Private { Access::Read } else { fault.access };
    let claim = match access {
        Access::Read => object.claim(located.page, now, Some(waiter.clone()), Intent::Load),
        Access::Write | Access::WriteTrapped => {
            let mut claim = None;
            let mut poisoned = Vec::new();
            // With the view held: what an address shows must not change before its stores are let.
            inner.space.with_view(located.address, |placed, offset| {
                if placed.object.id == object.id && placed.shown.page_at(offset) == located.page {
                    let intent = Intent::Store(&*placed.shown.view, offset..offset + inner.page.bytes());
                    let claimed = object.claim_with_view(located.page, now, Some(waiter.clone()), intent);
                    claim = Some(claimed.0);
                    poisoned = claimed.1;
                }
            });
            object.clear_poison(&poisoned);
            // Mapped anew meanwhile: the access is repeated.
            claim.unwrap_or(Claim::Resident)
        }
    };
    inner.fill_ahead(object, plan.ahead, &located.reader);
    object.swap_kept_out();
    match claim {
        Claim::Resident => {
            object.count(Counter::faults_resident, 1);
            inner.wake(object, &[waiter]);
            leading(Resolution::Resident)
        }
        Claim::BeyondEnd => {
            // Where threads sleep in the kernel, it says so itself (SIGBUS) as soon as the memory has been cut too.
            if let Err(error) = inner.faults.refuse(located.address, inner.page.bytes()) {
                die(&format!("the thread that waits at {} cannot be woken: {error}", located.address));
            }
            thread::yield_now();
            leading(Resolution::Unmapped)
        }
        Claim::Joined(_) => {
            object.count(Counter::faults_joined, 1);
            leading(Resolution::Joined)
        }
        Claim::Mine(fill) => {
            inner.lone_misses.note(plan.part_of, since);
            fill_for_fault(inner, &located, fill, by)
        }
    }
}

fn fill_for_fault(inner: &Arc<Inner>, located: &Located, mut fill: Fill, by: By) -> Served {
    let (object, page) = (&located.object, located.page);
    // Failed ones are counted where they fail.
    object.count(Counter::faults_filled, 1);
    // Waking another thread costs as much as a fast disk takes. So the leader goes on leading where it will not get stuck:
    // there is room, and the store answers soon; unless others are waiting meanwhile. Nobody waits for a thread that serves
    // its own fault, but signals for it do.
    let soon = match inner.transfer(object).answers {
        Answers::AtOnce => true,
        Answers::Promptly => by == By::Itself || !inner.workers().is_crowded(),
        Answers::Eventually => false,
    };
    let stays = soon && fill.has_room_now(page, (by == By::Leader).then_some(located.address));
    let leads = stays || by == By::Itself || !inner.workers().hand_over(inner);
    if leads && !stays {
        // The last thread that may be must not get stuck either.
        inner.fill_for_waiter(fill, page);
        return Served { resolution: Resolution::Filled, leads };
    }
    let resolution = fill.run(For::Waiter(page)).unwrap_or(Resolution::Failed);
    Served { resolution, leads }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn faults_are_looked_for_as_long_as_that_pays() {
        let mut spin = Spin::default();
        spin.slept(Duration::from_millis(1));
        assert_eq!(spin.time, Duration::ZERO, "it came late");
        spin.slept(SOON_TIME_MAX);
        assert_eq!(spin.time, SPIN_TIME_MAX, "who had looked would have found it");
        spin.slept(Duration::ZERO);
        assert_eq!(spin.time, SPIN_TIME_MAX / 2, "he has looked");
        spin.slept(SOON_TIME_MAX / 2);
        assert_eq!(spin.time, SPIN_TIME_MAX);
        spin.slept(Duration::from_millis(1));
        assert_eq!(spin.time, SPIN_TIME_MAX / 2);
        (0..10).for_each(|_| spin.slept(Duration::from_millis(1)));
        assert_eq!(spin.time, Duration::ZERO);
    }
}
