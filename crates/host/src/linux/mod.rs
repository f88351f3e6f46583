//! The machine as Linux makes it: memfd, userfaultfd or guard pages, signals, pagemap.

mod accounting;
pub mod calls;
mod child;
mod failures;
mod fault_ranges;
mod fault_signals;
mod fault_slots;
mod fault_stacks;
mod faults;
mod figures;
mod guarded;
mod host;
mod kernel_file;
mod kernel_range;
mod kin;
mod large_pages;
mod maps;
mod memory;
mod own_memory;
mod page_cache;
mod pagemap;
mod pass;
mod probe;
mod reservation;
mod shared_memory;
mod truncate;
mod userfaultfd;
mod view;
mod view_list;
mod window;

pub use child::{ChildViews, HeldForFork, at_fork};
pub use figures::ObjectKind;
pub use host::LinuxHost;
pub use kernel_file::{KernelFile, KernelFileMut, drop_cached};
pub use kernel_range::{
    Expected, KernelRange, KernelRequest, PrivatePages, Source, Wait, Wishes, lock, unlock,
};
pub use maps::{MappedRange, mapped_ranges, mapping_processes, maps_something};
pub use own_memory::{read_own_memory, write_own_memory};
pub use page_cache::{FilePages, evict_cached};
pub use pass::{receive_descriptor, send_descriptor};
pub use probe::{Finding, Probe, probe};
pub use reservation::{Part, Reservation};
pub use shared_memory::{Awaited, SharedBytes, anonymous_shared, create_shared, open_shared, unlink_shared};
pub use userfaultfd::{Features, Origin};

use large_pages::{kernel_collapses, large_page_bytes};

/// Bytes of a host page, asked of the system.
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}
