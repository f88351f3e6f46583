//! The machine under Omnimap.
//!
//! Owns: sparse memory (a memfd), views of it (kernel mappings registered with userfaultfd), the stream of
//! faults (from userfaultfd, or from the handlers of SIGBUS and SIGSEGV), and what the kernel tells about pages (pagemap). It is the only crate in which
//! `unsafe` is normal.
//!
//! Does not own: any policy. Which page is filled, evicted or poisoned, and when, is decided in `omnimap-core`.
//!
//! The engine sees only the traits in [`machine`]; [`linux`] implements them, and the test kit has a simulated
//! machine that does too.

pub mod linux;
pub mod machine;

mod cells;
mod ending;
mod error;
mod exit;
mod fault_mode;
mod process;
mod signals;
mod thread;

pub use cells::{as_u32, as_u64};
pub use ending::Ending;
pub use error::{HostError, Result};
pub use exit::at_exit;
pub use fault_mode::{FaultMode, UnknownFaultMode};
pub use machine::{
    Access, Address, Addresses, Collapsed, Counted, Exclusive, Fault, FaultServer, FaultStream, Host,
    MISCOUNTED_PAGES_MAX, Memory, Place, Protection, Sharing, Stores, Use, View, ViewRequest, Waited,
};
pub use process::{ProcessId, die};
pub use signals::SignalsBlocked;
pub use thread::start_thread;
