//! Checksums by block, in little memory.

use std::collections::HashMap;
use std::ops::Range;

/// Blocks of a leaf: as many as a word has bits.
const LEAF_BLOCKS: u64 = u64::BITS as u64;

/// A checksum for some of the blocks of an object.
///
/// Blocks that lie together share a leaf: nine to ten bytes a block where most of them are known. A block that is alone
/// costs about a hundred.
#[derive(Default, Clone)]
pub(super) struct Sums {
    /// By block / `LEAF_BLOCKS`. No leaf is empty.
    leaves: HashMap<u64, Leaf>,
}

/// ```text
/// known   0 1 1 0 1 0 …     a bit for each block
/// sums    [s1, s2, s4]      the sums of those that are set, in order
/// ```
#[derive(Default, Clone)]
struct Leaf {
    known: u64,
    /// Not an array: it would cost a block that is alone half a kilobyte. Doubling ends at `LEAF_BLOCKS` exactly.
    sums: Vec<u64>,
}

impl Leaf {
    /// Where the sum of a slot is, or would be.
    fn place(&self, slot: u64) -> usize {
        (self.known & below(slot)).count_ones() as usize
    }
}

impl Sums {
    /// The sum of a block, if it is known.
    pub(super) fn get(&self, block: u64) -> Option<u64> {
        let slot = block % LEAF_BLOCKS;
        let leaf = self.leaves.get(&(block / LEAF_BLOCKS))?;
        (leaf.known >> slot & 1 == 1).then(|| leaf.sums[leaf.place(slot)])
    }

    /// Remembers the sum of a block, whether or not there was one.
    pub(super) fn set(&mut self, block: u64, sum: u64) {
        let slot = block % LEAF_BLOCKS;
        let leaf = self.leaves.entry(block / LEAF_BLOCKS).or_default();
        let place = leaf.place(slot);
        if leaf.known >> slot & 1 == 1 {
            leaf.sums[place] = sum;
        } else {
            leaf.sums.insert(place, sum);
            leaf.known |= 1 << slot;
        }
    }

    /// Forgets the sums of all blocks of a range, which may reach far beyond the object.
    pub(super) fn forget(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let first = blocks.start / LEAF_BLOCKS;
        let last = (blocks.end - 1) / LEAF_BLOCKS;
        if last - first < self.leaves.len() as u64 {
            for number in first..=last {
                if self.leaves.get_mut(&number).is_some_and(|leaf| forget_in(number, leaf, &blocks)) {
                    self.leaves.remove(&number);
                }
            }
        } else {
            self.leaves.retain(|number, leaf| !forget_in(*number, leaf, &blocks));
        }
    }
}

/// Forgets the slots of a leaf that are in `blocks`; whether none is left.
fn forget_in(number: u64, leaf: &mut Leaf, blocks: &Range<u64>) -> bool {
    let begin = number * LEAF_BLOCKS;
    let slots = blocks.start.saturating_sub(begin).min(LEAF_BLOCKS)
        ..blocks.end.saturating_sub(begin).min(LEAF_BLOCKS);
    let places = leaf.place(slots.start)..leaf.place(slots.end);
    leaf.sums.drain(places);
    leaf.known &= !(below(slots.end) & !below(slots.start));
    leaf.known == 0
}

/// The bits of all slots before this one.
fn below(slot: u64) -> u64 {
    1u64.checked_shl(slot as u32).map_or(u64::MAX, |bit| bit - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone)]
    enum Step {
        Set(u64, u64),
        Forget(Range<u64>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ends = || prop_oneof![0u64..400, Just(64), Just(128), Just(u64::MAX)];
        proptest::collection::vec(
            prop_oneof![
                4 => (0u64..300, any::<u64>()).prop_map(|(block, sum)| Step::Set(block, sum)),
                1 => (ends(), ends()).prop_map(|(a, b)| Step::Forget(a..b)),
            ],
            0..400,
        )
    }

    proptest! {
        #[test]
        fn they_are_a_map_from_block_to_sum(steps in steps()) {
            let (mut sums, mut model) = (Sums::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Set(block, sum) => {
                        sums.set(block, sum);
                        model.insert(block, sum);
                    }
                    Step::Forget(blocks) => {
                        sums.forget(blocks.clone());
                        model.retain(|block, _| !blocks.contains(block));
                    }
                }
                for block in 0..300 {
                    prop_assert_eq!(sums.get(block), model.get(&block).copied());
                }
                prop_assert!(sums.leaves.values().all(|leaf| leaf.known != 0));
            }
        }
    }

    #[test]
    fn a_long_run_costs_ten_bytes_a_block() {
        for blocks in [1u64 << 16, 100_000] {
            let mut sums = Sums::default();
            (0..blocks).for_each(|block| sums.set(block, block));
            let of_leaves: usize = sums.leaves.values().map(|leaf| leaf.sums.capacity() * 8 + 16).sum();
            let of_map = sums.leaves.capacity() * 8 / 7 * (size_of::<(u64, Leaf)>() + 1);
            assert!(of_leaves + of_map <= 10 * blocks as usize, "{of_leaves} + {of_map} for {blocks}");
        }
    }
}
