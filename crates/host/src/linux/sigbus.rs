//! The SIGBUS handler: says why an access failed, then lets the earlier handler, or death, have its way.
//!
//! Runs in signal context: no allocation, no lock, no panic, errno saved (signal-safety(7)).

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::failures;
use crate::Result;
use crate::error::During;

/// What the program had installed before us, and in which process.
struct Earlier {
    action: libc::sigaction,
    process: libc::pid_t,
}

static EARLIER: OnceLock<Earlier> = OnceLock::new();

/// Installs the handler, once in a process.
pub(super) fn install() -> Result<()> {
    static ONCE: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    let outcome = ONCE.get_or_init(|| install_now().map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL)));
    outcome.map_err(io::Error::from_raw_os_error).during("sigaction(SIGBUS)")
}

fn install_now() -> io::Result<()> {
    let mut earlier = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the kernel fills `earlier`.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), earlier.as_mut_ptr()) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the call above.
    let earlier = unsafe { earlier.assume_init() };
    // Known before the handler can run.
    // SAFETY: always succeeds.
    let process = unsafe { libc::getpid() };
    let _ = EARLIER.set(Earlier { action: earlier, process });
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_sigbus as *const () as usize;
    ours.sa_flags =
        libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | (earlier.sa_flags & libc::SA_NODEFER);
    // The earlier handler runs inside ours, and with the mask that it asked for.
    ours.sa_mask = earlier.sa_mask;
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and is safe in signal context.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: gives the address of this thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno is valid as long as the thread lives.
    let before = unsafe { errno.read() };
    handle(signal, info, context);
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for SA_SIGINFO.
    let details = unsafe { &*info };
    // SAFETY: SIGBUS from a fault has si_addr; from kill(2) the same bytes hold something that matches no failure.
    let address = unsafe { details.si_addr() } as usize;
    let Some(earlier) = EARLIER.get() else { return };
    // Zero or less: sent by somebody, and not raised by an access (sigaction(2)).
    let by_access = details.si_code > 0;
    // SAFETY: async-signal-safe, always succeeds.
    let ours = unsafe { libc::getpid() } == earlier.process;
    // A forked child has what was recorded, and not the views that it was recorded for.
    let failure = if by_access && ours { failures::report(address) } else { None };
    if let Some(failure) = &failure {
        if failure.stale {
            // The failure was told to an earlier access: this one gets a new try (E3).
            failures::drop_poison(failure.start, failure.bytes);
            return;
        }
        say(b"omnimap: SIGBUS: ");
        say(&failure.message[..failure.length]);
        say(b"\n");
    }
    let goes_on = pass_on(&earlier.action, by_access, signal, info, context);
    if let (Some(failure), true) = (&failure, goes_on) {
        failures::drop_poison(failure.start, failure.bytes);
    }
}

/// Calls the earlier handler; `true` if one ran and meant the program to go on.
fn pass_on(
    earlier: &libc::sigaction,
    by_access: bool,
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) -> bool {
    if earlier.sa_sigaction == libc::SIG_IGN && !by_access {
        return false;
    }
    if earlier.sa_sigaction == libc::SIG_DFL || earlier.sa_sigaction == libc::SIG_IGN {
        // The access is repeated when we return, and then kills the process with the right address and core.
        die_at_next();
        if !by_access {
            // SAFETY: async-signal-safe; delivered when this handler returns.
            unsafe { libc::raise(signal) };
        }
        return false;
    }
    if earlier.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: installed with SA_SIGINFO, so it has this signature.
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(earlier.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: installed without SA_SIGINFO, so it takes the number alone.
        let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(earlier.sa_sigaction) };
        handler(signal);
    }
    !default_is_set()
}

/// Whether the earlier handler gave up by restoring the default action (the Rust runtime's does).
fn default_is_set() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; all-zero is a valid sigaction, should the call fail.
    unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: initialised to zeros, and filled by the kernel.
    let now = unsafe { now.assume_init() };
    now.sa_sigaction == libc::SIG_DFL
}

fn die_at_next() {
    // SAFETY: all-zero is SIG_DFL with an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sigaction is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const default, std::ptr::null_mut()) };
}

fn say(text: &[u8]) {
    // SAFETY: `text` is readable; write(2) is async-signal-safe. A closed standard error is nobody's loss.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}
