//! The machine under Omnimap.
//!
//! Owns: sparse memory (a memfd), views of it (kernel mappings registered with userfaultfd), the stream of
//! faults, the SIGBUS handler, and what the kernel tells about pages (pagemap). It is the only crate in which
//! `unsafe` is normal.
//!
//! Does not own: any policy. Which page is filled, evicted or poisoned, and when, is decided in `omnimap-core`.
//!
//! The engine sees only the traits in [`machine`]; [`linux`] implements them, and the test kit has a simulated
//! machine that does too.

pub mod linux;
pub mod machine;

mod cells;
mod error;
mod exit;
mod process;
mod signals;

pub use cells::{as_u32, as_u64};
pub use error::{HostError, Result};
pub use exit::at_exit;
pub use machine::{Access, Address, Exclusive, Fault, FaultStream, Host, Memory, Stores, Use, View, Waited};
pub use process::{ProcessId, die};
pub use signals::SignalsBlocked;
