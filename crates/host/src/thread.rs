//! Threads of ours.

use std::ffi::{CString, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::{SignalsBlocked, die};

/// Stack of a thread: a store's code may run on it.
const STACK_BYTES: usize = 2 << 20;

type Work = Box<dyn FnOnce() + Send>;

/// Starts a thread that takes no signals and is waited for by nobody. `name` is cut to 15 bytes (pthread_setname_np(3)).
///
/// Not by the standard library: its threads make an alternate stack for their signal handlers when they have begun, and end
/// the process if there is no mapping left for that (vm.max_map_count). Here there is a thread, or an error.
///
/// # Errors
/// EAGAIN or ENOMEM, if there can be no more threads.
///
/// # Example
/// ```
/// let (told, tell) = std::sync::mpsc::channel();
/// omnimap_host::start_thread("example", move || told.send(7).unwrap())?;
/// assert_eq!(tell.recv(), Ok(7));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let name = CString::new(&name.as_bytes()[..name.len().min(15)]).unwrap_or_default();
    let named = move || {
        // SAFETY: always succeeds.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: a thread that lives, and a string that does. Without a name nothing is wrong.
        unsafe { libc::pthread_setname_np(this, name.as_ptr()) };
        work();
    };
    let work: *mut Work = Box::into_raw(Box::new(Box::new(named)));
    let outcome = start(work);
    if outcome.is_err() {
        // SAFETY: made above, and no thread has it.
        drop(unsafe { Box::from_raw(work) });
    }
    outcome
}

fn start(work: *mut Work) -> io::Result<()> {
    // The program's handlers must not run on our threads: they may touch a mapping.
    let _blocked = SignalsBlocked::new();
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: initialises them.
    check(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    let attributes = attributes.as_mut_ptr();
    // SAFETY: initialised above; the value is valid.
    unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) };
    // SAFETY: likewise.
    unsafe { libc::pthread_attr_setstacksize(attributes, STACK_BYTES) };
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: `run` takes what it is given here, once.
    let created = unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, work.cast()) };
    // SAFETY: initialised above, and not used any more.
    unsafe { libc::pthread_attr_destroy(attributes) };
    check(created)
}

fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

extern "C" fn run(work: *mut c_void) -> *mut c_void {
    // SAFETY: made by `start_thread` for this thread alone.
    let work: Box<Work> = unsafe { Box::from_raw(work.cast()) };
    // Whoever waits for what it does would do so for ever.
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        die("a panic in a thread of ours");
    }
    ptr::null_mut()
}
