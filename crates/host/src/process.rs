//! Which process we are in: a forked child has our data but neither our threads nor our shared views.

/// The process in which something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId(u32);

impl ProcessId {
    /// The process that calls.
    pub fn current() -> Self {
        ProcessId(std::process::id())
    }

    /// Whether the caller is still in this process, that is, not in a forked child of it.
    pub fn is_current(self) -> bool {
        self == Self::current()
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
