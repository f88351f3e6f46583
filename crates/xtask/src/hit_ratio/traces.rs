//! What the policies are tried on: pages in the order in which they are used.

use std::collections::HashSet;

use anyhow::{Context, Result};

/// Pages used one after the other, and the cache that they are used through.
pub(super) struct Trace {
    pub(super) name: &'static str,
    pub(super) cache_pages: usize,
    /// Accesses that fill the cache and are not counted.
    pub(super) warm_up: usize,
    pub(super) accesses: Vec<u32>,
}

/// Pages of the object in the synthetic traces.
const PAGES: u32 = 1 << 17;
/// Accesses of a synthetic trace; the first quarter is not counted.
const ACCESSES: usize = 4_000_000;
/// The exponent of the zipf distribution, as YCSB has it.
const EXPONENT: f64 = 0.99;
/// A byte of a number that goes on.
const MORE: u8 = 0x80;

/// Accesses in `traces/sqlite.zst`, for the test that it is whole.
#[cfg(test)]
const RECORDED: usize = 273_839;

/// All of them. The same seed gives the same.
pub(super) fn all(seed: u64) -> Result<Vec<Trace>> {
    let synthetic = |name, cache_pages: u32, accesses: Vec<u32>| Trace {
        name,
        cache_pages: cache_pages as usize,
        warm_up: accesses.len() / 4,
        accesses,
    };
    let mut random = Random(seed);
    let zipf = zipf(&mut random, ACCESSES);
    let uniform = (0..ACCESSES).map(|_| random.below(u64::from(PAGES)) as u32).collect();
    let looping = PAGES / 8 + PAGES / 80;
    let recorded = decode(include_bytes!("../../traces/sqlite.zst"))?;
    let distinct = recorded.iter().collect::<HashSet<_>>().len();
    let real =
        |name, share| Trace { name, cache_pages: distinct / share, warm_up: 0, accesses: recorded.clone() };
    Ok(vec![
        synthetic("zipf, cache 1/8", PAGES / 8, zipf.clone()),
        synthetic("zipf, cache 1/64", PAGES / 64, zipf.clone()),
        synthetic("zipf + scan, cache 1/8", PAGES / 8, with_scan(&zipf)),
        synthetic("moving zipf, cache 1/8", PAGES / 8, moving(&zipf)),
        synthetic("loop of 1.1 caches", PAGES / 8, (0..ACCESSES as u32).map(|i| i % looping).collect()),
        synthetic("uniform, cache 1/8", PAGES / 8, uniform),
        real("sqlite, cache 1/8", 8),
        real("sqlite, cache 1/32", 32),
    ])
}

/// Random pages, some much more often than others; the popular ones lie scattered.
fn zipf(random: &mut Random, accesses: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..PAGES).collect();
    for i in (1..places.len()).rev() {
        places.swap(i, random.below(i as u64 + 1) as usize);
    }
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=PAGES)
        .map(|rank| {
            sum += f64::from(rank).powf(-EXPONENT);
            sum
        })
        .collect();
    (0..accesses)
        .map(|_| {
            let at = random.fraction() * sum;
            places[sums.partition_point(|s| *s < at).min(places.len() - 1)]
        })
        .collect()
}

/// Other pages are the popular ones every now and then.
fn moving(accesses: &[u32]) -> Vec<u32> {
    let shift = |at: usize| (at / (ACCESSES / 8)) as u32 * (PAGES / 8 - 1);
    accesses.iter().enumerate().map(|(at, page)| (page + shift(at)) % PAGES).collect()
}

/// Every other access is somebody's who reads another object from one end to the other, again and again.
fn with_scan(accesses: &[u32]) -> Vec<u32> {
    (0..PAGES).cycle().zip(accesses).flat_map(|(scan, page)| [*page, PAGES + scan]).collect()
}

/// Reads a trace as `traces/record.sh` packs it: differences of consecutive page numbers, zigzag, LEB128, zstd.
fn decode(compressed: &[u8]) -> Result<Vec<u32>> {
    let bytes = zstd::decode_all(compressed)?;
    let mut pages = Vec::new();
    let (mut page, mut delta, mut shift) = (0i64, 0u64, 0);
    for byte in bytes {
        delta |= u64::from(byte & !MORE) << shift;
        shift += 7;
        if byte & MORE == 0 {
            page += (delta >> 1) as i64 ^ -((delta & 1) as i64);
            pages.push(u32::try_from(page).context("a page number in the trace")?);
            (delta, shift) = (0, 0);
        }
    }
    Ok(pages)
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_the_same_for_the_same_seed_and_what_they_are_called() {
        let [first, again, other] = [1, 1, 2].map(|seed| zipf(&mut Random(seed), 100_000));
        assert!(first == again && first != other);
        let mut uses = vec![0u32; PAGES as usize];
        first.iter().for_each(|page| uses[*page as usize] += 1);
        uses.sort_unstable_by(|a, b| b.cmp(a));
        // Of 2^17 pages the most popular has 1 / (1 + 2^-0.99 + …) of all.
        let sum: f64 = (1..=PAGES).map(|rank| f64::from(rank).powf(-EXPONENT)).sum();
        let share = f64::from(uses[0]) / 100_000.0;
        assert!((share * sum - 1.0).abs() < 0.05, "{share} of 1 / {sum}");
        let expected = 2f64.powf(-EXPONENT);
        let second = f64::from(uses[1]) / f64::from(uses[0]);
        assert!((second - expected).abs() < 0.05, "{second}, not {expected}");
    }

    #[test]
    fn a_trace_is_read_back() {
        // 5, 3 (-2 is 3), 303 (300 is 600, in two bytes), 303.
        let bytes = [10, 3, 0x80 | 88, 4, 0];
        let compressed = zstd::encode_all(&bytes[..], 0).unwrap();
        assert_eq!(decode(&compressed).unwrap(), [5, 3, 303, 303]);
        assert!(decode(&zstd::encode_all(&[3][..], 0).unwrap()).is_err(), "-2 is no page");
        assert!(decode(b"no zstd").is_err());
    }

    #[test]
    fn the_recorded_trace_is_whole() {
        let trace = decode(include_bytes!("../../traces/sqlite.zst")).unwrap();
        assert_eq!(trace.len(), RECORDED);
    }
}
