//! Which addresses have faults that come as signals, and whose they are: to be asked in signal context.
//!
//! Written by ordinary threads under a lock, read without one. An entry whose end is 0 is nobody's; a reader that sees an
//! entry change looks elsewhere. Entries are used again and never freed.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::fault_slots::FaultSlots;
use crate::{Address, FaultMode};

const ENTRIES: usize = 64;

struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    slots: AtomicPtr<FaultSlots>,
    is_trap: AtomicBool,
    is_writable: AtomicBool,
}

struct Entries {
    entries: [Entry; ENTRIES],
    /// Where there are more.
    next: AtomicPtr<Entries>,
}

impl Entry {
    const fn empty() -> Entry {
        Entry {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
            is_trap: AtomicBool::new(false),
            is_writable: AtomicBool::new(false),
        }
    }
}

impl Entries {
    const fn empty() -> Entries {
        Entries { entries: [const { Entry::empty() }; ENTRIES], next: AtomicPtr::new(ptr::null_mut()) }
    }
}

static FIRST: Entries = Entries::empty();
static WRITER: Mutex<()> = Mutex::new(());

/// Whose the faults in a range are.
#[derive(Clone, Copy)]
pub(super) struct FaultRange {
    pub(super) start: Address,
    pub(super) bytes: usize,
    pub(super) slots: &'static FaultSlots,
    pub(super) mode: FaultMode,
    /// Whether stores are among them; if not, they are the program's mistake.
    pub(super) is_writable: bool,
}

/// Keeps writers out while the process is forked: the child has none of their threads, and finds the lock free.
pub(super) fn hold() -> MutexGuard<'static, ()> {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn add(range: FaultRange) {
    let _writer = hold();
    let entry = free_entry();
    entry.slots.store(ptr::from_ref(range.slots).cast_mut(), Ordering::Relaxed);
    entry.is_trap.store(range.mode == FaultMode::Trap, Ordering::Relaxed);
    entry.is_writable.store(range.is_writable, Ordering::Relaxed);
    entry.start.store(range.start.0, Ordering::Relaxed);
    entry.end.store(range.start.0 + range.bytes, Ordering::Release);
}

pub(super) fn remove(start: Address) {
    let _writer = hold();
    let used = |entry: &&Entry| {
        entry.end.load(Ordering::Relaxed) != 0 && entry.start.load(Ordering::Relaxed) == start.0
    };
    if let Some(entry) = all().find(used) {
        entry.end.store(0, Ordering::Release);
        // Before it is used again: a reader looks at the end last.
        fence(Ordering::SeqCst);
    }
}

/// Forgets everything: a forked child has none of the views.
pub(super) fn clear() {
    let _writer = hold();
    all().for_each(|entry| entry.end.store(0, Ordering::Release));
}

/// Finds the range of an address. Safe in signal context.
pub(super) fn find(address: usize) -> Option<FaultRange> {
    all().find_map(|entry| {
        let end = entry.end.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Relaxed);
        if !(start..end).contains(&address) {
            return None;
        }
        let slots = entry.slots.load(Ordering::Relaxed);
        let mode = if entry.is_trap.load(Ordering::Relaxed) { FaultMode::Trap } else { FaultMode::InThread };
        let is_writable = entry.is_writable.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let same = entry.end.load(Ordering::Relaxed) == end && entry.start.load(Ordering::Relaxed) == start;
        // SAFETY: null, or made from a `&'static` by `add`.
        let slots = unsafe { slots.as_ref() }.filter(|_| same)?;
        Some(FaultRange { start: Address(start), bytes: end - start, slots, mode, is_writable })
    })
}

/// With the lock held.
fn free_entry() -> &'static Entry {
    if let Some(entry) = all().find(|entry| entry.end.load(Ordering::Relaxed) == 0) {
        return entry;
    }
    let more: &'static Entries = Box::leak(Box::new(Entries::empty()));
    let mut last = &FIRST;
    while let Some(next) = next(last) {
        last = next;
    }
    last.next.store(ptr::from_ref(more).cast_mut(), Ordering::Release);
    &more.entries[0]
}

fn next(entries: &Entries) -> Option<&'static Entries> {
    // SAFETY: null, or made from a `&'static` by `free_entry`.
    unsafe { entries.next.load(Ordering::Acquire).as_ref() }
}

fn all() -> impl Iterator<Item = &'static Entry> {
    std::iter::successors(Some(&FIRST), |entries| next(entries)).flat_map(|entries| &entries.entries)
}
