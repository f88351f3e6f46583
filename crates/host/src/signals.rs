//! Signals that are not for us.

use std::mem::MaybeUninit;

/// While it lives, this thread, and the threads that it starts, take no signals but those that an instruction raises.
///
/// Threads inherit the mask for good (pthread_sigmask(3)): so the program's handlers run on its own threads alone.
pub struct SignalsBlocked {
    before: libc::sigset_t,
}

/// Blocking these would turn a bug, or an abort, into a process that cannot say so.
const RAISED_BY_INSTRUCTIONS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT];

impl SignalsBlocked {
    /// Blocks.
    #[expect(clippy::new_without_default, reason = "a guard is made for its effect")]
    pub fn new() -> SignalsBlocked {
        let mut blocked = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: fills the set it is given.
        unsafe { libc::sigfillset(blocked.as_mut_ptr()) };
        for signal in RAISED_BY_INSTRUCTIONS {
            // SAFETY: takes a valid signal out of a valid set.
            unsafe { libc::sigdelset(blocked.as_mut_ptr(), signal) };
        }
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are valid; the call cannot fail with SIG_BLOCK.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: all zeros is a valid (empty) set, and the call above has filled it.
        SignalsBlocked { before: unsafe { before.assume_init() } }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
