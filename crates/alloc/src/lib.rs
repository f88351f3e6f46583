//! Allocators that take their memory from mappings.
//!
//! Owns: which block is where. Small blocks are carved from arenas, by dlmalloc (the crate's algorithm, over our pages);
//! blocks from a size on are mapped and unmapped one by one, so that they go back to the system when they are freed.
//!
//! Does not own: how memory is mapped. The global allocator takes the kernel's anonymous pages; a [`Heap`] is told
//! where to get its pieces, which may be paged objects under a budget; a [`SharedHeap`] carves memory that it is given.
//!
//! | | for | memory | across processes |
//! |---|---|---|---|
//! | [`MappedAllocator`] | `#[global_allocator]` | the kernel's, anonymous | a forked child goes on with its copy |
//! | [`Heap`] | `Vec`, `Box`, maps of one part of a program | mappings made as they are needed | no |
//! | [`SharedHeap`] | atomics that several processes use | one shared mapping | yes, also when one is killed |
//!
//! # Unsafe code
//! An allocator hands out addresses, so this crate has unsafe code beside `omnimap-host`. It is in `global`, `kernel`,
//! `heap` and `pieces`; [`SharedHeap`] has none.

mod global;
mod heap;
mod kernel;
mod pieces;
mod shared;

pub use allocator_api2::alloc::{AllocError, Allocator};
pub use allocator_api2::boxed::Box;
pub use allocator_api2::vec::Vec;
pub use global::MappedAllocator;
pub use heap::Heap;
pub use pieces::{Piece, Purpose};
pub use shared::SharedHeap;

/// Blocks of so many bytes and more are mapped one by one, unless that is set: 256 KiB.
pub const LARGE_BYTES_MIN_DEFAULT: usize = 256 << 10;
