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
