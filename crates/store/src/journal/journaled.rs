//! The decorator: reads and lengths of a transaction; its writes are in `write.rs`.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::apply::{mismatch, read_whole};
use super::file::JournalFile;
use super::ledger::{Ledger, Source};
use super::record::{BLOCK_BYTES, slot_offset};
use super::recover::{Recovered, recover};
use super::turns::{EVERYTHING, Kind, Turn, Turns};
use super::write::are_apart;
use crate::{AlignedBytes, Answers, BackingStore, Result, StoreError, Transfer, Writability, WriteAt};

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
    pub(super) bytes_max: u64,
    recovered: Option<Recovered>,
    /// Set if the journal is a file beside the object's.
    pub(super) file: Option<JournalFile>,
}

pub(super) fn require_writable(store: &dyn BackingStore) -> Result<()> {
    if store.writability() != Writability::ReadOnly {
        return Ok(());
    }
    let reason = "is read-only, and a journal writes to it".to_owned();
    Err(StoreError::Unusable { name: store.name().to_owned(), reason })
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
        require_writable(&*object)?;
        require_writable(&*journal)?;
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
    pub(super) fn turn_to_change(&self, kind: Kind, blocks: Vec<Range<u64>>) -> Result<Turn<'_>> {
        loop {
            let turn = self.turns.take_each(kind, blocks.clone());
            if !self.ledger().is_committed() {
                return Ok(turn);
            }
            drop(turn);
            let turn = self.turns.take(Kind::Commit, EVERYTHING);
            self.finish(&turn)?;
        }
    }

    /// Reads bytes that lie inside the object; the caller has a turn.
    pub(super) fn read_parts(&self, offset: u64, into: &mut [u8]) -> Result<()> {
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
        self.read_awaited(offset, into, &mut |_| {})
    }

    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        let end = offset.saturating_add(into.len() as u64);
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let _turn = self.turns.take(Kind::Read, blocks);
        let (length, transparent) = {
            let ledger = self.ledger();
            (ledger.lengths().last, ledger.is_transparent())
        };
        if transparent {
            // With room beyond the object's end, as direct transfers like it.
            return self.object.read_awaited(offset, into, meanwhile);
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
        self.write_together(&[WriteAt { offset, bytes }])
    }

    /// Blocks that are new to the transaction lie in the journal in the order in which they come, one behind the other: they
    /// are written in one transfer.
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        if are_apart(writes) && self.write_together(writes).is_ok() {
            (0..writes.len()).for_each(|number| written(number, Ok(())));
            return;
        }
        // Which of them cannot be written shows one by one; what can be is.
        for (number, write) in writes.iter().enumerate() {
            written(number, self.write_at(write.offset, write.bytes));
        }
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _turn = self.turn_to_change(Kind::Alone, vec![EVERYTHING])?;
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
        let _turn = self.turn_to_change(Kind::Alone, vec![EVERYTHING])?;
        let length = self.object.len();
        self.ledger().refresh(length);
        Ok(())
    }
}

impl Drop for Journaled {
    fn drop(&mut self) {
        // A forked child has a copy: the file is its parent's, and so are the locks.
        if let Some(file) = &self.file
            && file.is_of_this_process()
            && !self.ledger().is_committed()
        {
            file.remove();
        }
    }
}
