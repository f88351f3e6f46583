//! A memory's length.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Sets the length of a memory, as ftruncate(2), but where RLIMIT_FSIZE is too small for it the answer is EFBIG alone: the
/// SIGXFSZ that the kernel sends this thread beside it would end the process.
pub(super) fn truncate(memory: impl AsFd, length: u64) -> rustix::io::Result<()> {
    let limited = LimitSignal::block();
    let outcome = rustix::fs::ftruncate(memory, length);
    if outcome == Err(Errno::FBIG) {
        limited.take();
    }
    outcome
}

/// While it lives, SIGXFSZ waits.
struct LimitSignal {
    signal: libc::sigset_t,
    before: libc::sigset_t,
}

impl LimitSignal {
    fn block() -> LimitSignal {
        let mut signal = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: makes the set it is given an empty one.
        unsafe { libc::sigemptyset(signal.as_mut_ptr()) };
        // SAFETY: adds a valid signal to a valid set.
        unsafe { libc::sigaddset(signal.as_mut_ptr(), libc::SIGXFSZ) };
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are valid; the call cannot fail with SIG_BLOCK.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, signal.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: made an empty set above, and added to.
        let signal = unsafe { signal.assume_init() };
        // SAFETY: all zeros is a valid (empty) set, and the call above has filled it.
        LimitSignal { signal, before: unsafe { before.assume_init() } }
    }

    /// Takes it away, if it waits; one that is ignored does not.
    fn take(&self) {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: set and time are valid, and nobody wants to know who sent it.
        unsafe { libc::sigtimedwait(&raw const self.signal, std::ptr::null_mut(), &raw const at_once) };
    }
}

impl Drop for LimitSignal {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
