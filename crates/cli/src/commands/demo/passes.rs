//! Reading a mapping in order and at random, with every block compared.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use omnimap::Mapping;
use omnimap::machine::KernelFile;
use sha2::{Digest, Sha256};

use super::gather::{BLOCK_BYTES, Gathered, Sum};
use crate::progress;

/// What was measured.
pub(super) struct Figures {
    /// The most memory of the mapping, as the kernel counts it; none for the kernel's own.
    pub(super) resident_bytes: Option<u64>,
    /// What the process grew by at the most.
    pub(super) process_bytes: u64,
    pub(super) faults: Option<u64>,
    pub(super) fills: Option<u64>,
    pub(super) in_order_bytes_per_second: u64,
    pub(super) at_random_bytes_per_second: u64,
    pub(super) wrong_blocks: u64,
}

/// How often memory is looked at.
const SAMPLE_TIME: Duration = Duration::from_millis(1);

/// Something mapped, read block by block.
pub(super) trait Blocks: Sync {
    /// Length in bytes.
    fn bytes(&self) -> u64;
    /// The checksum of a range's bytes.
    fn sum(&self, range: Range<u64>) -> Sum;
    /// Memory that the kernel counts for it alone.
    fn resident_bytes(&self) -> Result<Option<u64>>;
    /// Faults and fills so far.
    fn counts(&self) -> Option<(u64, u64)>;
}

impl Blocks for Mapping {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn sum(&self, range: Range<u64>) -> Sum {
        Sha256::digest(&self[range.start as usize..range.end as usize]).into()
    }

    fn resident_bytes(&self) -> Result<Option<u64>> {
        Ok(Some(self.kernel_resident_bytes()?))
    }

    fn counts(&self) -> Option<(u64, u64)> {
        let stats = self.stats();
        Some((stats.faults_filled + stats.faults_joined + stats.faults_resident, stats.fills))
    }
}

impl Blocks for KernelFile {
    fn bytes(&self) -> u64 {
        self.len()
    }

    fn sum(&self, range: Range<u64>) -> Sum {
        let mut copy = vec![0; (range.end - range.start) as usize];
        let got = self.read_at(range.start, &mut copy);
        Sha256::digest(&copy[..got]).into()
    }

    fn resident_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn counts(&self) -> Option<(u64, u64)> {
        None
    }
}

/// Reads all in order, then half as much at random by several threads.
pub(super) fn read(
    blocks: &dyn Blocks,
    gathered: &Gathered,
    threads: u64,
    name: &'static str,
) -> Result<Figures> {
    if blocks.bytes() != gathered.bytes {
        bail!("{} bytes where {} were gathered", blocks.bytes(), gathered.bytes);
    }
    let before = process_bytes();
    let wrong = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let count = gathered.sums.len() as u64;
    let bar = progress::bytes(name, Some(gathered.bytes + gathered.bytes / 2));
    let check = |block: u64| {
        let start = block * BLOCK_BYTES as u64;
        let range = start..gathered.bytes.min(start + BLOCK_BYTES as u64);
        bar.inc(range.end - range.start);
        if blocks.sum(range) != gathered.sums[block as usize] {
            wrong.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (check, stop) = (&check, &stop);
    let sampled = thread::scope(|scope| {
        let sampler = scope.spawn(move || sample(blocks, stop));
        let stopping = Stopping(stop);
        let begin = Instant::now();
        (0..count).for_each(check);
        let in_order = begin.elapsed();

        let each = (count / 2).div_ceil(threads.max(1));
        let begin = Instant::now();
        let readers: Vec<_> = (0..threads.max(1))
            .map(|thread| {
                scope.spawn(move || {
                    let mut state = thread;
                    (0..each).for_each(|_| check(next_random(&mut state) % count));
                })
            })
            .collect();
        for reader in readers {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let at_random = begin.elapsed();
        drop(stopping);
        let sampled = sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, anyhow::Error>((sampled, in_order, at_random, each * threads.max(1)))
    });
    bar.finish_and_clear();
    let ((resident_bytes, process), in_order, at_random, random_blocks) = sampled?;
    let rate = |bytes: u64, time: Duration| (bytes as f64 / time.as_secs_f64()) as u64;
    let counts = blocks.counts();
    Ok(Figures {
        resident_bytes,
        process_bytes: process.saturating_sub(before),
        faults: counts.map(|c| c.0),
        fills: counts.map(|c| c.1),
        in_order_bytes_per_second: rate(gathered.bytes, in_order),
        at_random_bytes_per_second: rate(random_blocks * BLOCK_BYTES as u64, at_random),
        wrong_blocks: wrong.into_inner(),
    })
}

/// Ends the sampler, also when a reader panics.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The greatest memory of the mapping and of the process, until `stop`.
fn sample(blocks: &dyn Blocks, stop: &AtomicBool) -> Result<(Option<u64>, u64)> {
    let mut greatest = (None, 0);
    while !stop.load(Ordering::Relaxed) {
        greatest.0 = greatest.0.max(blocks.resident_bytes()?);
        greatest.1 = greatest.1.max(process_bytes());
        thread::sleep(SAMPLE_TIME);
    }
    Ok(greatest)
}

/// The process's resident bytes (proc_pid_statm(5)); 0 where it is not told.
fn process_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * omnimap::machine::page_bytes()
}

/// SplitMix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}
