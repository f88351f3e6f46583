//! The blocks of an object, and what lies beneath those that were never written.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::file::SwapFile;
use super::index::Index;
use super::place::Place;
use super::pool::Pool;
use super::slots::Slots;
use super::store::{SwapCounts, SwapOptions};
use super::{BLOCK_BYTES, place};
use crate::{BackingStore, Result, StoreError};

/// The blocks that were written; beneath the others shows the base, or zeros.
pub(crate) struct Blocks {
    /// Shows where no block was written, as far as `State::base_end`.
    pub(super) base: Option<Arc<dyn BackingStore>>,
    pub(super) file: SwapFile,
    pub(super) bytes_max: u64,
    state: Mutex<State>,
}

/// Everything that changes, of one moment.
///
/// Beyond the object's end all blocks are absent, and the bytes of its last block are zeros.
pub(super) struct State {
    pub(super) length: u64,
    /// Where the base ends, or was cut off; never beyond `length`, and never grows. 0 without a base.
    pub(super) base_end: u64,
    /// How often the length was set: a write that began before must look again.
    pub(super) resizes: u64,
    pub(super) index: Index,
    pub(super) pool: Pool,
    pub(super) slots: Slots,
}

impl State {
    /// Refuses a write that is not inside the object.
    pub(super) fn check_inside(&self, offset: u64, length: usize) -> Result<()> {
        let (length, end) = (length as u64, self.length);
        if offset.checked_add(length).is_none_or(|e| e > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        Ok(())
    }

    /// Gives up what holds the bytes of a block.
    pub(super) fn release(pool: &mut Pool, slots: &mut Slots, place: Place) {
        match place {
            Place::Absent | Place::Zeros => {}
            Place::Compressed { entry, .. } => pool.remove(entry),
            Place::InFile { slot, .. } => slots.free(slot),
        }
    }
}

/// Slots that were taken; free again when dropped, but for those that were published.
///
/// Not to be dropped while the state is locked, unless empty.
pub(super) struct Taken<'a> {
    blocks: &'a Blocks,
    pub(super) slots: Vec<u32>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.slots.is_empty() {
            let mut state = self.blocks.lock();
            self.slots.iter().for_each(|slot| state.slots.free(*slot));
        }
    }
}

impl Blocks {
    /// No blocks yet.
    pub(crate) fn new(
        length: u64,
        base: Option<Arc<dyn BackingStore>>,
        options: SwapOptions,
    ) -> Result<Blocks> {
        let directory = options.directory.unwrap_or_else(default_directory);
        if !directory.is_dir() {
            let source = match std::fs::metadata(&directory) {
                Ok(_) => Errno::NOTDIR.into(),
                Err(e) => e,
            };
            return Err(StoreError::Open { name: directory.display().to_string(), source });
        }
        let slots_max = options.file_bytes_max.map_or(u64::MAX, |bytes| bytes / BLOCK_BYTES as u64);
        let base_end = if base.is_some() { length } else { 0 };
        Ok(Blocks {
            base,
            file: SwapFile::new(directory),
            bytes_max: options.compressed_bytes_max,
            state: Mutex::new(State {
                length,
                base_end,
                resizes: 0,
                index: Index::default(),
                pool: Pool::new(options.compressed_bytes_max),
                slots: Slots::new(slots_max),
            }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object's length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.lock().length
    }

    /// What is held now.
    pub(crate) fn counts(&self) -> SwapCounts {
        let file_bytes = self.file.bytes();
        let state = self.lock();
        let count = |place| state.index.blocks_like(place);
        SwapCounts {
            blocks_zero: count(Place::Zeros),
            blocks_compressed: count(Place::Compressed { entry: 0, checksum: 0 }),
            compressed_bytes: state.pool.bytes(),
            blocks_in_file: count(Place::InFile { slot: 0, checksum: 0 }),
            file_bytes,
        }
    }

    /// Takes up to `count` slots.
    pub(super) fn take_slots(&self, count: usize) -> Taken<'_> {
        let slots = self.lock().slots.take(count as u32);
        Taken { blocks: self, slots }
    }

    /// Writes whole blocks to slots, neighbours at once.
    pub(super) fn write_slots(&self, slots: &[u32], contents: &[u8]) -> Result<()> {
        let mut done = 0;
        for piece in slots.chunk_by(|a, b| a + 1 == *b) {
            let bytes = piece.len() * BLOCK_BYTES;
            self.file.write(piece[0], &contents[done..done + bytes])?;
            done += bytes;
        }
        Ok(())
    }
}

/// The error of a file that may not grow.
pub(super) fn no_slots(blocks: usize) -> StoreError {
    StoreError::Io {
        action: "swap write",
        length: (blocks * BLOCK_BYTES) as u64,
        source: Errno::NOSPC.into(),
    }
}

/// The error of a block that is not what was written.
pub(super) fn damaged(block: u64) -> StoreError {
    StoreError::Corrupt { what: format!("the swapped bytes at {} are not those written", offset_of(block)) }
}

/// Refuses a block that is not what was written.
pub(super) fn check(block: u64, bytes: &[u8], checksum: u32) -> Result<()> {
    if place::checksum(bytes) == checksum { Ok(()) } else { Err(damaged(block)) }
}

/// Where a block begins.
pub(super) fn offset_of(block: u64) -> u64 {
    block.saturating_mul(BLOCK_BYTES as u64)
}

/// /tmp is often in memory, which is what is short; /var/tmp is not.
fn default_directory() -> PathBuf {
    let usual = PathBuf::from("/var/tmp");
    if usual.is_dir() { usual } else { std::env::temp_dir() }
}
