//! Allocators that take their memory from mappings.
//!
//! | | for |
//! |---|---|
//! | [`MappedAllocator`] | a whole program: `#[global_allocator]`, over the kernel's anonymous memory |
//! | [`Heap`], made by [`MapOptions::heap`] | collections larger than memory, under a budget |
//! | [`SharedHeap`], over [`SharedMapping::cells`](crate::SharedMapping::cells) | what threads and processes share, in a file if it is to stay |
//!
//! All of them carve small blocks from larger ones, and map large blocks (256 KiB, unless that is set) one by one, but
//! for the last, which has only what it was given.

pub use omnimap_alloc::{
    AllocError, Allocator, Box, Heap, LARGE_BYTES_MIN_DEFAULT, MappedAllocator, Piece, Purpose, SharedHeap,
    Vec,
};
use omnimap_core::Result;

use crate::MapOptions;

/// Addresses that an arena takes. They cost nothing before they are used, and a mapping costs descriptors.
const ARENA_BYTES: usize = 1 << 30;

impl MapOptions {
    /// An allocator whose memory is [anonymous](Self::anonymous) mappings that share one budget: `Vec`, `Box`, maps, larger
    /// than memory if need be.
    ///
    /// Large blocks are mapped one by one, each with a descriptor (ulimit -n), and a second one when it has to go to
    /// [swap](Self::swap). In the bound of compressed memory is an arena of 1 GiB; large blocks go to the file at once.
    /// Offset, length and reserve have no meaning here. What cannot be mapped is an [`AllocError`], and the reason an event of
    /// `tracing`.
    ///
    /// # Errors
    /// If the machine does not allow a mapping.
    ///
    /// # Example
    /// ```
    /// use omnimap::MapOptions;
    /// use omnimap::alloc::Vec;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let heap = MapOptions::new().budget(4 << 20).heap()?;
    /// let mut names: Vec<u64, _> = Vec::new_in(heap.clone());
    /// names.extend(0..2_000_000); // 16 MB, of which 4 are in memory.
    /// assert_eq!(names[1_234_567], 1_234_567);
    ///
    /// let mut table = heap.zeroed_slice::<u32>(1 << 34).map_err(|_| "no addresses")?;
    /// table[1 << 33] = 7;
    /// # Ok(())
    /// # }
    /// ```
    pub fn heap(&self) -> Result<Heap> {
        let mut arena = self.clone();
        arena.cache(&self.cache_to_use()?).offset(0).reserve(0);
        arena.length = None;
        let mut block = arena.clone();
        block.swap.compressed_bytes_max = 0;
        Ok(Heap::new(ARENA_BYTES, move |bytes, purpose| {
            let options = if purpose == Purpose::Arena { &arena } else { &block };
            match options.anonymous(bytes as u64) {
                Ok(mapping) => Some(Piece::zeros(mapping)),
                Err(error) => {
                    tracing::warn!(bytes, %error, "no memory for a heap");
                    None
                }
            }
        }))
    }
}
