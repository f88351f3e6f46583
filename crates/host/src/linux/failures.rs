//! What the SIGBUS handler has to say: the failed pages that accesses may run into.
//!
//! Written by ordinary threads under a lock, read in signal context without one. Each slot is a sequence lock: the
//! writer makes `sequence` odd, writes, makes it even; a reader that saw it change, or odd, looks elsewhere.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Address, Sharing};

/// Failed ranges remembered at a time; the oldest is overwritten.
const FAILURES_MAX: usize = 64;
/// Bytes of a message; longer ones are cut.
const MESSAGE_BYTES_MAX: usize = 480;
/// After this long, an access that nobody has been told about tries again instead of failing.
///
/// An access by the kernel (EFAULT) takes no signal, so its failure would else meet an unrelated later access.
const UNREPORTED_MILLISECONDS_MAX: u64 = 1000;

struct Slot {
    sequence: AtomicU32,
    start: AtomicUsize,
    bytes: AtomicUsize,
    /// In a private view, where a later copy of the page must not be dropped with the poison.
    private: AtomicBool,
    failed_at: AtomicU64,
    reported: AtomicU32,
    length: AtomicUsize,
    message: [AtomicU8; MESSAGE_BYTES_MAX],
}

impl Slot {
    const fn empty() -> Slot {
        Slot {
            sequence: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            private: AtomicBool::new(false),
            failed_at: AtomicU64::new(0),
            reported: AtomicU32::new(0),
            length: AtomicUsize::new(0),
            message: [const { AtomicU8::new(0) }; MESSAGE_BYTES_MAX],
        }
    }

    fn covers(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Relaxed);
        address >= start && address - start < self.bytes.load(Ordering::Relaxed)
    }

    /// Runs `change` so that readers see all of it or look away. Callers hold [`WRITER`].
    fn write(&self, change: impl FnOnce(&Slot)) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change(self);
        self.sequence.store(before.wrapping_add(2), Ordering::Release);
    }
}

static SLOTS: [Slot; FAILURES_MAX] = [const { Slot::empty() }; FAILURES_MAX];
/// Serialises writers; holds the slot to be used next.
static WRITER: Mutex<usize> = Mutex::new(0);

/// Keeps writers out while the process is forked: the child has none of their threads, and finds the lock free.
pub(super) fn hold() -> MutexGuard<'static, usize> {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the signal handler finds.
pub(super) struct Failure {
    pub(super) start: usize,
    pub(super) bytes: usize,
    /// The access that raised this signal is a later one, and deserves a new try.
    pub(super) stale: bool,
    pub(super) message: [u8; MESSAGE_BYTES_MAX],
    pub(super) length: usize,
}

/// Remembers that accesses in a range, of a view that is shared or not, fail, and why.
pub(super) fn record(start: Address, bytes: u64, sharing: Sharing, why: &str) {
    let mut next = hold();
    let slot = &SLOTS[*next % FAILURES_MAX];
    *next += 1;
    // An older failure would else go on failing without a word: its accesses try again.
    let (old_start, old_bytes) = (slot.start.load(Ordering::Relaxed), slot.bytes.load(Ordering::Relaxed));
    if old_bytes > 0 && !slot.private.load(Ordering::Relaxed) {
        drop_poison(old_start, old_bytes);
    }
    slot.write(|slot| {
        slot.start.store(start.0, Ordering::Relaxed);
        slot.bytes.store(bytes as usize, Ordering::Relaxed);
        slot.private.store(sharing == Sharing::Private, Ordering::Relaxed);
        slot.failed_at.store(now_milliseconds(), Ordering::Relaxed);
        slot.reported.store(0, Ordering::Relaxed);
        let text = why.as_bytes();
        let length = text.len().min(MESSAGE_BYTES_MAX);
        for (to, from) in slot.message.iter().zip(&text[..length]) {
            to.store(*from, Ordering::Relaxed);
        }
        slot.length.store(length, Ordering::Relaxed);
    });
}

/// Forgets what was recorded for any part of the range.
pub(super) fn forget(start: Address, bytes: u64) {
    let _writer = hold();
    for slot in &SLOTS {
        let from = slot.start.load(Ordering::Relaxed);
        let length = slot.bytes.load(Ordering::Relaxed);
        if length > 0 && from < start.0 + bytes as usize && start.0 < from + length {
            slot.write(|slot| slot.bytes.store(0, Ordering::Relaxed));
        }
    }
}

/// Forgets everything: a forked child has none of the views.
pub(super) fn clear() {
    let _writer = hold();
    SLOTS.iter().for_each(|slot| slot.write(|slot| slot.bytes.store(0, Ordering::Relaxed)));
}

/// Drops the poison of a range that was recorded and not forgotten. Safe in signal context.
///
/// A view forgets what was recorded for it before it is unmapped, so the range is still a view of ours.
pub(super) fn drop_poison(start: usize, bytes: usize) {
    // Linux 5.18; as MADV_DONTNEED, and on locked pages too.
    const MADV_DONTNEED_LOCKED: i32 = 24;
    // SAFETY: the range is a part of a shared view, or a page of a private one that has no copy, so this drops page-table
    // entries and with them the poison; the bytes are in the memfd.
    unsafe { libc::madvise(start as *mut libc::c_void, bytes, MADV_DONTNEED_LOCKED) };
}

/// Finds the newest failure that covers an address and marks it as reported. Safe in signal context.
pub(super) fn report(address: usize) -> Option<Failure> {
    let mut newest: Option<(&Slot, u64)> = None;
    for slot in &SLOTS {
        if slot.covers(address) {
            let at = slot.failed_at.load(Ordering::Relaxed);
            if newest.is_none_or(|(_, best)| at >= best) {
                newest = Some((slot, at));
            }
        }
    }
    let (slot, _) = newest?;
    let before = slot.sequence.load(Ordering::Acquire);
    let mut failure = Failure {
        start: slot.start.load(Ordering::Relaxed),
        bytes: slot.bytes.load(Ordering::Relaxed),
        stale: false,
        message: [0; MESSAGE_BYTES_MAX],
        length: slot.length.load(Ordering::Relaxed).min(MESSAGE_BYTES_MAX),
    };
    for (to, from) in failure.message.iter_mut().zip(&slot.message) {
        *to = from.load(Ordering::Relaxed);
    }
    let age = now_milliseconds().saturating_sub(slot.failed_at.load(Ordering::Relaxed));
    fence(Ordering::Acquire);
    let changed = before % 2 == 1 || slot.sequence.load(Ordering::Relaxed) != before;
    if changed || !(failure.start..failure.start + failure.bytes).contains(&address) {
        return None;
    }
    let told_before = slot.reported.swap(1, Ordering::AcqRel) == 1;
    failure.stale = told_before || age > UNREPORTED_MILLISECONDS_MAX;
    Some(failure)
}

fn now_milliseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
