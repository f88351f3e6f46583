//! Waiting for a signal that asks the process to end.

use std::mem::MaybeUninit;

/// The signals by which a person or a service manager ends a process.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// While it lives, the signals that ask a process to end are waited for instead of ending it.
///
/// Those that the program ignores (as nohup(1) lets it) go on being ignored. Other threads must not run yet, for they would
/// still die of them; those that are started later inherit the mask.
pub struct Ending {
    awaited: libc::sigset_t,
    before: libc::sigset_t,
}

impl Ending {
    /// From now on, such a signal stays pending until [`wait`](Self::wait).
    #[expect(clippy::new_without_default, reason = "a guard is made for its effect")]
    pub fn new() -> Ending {
        let mut awaited = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: makes the set it is given an empty one.
        unsafe { libc::sigemptyset(awaited.as_mut_ptr()) };
        for signal in ENDING.into_iter().filter(|signal| !is_ignored(*signal)) {
            // SAFETY: adds a valid signal to a valid set.
            unsafe { libc::sigaddset(awaited.as_mut_ptr(), signal) };
        }
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are valid; the call cannot fail with SIG_BLOCK.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, awaited.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: made an empty set above, and added to.
        let awaited = unsafe { awaited.assume_init() };
        // SAFETY: all zeros is a valid (empty) set, and the call above has filled it.
        Ending { awaited, before: unsafe { before.assume_init() } }
    }

    /// Sleeps until one of them comes (sigwait(3)).
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: both are valid. It fails only for sets with signals that do not exist, and then comes back.
        unsafe { libc::sigwait(&raw const self.awaited, &raw mut signal) };
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; all-zero is a valid sigaction, should the call fail.
    unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: initialised to zeros, and filled by the kernel.
    let now = unsafe { now.assume_init() };
    now.sa_sigaction == libc::SIG_IGN
}
