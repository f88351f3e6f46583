//! The mmap family of calls: as the manual pages have them, on every kind of object.
//!
//! Owns: which of our mappings is where, with which protection, sharing, lock and inheritance ([`AddressSpace`]); the
//! errors of the calls, in the order in which the kernel finds them.
//!
//! Does not own: how a paged object gets its pages (`omnimap-core`), or what the kernel does by itself: a call about
//! the kernel's own mappings is the kernel's call.
//!
//! # What the calls work on
//! | kind of object | how it is given to [`mmap()`] | who serves it |
//! |---|---|---|
//! | anonymous memory | [`Source::Anonymous`] | the kernel |
//! | file, device, shared memory | [`Source::Descriptor`] | the kernel |
//! | paged | [`Source::Object`] | the engine: a store behind a cache, under a budget |
//!
//! All other calls take addresses, and a range may hold mappings of several kinds, others' too.
//!
//! # Ranges
//! ```text
//! mmap       [--------------- a ---------------]
//! mprotect   [---- a ----][ a, read ][--- a ---]      split where it must be
//! munmap     [---- a ----]           [--- a ---]      the rest stays
//! mremap     [---- a ----]     ...             [------- a -------]
//! ```
//!
//! # Errors
//! All calls answer with an [`Errno`], the kernel's for the same mistake on its own mapping. What the engine adds: `EIO`
//! (or `ENOSPC`, `EDQUOT`) where a store failed, `ENOMEM` where the budget does not allow to lock more.
//!
//! # Safety
//! The calls that change what addresses mean are unsafe: they can take memory away from code that uses it. A mapping is
//! used through its raw address; nothing is borrowed.

mod address_space;
mod errno;
mod family;
mod flags;
mod fork;
mod mapping;
mod object;
mod range;

mod brk;
mod copied;
mod madvise;
mod mincore;
mod minherit;
mod mlock;
mod mlockall;
mod mmap;
mod mprotect;
mod mremap;
mod msync;
mod munmap;
mod remap_file_pages;
mod shm;

pub use address_space::AddressSpace;
pub use brk::{DataSegment, brk, sbrk};
pub use errno::{Errno, Result};
pub use flags::{Advice, LockAll, LockOn, MapFlags, Prot, RemapFlags, SyncFlags};
pub use madvise::{madvise, posix_madvise};
pub use mapping::{Inheritance, Kind, Mapping};
pub use mincore::mincore;
pub use minherit::minherit;
pub use mlock::{mlock, mlock2, munlock};
pub use mlockall::{mlockall, munlockall};
pub use mmap::{Source, mmap};
pub use mprotect::mprotect;
pub use mremap::mremap;
pub use msync::msync;
pub use munmap::munmap;
pub use object::{Object, Rights};
pub use remap_file_pages::remap_file_pages;
pub use shm::{shm_open, shm_unlink};
