//! Which process we are in: a forked child has our data but neither our threads nor our shared views.

use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Where this process's number is kept: in a page that is zeros in a forked child (MADV_WIPEONFORK, Linux 4.14).
///
/// Asking the kernel each time would cost as much as a page in memory is worth.
static NUMBER: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// The number of this process. Safe in signal context.
fn number() -> u32 {
    // SAFETY: null, or a page that is never unmapped.
    let Some(kept) = (unsafe { NUMBER.load(Ordering::Acquire).as_ref() }) else { return std::process::id() };
    match kept.load(Ordering::Relaxed) {
        0 => {
            let number = std::process::id();
            kept.store(number, Ordering::Relaxed);
            number
        }
        number => number,
    }
}

/// Makes [`number`] fast, where the kernel can.
fn keep_number() {
    let bytes = rustix::param::page_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let page =
        unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return;
    }
    // SAFETY: the mapping just made.
    let kept = unsafe { libc::madvise(page, bytes, libc::MADV_WIPEONFORK) } == 0
        && NUMBER.compare_exchange(ptr::null_mut(), page.cast(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if !kept {
        // SAFETY: nobody else knows of it.
        unsafe { libc::munmap(page, bytes) };
    }
}

/// The process in which something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId(u32);

impl ProcessId {
    /// The process that calls.
    pub fn current() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(keep_number);
        ProcessId(number())
    }

    /// Whether the caller is still in this process, that is, not in a forked child of it. Safe in signal context.
    pub fn is_current(self) -> bool {
        self.0 == number()
    }
}

/// A [`ProcessId`] that is asked in signal context.
pub(crate) struct AtomicProcessId(AtomicU32);

impl AtomicProcessId {
    pub(crate) const fn none() -> Self {
        AtomicProcessId(AtomicU32::new(0))
    }

    pub(crate) fn store(&self, process: ProcessId) {
        self.0.store(process.0, Ordering::Release);
    }

    /// Whether the caller is in that process. Safe in signal context.
    pub(crate) fn is_current(&self) -> bool {
        ProcessId(self.0.load(Ordering::Acquire)).is_current()
    }
}

/// Ends the process, after a line on standard error: going on would leave a thread asleep for ever, or show wrong bytes.
///
/// Besides the line before SIGBUS this is the only thing that the library ever prints, and for the same reason.
pub fn die(why: &str) -> ! {
    let line = format!("omnimap: aborting: {why}\n");
    // With standard error closed there is nobody to tell.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    std::process::abort()
}
