//! Writes: blocks into slots.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::journaled::Journaled;
use super::record::{BLOCK_BYTES, slot_offset};
use super::turns::Kind;
use crate::{AlignedBytes, BackingStore, Result, StoreError, WriteAt};

/// Slots that lie one behind the other are written in one transfer up to so many bytes, whose copy that takes.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// Bytes for blocks that follow one another.
enum Piece<'a> {
    /// A block of which only a part is written: as it is to be.
    Edge(AlignedBytes),
    Whole(&'a [u8]),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Edge(bytes) => bytes,
            Piece::Whole(bytes) => bytes,
        }
    }
}

/// Slots that go back if the write that took them fails.
struct Fresh<'a> {
    journaled: &'a Journaled,
    slots: Vec<u64>,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if !self.slots.is_empty() {
            self.journaled.ledger().give_back(&self.slots);
        }
    }
}

/// Whether no two writes touch the same block, and each comes behind the one before.
pub(super) fn are_apart(writes: &[WriteAt<'_>]) -> bool {
    let behind = |pair: &[WriteAt<'_>]| match (blocks(&pair[0]), blocks(&pair[1])) {
        (Some(before), Some(after)) => before.end <= after.start,
        _ => false,
    };
    writes.windows(2).all(behind)
}

/// The blocks that a write touches; none if it ends where no object can.
fn blocks(write: &WriteAt<'_>) -> Option<Range<u64>> {
    let end = write.offset.checked_add(write.bytes.len() as u64)?;
    Some(write.offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES))
}

impl Journaled {
    /// Makes all of several writes, which must be [apart](are_apart), or fails.
    pub(super) fn write_together(&self, writes: &[WriteAt<'_>]) -> Result<()> {
        let beyond = |write: &WriteAt<'_>, end| {
            let (offset, length) = (write.offset, write.bytes.len() as u64);
            StoreError::BeyondEnd { offset, length, end }
        };
        let blocks_of = |write| blocks(write).ok_or_else(|| beyond(write, self.len()));
        let blocks: Vec<Range<u64>> = writes.iter().map(blocks_of).collect::<Result<_>>()?;
        let _turn = self.turn_to_change(Kind::Write, blocks.clone())?;
        // It stays: changing it is done alone.
        let length = self.len();
        if let Some(write) = writes.iter().find(|w| w.offset + w.bytes.len() as u64 > length) {
            return Err(beyond(write, length));
        }
        let (mut pieces, mut placed) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        for (write, blocks) in writes.iter().zip(blocks).filter(|(write, _)| !write.bytes.is_empty()) {
            self.cut(write, length, &mut pieces)?;
            placed.push(blocks);
        }
        let full = StoreError::JournalFull { limit_bytes: self.bytes_max };
        let placement = self.ledger().place(&placed).ok_or(full)?;
        let mut fresh = Fresh { journaled: self, slots: placement.fresh };
        if let Some(last) = fresh.slots.iter().max() {
            self.make_room(slot_offset(last + 1))?;
        }
        self.write_slots(&placement.slots, &pieces)?;
        let sums: Vec<u64> =
            pieces.iter().flat_map(|piece| piece.bytes().chunks(BLOCK_BYTES as usize)).map(xxh3_64).collect();
        let mut ledger = self.ledger();
        for ((index, slot), sum) in placed.into_iter().flatten().zip(placement.slots).zip(sums) {
            ledger.put(index, slot, sum);
        }
        drop(ledger);
        fresh.slots.clear();
        Ok(())
    }

    /// Cuts a write to an object of `length` bytes into whole blocks, and the blocks at its ends, if it has a part of them.
    fn cut<'a>(&self, write: &WriteAt<'a>, length: u64, pieces: &mut Vec<Piece<'a>>) -> Result<()> {
        let (offset, end) = (write.offset, write.offset + write.bytes.len() as u64);
        let touched = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let whole = offset.div_ceil(BLOCK_BYTES)..end / BLOCK_BYTES;
        if touched.start < whole.start {
            pieces.push(Piece::Edge(self.edge(touched.start, write, length)?));
        }
        if whole.start < whole.end {
            let (start, end) = (whole.start * BLOCK_BYTES - offset, whole.end * BLOCK_BYTES - offset);
            pieces.push(Piece::Whole(&write.bytes[start as usize..end as usize]));
        }
        if whole.end < touched.end && whole.end >= whole.start {
            pieces.push(Piece::Edge(self.edge(whole.end, write, length)?));
        }
        Ok(())
    }

    /// The block at an end of a write that is no whole block: as it is to be.
    fn edge(&self, index: u64, write: &WriteAt<'_>, length: u64) -> Result<AlignedBytes> {
        let (offset, bytes) = (write.offset, write.bytes);
        let start = index * BLOCK_BYTES;
        let written = offset.max(start)..(offset + bytes.len() as u64).min(start + BLOCK_BYTES);
        let there = length.min(start + BLOCK_BYTES);
        let mut block = AlignedBytes::new(BLOCK_BYTES as usize);
        if written.start > start || written.end < there {
            self.read_parts(start, &mut block[..(there - start) as usize])?;
        }
        let from = &bytes[(written.start - offset) as usize..(written.end - offset) as usize];
        block[(written.start - start) as usize..][..from.len()].copy_from_slice(from);
        Ok(block)
    }

    /// Writes whole blocks to their slots: those in a row together.
    fn write_slots(&self, slots: &[u64], pieces: &[Piece<'_>]) -> Result<()> {
        let mut transfers: Vec<(u64, &[u8])> = Vec::new();
        let mut slots = slots;
        for piece in pieces {
            let mut bytes = piece.bytes();
            let (here, rest) = slots.split_at(bytes.len() / BLOCK_BYTES as usize);
            slots = rest;
            for run in here.chunk_by(|before, after| before + 1 == *after) {
                let (now, later) = bytes.split_at(run.len() * BLOCK_BYTES as usize);
                bytes = later;
                transfers.push((slot_offset(run[0]), now));
            }
        }
        let follows =
            |before: &(u64, &[u8]), after: &(u64, &[u8])| before.0 + before.1.len() as u64 == after.0;
        for row in transfers.chunk_by(follows) {
            let count = row.iter().map(|(_, bytes)| bytes.len()).sum();
            if row.len() == 1 || count > GATHERED_BYTES_MAX {
                row.iter().try_for_each(|(offset, bytes)| self.journal.write_at(*offset, bytes))?;
                continue;
            }
            let mut gathered = AlignedBytes::new(count);
            let mut at = 0;
            for (_, bytes) in row {
                gathered[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            }
            self.journal.write_at(row[0].0, &gathered)?;
        }
        Ok(())
    }
}
