//! Where an object's bytes come from and go to.
//!
//! Owns: the [`BackingStore`] contract, the stores that need no network (memory, swap, file, seekable zstd, private
//! copies), decorators that add to any store, the [`journal`] that makes a store's sync all or nothing, and the
//! [`conformance`] suite that all of them pass.
//!
//! Does not own: pages, addresses, mappings or caching across reads. A store knows offsets and bytes, nothing else.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod journal;

mod aligned;
mod backing_store;
mod decorate;
mod error;
mod file;
mod memory;
mod open;
mod private;
mod swap;
mod tier;
mod zstd;

pub use aligned::AlignedBytes;
pub use backing_store::{Answers, BackingStore, ReadAt, Transfer, Version, Writability, WriteAt};
pub use decorate::Decorator;
pub use decorate::counting::{Counting, Counts};
pub use decorate::faulty::{Faulty, Misbehaviour};
pub use decorate::power_cut::{Failure, Fate, PowerCut, PowerSupply};
pub use decorate::throttled::{Throttle, Throttled};
pub use decorate::verified::Verified;
pub use error::{Result, StoreError, catch};
pub use file::FileStore;
pub use journal::{JournalOptions, Journaled};
pub use memory::MemoryStore;
pub use open::{Format, open, unpack};
pub use private::PrivateStore;
pub use swap::store::{SwapCounts, SwapOptions, SwapStore};
pub use tier::DiskTier;
pub use zstd::pack::{PackOptions, Packed, pack};
pub use zstd::store::ZstdStore;
