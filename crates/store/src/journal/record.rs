//! The bytes of a journal: its header with the commit record, and the table of a transaction.
//!
//! Pure: values to bytes and back. `docs/journal.md` draws it.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::AlignedBytes;

/// Bytes of a block of the object, and of the slot that takes it.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// Bytes before the first slot: a whole block, so that direct transfers stay aligned.
pub(super) const HEADER_BYTES: u64 = BLOCK_BYTES;

/// Bytes of an entry of the table.
pub(super) const ENTRY_BYTES: u64 = 24;

const MAGIC: [u8; 8] = *b"OMNIJRNL";
const FORMAT: u32 = 1;

/// Bytes of the record; within the first sector of every disk, the rest of the header is zeros.
const RECORD_BYTES: usize = 128;
const SUM_AT: usize = RECORD_BYTES - 8;

/// The object's length before the transaction, the least one in it, and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) before: u64,
    pub(super) least: u64,
    pub(super) last: u64,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    /// The transaction that is committed, unless its slots are free.
    pub(super) commit: Option<Commit>,
}

/// Where a committed transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) entries: u64,
    pub(super) table_offset: u64,
    pub(super) table_sum: u64,
    pub(super) lengths: Lengths,
}

/// What the first block of a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// Not ours.
    Foreign,
    /// Nothing yet, or a header that did not reach the disk whole.
    Torn,
    /// Ours, whole, and not for this program.
    Unknown(String),
    /// Ours.
    Written(Record),
}

impl Record {
    pub(super) fn encode(&self) -> AlignedBytes {
        let mut block = AlignedBytes::new(HEADER_BYTES as usize);
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        block[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        block[16..20].copy_from_slice(&u32::from(self.commit.is_some()).to_le_bytes());
        put(&mut block, 24, self.sequence);
        if let Some(commit) = &self.commit {
            put(&mut block, 32, commit.entries);
            put(&mut block, 40, commit.table_offset);
            put(&mut block, 48, commit.table_sum);
            put(&mut block, 56, commit.lengths.before);
            put(&mut block, 64, commit.lengths.least);
            put(&mut block, 72, commit.lengths.last);
        }
        let sum = xxh3_64(&block[..SUM_AT]);
        put(&mut block, SUM_AT, sum);
        block
    }
}

impl Header {
    /// Takes the first block of a journal; what the file does not have of it is zeros.
    pub(super) fn decode(block: &[u8]) -> Header {
        let ours = block.iter().zip(MAGIC).all(|(byte, magic)| *byte == magic || *byte == 0);
        if !ours || block.iter().skip(RECORD_BYTES).any(|b| *b != 0) {
            return Header::Foreign;
        }
        if block.len() < RECORD_BYTES
            || block[..8] != MAGIC
            || get(block, SUM_AT) != xxh3_64(&block[..SUM_AT])
        {
            return Header::Torn;
        }
        let (format, block_bytes) = (get_u32(block, 8), get_u32(block, 12));
        if format != FORMAT {
            return Header::Unknown(format!(
                "is a journal of format {format}, and this program knows format {FORMAT}: recover with the program \
                 that wrote it"
            ));
        }
        if u64::from(block_bytes) != BLOCK_BYTES {
            return Header::Unknown(format!(
                "is a journal with blocks of {block_bytes} bytes, and this program writes {BLOCK_BYTES}: recover with \
                 the program that wrote it"
            ));
        }
        let commit = (get_u32(block, 16) == 1).then(|| Commit {
            entries: get(block, 32),
            table_offset: get(block, 40),
            table_sum: get(block, 48),
            lengths: Lengths { before: get(block, 56), least: get(block, 64), last: get(block, 72) },
        });
        Header::Written(Record { sequence: get(block, 24), commit })
    }
}

/// Whether a header begins as all do that are there for good.
pub(super) fn has_magic(block: &[u8]) -> bool {
    block.starts_with(&MAGIC)
}

/// Which slot has a block of the object, and the checksum of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) block: u64,
    pub(super) slot: u64,
    pub(super) sum: u64,
}

impl Commit {
    /// Bytes of the table, and where it ends, if it can lie in a journal of `journal_bytes`.
    pub(super) fn table_bytes(&self, journal_bytes: u64) -> Option<u64> {
        let bytes = self.entries.checked_mul(ENTRY_BYTES)?;
        let slots = self.table_offset.checked_sub(HEADER_BYTES)? / BLOCK_BYTES;
        let lies_inside = self.table_offset.checked_add(bytes)? <= journal_bytes;
        (lies_inside && self.entries <= slots).then_some(bytes)
    }

    /// Whether these are entries of this transaction: in order, and all in slots before the table.
    pub(super) fn admits(&self, entries: &[Entry]) -> bool {
        let slots = self.table_offset.saturating_sub(HEADER_BYTES) / BLOCK_BYTES;
        let inside = |e: &Entry| {
            e.slot < slots && e.block.checked_mul(BLOCK_BYTES).is_some_and(|at| at < self.lengths.last)
        };
        let ordered = entries.windows(2).all(|pair| pair[0].block < pair[1].block);
        ordered
            && entries.iter().all(inside)
            && self.lengths.least <= self.lengths.last.min(self.lengths.before)
    }
}

/// The table, filled up with zeros to whole blocks, and the checksum of its entries.
pub(super) fn encode_table(sequence: u64, entries: &[Entry]) -> (AlignedBytes, u64) {
    let bytes = entries.len() * ENTRY_BYTES as usize;
    let mut table = AlignedBytes::new(bytes.next_multiple_of(BLOCK_BYTES as usize));
    for (into, entry) in table.chunks_exact_mut(ENTRY_BYTES as usize).zip(entries) {
        put(into, 0, entry.block);
        put(into, 8, entry.slot);
        put(into, 16, entry.sum);
    }
    let sum = table_sum(sequence, &table[..bytes]);
    (table, sum)
}

/// The checksum of a table's entries; of this transaction, so that the table of another never passes.
pub(super) fn table_sum(sequence: u64, table: &[u8]) -> u64 {
    xxh3_64_with_seed(table, sequence)
}

pub(super) fn decode_table(table: &[u8]) -> Vec<Entry> {
    let entry = |e: &[u8]| Entry { block: get(e, 0), slot: get(e, 8), sum: get(e, 16) };
    table.chunks_exact(ENTRY_BYTES as usize).map(entry).collect()
}

/// Where a slot lies in the journal.
pub(super) fn slot_offset(slot: u64) -> u64 {
    HEADER_BYTES + slot * BLOCK_BYTES
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let lengths = Lengths { before: 5, least: 4, last: 9 };
        Record { sequence: 7, commit: Some(Commit { entries: 1, table_offset: 8192, table_sum: 3, lengths }) }
    }

    #[test]
    fn a_record_comes_back_and_no_part_of_one_passes() {
        let block = record().encode();
        assert_eq!(Header::decode(&block), Header::Written(record()));
        for length in 0..RECORD_BYTES {
            let mut torn = AlignedBytes::new(HEADER_BYTES as usize);
            torn[..length].copy_from_slice(&block[..length]);
            assert_eq!(Header::decode(&torn), Header::Torn, "{length} bytes of it");
            assert_eq!(Header::decode(&block[..length]), Header::Torn, "a file of {length} bytes");
        }
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is_torn() {
        assert_eq!(Header::decode(b""), Header::Torn);
        assert_eq!(Header::decode(&[0; 4096]), Header::Torn);
        assert_eq!(Header::decode(b"a text of somebody"), Header::Foreign);
        let mut behind_zeros = vec![0; 4096];
        behind_zeros[2000] = 1;
        assert_eq!(Header::decode(&behind_zeros), Header::Foreign);
    }

    #[test]
    fn other_formats_and_block_sizes_are_named() {
        for (at, value, word) in [(8, 2u32, "format 2"), (12, 512, "512 bytes")] {
            let mut block = record().encode();
            block[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let sum = xxh3_64(&block[..SUM_AT]);
            put(&mut block, SUM_AT, sum);
            let Header::Unknown(reason) = Header::decode(&block) else { panic!("{word}") };
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn a_table_belongs_to_its_transaction() {
        let entries: Vec<Entry> = (0..200).map(|i| Entry { block: i * 3, slot: i, sum: i * 7 }).collect();
        let (table, sum) = encode_table(1, &entries);
        assert_eq!(table.len(), 8192);
        let bytes = &table[..200 * ENTRY_BYTES as usize];
        assert_eq!((decode_table(bytes), table_sum(1, bytes)), (entries, sum));
        assert_ne!(table_sum(2, bytes), sum);
    }
}
