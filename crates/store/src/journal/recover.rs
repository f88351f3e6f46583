//! What a journal holds when it is opened, and what becomes of it.

use super::apply::{apply, first_mismatch, read_whole};
use super::record::{BLOCK_BYTES, Commit, Entry, HEADER_BYTES, Header, Lengths, Record};
use super::record::{decode_table, table_sum};
use crate::{AlignedBytes, BackingStore, Result, StoreError};

/// A transaction that a journal holds: committed, and maybe not yet in the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub sequence: u64,
    /// Blocks of the object that it writes.
    pub blocks: u64,
    /// Bytes of the object that it writes.
    pub bytes: u64,
}

/// What was brought to the object when its journal was opened.
///
/// It may have been there already: a transaction that was applied just before the power went is applied once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The transaction's number.
    pub sequence: u64,
    /// Blocks that were written.
    pub blocks: u64,
    /// Bytes that were written.
    pub bytes: u64,
}

/// What a journal holds.
pub(super) enum Found {
    /// A file of somebody else.
    Foreign,
    /// Nothing. If a record is there all the same, its transaction was not committed, or is long applied.
    Nothing {
        sequence: u64,
        dead_record: bool,
    },
    Transaction(Transaction),
}

/// A committed transaction.
pub(super) struct Transaction {
    sequence: u64,
    entries: Vec<Entry>,
    lengths: Lengths,
}

impl Transaction {
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    fn pending(&self) -> Pending {
        let bytes = |e: &Entry| BLOCK_BYTES.min(self.lengths.last - e.block * BLOCK_BYTES);
        Pending {
            sequence: self.sequence,
            blocks: self.entries.len() as u64,
            bytes: self.entries.iter().map(bytes).sum(),
        }
    }
}

/// Which committed transaction a journal holds, if any. Nothing is changed.
///
/// # Errors
/// If the journal cannot be read, is no journal, or is one of another format.
pub fn pending(journal: &dyn BackingStore) -> Result<Option<Pending>> {
    match find(journal)? {
        Found::Foreign => Err(foreign(journal.name())),
        Found::Nothing { .. } => Ok(None),
        Found::Transaction(transaction) => Ok(Some(transaction.pending())),
    }
}

/// Looks at a journal. A transaction counts only if every byte of it is there: then its sync may have been answered.
pub(super) fn find(journal: &dyn BackingStore) -> Result<Found> {
    let mut block = AlignedBytes::new(HEADER_BYTES as usize);
    let got = journal.read_at(0, &mut block)?;
    let record = match Header::decode(&block[..got]) {
        Header::Foreign => return Ok(Found::Foreign),
        Header::Torn => return Ok(Found::Nothing { sequence: 0, dead_record: false }),
        Header::Unknown(reason) => {
            return Err(StoreError::Unusable { name: journal.name().to_owned(), reason });
        }
        Header::Written(record) => record,
    };
    let sequence = record.sequence;
    let Some(commit) = record.commit else { return Ok(Found::Nothing { sequence, dead_record: false }) };
    match read_table(journal, sequence, &commit)? {
        Some(entries) if first_mismatch(journal, &entries)?.is_none() => {
            Ok(Found::Transaction(Transaction { sequence, entries, lengths: commit.lengths }))
        }
        _ => Ok(Found::Nothing { sequence, dead_record: true }),
    }
}

/// The table, if it is the one that the record speaks of.
fn read_table(journal: &dyn BackingStore, sequence: u64, commit: &Commit) -> Result<Option<Vec<Entry>>> {
    let Some(bytes) = commit.table_bytes(journal.len()) else { return Ok(None) };
    let Ok(bytes) = usize::try_from(bytes) else { return Ok(None) };
    let mut table = AlignedBytes::new(bytes);
    read_whole(journal, commit.table_offset, &mut table)?;
    if table_sum(sequence, &table) != commit.table_sum {
        return Ok(None);
    }
    let entries = decode_table(&table);
    Ok(commit.admits(&entries).then_some(entries))
}

/// Brings what was committed to the object, and makes the journal ready for the next transaction, whose number is above
/// the one that is answered.
pub(super) fn recover(
    object: &dyn BackingStore,
    journal: &dyn BackingStore,
) -> Result<(u64, Option<Recovered>)> {
    let transaction = match find(journal)? {
        Found::Foreign => return Err(foreign(journal.name())),
        Found::Nothing { sequence, dead_record } => {
            if dead_record {
                // Whoever begins again often writes the same bytes to the same slots: those that were missing. Then the
                // transaction that has just been given up would count. So its record goes, for good, before any slot.
                mark_empty(journal, sequence)?;
                journal.sync()?;
            }
            return Ok((sequence, None));
        }
        Found::Transaction(transaction) => transaction,
    };
    let Transaction { sequence, entries, lengths } = &transaction;
    let (here, Lengths { before, least, last }) = (object.len(), *lengths);
    if ![before, least, last].contains(&here) {
        return Err(StoreError::Unusable {
            name: journal.name().to_owned(),
            reason: format!(
                "holds transaction {sequence} of an object of {before} bytes, to have {last}; {} has {here}: it is \
                 another object or was changed since. Move the journal away to give the transaction up",
                object.name()
            ),
        });
    }
    apply(object, journal, entries, *lengths)?;
    // Lost, it would be applied again to the same effect: nothing changes the object before the next commit.
    mark_empty(journal, *sequence)?;
    let Pending { sequence, blocks, bytes } = transaction.pending();
    Ok((sequence, Some(Recovered { sequence, blocks, bytes })))
}

/// Says that no transaction is in the slots.
pub(super) fn mark_empty(journal: &dyn BackingStore, sequence: u64) -> Result<()> {
    journal.write_at(0, &Record { sequence, commit: None }.encode())
}

pub(super) fn foreign(journal: &str) -> StoreError {
    StoreError::Unusable {
        name: journal.to_owned(),
        reason: "is not a journal of Omnimap; move it away".to_owned(),
    }
}
