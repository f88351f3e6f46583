//! Buffers for bytes on their way, kept from one transfer for the next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use omnimap_store::AlignedBytes;

use crate::fillers::AHEAD_BYTES_MAX;

/// What is kept at the most, in bytes and as a part of the budget: with less than a scan has under way, the rest is mapped anew
/// for each of its pieces.
const KEPT_BYTES_MAX: u64 = AHEAD_BYTES_MAX;
const KEPT_BUDGET_SHARE: u64 = 16;
/// And so many, for they are looked through.
const KEPT_MAX: usize = 64;

/// What earlier transfers have left: a new buffer has to be zeroed, and a large one mapped, which costs a tenth of what a fill
/// takes.
pub(crate) struct SpareBytes {
    bytes_max: u64,
    /// Not under the model's locks: nobody waits for anything with it held.
    kept: Mutex<Vec<AlignedBytes>>,
}

impl SpareBytes {
    pub(crate) fn new(budget_bytes: u64) -> SpareBytes {
        SpareBytes { bytes_max: KEPT_BYTES_MAX.min(budget_bytes / KEPT_BUDGET_SHARE), kept: Mutex::default() }
    }

    /// A buffer of so many bytes, with any content.
    pub(crate) fn take(&self, bytes: usize) -> AlignedBytes {
        // Pieces of a scan are of all lengths, as there is room for them: few capacities make the buffers fit the next.
        let capacity = bytes.next_power_of_two();
        let mut kept = self.kept();
        let found =
            kept.iter().rposition(|buffer| buffer.capacity() == capacity).map(|at| kept.swap_remove(at));
        drop(kept);
        let mut buffer = found.unwrap_or_else(|| AlignedBytes::new(capacity));
        buffer.set_length(bytes);
        buffer
    }

    /// Keeps a buffer for the next transfer, if there is room for it.
    pub(crate) fn keep(&self, buffer: AlignedBytes) {
        let mut kept = self.kept();
        let bytes: usize = kept.iter().map(AlignedBytes::capacity).sum();
        if kept.len() < KEPT_MAX && (bytes + buffer.capacity()) as u64 <= self.bytes_max {
            kept.push(buffer);
        }
    }

    /// Gives back what is kept: there are no transfers just now.
    pub(crate) fn clear(&self) {
        let kept = std::mem::take(&mut *self.kept());
        drop(kept);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<AlignedBytes>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_not_too_many_are_kept() {
        let spare = SpareBytes::new(32 << 20);
        let first = spare.take(4096);
        let address = first.as_ptr();
        spare.keep(first);
        assert_ne!(spare.take(8192).as_ptr(), address);
        let again = spare.take(4096);
        assert_eq!(again.as_ptr(), address);
        let larger = spare.take(8192);
        let address = larger.as_ptr();
        spare.keep(larger);
        let shorter = spare.take(5000);
        assert_eq!((shorter.as_ptr(), shorter.len()), (address, 5000), "pieces of other lengths");
        (0..10).for_each(|_| spare.keep(AlignedBytes::new(1 << 20)));
        assert_eq!(spare.kept().len(), 2, "a part of the budget");
        let spare = SpareBytes::new(1 << 30);
        (0..KEPT_MAX).for_each(|_| spare.keep(AlignedBytes::new(1 << 20)));
        assert_eq!(spare.kept().len() as u64, KEPT_BYTES_MAX >> 20, "in all");
        spare.clear();
        (0..100).for_each(|_| spare.keep(AlignedBytes::new(4096)));
        assert_eq!(spare.kept().len(), KEPT_MAX);
    }
}
