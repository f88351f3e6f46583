//! Who serves a fault, and how it is noticed.

use std::fmt;
use std::str::FromStr;

/// Who serves a fault.
///
/// # Example
/// ```
/// use omnimap_host::FaultMode;
///
/// assert_eq!("in-thread".parse(), Ok(FaultMode::InThread));
/// assert_eq!(FaultMode::Trap.to_string(), "trap");
/// assert!("fast".parse::<FaultMode>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultMode {
    /// The kernel puts the thread to sleep and tells a worker (userfaultfd). Serves system calls too.
    Worker,
    /// The kernel tells the thread itself (userfaultfd with SIGBUS), which serves its fault in the signal handler, on a stack
    /// of ours, where the store answers promptly, and hands it to a worker where it may not: the fastest. System calls on pages
    /// that are not in memory answer EFAULT. Such a store runs in the handler, and so does what is told to a
    /// subscriber of traces: neither may need what the thread had borrowed or locked when it touched the page.
    InThread,
    /// The page tables alone tell (guard pages and SIGSEGV): works where userfaultfd is refused, as in containers. System
    /// calls on pages that are not in memory answer EFAULT; each run of changed pages is a mapping of the kernel's.
    Trap,
}

impl FaultMode {
    /// The environment variable that chooses one, where the program does not.
    pub const VARIABLE: &'static str = "OMNIMAP_FAULT_MODE";
    /// All of them, in the order in which they are tried.
    pub const ALL: [FaultMode; 3] = [FaultMode::Worker, FaultMode::InThread, FaultMode::Trap];

    fn name(self) -> &'static str {
        match self {
            FaultMode::Worker => "worker",
            FaultMode::InThread => "in-thread",
            FaultMode::Trap => "trap",
        }
    }
}

impl fmt::Display for FaultMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no [`FaultMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no fault mode {0:?}; there are worker, in-thread and trap")]
pub struct UnknownFaultMode(String);

impl FromStr for FaultMode {
    type Err = UnknownFaultMode;
    fn from_str(text: &str) -> Result<FaultMode, UnknownFaultMode> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| UnknownFaultMode(text.to_owned()))
    }
}
