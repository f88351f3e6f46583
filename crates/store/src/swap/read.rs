//! Reading: look up and hold under the lock, then decompress and read without it.

use std::sync::Arc;

use super::blocks::{Blocks, State, check, damaged, offset_of};
use super::place::Place;
use super::write::RUN_BLOCKS;
use super::{BLOCK_BYTES, place};
use crate::aligned::is_aligned;
use crate::{AlignedBytes, Result, StoreError};

/// What a block was at one moment, held so that it stays readable.
pub(super) enum Held {
    /// Never written.
    Absent,
    /// Zeros.
    Zeros,
    /// In the pool; the bytes are shared with it.
    Compressed { bytes: Arc<[u8]>, checksum: u32 },
    /// In the file; the slot is pinned.
    InFile { slot: u32, checksum: u32 },
}

/// Blocks in a row, all of one moment.
pub(super) struct Snapshot<'a> {
    blocks: &'a Blocks,
    first: u64,
    base_end: u64,
    held: Vec<Held>,
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        let slots = |held: &Held| match held {
            Held::InFile { slot, .. } => Some(*slot),
            _ => None,
        };
        if self.held.iter().any(|held| slots(held).is_some()) {
            let mut state = self.blocks.lock();
            self.held.iter().filter_map(slots).for_each(|slot| state.slots.unpin(slot));
        }
    }
}

impl Snapshot<'_> {
    /// Whether the first block is still what it was.
    ///
    /// Equal numbers do not deceive: what is held is not reused.
    pub(super) fn is_current(&self, state: &State) -> bool {
        match (state.index.get(self.first), self.held.first()) {
            (Place::Absent, Some(Held::Absent)) => state.base_end == self.base_end,
            (Place::Zeros, Some(Held::Zeros)) => true,
            (Place::Compressed { entry, .. }, Some(Held::Compressed { bytes, .. })) => {
                state.pool.is_same(entry, bytes)
            }
            (Place::InFile { slot: now, .. }, Some(Held::InFile { slot, .. })) => now == *slot,
            _ => false,
        }
    }

    /// Whether the first block has bytes of its own.
    pub(super) fn is_stored(&self) -> bool {
        matches!(self.held.first(), Some(Held::Compressed { .. } | Held::InFile { .. }))
    }
}

impl Blocks {
    /// Reads what there is of the object at `offset`; returns how many bytes.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let Some(at) = offset.checked_add(done as u64) else { break };
            let skip = (at % BLOCK_BYTES as u64) as usize;
            let wanted = (into.len() - done).min(RUN_BLOCKS * BLOCK_BYTES - skip);
            let (snapshot, count) = self.hold(at, wanted);
            self.fill(&snapshot, skip, &mut into[done..done + count])?;
            done += count;
            if count < wanted {
                break;
            }
        }
        Ok(done)
    }

    /// Holds the blocks of a range, as far as the object goes; and how far that is.
    pub(super) fn hold(&self, offset: u64, wanted: usize) -> (Snapshot<'_>, usize) {
        let mut state = self.lock();
        let count = state.length.saturating_sub(offset).min(wanted as u64) as usize;
        let first = offset / BLOCK_BYTES as u64;
        let blocks = match count {
            0 => 0,
            _ => (offset + count as u64 - 1) / BLOCK_BYTES as u64 + 1 - first,
        };
        let held = (first..first + blocks).map(|block| state.hold(block)).collect();
        (Snapshot { blocks: self, first, base_end: state.base_end, held }, count)
    }

    /// Fills `into` with the bytes of a snapshot, from `skip` bytes behind its first block's begin on.
    pub(super) fn fill(&self, snapshot: &Snapshot<'_>, skip: usize, into: &mut [u8]) -> Result<()> {
        let (mut index, mut skip, mut rest) = (0, skip, into);
        while let Some(held) = snapshot.held.get(index..)
            && !held.is_empty()
            && !rest.is_empty()
        {
            let block = snapshot.first + index as u64;
            let count = held.windows(2).take_while(|pair| pair[0].leads_to(&pair[1])).count() + 1;
            let bytes = (count * BLOCK_BYTES - skip).min(rest.len());
            let (part, after) = rest.split_at_mut(bytes);
            match &held[0] {
                Held::Absent => self.read_base(offset_of(block) + skip as u64, snapshot.base_end, part)?,
                Held::Zeros => part.fill(0),
                Held::Compressed { bytes, checksum } => {
                    let whole = |out: &mut [u8]| unpack(block, bytes, *checksum, out);
                    fill_part(BLOCK_BYTES, skip, part, Needs::Nothing, whole)?;
                }
                Held::InFile { slot, .. } => {
                    let whole = |out: &mut [u8]| self.read_slots(block, *slot, &held[..count], out);
                    fill_part(count * BLOCK_BYTES, skip, part, Needs::Alignment, whole)?;
                }
            }
            (index, skip, rest) = (index + count, 0, after);
        }
        Ok(())
    }

    /// Reads neighbouring slots into whole, aligned blocks.
    fn read_slots(&self, first: u64, slot: u32, held: &[Held], into: &mut [u8]) -> Result<()> {
        self.file.read(slot, into)?;
        for ((block, held), bytes) in (first..).zip(held).zip(into.chunks(BLOCK_BYTES)) {
            if let Held::InFile { checksum, .. } = held {
                check(block, bytes, *checksum)?;
            }
        }
        Ok(())
    }

    /// Reads what lies beneath: the base as far as it shows, then zeros.
    fn read_base(&self, offset: u64, base_end: u64, into: &mut [u8]) -> Result<()> {
        let wanted = base_end.saturating_sub(offset).min(into.len() as u64) as usize;
        let (shown, beyond) = into.split_at_mut(wanted);
        beyond.fill(0);
        let Some(base) = &self.base else { return Ok(()) };
        if shown.is_empty() {
            return Ok(());
        }
        let got = base.read_at(offset, shown)?;
        if got < wanted {
            return Err(StoreError::Short { wanted: wanted as u64, got: got as u64 });
        }
        Ok(())
    }
}

impl State {
    fn hold(&mut self, block: u64) -> Held {
        match self.index.get(block) {
            Place::Absent => Held::Absent,
            Place::Zeros => Held::Zeros,
            Place::Compressed { entry, checksum } => {
                // The index leads to no other entries than there are.
                let bytes = self.pool.get(entry).map_or_else(|| Arc::from([]), Arc::clone);
                Held::Compressed { bytes, checksum }
            }
            Place::InFile { slot, checksum } => {
                self.slots.pin(slot);
                Held::InFile { slot, checksum }
            }
        }
    }
}

impl Held {
    /// Whether the next block is read together with this one.
    fn leads_to(&self, next: &Held) -> bool {
        match (self, next) {
            (Held::Absent, Held::Absent) | (Held::Zeros, Held::Zeros) => true,
            (Held::InFile { slot, .. }, Held::InFile { slot: next, .. }) => slot + 1 == *next,
            _ => false,
        }
    }
}

/// What memory whole blocks can be put into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Alignment,
}

/// Lets `whole` fill all of `length` bytes, in `part` if that is all of them and will do, else beside it.
fn fill_part(
    length: usize,
    skip: usize,
    part: &mut [u8],
    needs: Needs,
    whole: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<()> {
    if part.len() == length && (needs == Needs::Nothing || is_aligned(0, part)) {
        return whole(part);
    }
    let mut beside = AlignedBytes::new(length);
    whole(&mut beside)?;
    part.copy_from_slice(&beside[skip..skip + part.len()]);
    Ok(())
}

/// Decompresses a block, and checks it.
pub(super) fn unpack(block: u64, bytes: &[u8], checksum: u32, into: &mut [u8]) -> Result<()> {
    match lz4_flex::block::decompress_into(bytes, into) {
        Ok(BLOCK_BYTES) if place::checksum(into) == checksum => Ok(()),
        _ => Err(damaged(block)),
    }
}
