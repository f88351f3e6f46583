//! Which blocks a transaction has, and where they lie: the journal's state in memory.
//!
//! Pure: it knows nothing of stores. [`Journaled`](super::Journaled) guards it with a lock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::record::{BLOCK_BYTES, ENTRY_BYTES, Entry, HEADER_BYTES, Lengths};

/// A block of the object that is in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) slot: u64,
    /// Of the slot's bytes; `None` while it is written, and after that failed.
    pub(super) sum: Option<u64>,
    /// Bytes of the slot that count; the others were cut off by a shorter length and read as zeros.
    pub(super) kept: u64,
}

/// Where bytes of the object are to be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    Object,
    Zeros,
    /// Blocks that follow one another in the object and in the journal.
    Slots(Vec<Block>),
}

/// Bytes of the object that come from one place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) bytes: Range<u64>,
    pub(super) source: Source,
}

/// How far a transaction is.
///
/// | from | to | when |
/// |---|---|---|
/// | open | committed | the journal is durable |
/// | committed | open (the next one) | the object has everything, and is durable |
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Takes changes.
    Open,
    /// Durable in the journal, not yet in the object. No slot may be touched.
    Committed(Arc<[Entry]>),
}

/// A transaction, and the slots.
pub(super) struct Ledger {
    blocks: BTreeMap<u64, Block>,
    slots: Slots,
    lengths: Lengths,
    /// Of the last record that was, or may have been, written.
    pub(super) sequence: u64,
    pub(super) phase: Phase,
    /// A sync of the journal has failed: what was written before it may be nowhere.
    pub(super) suspect: bool,
}

/// The slots for blocks, in their order.
pub(super) struct Placement {
    pub(super) slots: Vec<u64>,
    /// Those of them that were free.
    pub(super) fresh: Vec<u64>,
}

impl Ledger {
    /// The ledger of an object of `length` bytes, for a journal of at most `bytes_max`.
    pub(super) fn new(length: u64, sequence: u64, bytes_max: u64) -> Ledger {
        // The table is filled up to a whole block.
        let slots_max = bytes_max.saturating_sub(HEADER_BYTES + BLOCK_BYTES) / (BLOCK_BYTES + ENTRY_BYTES);
        Ledger {
            blocks: BTreeMap::new(),
            slots: Slots { next: 0, free: Vec::new(), max: slots_max },
            lengths: Lengths { before: length, least: length, last: length },
            sequence,
            phase: Phase::Open,
            suspect: false,
        }
    }

    pub(super) fn lengths(&self) -> Lengths {
        self.lengths
    }

    pub(super) fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Committed(_))
    }

    /// Whether there is anything to commit.
    pub(super) fn is_changed(&self) -> bool {
        let Lengths { before, least, last } = self.lengths;
        !self.blocks.is_empty() || least != before || last != before
    }

    /// Whether reads are the object's own affair.
    pub(super) fn is_transparent(&self) -> bool {
        !self.is_changed()
    }

    /// How many slots have been used, with gaps: the table comes after them.
    pub(super) fn slots_end(&self) -> u64 {
        self.slots.next
    }

    pub(super) fn blocks(&self) -> Vec<(u64, Block)> {
        self.blocks.iter().map(|(index, block)| (*index, *block)).collect()
    }

    /// Finds a slot for each block of `runs`: the one that it has, which is about to be overwritten, or a free one. Free
    /// ones follow one another if they can. `None` if there are too few.
    pub(super) fn place(&mut self, runs: &[Range<u64>]) -> Option<Placement> {
        let new = |run: &Range<u64>| run.end - run.start - self.blocks.range(run.clone()).count() as u64;
        let fresh = self.slots.take(runs.iter().map(new).sum())?;
        let mut free = fresh.iter().copied();
        let slots = runs.iter().cloned().flatten().map_while(|index| match self.blocks.get_mut(&index) {
            Some(block) => {
                block.sum = None;
                Some(block.slot)
            }
            None => free.next(),
        });
        let slots = slots.collect();
        Some(Placement { slots, fresh })
    }

    /// A block is in its slot, whole.
    pub(super) fn put(&mut self, index: u64, slot: u64, sum: u64) {
        self.blocks.insert(index, Block { slot, sum: Some(sum), kept: BLOCK_BYTES });
    }

    /// A slot is about to be written again, with other bytes: those that count stay.
    pub(super) fn unsettle(&mut self, index: u64) {
        if let Some(block) = self.blocks.get_mut(&index) {
            block.sum = None;
        }
    }

    pub(super) fn give_back(&mut self, slots: &[u64]) {
        self.slots.free.extend_from_slice(slots);
    }

    /// Another length: bytes beyond the least one are zeros, whatever comes later.
    pub(super) fn set_len(&mut self, length: u64) {
        self.lengths.last = length;
        if length < self.lengths.least {
            self.lengths.least = length;
        }
        let gone = self.blocks.split_off(&length.div_ceil(BLOCK_BYTES));
        self.slots.free.extend(gone.values().map(|block| block.slot));
        if self.blocks.is_empty() {
            self.slots.clear();
        }
        if let Some(block) = self.blocks.get_mut(&(length / BLOCK_BYTES)) {
            block.kept = block.kept.min(length % BLOCK_BYTES);
        }
    }

    /// Others have given the object another length; what was changed here stays on top of it.
    pub(super) fn refresh(&mut self, length: u64) {
        let Lengths { before, least, last } = self.lengths;
        if least == before && last == before {
            self.set_len(length.min(last));
            self.lengths = Lengths { before: length, least: length, last: length };
        } else {
            self.lengths = Lengths { before: length, least: least.min(length), last };
        }
    }

    /// The object has everything: the next transaction begins.
    pub(super) fn applied(&mut self) {
        let length = self.lengths.last;
        self.lengths = Lengths { before: length, least: length, last: length };
        self.blocks.clear();
        self.slots.clear();
        self.phase = Phase::Open;
    }

    /// Where the bytes of a range are, in order; it must not reach beyond the end.
    pub(super) fn parts(&self, bytes: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = bytes.start;
        for (index, block) in self.blocks.range(bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES)) {
            let start = at.max(index * BLOCK_BYTES);
            self.gap(at..start, &mut parts);
            at = bytes.end.min((index + 1) * BLOCK_BYTES);
            match parts.last_mut() {
                Some(Part { bytes, source: Source::Slots(blocks) })
                    if bytes.end == start && blocks.last().is_some_and(|b| b.slot + 1 == block.slot) =>
                {
                    bytes.end = at;
                    blocks.push(*block);
                }
                _ => parts.push(Part { bytes: start..at, source: Source::Slots(vec![*block]) }),
            }
        }
        self.gap(at..bytes.end, &mut parts);
        parts
    }

    /// Bytes that are not in the journal: the object's up to the least length, then zeros.
    fn gap(&self, bytes: Range<u64>, parts: &mut Vec<Part>) {
        let middle = self.lengths.least.clamp(bytes.start, bytes.end.max(bytes.start));
        for (bytes, source) in [(bytes.start..middle, Source::Object), (middle..bytes.end, Source::Zeros)] {
            if !bytes.is_empty() {
                parts.push(Part { bytes, source });
            }
        }
    }
}

/// Which slots are free.
struct Slots {
    /// From here on all are.
    next: u64,
    free: Vec<u64>,
    max: u64,
}

impl Slots {
    fn clear(&mut self) {
        self.next = 0;
        self.free.clear();
    }

    /// So many slots, in a row if there is room for one.
    fn take(&mut self, count: u64) -> Option<Vec<u64>> {
        if count == 0 {
            return Some(Vec::new());
        }
        let room = self.max.saturating_sub(self.next);
        let alone = count == 1 && !self.free.is_empty();
        if count <= room && !alone {
            self.next += count;
            return Some((self.next - count..self.next).collect());
        }
        if count > room.saturating_add(self.free.len() as u64) {
            return None;
        }
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        let old = count.min(self.free.len() as u64);
        let mut taken = self.free.split_off(self.free.len() - old as usize);
        taken.reverse();
        taken.extend(self.next..self.next + count - old);
        self.next += count - old;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = BLOCK_BYTES;

    fn ledger() -> Ledger {
        Ledger::new(10 * B, 0, 64 << 10)
    }

    fn place(ledger: &mut Ledger, blocks: Range<u64>) -> Option<Placement> {
        ledger.place(std::slice::from_ref(&blocks))
    }

    fn write(ledger: &mut Ledger, blocks: Range<u64>) -> Vec<u64> {
        let slots = place(ledger, blocks.clone()).unwrap().slots;
        for (block, slot) in blocks.zip(&slots) {
            ledger.put(block, *slot, block);
        }
        slots
    }

    #[test]
    fn blocks_keep_their_slots_and_new_ones_are_in_a_row() {
        let mut ledger = ledger();
        assert_eq!(write(&mut ledger, 4..6), [0, 1]);
        assert_eq!(write(&mut ledger, 3..8), [2, 0, 1, 3, 4]);
        let placed = place(&mut ledger, 9..10).unwrap();
        assert_eq!(placed.fresh, [5]);
        ledger.give_back(&placed.fresh);
        assert_eq!(write(&mut ledger, 0..1), [5]);
        assert!(place(&mut ledger, 100..200).is_none(), "the limit");
        assert_eq!(write(&mut ledger, 20..27), [6, 7, 8, 9, 10, 11, 12]);
        assert!(place(&mut ledger, 50..51).is_none());
    }

    #[test]
    fn runs_that_are_placed_together_lie_in_a_row() {
        let mut ledger = ledger();
        write(&mut ledger, 4..6);
        let placed = ledger.place(&[0..1, 5..7, 9..11]).unwrap();
        assert_eq!((placed.slots, placed.fresh), (vec![2, 1, 3, 4, 5], vec![2, 3, 4, 5]));
        assert!(ledger.place(&[0..6, 20..30]).is_none(), "all or none");
    }

    #[test]
    fn parts_of_a_range_before_and_after() {
        // object   0---1---2---3---4--- … 10
        // journal      b1  b2      b4
        let mut ledger = ledger();
        write(&mut ledger, 4..5);
        write(&mut ledger, 1..3);
        let sources = |ledger: &Ledger, bytes: Range<u64>| -> Vec<(Range<u64>, &str)> {
            let name = |p: Part| {
                (
                    p.bytes,
                    match p.source {
                        Source::Object => "object",
                        Source::Zeros => "zeros",
                        Source::Slots(_) => "slots",
                    },
                )
            };
            ledger.parts(bytes).into_iter().map(name).collect()
        };
        assert_eq!(
            sources(&ledger, 10..5 * B + 1),
            [
                (10..B, "object"),
                (B..3 * B, "slots"),
                (3 * B..4 * B, "object"),
                (4 * B..5 * B, "slots"),
                (5 * B..5 * B + 1, "object")
            ]
        );
        ledger.set_len(B + 7);
        ledger.set_len(3 * B);
        assert_eq!(
            sources(&ledger, 0..3 * B),
            [(0..B, "object"), (B..2 * B, "slots"), (2 * B..3 * B, "zeros")]
        );
        let Source::Slots(blocks) = &ledger.parts(B..2 * B)[0].source else { panic!() };
        assert_eq!(blocks[0].kept, 7);
    }
}
