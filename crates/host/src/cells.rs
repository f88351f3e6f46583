//! Wider atomics in place of bytes.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// The cells as 32-bit atomics of the machine's byte order; `None` unless they begin and end at multiples of 4 bytes.
pub fn as_u32(cells: &[AtomicU8]) -> Option<&[AtomicU32]> {
    // SAFETY: AtomicU32 has the size and validity of u32, for which every pattern of bytes is valid, and bytes in atomic
    // cells may be changed through a shared reference. `align_to` gives only what is aligned.
    let (before, words, after) = unsafe { cells.align_to::<AtomicU32>() };
    (before.is_empty() && after.is_empty()).then_some(words)
}

/// As [`as_u32`], with 64 bits and multiples of 8.
pub fn as_u64(cells: &[AtomicU8]) -> Option<&[AtomicU64]> {
    // SAFETY: as above.
    let (before, words, after) = unsafe { cells.align_to::<AtomicU64>() };
    (before.is_empty() && after.is_empty()).then_some(words)
}
