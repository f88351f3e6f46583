//! Objects beyond the machine as stores: S3, Google Cloud Storage, Azure, and what web servers have.
//!
//! Owns: URLs, credentials, ranged requests and their repetition, versions as servers name them, and uploads. This is the
//! only crate with an HTTP stack and an asynchronous runtime; both are hidden in it.
//!
//! Does not own: the protocols, which are those of the crate `object_store`; what a store promises, which is
//! [`BackingStore`](omnimap_store::BackingStore)'s contract; caching.
#![forbid(unsafe_code)]

mod changes;
mod conditional;
mod connect;
mod create;
mod failure;
mod fetch;
mod kept;
mod location;
mod merge;
mod network;
mod options;
mod profile;
mod remote;
mod upload;
mod upload_note;
mod upload_parts;
mod version;
mod working_copy;

pub use create::{put, put_resuming};
pub use kept::KeptChanges;
pub use location::local_path;
pub use options::RemoteOptions;
pub use remote::{RemoteCounts, RemoteStore};
pub use working_copy::WorkingCopy;
