//! Which block is where: about eight bytes a block that was written, nothing for one that never was.

use std::collections::HashMap;

use super::place::Place;

/// Blocks of a leaf.
const LEAF_BLOCKS: u64 = 64;

type Leaf = [u64; LEAF_BLOCKS as usize];

/// The places of all blocks.
#[derive(Default)]
pub(super) struct Index {
    leaves: HashMap<u64, Box<Leaf>>,
    /// Blocks by tag; that of `Absent` has no meaning.
    counts: [u64; 4],
}

impl Index {
    /// Where a block is.
    pub(super) fn get(&self, block: u64) -> Place {
        let leaf = self.leaves.get(&(block / LEAF_BLOCKS));
        leaf.map_or(Place::Absent, |leaf| Place::from_word(leaf[(block % LEAF_BLOCKS) as usize]))
    }

    /// Puts a block somewhere; what is at its old place is the caller's to release.
    pub(super) fn set(&mut self, block: u64, place: Place) {
        let number = block / LEAF_BLOCKS;
        if place == Place::Absent && !self.leaves.contains_key(&number) {
            return;
        }
        let leaf = self.leaves.entry(number).or_insert_with(|| Box::new([0; LEAF_BLOCKS as usize]));
        let word = &mut leaf[(block % LEAF_BLOCKS) as usize];
        let old = Place::from_word(*word);
        *word = place.to_word();
        let is_empty = place == Place::Absent && leaf.iter().all(|word| *word == 0);
        self.count(old, place);
        if is_empty {
            self.leaves.remove(&number);
        }
    }

    /// Makes all blocks from `first` on absent, and hands their places to `release`.
    pub(super) fn clear_from(&mut self, first: u64, mut release: impl FnMut(Place)) {
        let counts = &mut self.counts;
        self.leaves.retain(|number, leaf| {
            let kept = first.saturating_sub(number * LEAF_BLOCKS).min(LEAF_BLOCKS) as usize;
            for word in &mut leaf[kept..] {
                let place = Place::from_word(std::mem::take(word));
                if place != Place::Absent {
                    counts[place.tag()] -= 1;
                    release(place);
                }
            }
            leaf[..kept].iter().any(|word| *word != 0)
        });
        self.leaves.shrink_to_fit();
    }

    /// How many blocks have a place like this one.
    pub(super) fn blocks_like(&self, place: Place) -> u64 {
        self.counts[place.tag()]
    }

    fn count(&mut self, old: Place, new: Place) {
        if old != Place::Absent {
            self.counts[old.tag()] -= 1;
        }
        if new != Place::Absent {
            self.counts[new.tag()] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_blocks_take_about_eight_bytes_each() {
        const BLOCKS: u64 = 1 << 20;
        let mut index = Index::default();
        for block in 0..BLOCKS {
            index.set(block, Place::InFile { slot: block as u32, checksum: 7 });
        }
        // The allocator's header; key, pointer and control byte of each bucket (at 7/8 load).
        let leaves = index.leaves.len() * (size_of::<Leaf>() + 16);
        let buckets = index.leaves.capacity() * 8 / 7 * (16 + 1);
        assert!(leaves + buckets < 9 * BLOCKS as usize, "{leaves} + {buckets} bytes");
        index.clear_from(10, |_| {});
        assert_eq!(index.leaves.len(), 1);
        assert!(index.leaves.capacity() < 100, "and it is given back");
        assert_eq!(index.blocks_like(Place::InFile { slot: 0, checksum: 0 }), 10);
    }

    #[test]
    fn absent_blocks_take_nothing() {
        let mut index = Index::default();
        index.set(5, Place::Absent);
        assert!(index.leaves.is_empty());
        for block in [5, 70, u64::MAX / 4096] {
            index.set(block, Place::Zeros);
            assert_eq!(index.get(block), Place::Zeros);
            assert_eq!(index.blocks_like(Place::Zeros), 1);
            index.set(block, Place::Absent);
            assert!(index.leaves.is_empty(), "the last block of a leaf takes it along");
        }
    }
}
