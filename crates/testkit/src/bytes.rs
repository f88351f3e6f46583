//! Bytes that tell where they belong.

use omnimap_store::MemoryStore;

/// The byte that belongs at an offset: pages differ from each other, and so do their parts.
pub fn pattern(offset: u64) -> u8 {
    let mixed = (offset / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ (offset / 4096).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 32) as u8 ^ offset as u8
}

/// A store that holds the pattern.
pub fn pattern_store(length: u64) -> MemoryStore {
    MemoryStore::new("pattern", (0..length).map(pattern).collect())
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
pub struct Prng(u64);

impl Prng {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Prng {
        Prng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }
}
