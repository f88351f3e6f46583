//! Buffers that direct I/O accepts.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// From so many bytes on a buffer is a mapping of its own, and its memory the system's again when it is dropped: the C library
/// keeps up to some MiB of such buffers for each thread that ever had one.
const MAPPED_BYTES_MIN: usize = 256 << 10;

/// Zeroed bytes that begin at a multiple of [`ALIGNMENT`](Self::ALIGNMENT).
///
/// O_DIRECT refuses other memory (open(2), statx(2) `stx_dio_mem_align`).
pub struct AlignedBytes {
    storage: Storage,
    start: usize,
    length: usize,
}

enum Storage {
    Heap(Vec<u8>),
    /// Begins at a page.
    Mapped(MmapMut),
}

impl AlignedBytes {
    /// Enough for every block device that Linux has a page cache for, on hosts with pages of 4 KiB.
    pub const ALIGNMENT: usize = 4096;

    /// A buffer of `length` bytes.
    pub fn new(length: usize) -> AlignedBytes {
        // Where no more can be mapped, the heap may have room.
        if length >= MAPPED_BYTES_MIN
            && let Ok(mapped) = MmapMut::map_anon(length)
        {
            return AlignedBytes { storage: Storage::Mapped(mapped), start: 0, length };
        }
        let bytes = vec![0; length + Self::ALIGNMENT];
        let address = bytes.as_ptr().addr();
        let start = address.next_multiple_of(Self::ALIGNMENT) - address;
        AlignedBytes { storage: Storage::Heap(bytes), start, length }
    }

    /// How many bytes there is room for.
    pub fn capacity(&self) -> usize {
        match &self.storage {
            Storage::Heap(bytes) => bytes.len() - Self::ALIGNMENT,
            Storage::Mapped(mapped) => mapped.len(),
        }
    }

    /// Makes it `length` bytes long, where it is; bytes that it gains are whatever they were before.
    ///
    /// # Panics
    ///
    /// If `length` is more than its [`capacity`](Self::capacity).
    pub fn set_length(&mut self, length: usize) {
        assert!(length <= self.capacity(), "room for {length} bytes");
        self.length = length;
    }
}

impl From<&[u8]> for AlignedBytes {
    /// A copy.
    fn from(bytes: &[u8]) -> AlignedBytes {
        let mut copy = AlignedBytes::new(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let storage: &[u8] = match &self.storage {
            Storage::Heap(bytes) => bytes,
            Storage::Mapped(mapped) => mapped,
        };
        &storage[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let storage: &mut [u8] = match &mut self.storage {
            Storage::Heap(bytes) => bytes,
            Storage::Mapped(mapped) => mapped,
        };
        &mut storage[self.start..self.start + self.length]
    }
}

/// Whether direct I/O takes a transfer as it is.
pub(crate) fn is_aligned(offset: u64, buffer: &[u8]) -> bool {
    let alignment = AlignedBytes::ALIGNMENT;
    offset.is_multiple_of(alignment as u64)
        && buffer.len().is_multiple_of(alignment)
        && buffer.as_ptr().addr().is_multiple_of(alignment)
}
