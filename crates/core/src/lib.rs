//! The engine of Omnimap.
//!
//! Owns: page states, faults and what becomes of them, fills, the budget, eviction, readahead, pins. It is policy
//! throughout, in safe code.
//!
//! Does not own: how memory, faults and signals are had from a machine (`omnimap-host`), or bytes from a store
//! (`omnimap-store`); it knows the traits of both.
//!
//! # Life of a fault
//! ```text
//! thread touches a hole → workers: take → AddressSpace::locate → Streams::on_fault (how much)
//!   → MemoryObject::claim ── Resident → wake
//!                         ├─ Joined → nothing; whoever fills wakes
//!                         └─ Mine → Fill::run: make_room (evict) → store.read_at → memory.fill → Clean → wake
//! ```
#![forbid(unsafe_code)]

mod address_map;
mod address_space;
mod budget;
mod cache;
mod durable;
mod early_wake;
mod error;
mod evict;
mod exit;
mod fill;
mod fillers;
mod held;
mod kin;
mod large;
mod location;
mod locks;
mod lone_misses;
mod mapped_view;
mod object;
mod page_table;
mod placed;
mod prefetch;
mod runs;
mod snapshot;
mod spare_bytes;
mod stats;
mod stores;
mod stride;
mod sync;
mod transit;
mod workers;
mod write_back;

pub mod page_state;
pub mod readahead;
pub mod replacement;
pub mod units;

pub use address_map::{AddressMap, Span};
pub use cache::{CacheOptions, PageCache};
pub use error::{Error, Result};
pub use exit::CachesHeld;
pub use location::Location;
pub use mapped_view::{MappedView, PinGuard};
pub use object::MemoryObject;
pub use placed::GivenUp;
pub use prefetch::{Prefetch, Prefetched};
pub use readahead::Pattern;
pub use stats::{Resolution, Stats, WaitingTimes};
