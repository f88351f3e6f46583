//! Moving the pool's oldest blocks to the file.

use super::BLOCK_BYTES;
use super::blocks::{Blocks, no_slots};
use super::place::Place;
use super::pool::Leaving;
use crate::{AlignedBytes, Result};

impl Blocks {
    /// Moves as many of these as find room, oldest first; if none does, or the file fails, all stay where they are.
    pub(super) fn spill(&self, mut leaving: Vec<Leaving>) -> Result<()> {
        let mut taken = self.take_slots(leaving.len());
        let staying = leaving.split_off(taken.slots.len());
        let wanted = leaving.len() + staying.len();
        self.stay(&staying);
        if leaving.is_empty() {
            return Err(no_slots(wanted));
        }
        // Neighbours are read together: let them be neighbours in the file.
        leaving.sort_unstable_by_key(|leaving| leaving.block);
        let mut contents = AlignedBytes::new(leaving.len() * BLOCK_BYTES);
        for (leaving, block) in leaving.iter().zip(contents.chunks_mut(BLOCK_BYTES)) {
            // What was damaged in memory keeps the checksum of what it was, so that the reader is told.
            let _ = lz4_flex::block::decompress_into(&leaving.bytes, block);
        }
        if let Err(e) = self.write_slots(&taken.slots, &contents) {
            self.stay(&leaving);
            return Err(e);
        }
        let mut unused = Vec::new();
        let mut state = self.lock();
        for (leaving, slot) in leaving.iter().zip(taken.slots.drain(..)) {
            match state.index.get(leaving.block) {
                Place::Compressed { entry, checksum }
                    if entry == leaving.entry && state.pool.is_same(entry, &leaving.bytes) =>
                {
                    state.index.set(leaving.block, Place::InFile { slot, checksum });
                    state.pool.remove(entry);
                }
                // Written anew, or gone, meanwhile.
                _ => unused.push(slot),
            }
        }
        unused.into_iter().for_each(|slot| state.slots.free(slot));
        Ok(())
    }

    /// Puts blocks back into the queue, in the order they had.
    fn stay(&self, leaving: &[Leaving]) {
        if !leaving.is_empty() {
            let mut state = self.lock();
            leaving.iter().rev().for_each(|leaving| state.pool.give_back(leaving));
        }
    }
}
