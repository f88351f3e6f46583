//! Numbers that look random, and bytes of all kinds.

pub(crate) const BLOCK_BYTES: usize = 4096;
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A length of a few bytes, of some blocks, or of many.
    pub(crate) fn length(&mut self) -> usize {
        let end = [100, 4097, 20_000, 100_000][self.below(4) as usize];
        self.below(end) as usize
    }

    /// Bytes in stretches that compress, do not, or are zeros.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 10_000);
        while bytes.len() < length {
            let stretch = 1 + self.below(9000) as usize;
            match self.below(3) {
                0 => bytes.extend(noise(self.next(), stretch)),
                1 => bytes.resize(bytes.len() + stretch, self.next() as u8),
                _ => bytes.resize(bytes.len() + stretch, 0),
            }
        }
        bytes.truncate(length);
        bytes
    }
}

/// Bytes that do not compress, others for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(length).collect()
}
