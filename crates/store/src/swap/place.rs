//! Where a block's bytes are, in one word.

/// Numbers of slots and of pool entries are below this, to fit in a word beside tag and checksum: 4 TiB of slots.
pub(super) const NUMBER_END: u32 = 1 << 30;

/// Where a block's bytes are.
///
/// As a word: the tag in bits 63 and 62, slot or entry below it, the checksum in the low half. 0 is [`Place::Absent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Never written: what lies beneath shows.
    Absent,
    /// Written, and all zeros.
    Zeros,
    /// In the pool.
    Compressed {
        /// The pool's entry.
        entry: u32,
        /// Of the block, not of the compressed bytes.
        checksum: u32,
    },
    /// In the swap file.
    InFile {
        /// In units of a block from the file's begin.
        slot: u32,
        /// Of the block.
        checksum: u32,
    },
}

/// Tells damage: the low half of XXH3.
pub(super) fn checksum(block: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(block) as u32
}

impl Place {
    /// The tag alone, below 4.
    pub(super) fn tag(self) -> usize {
        match self {
            Place::Absent => 0,
            Place::Zeros => 1,
            Place::Compressed { .. } => 2,
            Place::InFile { .. } => 3,
        }
    }

    /// The place as the index holds it.
    pub(super) fn to_word(self) -> u64 {
        let (number, checksum) = match self {
            Place::Absent | Place::Zeros => (0, 0),
            Place::Compressed { entry: number, checksum } | Place::InFile { slot: number, checksum } => {
                (number, checksum)
            }
        };
        debug_assert!(number < NUMBER_END, "{number} does not fit beside the tag");
        (self.tag() as u64) << 62 | u64::from(number) << 32 | u64::from(checksum)
    }

    /// The inverse of [`to_word`](Self::to_word).
    pub(super) fn from_word(word: u64) -> Place {
        let number = (word >> 32) as u32 & (NUMBER_END - 1);
        let checksum = word as u32;
        match word >> 62 {
            0 => Place::Absent,
            1 => Place::Zeros,
            2 => Place::Compressed { entry: number, checksum },
            _ => Place::InFile { slot: number, checksum },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_places_are_one_to_one() {
        for number in [0, 1, NUMBER_END - 1] {
            for checksum in [0, 1, u32::MAX] {
                for place in [
                    Place::Absent,
                    Place::Zeros,
                    Place::Compressed { entry: number, checksum },
                    Place::InFile { slot: number, checksum },
                ] {
                    assert_eq!(Place::from_word(place.to_word()), place);
                }
            }
        }
        assert_eq!(Place::Absent.to_word(), 0, "fresh leaves are zeros");
    }
}
