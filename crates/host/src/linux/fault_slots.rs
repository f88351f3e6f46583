//! How a thread that stands in its own signal handler has its fault served: by itself, or by a worker.
//!
//! A fixed number of slots, without locks: the handler takes a free one and writes its fault. Where there is a server, it
//! serves the fault itself, on a stack of the slot; else it rings for a worker. Then it waits for the verdict, looking first
//! and sleeping then.
//!
//! Everything else that the handler calls is safe in signal context. The server is not: it allocates and takes locks. It may,
//! for the signal was raised by an access to a mapping and came at no other point: what the thread held there, it would have
//! kept from a worker too.

use std::hint;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use std::{ptr, thread};

use super::fault_stacks::{self, FaultStack};
use crate::{Access, Address, Fault, FaultServer, ProcessId, Waited};

/// Faults that are waited for at a time; more threads wait for a slot first. Bits of a word.
const SLOTS: usize = 64;
/// How long a handler looks for the verdict before it sleeps: what a fast disk takes, and being woken on an idle processor.
const SPIN_NANOSECONDS_MAX: u32 = 100_000;
/// Looking that fails this often in a row is not worth it, and is tried again only now and then.
const FAILED_LOOKS_MAX: u32 = 4;
/// How often it is tried then: for one in so many faults.
const LOOKS_SHARE: u32 = 64;
/// How long a thread that found no free slot waits before it looks again.
const CROWDED_NANOSECONDS: i64 = 50_000;
/// How often a thread that sleeps looks whether there are signals for it, which it holds up.
const SIGNALS_TIME: Duration = Duration::from_millis(10);

/// What a thread is told about its access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Repeat it.
    Retry,
    /// There is nothing there: SIGBUS.
    Refused,
}

const POSTED: u32 = 1;
const TAKEN: u32 = 2;
const RETRY: u32 = 3;
const REFUSED: u32 = 4;
/// Beside the others: the owner sleeps.
const ASLEEP: u32 = 8;

#[repr(align(64))]
struct Slot {
    address: AtomicUsize,
    is_store: AtomicBool,
    state: AtomicU32,
    stack: FaultStack,
}

/// The slots of one host.
pub(super) struct FaultSlots {
    /// Bits of the slots that nobody has.
    free: AtomicU64,
    /// Bits of the slots whose faults nobody has taken.
    posted: AtomicU64,
    /// Rung when a fault is posted and the worker sleeps.
    bell: AtomicU32,
    asleep: AtomicBool,
    closed: AtomicBool,
    /// How many looks for a verdict have failed in a row.
    failed_looks: AtomicU32,
    /// Who serves faults in the threads that raised them, boxed; or null.
    server: AtomicPtr<Weak<dyn FaultServer>>,
    /// Threads that are looking at the server.
    readers: AtomicUsize,
    slots: [Slot; SLOTS],
}

/// Threads that look for a verdict: no more than half of the processors, for somebody has to find it.
static SPINNERS: AtomicU32 = AtomicU32::new(0);
static SPINNERS_MAX: OnceLock<u32> = OnceLock::new();

/// Slots that no host uses. A handler may look at slots at any time, so they are never freed.
static UNUSED: Mutex<Vec<&'static FaultSlots>> = Mutex::new(Vec::new());

/// The slots that no host uses, locked; held while the process is forked, for the child to find the lock free.
pub(super) fn unused() -> MutexGuard<'static, Vec<&'static FaultSlots>> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slots of a host, until it ends.
pub(super) struct OwnSlots {
    slots: &'static FaultSlots,
    made_in: ProcessId,
}

impl OwnSlots {
    pub(super) fn new() -> OwnSlots {
        SPINNERS_MAX.get_or_init(|| std::thread::available_parallelism().map_or(0, |n| n.get() as u32 / 2));
        let unused = unused().pop();
        let slots = unused.unwrap_or_else(|| Box::leak(Box::new(FaultSlots::new())));
        slots.closed.store(false, Ordering::SeqCst);
        OwnSlots { slots, made_in: ProcessId::current() }
    }

    pub(super) fn shared(&self) -> &'static FaultSlots {
        self.slots
    }
}

impl Deref for OwnSlots {
    type Target = FaultSlots;
    fn deref(&self) -> &FaultSlots {
        self.slots
    }
}

impl Drop for OwnSlots {
    fn drop(&mut self) {
        // A forked child has them as its parent's threads had them at that moment.
        if self.made_in.is_current() {
            unused().push(self.slots);
        }
    }
}

impl Slot {
    fn fault(&self) -> Fault {
        let access = if self.is_store.load(Ordering::Relaxed) { Access::Write } else { Access::Read };
        Fault { address: Address(self.address.load(Ordering::Relaxed)), access }
    }
}

impl FaultSlots {
    fn new() -> FaultSlots {
        let slot = || Slot {
            address: AtomicUsize::new(0),
            is_store: AtomicBool::new(false),
            state: AtomicU32::new(0),
            stack: FaultStack::new(),
        };
        FaultSlots {
            free: AtomicU64::new(u64::MAX),
            posted: AtomicU64::new(0),
            bell: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(true),
            failed_looks: AtomicU32::new(0),
            server: AtomicPtr::new(ptr::null_mut()),
            readers: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| slot()),
        }
    }

    /// Lets faults be served in the threads that raise them, or no longer (`None`).
    pub(super) fn set_server(&self, server: Option<Weak<dyn FaultServer>>) {
        let new = match server {
            Some(server) if fault_stacks::supported() => Box::into_raw(Box::new(server)),
            _ => ptr::null_mut(),
        };
        let old = self.server.swap(new, Ordering::SeqCst);
        // They look for an instant, and whoever comes now sees the new one.
        while self.readers.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        if !old.is_null() {
            // SAFETY: made by `Box::into_raw` above, taken out once, and nobody looks at it any more.
            drop(unsafe { Box::from_raw(old) });
        }
    }

    fn server(&self) -> Option<Arc<dyn FaultServer>> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let server = self.server.load(Ordering::SeqCst);
        // SAFETY: null, or valid as long as this thread is counted as a reader.
        let server = unsafe { server.as_ref() }.and_then(Weak::upgrade);
        self.readers.fetch_sub(1, Ordering::SeqCst);
        server
    }

    /// Has a fault served and waits for the verdict, or until `interrupted`: then the access, repeated, asks again. In signal
    /// context.
    pub(super) fn resolve(&self, address: usize, is_store: bool, interrupted: impl Fn() -> bool) -> Verdict {
        let bit = self.take_free();
        let slot = &self.slots[bit.trailing_zeros() as usize];
        slot.address.store(address, Ordering::Relaxed);
        slot.is_store.store(is_store, Ordering::Relaxed);
        match self.server().filter(|_| slot.stack.is_there()) {
            Some(server) => {
                slot.state.store(TAKEN, Ordering::Release);
                // SAFETY: it is there, it is the slot's, as is this thread, and a server does not unwind.
                unsafe { slot.stack.run(|| server.serve(slot.fault())) };
            }
            None => self.post(slot, bit),
        }
        let verdict = self.wait_for(slot, interrupted).unwrap_or_else(|| {
            if self.posted.fetch_and(!bit, Ordering::AcqRel) & bit == 0 {
                // Just being taken, or it has been.
                while slot.state.load(Ordering::Acquire) & !ASLEEP == POSTED {
                    hint::spin_loop();
                }
            }
            Verdict::Retry
        });
        slot.state.store(0, Ordering::Relaxed);
        self.free.fetch_or(bit, Ordering::Release);
        verdict
    }

    fn post(&self, slot: &Slot, bit: u64) {
        slot.state.store(POSTED, Ordering::Release);
        self.posted.fetch_or(bit, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    fn take_free(&self) -> u64 {
        loop {
            let free = self.free.load(Ordering::Acquire);
            let bit = free & free.wrapping_neg();
            if bit == 0 {
                let pause = libc::timespec { tv_sec: 0, tv_nsec: CROWDED_NANOSECONDS };
                // SAFETY: reads `pause`; nanosleep(2) is async-signal-safe.
                unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
            } else if self.free.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                return bit;
            }
        }
    }

    /// `None` if it was interrupted first.
    fn wait_for(&self, slot: &Slot, interrupted: impl Fn() -> bool) -> Option<Verdict> {
        if let Some(verdict) = self.look_for(slot) {
            return Some(verdict);
        }
        loop {
            let state = slot.state.fetch_or(ASLEEP, Ordering::AcqRel) | ASLEEP;
            if let Some(verdict) = verdict(state) {
                return Some(verdict);
            }
            if !futex_wait(&slot.state, state, SIGNALS_TIME) && interrupted() {
                return None;
            }
        }
    }

    fn look_for(&self, slot: &Slot) -> Option<Verdict> {
        if let Some(verdict) = verdict(slot.state.load(Ordering::Acquire)) {
            return Some(verdict);
        }
        let failed = self.failed_looks.load(Ordering::Relaxed);
        if failed >= FAILED_LOOKS_MAX && !failed.is_multiple_of(LOOKS_SHARE) {
            self.failed_looks.store(failed.wrapping_add(1), Ordering::Relaxed);
            return None;
        }
        let mut found = None;
        if SPINNERS.fetch_add(1, Ordering::Relaxed) < SPINNERS_MAX.get().copied().unwrap_or(0) {
            let begin = nanoseconds();
            while found.is_none() && nanoseconds() - begin < u64::from(SPIN_NANOSECONDS_MAX) {
                for _ in 0..16 {
                    hint::spin_loop();
                }
                found = verdict(slot.state.load(Ordering::Acquire));
                if found.is_none() {
                    // The worker may be waiting for this very processor.
                    // SAFETY: always succeeds, and is a system call alone.
                    unsafe { libc::sched_yield() };
                }
            }
            let failed = if found.is_some() { 0 } else { failed.wrapping_add(1) };
            self.failed_looks.store(failed, Ordering::Relaxed);
        }
        SPINNERS.fetch_sub(1, Ordering::Relaxed);
        found
    }

    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        futex_wake(&self.bell);
    }

    pub(super) fn is_pending(&self) -> bool {
        self.posted.load(Ordering::SeqCst) != 0
    }

    /// Takes a fault that nobody has taken.
    pub(super) fn take(&self) -> Option<Fault> {
        loop {
            let posted = self.posted.load(Ordering::Acquire);
            let bit = posted & posted.wrapping_neg();
            if bit == 0 {
                // Asked again and again, as workers do: whoever is about to fault may be waiting for this very processor.
                std::thread::yield_now();
                return None;
            }
            if self.posted.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                let slot = &self.slots[bit.trailing_zeros() as usize];
                let fault = slot.fault();
                // POSTED becomes TAKEN, asleep or not.
                slot.state.fetch_add(TAKEN - POSTED, Ordering::AcqRel);
                return Some(fault);
            }
        }
    }

    /// Sleeps until a fault is posted. One thread at a time.
    pub(super) fn wait(&self, limit: Duration) -> Waited {
        let bell = self.bell.load(Ordering::SeqCst);
        self.asleep.store(true, Ordering::SeqCst);
        let slept =
            if self.is_pending() || self.is_closed() { true } else { futex_wait(&self.bell, bell, limit) };
        self.asleep.store(false, Ordering::SeqCst);
        if self.is_closed() {
            return Waited::Closed;
        }
        if slept { Waited::Ready } else { Waited::TimedOut }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn close(&self) {
        self.set_server(None);
        self.closed.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Tells the verdict to those whose faults in a range have been taken.
    pub(super) fn tell(&self, start: Address, bytes: u64, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Retry => RETRY,
            Verdict::Refused => REFUSED,
        };
        let mut used = !self.free.load(Ordering::Acquire);
        while used != 0 {
            let slot = &self.slots[used.trailing_zeros() as usize];
            used &= used - 1;
            let address = slot.address.load(Ordering::Relaxed);
            if !(start.0..start.0 + bytes as usize).contains(&address) {
                continue;
            }
            let taken = |state| (state & !ASLEEP == TAKEN).then_some(verdict);
            if let Ok(before) = slot.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken)
                && before & ASLEEP != 0
            {
                futex_wake(&slot.state);
            }
        }
    }
}

fn verdict(state: u32) -> Option<Verdict> {
    match state & !ASLEEP {
        RETRY => Some(Verdict::Retry),
        REFUSED => Some(Verdict::Refused),
        _ => None,
    }
}

fn nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps as long as `word` is `expected`, until it is woken; `false` if the time was up first.
fn futex_wait(word: &AtomicU32, expected: u32, limit: Duration) -> bool {
    let limit =
        libc::timespec { tv_sec: limit.as_secs() as libc::time_t, tv_nsec: limit.subsec_nanos().into() };
    // SAFETY: reads the word and the time, which live until it returns; futex(2) is async-signal-safe.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            &raw const limit,
        )
    };
    answer == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: takes the word's address, which is valid, and nothing else; async-signal-safe.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) };
}
