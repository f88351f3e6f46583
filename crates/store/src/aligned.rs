//! Buffers that direct I/O accepts.

use std::ops::{Deref, DerefMut};

/// Zeroed bytes that begin at a multiple of [`ALIGNMENT`](Self::ALIGNMENT).
///
/// O_DIRECT refuses other memory (open(2), statx(2) `stx_dio_mem_align`).
pub struct AlignedBytes {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// Enough for every block device that Linux has a page cache for, on hosts with pages of 4 KiB.
    pub const ALIGNMENT: usize = 4096;

    /// A buffer of `length` bytes.
    pub fn new(length: usize) -> AlignedBytes {
        let storage = vec![0; length + Self::ALIGNMENT];
        let address = storage.as_ptr().addr();
        let start = address.next_multiple_of(Self::ALIGNMENT) - address;
        AlignedBytes { storage, start, length }
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
        &self.storage[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }
}

/// Whether direct I/O takes a transfer as it is.
pub(crate) fn is_aligned(offset: u64, buffer: &[u8]) -> bool {
    let alignment = AlignedBytes::ALIGNMENT;
    offset.is_multiple_of(alignment as u64)
        && buffer.len().is_multiple_of(alignment)
        && buffer.as_ptr().addr().is_multiple_of(alignment)
}
