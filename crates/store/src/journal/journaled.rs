//! The decorator: reads, writes and lengths of a transaction.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::apply::{mismatch, read_whole};
use super::file::JournalFile;
use super::ledger::{Ledger, Source};
use super::record::{BLOCK_BYTES, slot_offset};
use super::recover::{Recovered, recover};
use super::turns::{EVERYTHING, Kind, Turn, Turns};
use crate::{AlignedBytes, Answers, BackingStore, Result, StoreError, Transfer, Writability};

/// How a journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalOptions {
    /// The most bytes that the journal may have, and with it a transaction: about 4120 bytes for each 4096 that are
    /// written. Less than 64 KiB counts as that.
    pub bytes_max: u64,
}

impl JournalOptions {
    /// The least limit that counts.
    pub const BYTES_MIN: u64 = 64 << 10;
}

impl Default for JournalOptions {
    /// 1 GiB.
    fn default() -> Self {
        JournalOptions { bytes_max: 1 << 30 }
    }
}

/// The first length of a journal; it doubles from there.
const GROWTH_BYTES: u64 = 1 << 20;

/// A store whose sync is all or nothing.
///
/// What is written goes to a journal and is read back from there; [`sync`](BackingStore::sync) brings it to the object
/// together. Whatever moment the process or the machine dies, the object has after the next opening all that was changed
/// up to one call of `sync`: the last that was answered, or one that was under way or failed after it.
///
/// What was not synced when the store is dropped is given up. A transaction is bounded by
/// [`JournalOptions::bytes_max`]; what does not fit is refused with [`StoreError::JournalFull`].
///
/// **After a crash nobody else may write to the object before the journal is recovered**: recovery puts the blocks of the
/// transaction over whatever is there then. Only another length is noticed.
///
/// A write to bytes that are no whole blocks (4096 bytes) reads the block around them. Memory: about 64 bytes for each
/// block of the transaction, and 32 MiB while it is brought to the object.
pub struct Journaled {
    pub(super) object: Arc<dyn BackingStore>,
    pub(super) journal: Arc<dyn BackingStore>,
    pub(super) turns: Turns,
    growth: Turns,
    ledger: Mutex<Ledger>,
    bytes_max: u64,
    recovered: Option<Recovered>,
    /// Set if the journal is a file beside the object's.
    pub(super) file: Option<JournalFile>,
}

impl Journaled {
    /// Puts a journal before an object; what the journal has of a committed transaction is brought to the object first.
    ///
    /// Both must be writable, and nobody else may use them meanwhile.
    ///
    /// # Errors
    /// If one of them is read-only, or fails; if `journal` is something else than a journal, or one of another format;
    /// if it holds a transaction of another object.
    pub fn open(
        object: Arc<dyn BackingStore>,
        journal: Arc<dyn BackingStore>,
        options: JournalOptions,
    ) -> Result<Journaled> {
        for store in [&object, &journal] {
            if store.writability() == Writability::ReadOnly {
                return Err(StoreError::Unusable {
                    name: store.name().to_owned(),
                    reason: "is read-only, and a journal writes to it".to_owned(),
                });
            }
        }
        let (sequence, recovered) = recover(&*object, &*journal)?;
        let bytes_max = options.bytes_max.max(JournalOptions::BYTES_MIN);
        let ledger = Mutex::new(Ledger::new(object.len(), sequence, bytes_max));
        let (turns, growth) = (Turns::default(), Turns::default());
        Ok(Journaled { object, journal, turns, growth, ledger, bytes_max, recovered, file: None })
    }

    /// What the opening brought to the object.
    pub fn recovered(&self) -> Option<Recovered> {
        self.recovered
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the journal at least so long: in large steps, for each is a change that its sync has to make durable.
    pub(super) fn make_room(&self, end: u64) -> Result<()> {
        if self.journal.len() >= end {
            return Ok(());
        }
        let _one = self.growth.take(Kind::Alone, EVERYTHING);
        let length = self.journal.len();
        if length >= end {
            return Ok(());
        }
        let doubled = length.saturating_mul(2).max(GROWTH_BYTES).min(self.bytes_max);
        self.journal.set_len(doubled.max(end))
    }

    /// A turn to change something, when no committed transaction is left to be applied.
    fn turn_to_change(&self, kind: Kind, blocks: Range<u64>) -> Result<Turn<'_>> {
        loop {
            let turn = self.turns.take(kind, blocks.clone());
            if !self.ledger().is_committed() {
                return Ok(turn);
            }
            drop(turn);
            let turn = self.turns.take(Kind::Commit, EVERYTHING);
            self.finish(&turn)?;
        }
    }

    /// Reads bytes that lie inside the object; the caller has a turn.
    fn read_parts(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let parts = self.ledger().parts(offset..offset + into.len() as u64);
        for part in parts {
            let (start, end) = ((part.bytes.start - offset) as usize, (part.bytes.end - offset) as usize);
            let into = &mut into[start..end];
            match &part.source {
                Source::Object => read_whole(&*self.object, part.bytes.start, into)?,
                Source::Zeros => into.fill(0),
                Source::Slots(blocks) => {
                    let skip = part.bytes.start % BLOCK_BYTES;
                    let bytes = blocks.len() * BLOCK_BYTES as usize;
                    let first = part.bytes.start / BLOCK_BYTES;
                    if into.len() == bytes {
                        self.read_slots(first, blocks, into)?;
                    } else {
                        let mut whole = AlignedBytes::new(bytes);
                        self.read_slots(first, blocks, &mut whole)?;
                        into.copy_from_slice(&whole[skip as usize..][..into.len()]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads whole blocks whose slots follow one another, and checks them.
    fn read_slots(&self, first: u64, blocks: &[super::ledger::Block], into: &mut [u8]) -> Result<()> {
        let Some(slot) = blocks.first().map(|block| block.slot) else { return Ok(()) };
        read_whole(&*self.journal, slot_offset(slot), into)?;
        for ((index, block), bytes) in (first..).zip(blocks).zip(into.chunks_mut(BLOCK_BYTES as usize)) {
            if block.sum.is_some_and(|sum| sum != xxh3_64(bytes)) {
                return Err(mismatch(index));
            }
            bytes[block.kept as usize..].fill(0);
        }
        Ok(())
    }

    /// The block at an end of a write that is no whole block: as it is to be.
    fn edge(&self, index: u64, offset: u64, bytes: &[u8], length: u64) -> Result<AlignedBytes> {
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
    fn write_slots(&self, slots: &[u64], bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        for run in slots.chunk_by(|before, after| before + 1 == *after) {
            let count = run.len() * BLOCK_BYTES as usize;
            self.journal.write_at(slot_offset(run[0]), &bytes[done..done + count])?;
            done += count;
        }
        Ok(())
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

impl BackingStore for Journaled {
    fn name(&self) -> &str {
        self.object.name()
    }

    fn len(&self) -> u64 {
        self.ledger().lengths().last
    }

    fn transfer(&self) -> Transfer {
        let (object, journal) = (self.object.transfer(), self.journal.transfer());
        let slower = match (object.answers, journal.answers) {
            (Answers::Eventually, _) | (_, Answers::Eventually) => Answers::Eventually,
            (Answers::Promptly, _) | (_, Answers::Promptly) => Answers::Promptly,
            (Answers::AtOnce, Answers::AtOnce) => Answers::AtOnce,
        };
        object.answering(slower)
    }

    fn chunk_at(&self, offset: u64) -> Range<u64> {
        let least = self.ledger().lengths().least;
        if offset >= least {
            return offset..offset.saturating_add(1);
        }
        let chunk = self.object.chunk_at(offset);
        chunk.start..chunk.end.min(least)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let end = offset.saturating_add(into.len() as u64);
        let _turn = self.turns.take(Kind::Read, offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        let (length, transparent) = {
            let ledger = self.ledger();
            (ledger.lengths().last, ledger.is_transparent())
        };
        if transparent {
            // With room beyond the object's end, as direct transfers like it.
            return self.object.read_at(offset, into);
        }
        let wanted = length.min(end).saturating_sub(offset) as usize;
        if wanted > 0 {
            self.read_parts(offset, &mut into[..wanted])?;
        }
        Ok(wanted)
    }

    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() as u64;
        let beyond = |end| StoreError::BeyondEnd { offset, length: count, end };
        let end = offset.checked_add(count).ok_or_else(|| beyond(self.len()))?;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let _turn = self.turn_to_change(Kind::Write, blocks.clone())?;
        // It stays: changing it is done alone.
        let length = self.len();
        if end > length {
            return Err(beyond(length));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let whole = offset.div_ceil(BLOCK_BYTES)..end / BLOCK_BYTES;
        let edge = |index| self.edge(index, offset, bytes, length);
        let head = (blocks.start < whole.start).then(|| edge(blocks.start)).transpose()?;
        let tail_is_another = whole.end < blocks.end && whole.end >= whole.start;
        let tail = tail_is_another.then(|| edge(whole.end)).transpose()?;
        let middle = if whole.start < whole.end {
            &bytes[(whole.start * BLOCK_BYTES - offset) as usize..(whole.end * BLOCK_BYTES - offset) as usize]
        } else {
            &[]
        };
        let pieces = [head.as_deref().unwrap_or(&[]), middle, tail.as_deref().unwrap_or(&[])];

        let full = StoreError::JournalFull { limit_bytes: self.bytes_max };
        let placement = self.ledger().place(blocks.clone()).ok_or(full)?;
        let mut fresh = Fresh { journaled: self, slots: placement.fresh };
        if let Some(last) = fresh.slots.iter().max() {
            self.make_room(slot_offset(last + 1))?;
        }
        let mut slots = &placement.slots[..];
        for piece in pieces {
            let (here, rest) = slots.split_at(piece.len() / BLOCK_BYTES as usize);
            self.write_slots(here, piece)?;
            slots = rest;
        }
        let sums: Vec<u64> =
            pieces.iter().flat_map(|piece| piece.chunks(BLOCK_BYTES as usize)).map(xxh3_64).collect();
        let mut ledger = self.ledger();
        for ((index, slot), sum) in blocks.zip(placement.slots).zip(sums) {
            ledger.put(index, slot, sum);
        }
        drop(ledger);
        fresh.slots.clear();
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _turn = self.turn_to_change(Kind::Alone, EVERYTHING)?;
        self.ledger().set_len(length);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let turn = self.turns.take(Kind::Commit, EVERYTHING);
        self.commit(&turn)
    }

    fn is_atomic(&self) -> bool {
        true
    }

    fn refresh(&self) -> Result<()> {
        self.object.refresh()?;
        let _turn = self.turn_to_change(Kind::Alone, EVERYTHING)?;
        let length = self.object.len();
        self.ledger().refresh(length);
        Ok(())
    }
}

impl Drop for Journaled {
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && !self.ledger().is_committed()
        {
            file.remove();
        }
    }
}
