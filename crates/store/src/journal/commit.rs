//! The sync: commit, then apply.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::apply::{apply, mismatch, read_whole};
use super::journaled::Journaled;
use super::ledger::{Block, Phase};
use super::record::{BLOCK_BYTES, Commit, Entry, HEADER_BYTES, Record, encode_table, slot_offset};
use super::recover::mark_empty;
use super::turns::Turn;
use crate::{AlignedBytes, Result};

impl Journaled {
    /// Commits what was changed and brings it to the object; the turn is that of a commit.
    pub(super) fn commit(&self, turn: &Turn<'_>) -> Result<()> {
        self.finish(turn)?;
        if !self.ledger().is_changed() {
            return Ok(());
        }
        let entries = self.settle(turn)?;
        self.write_commit(entries)?;
        self.finish(turn)
    }

    /// Brings a committed transaction to the object, if there is one that is not there yet.
    ///
    /// If it fails, the transaction stays, and is applied wholly the next time: what a failed sync of the object has
    /// dropped is written again by that.
    pub(super) fn finish(&self, turn: &Turn<'_>) -> Result<()> {
        let (entries, lengths, sequence) = {
            let ledger = self.ledger();
            let Phase::Committed(entries) = &ledger.phase else { return Ok(()) };
            (Arc::clone(entries), ledger.lengths(), ledger.sequence)
        };
        apply(&*self.object, &*self.journal, &entries, lengths)?;
        // Reads under way may still use the slots.
        turn.alone();
        self.ledger().applied();
        // Not durable, and no harm if it fails: until the next commit the object is what this one made it, and applying
        // it once more changes nothing; and the next commit writes over the record before it touches the object.
        let _ = mark_empty(&*self.journal, sequence);
        turn.along_with_reads();
        Ok(())
    }

    /// Sees to it that every slot holds what the table will say, and gives the table.
    fn settle(&self, turn: &Turn<'_>) -> Result<Vec<Entry>> {
        let (blocks, suspect) = {
            let ledger = self.ledger();
            (ledger.blocks(), ledger.suspect)
        };
        let settled = |block: &Block| match block.sum {
            Some(sum) if !suspect && block.kept == BLOCK_BYTES => Some(sum),
            _ => None,
        };
        let unsettled = blocks.iter().any(|(_, block)| settled(block).is_none());
        if unsettled {
            turn.alone();
        }
        let entry = |(index, block): (u64, Block)| match settled(&block) {
            Some(sum) => Ok(Entry { block: index, slot: block.slot, sum }),
            None => self.write_again(index, block),
        };
        let entries = blocks.into_iter().map(entry).collect();
        if unsettled {
            turn.along_with_reads();
        }
        entries
    }

    /// Writes a slot again: with zeros where the block was cut off; or because a sync failed, for what the kernel could
    /// not write it may have dropped, and it tells so once (fsync(2)). So it is read, and must be what it was.
    ///
    /// A slot whose last write failed is taken as it is: such a write may leave any mixture.
    fn write_again(&self, index: u64, block: Block) -> Result<Entry> {
        let mut bytes = AlignedBytes::new(BLOCK_BYTES as usize);
        read_whole(&*self.journal, slot_offset(block.slot), &mut bytes)?;
        if block.sum.is_some_and(|sum| sum != xxh3_64(&bytes)) {
            return Err(mismatch(index));
        }
        if block.kept < BLOCK_BYTES {
            bytes[block.kept as usize..].fill(0);
            self.ledger().unsettle(index);
        }
        self.journal.write_at(slot_offset(block.slot), &bytes)?;
        let sum = xxh3_64(&bytes);
        self.ledger().put(index, block.slot, sum);
        Ok(Entry { block: index, slot: block.slot, sum })
    }

    /// Makes the transaction durable in the journal: from the end of its sync on it happens, whatever comes.
    fn write_commit(&self, entries: Vec<Entry>) -> Result<()> {
        let (sequence, lengths, table_offset) = {
            let mut ledger = self.ledger();
            ledger.sequence += 1;
            (ledger.sequence, ledger.lengths(), slot_offset(ledger.slots_end()))
        };
        let (table, table_sum) = encode_table(sequence, &entries);
        self.make_room(HEADER_BYTES.max(table_offset + table.len() as u64))?;
        if !table.is_empty() {
            self.journal.write_at(table_offset, &table)?;
        }
        let commit = Commit { entries: entries.len() as u64, table_offset, table_sum, lengths };
        self.journal.write_at(0, &Record { sequence, commit: Some(commit) }.encode())?;
        // Until it has succeeded.
        self.ledger().suspect = true;
        self.journal.sync()?;
        let mut ledger = self.ledger();
        ledger.suspect = false;
        ledger.phase = Phase::Committed(entries.into());
        Ok(())
    }
}
