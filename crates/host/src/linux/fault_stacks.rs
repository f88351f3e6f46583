//! Stacks for threads that serve their own faults: a handler may have been given a few KiB (sigaltstack(2)).

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What the engine and a store that answers promptly may need, unoptimised. Only what is touched takes memory.
const BYTES: usize = 512 << 10;

/// A stack, made when it is first used and never freed.
pub(super) struct FaultStack(AtomicPtr<u8>);

impl FaultStack {
    pub(super) const fn new() -> FaultStack {
        FaultStack(AtomicPtr::new(ptr::null_mut()))
    }

    /// Whether there is one, or memory for it. Safe in signal context.
    pub(super) fn is_there(&self) -> bool {
        if !self.0.load(Ordering::Acquire).is_null() {
            return true;
        }
        let guard = super::page_bytes() as usize;
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), BYTES + guard, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the first page of the mapping just made, which nobody uses.
        unsafe { libc::mprotect(base, guard, libc::PROT_NONE) };
        self.0.store(base.cast::<u8>().wrapping_add(guard), Ordering::Release);
        true
    }

    /// Runs `work` on it.
    ///
    /// # Safety
    /// It [is there](Self::is_there), nobody else uses it, and `work` does not unwind.
    pub(super) unsafe fn run(&self, work: impl FnOnce()) {
        let base = self.0.load(Ordering::Acquire);
        psm::psm_stack_manipulation! {
            yes {
                // SAFETY: a mapping of that length, with a guard below, and the caller's alone.
                unsafe { psm::on_stack(base, BYTES, work) }
            }
            no {
                let _unused = base;
                work()
            }
        }
    }
}

/// Whether stacks can be changed on this machine.
pub(super) const fn supported() -> bool {
    psm::psm_stack_manipulation! {
        yes { true }
        no { false }
    }
}
