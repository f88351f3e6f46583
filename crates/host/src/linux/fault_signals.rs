//! The handlers of SIGBUS and SIGSEGV: resolve faults of ours that come as signals, say why an access failed, and let the
//! earlier handler, or death, have its way with everything else.
//!
//! Run in signal context: no allocation, no lock, no panic, errno saved (signal-safety(7)), but for the engine where a thread
//! serves its own fault. Other signals are held up
//! meanwhile, for an alternate stack has room for one handler; a thread that waits for long goes back to take them, and asks
//! again then, as it does where it waits in the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::failures::{self, Failure};
use super::fault_ranges::{self, FaultRange};
use super::fault_slots::Verdict;
use crate::error::During;
use crate::process::AtomicProcessId;
use crate::{FaultMode, ProcessId, Result};

/// si_code of an access to what is not there (`asm-generic/siginfo.h`).
const BUS_ADRERR: i32 = 2;

/// What the program had installed before us.
static EARLIER_SIGBUS: OnceLock<libc::sigaction> = OnceLock::new();
static EARLIER_SIGSEGV: OnceLock<libc::sigaction> = OnceLock::new();

/// The process for whose views failures and ranges are recorded. A forked child has the records and not the views.
static RECORDED_IN: AtomicProcessId = AtomicProcessId::none();

/// Installs what a mode needs, once: a forked child has the handlers.
pub(super) fn install(mode: FaultMode) -> Result<()> {
    record_here();
    static SIGBUS: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    static SIGSEGV: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    install_once(&SIGBUS, libc::SIGBUS, &EARLIER_SIGBUS).during("sigaction(SIGBUS)")?;
    if mode == FaultMode::Trap {
        install_once(&SIGSEGV, libc::SIGSEGV, &EARLIER_SIGSEGV).during("sigaction(SIGSEGV)")?;
    }
    Ok(())
}

/// Keeps others from changing whose records they are while the process is forked: the child finds the lock free.
pub(super) fn hold() -> MutexGuard<'static, ()> {
    static CHANGING: Mutex<()> = Mutex::new(());
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is recorded from now on is this process's.
fn record_here() {
    let _changing = hold();
    if !RECORDED_IN.is_current() {
        failures::clear();
        fault_ranges::clear();
        RECORDED_IN.store(ProcessId::current());
    }
}

fn install_once(
    once: &OnceLock<std::result::Result<(), i32>>,
    signal: i32,
    into: &OnceLock<libc::sigaction>,
) -> io::Result<()> {
    let install = || install_now(signal, into).map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL));
    once.get_or_init(install).map_err(io::Error::from_raw_os_error)
}

fn install_now(signal: i32, into: &OnceLock<libc::sigaction>) -> io::Result<()> {
    let mut earlier = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the kernel fills `earlier`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), earlier.as_mut_ptr()) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the call above.
    let earlier = unsafe { earlier.assume_init() };
    // Known before the handler can run.
    let _ = into.set(earlier);
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_signal as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: fills the set it is given.
    unsafe { libc::sigfillset(&raw mut ours.sa_mask) };
    // SAFETY: `on_signal` has the signature that SA_SIGINFO asks for and is safe in signal context.
    let set = unsafe { libc::sigaction(signal, &raw const ours, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: gives the address of this thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno is valid as long as the thread lives.
    let before = unsafe { errno.read() };
    handle(signal, info, context);
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

fn earlier(signal: i32) -> Option<&'static libc::sigaction> {
    if signal == libc::SIGBUS { EARLIER_SIGBUS.get() } else { EARLIER_SIGSEGV.get() }
}

fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for SA_SIGINFO.
    let details = unsafe { &*info };
    // SAFETY: a signal from a fault has si_addr; from kill(2) the same bytes hold something that is not looked at.
    let address = unsafe { details.si_addr() } as usize;
    // Zero or less: sent by somebody, and not raised by an access (sigaction(2)).
    let by_access = details.si_code > 0;
    let ours = by_access && RECORDED_IN.is_current();
    if let Some(range) = fault_ranges::find(address).filter(|_| ours)
        && let Some(is_store) = fault_of(&range, signal, context)
    {
        return serve(&range, address, is_store, info, context);
    }
    let failure = if ours && signal == libc::SIGBUS { failures::report(address) } else { None };
    match failure {
        // The failure was told to an earlier access: this one gets a new try (E3).
        Some(failure) if failure.stale => failures::drop_poison(failure.start, failure.bytes),
        Some(failure) => {
            say_why(&failure);
            if pass_on(signal, by_access, info, context) {
                failures::drop_poison(failure.start, failure.bytes);
            }
        }
        // The access before this one was told: this one gets a new try (E3).
        None if by_access && signal == libc::SIGBUS && inherited::is_told(address) => {}
        None => _ = pass_on(signal, by_access, info, context),
    }
}

/// Whether a signal is a fault that a worker can resolve: then, whether by a store.
fn fault_of(range: &FaultRange, signal: i32, context: *mut libc::c_void) -> Option<bool> {
    let is_store = is_store(context);
    let resolvable = match range.mode {
        FaultMode::Trap => signal == libc::SIGSEGV,
        _ => signal == libc::SIGBUS,
    };
    (resolvable && (range.is_writable || !is_store)).then_some(is_store)
}

/// Bit 1 of the page fault's error code (`X86_PF_WRITE`).
#[cfg(target_arch = "x86_64")]
fn is_store(context: *mut libc::c_void) -> bool {
    // SAFETY: the kernel passes a valid context for SA_SIGINFO.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0
}

/// No mode that needs to know is offered here.
#[cfg(not(target_arch = "x86_64"))]
fn is_store(_: *mut libc::c_void) -> bool {
    true
}

/// Has a fault resolved, and comes back when the access is to be repeated, or failed and was survived.
fn serve(
    range: &FaultRange,
    address: usize,
    is_store: bool,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // Poison raises a signal that looks like any other where the kernel knows no failing memory (CONFIG_MEMORY_FAILURE).
    match failures::report(address) {
        None => {}
        // It was told to an earlier access: this one gets a new try (E3).
        Some(failure) if failure.stale => failures::drop_poison(failure.start, failure.bytes),
        Some(failure) => {
            say_why(&failure);
            return fail(info, context);
        }
    }
    if range.slots.resolve(address, is_store, || has_signals(context)) == Verdict::Refused {
        fail(info, context);
    }
}

/// Lets an access fail with SIGBUS, whatever signal it raised.
fn fail(info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: valid, as the kernel's; changed below is our copy.
    let mut info = unsafe { info.read() };
    info.si_signo = libc::SIGBUS;
    info.si_code = BUS_ADRERR;
    if !pass_on(libc::SIGBUS, true, &raw mut info, context) {
        // The access, repeated, would come to us again.
        // SAFETY: async-signal-safe; the default action ends the process when this handler returns.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}

fn say_why(failure: &Failure) {
    say(b"omnimap: SIGBUS: ");
    say(&failure.message[..failure.length]);
    say(b"\n");
}

/// Calls the earlier handler of a signal; `true` if one ran and meant the program to go on.
fn pass_on(signal: i32, by_access: bool, info: *mut libc::siginfo_t, context: *mut libc::c_void) -> bool {
    let Some(action) = earlier(signal) else { return false };
    if action.sa_sigaction == libc::SIG_IGN && !by_access {
        return true;
    }
    if action.sa_sigaction == libc::SIG_DFL || action.sa_sigaction == libc::SIG_IGN {
        // The access is repeated when we return, and then kills the process with the right address and core.
        die_at_next(signal);
        if !by_access {
            // SAFETY: async-signal-safe.
            unsafe { libc::raise(signal) };
        }
        return false;
    }
    let _mask = Mask::as_for(signal, action, context);
    if action.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: installed with SA_SIGINFO, so it has this signature.
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(action.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: installed without SA_SIGINFO, so it takes the number alone.
        let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(action.sa_sigaction) };
        handler(signal);
    }
    !default_is_set(signal)
}

/// The signals that the interrupted code had blocked.
fn mask_before(context: *mut libc::c_void) -> libc::sigset_t {
    // SAFETY: the kernel passes a valid context for SA_SIGINFO.
    unsafe { (*context.cast::<libc::ucontext_t>()).uc_sigmask }
}

/// Whether there are signals for this thread that only wait for us.
fn has_signals(context: *mut libc::c_void) -> bool {
    let blocked = mask_before(context);
    let mut pending = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: fills the set; async-signal-safe.
    unsafe { libc::sigpending(pending.as_mut_ptr()) };
    // SAFETY: all zeros is a valid (empty) set, and the call above has filled it.
    let pending = unsafe { pending.assume_init() };
    (1..=64).any(|signal| contains(&pending, signal) && !contains(&blocked, signal))
}

fn contains(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY: the set is valid; for a number that is none the answer is -1.
    unsafe { libc::sigismember(set, signal) == 1 }
}

/// The mask with which an earlier handler runs, while it does: as if the kernel had called it.
struct Mask {
    before: libc::sigset_t,
}

impl Mask {
    fn as_for(signal: i32, action: &libc::sigaction, context: *mut libc::c_void) -> Mask {
        let mut mask = mask_before(context);
        let defers = |blocked| blocked == signal && action.sa_flags & libc::SA_NODEFER == 0;
        for blocked in (1..=64).filter(|blocked| contains(&action.sa_mask, *blocked) || defers(*blocked)) {
            // SAFETY: adds a valid signal to a valid set.
            unsafe { libc::sigaddset(&raw mut mask, blocked) };
        }
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are valid; async-signal-safe.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, before.as_mut_ptr()) };
        // SAFETY: all zeros is a valid (empty) set, and the call above has filled it.
        Mask { before: unsafe { before.assume_init() } }
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Whether the earlier handler gave up by restoring the default action (the Rust runtime's does).
fn default_is_set(signal: i32) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; all-zero is a valid sigaction, should the call fail.
    unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: initialised to zeros, and filled by the kernel.
    let now = unsafe { now.assume_init() };
    now.sa_sigaction == libc::SIG_DFL
}

fn die_at_next(signal: i32) {
    // SAFETY: all-zero is SIG_DFL with an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sigaction is async-signal-safe.
    unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
}

fn say(text: &[u8]) {
    // SAFETY: `text` is readable; write(2) is async-signal-safe. A closed standard error is nobody's loss.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// Views of a child, whose failures are known to the process that serves them: which page failed last is told there.
pub(super) fn serve_here(addresses: std::ops::Range<usize>, memory: BorrowedFd<'_>, offset: u64) {
    inherited::add(addresses, memory.as_raw_fd(), offset);
}

mod inherited {
    use std::ops::Range;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    /// A range of addresses; never freed, for a handler may be looking at it.
    struct Node {
        addresses: Range<usize>,
        /// The memory that it shows, and from where on; open as long as anything of it is mapped.
        memory: i32,
        offset: u64,
        next: *mut Node,
    }

    static FIRST: AtomicPtr<Node> = AtomicPtr::new(std::ptr::null_mut());
    /// Pages whose failure was told; the oldest is forgotten first.
    static TOLD: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn add(addresses: Range<usize>, memory: i32, offset: u64) {
        let next = FIRST.load(Ordering::Acquire);
        let node = Box::into_raw(Box::new(Node { addresses, memory, offset, next }));
        // Called while the child has one thread.
        FIRST.store(node, Ordering::Release);
    }

    /// Tells a failure in an inherited view, the first time; after that, the failure is taken away. In signal context.
    pub(super) fn is_told(address: usize) -> bool {
        let mut node = FIRST.load(Ordering::Acquire);
        loop {
            if node.is_null() {
                return false;
            }
            // SAFETY: nodes are never freed, nor changed once they are in the list.
            let Node { addresses, memory, offset, next } = unsafe { &*node };
            if addresses.contains(&address) {
                if is_beyond_end(*memory, offset + (address - addresses.start) as u64) {
                    return false;
                }
                break;
            }
            node = *next;
        }
        // SAFETY: only asks; async-signal-safe in practice, being a system call or a constant.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let page = address - address % page_bytes;
        if TOLD.iter().any(|told| told.compare_exchange(page, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok())
        {
            super::failures::drop_poison(page, page_bytes);
            return true;
        }
        TOLD[NEXT.fetch_add(1, Ordering::Relaxed) % TOLD.len()].store(page, Ordering::Release);
        super::say(b"omnimap: SIGBUS: a page of an inherited mapping cannot be had; the process that serves it knows why\n");
        false
    }

    /// Whether a byte is behind the whole pages of an object: that access fails as it must.
    fn is_beyond_end(memory: i32, offset: u64) -> bool {
        // SAFETY: an all-zero stat is valid.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: fstat is async-signal-safe, and fills `stat`.
        let known = unsafe { libc::fstat(memory, &raw mut stat) } == 0;
        known && offset >= (stat.st_size as u64).next_multiple_of(super::super::page_bytes())
    }
}
