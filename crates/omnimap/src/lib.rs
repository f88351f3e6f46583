//! Memory-map anything: a file larger than memory, a compressed one, or an object of a bucket, as an ordinary `&[u8]`, under
//! a memory budget that you set, with errors instead of SIGBUS.
//!
//! ```
//! use omnimap::{MapOptions, Mapping};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("index.bin");
//! # std::fs::write(&path, vec![7u8; 3 << 20])?;
//! // At most 1 MiB of the file is in memory at any time.
//! let mapping: Mapping = MapOptions::new().budget(1 << 20).open(&path)?;
//!
//! // A plain slice: no copies, no calls; what is not in memory is fetched when it is touched.
//! let sum: u64 = mapping.iter().map(|byte| u64::from(*byte)).sum();
//! assert_eq!(sum, 7 * (3 << 20));
//!
//! // The checked way: whatever goes wrong is an error.
//! let mut header = [0; 16];
//! mapping.read_at(0, &mut header)?;
//!
//! // Bytes that cannot fault while the guard lives.
//! let pinned = mapping.pin(4096..8192)?;
//! assert_eq!(pinned[0], 7);
//! # Ok(())
//! # }
//! ```
//!
//! # Objects beyond the machine
//! `Mapping::open("s3://bucket/key")` gives the same slice, with the same guarantees; so do `gs://`, `az://`, `http(s)://` and
//! `file://` ([`MapOptions::open_store`]).
//!
//! # When a raw access fails
//! A slice has no way to return an error. If the store fails, an access through the slice ends the process with SIGBUS,
//! after one line on standard error that says object, offset and cause; a SIGBUS handler that the program had
//! installed before the first mapping still runs. Use [`Mapping::read_at`] or [`Mapping::pin`] where a failure must be
//! survived.
//!
//! # Processes
//! A mapping of this safe API belongs to the process that made it. A forked child does not have it: touching it there is
//! SIGSEGV, and the checked calls answer [`Error::Forked`]. Mappings made by [`posix::mmap()`], of paged objects too, are
//! inherited as fork(2) says, and go on in the child when the parent is gone ([`posix::minherit()`] changes what a child gets).
#![forbid(unsafe_code)]

pub mod alloc;

pub mod kernel;

mod cache;
mod mapping;
mod options;
mod place;
mod residency;
mod source;
mod typed;
mod writable;

pub mod shm;

pub use cache::Cache;
pub use mapping::{Advice, Mapping};
pub use omnimap_core::{Error, PinGuard, Prefetch, Prefetched, Resolution, Result, Stats, WaitingTimes};
pub use omnimap_host::FaultMode;
pub use omnimap_posix as posix;
pub use omnimap_store as store;
pub use omnimap_store::{BackingStore, Format, StoreError};
#[cfg(feature = "remote")]
pub use omnimap_store_object as remote;
#[cfg(feature = "remote")]
pub use omnimap_store_object::{KeptChanges, RemoteCounts, RemoteOptions, RemoteStore, WorkingCopy};
pub use options::MapOptions;
pub use place::Reservation;
pub use residency::Residency;
pub use source::as_url;
pub use writable::{MappingMut, SharedMapping, SyncMode};

/// The machine: what it allows, and its own mappings to compare with.
pub mod machine {
    pub use omnimap_host::linux::{
        FilePages, Finding, KernelFile, KernelFileMut, MappedRange, ObjectKind, Origin, Probe, drop_cached,
        evict_cached, mapped_ranges, mapping_processes, page_bytes, probe,
    };
    pub use omnimap_host::{Ending, Sharing};
}

/// The examples of the README are compiled with those of the documentation.
#[cfg(all(doctest, feature = "remote"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
