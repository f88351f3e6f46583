//! Sees to it that a store gives the same bytes twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::Decorator;
use crate::{BackingStore, Result, StoreError};

/// Remembers a checksum of every block that was read, and refuses a block that comes back different.
///
/// For stores that cannot tell whether their object was changed. 16 to 32 bytes of memory for each block that was
/// ever read.
pub struct Verified {
    inner: Arc<dyn BackingStore>,
    seen: Mutex<HashMap<u64, u64>>,
    /// Counts the beginnings and ends of writes; a read beside one says nothing about what comes later.
    writes: AtomicU64,
    writer: Mutex<()>,
}

impl Verified {
    /// Bytes of a block.
    pub const BLOCK_BYTES: u64 = 4096;

    /// Trusts what is read first.
    pub fn new(inner: Arc<dyn BackingStore>) -> Verified {
        Verified { inner, seen: Mutex::default(), writes: AtomicU64::new(0), writer: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, writes: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let block_bytes = Self::BLOCK_BYTES as usize;
        let sums: Vec<(u64, u64)> =
            (offset / Self::BLOCK_BYTES..).zip(bytes.chunks(block_bytes).map(xxh3_64)).collect();
        let mut seen = self.seen();
        if writes % 2 == 1 || self.writes.load(Ordering::SeqCst) != writes {
            return Ok(());
        }
        for (block, sum) in sums {
            if *seen.entry(block).or_insert(sum) != sum {
                let at = block * Self::BLOCK_BYTES;
                return Err(StoreError::Changed {
                    how: format!("the bytes at {at} are not those read before"),
                });
            }
        }
        Ok(())
    }
}

impl Decorator for Verified {
    fn inner(&self) -> &dyn BackingStore {
        &self.inner
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let writes = self.writes.load(Ordering::SeqCst);
        let length = self.inner.len();
        let end = length.min(offset.saturating_add(into.len() as u64));
        if end <= offset {
            return Ok(0);
        }
        let whole = |at: u64| at.is_multiple_of(Self::BLOCK_BYTES);
        if whole(offset) && (whole(end) || end == length) {
            let got = self.inner.read_at(offset, into)?;
            // A short answer is its caller's business; what came of the last block is no block.
            let checked =
                if offset + got as u64 == end { got } else { got - got % Self::BLOCK_BYTES as usize };
            self.check(writes, offset, &into[..checked.min(into.len())])?;
            return Ok(got);
        }
        let start = offset - offset % Self::BLOCK_BYTES;
        let stop = end.next_multiple_of(Self::BLOCK_BYTES).min(length);
        let mut blocks = vec![0; (stop - start) as usize];
        let got = self.inner.read_at(start, &mut blocks)? as u64;
        if start + got != stop {
            return Err(StoreError::Short { wanted: stop - start, got });
        }
        self.check(writes, start, &blocks)?;
        let wanted = (end - offset) as usize;
        into[..wanted].copy_from_slice(&blocks[(offset - start) as usize..][..wanted]);
        Ok(wanted)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let blocks =
            offset / Self::BLOCK_BYTES..=offset.saturating_add(bytes.len() as u64) / Self::BLOCK_BYTES;
        self.change(|| self.inner.write_at(offset, bytes), |seen| seen.retain(|b, _| !blocks.contains(b)))
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let first = self.inner.len().min(length) / Self::BLOCK_BYTES;
        self.change(|| self.inner.set_len(length), |seen| seen.retain(|block, _| *block < first))
    }
}

impl Verified {
    /// Lets `write` change what `forget` forgets. Writes here go one after the other.
    fn change(
        &self,
        write: impl FnOnce() -> Result<()>,
        forget: impl FnOnce(&mut HashMap<u64, u64>),
    ) -> Result<()> {
        let _one = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.writes.fetch_add(1, Ordering::SeqCst);
        forget(&mut self.seen());
        let outcome = write();
        self.writes.fetch_add(1, Ordering::SeqCst);
        outcome
    }
}
