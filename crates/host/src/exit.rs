//! Work that is left for the end of the process.

use std::io;
use std::sync::OnceLock;

use crate::Result;
use crate::error::During;

static WORK: OnceLock<fn()> = OnceLock::new();

/// Calls `work` when the process ends by `exit` or by returning from `main` (atexit(3)), once; the first caller's.
///
/// A forked child that exits calls it too. A process that is killed does not.
///
/// # Errors
/// If the C library has no memory for it.
pub fn at_exit(work: fn()) -> Result<()> {
    let mut first = false;
    WORK.get_or_init(|| {
        first = true;
        work
    });
    // SAFETY: `run` has the signature asked for and does not unwind: it aborts instead, being `extern "C"`.
    if first && unsafe { libc::atexit(run) } != 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOMEM)).during("atexit");
    }
    Ok(())
}

extern "C" fn run() {
    if let Some(work) = WORK.get() {
        work();
    }
}
