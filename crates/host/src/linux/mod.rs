//! The machine as Linux makes it: memfd, userfaultfd, SIGBUS, pagemap.

mod failures;
mod host;
mod kernel_file;
mod memory;
mod pagemap;
mod probe;
mod sigbus;
mod userfaultfd;
mod view;

pub use host::LinuxHost;
pub use kernel_file::{KernelFile, KernelFileMut, drop_cached};
pub use probe::{Finding, Probe, probe};
pub use userfaultfd::{Features, Origin};

/// Bytes of a host page, asked of the system.
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}
