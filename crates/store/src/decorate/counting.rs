//! Counts what is asked of a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Decorator;
use crate::{BackingStore, Result};

/// Counts the requests to a store, and their bytes.
pub struct Counting {
    inner: Arc<dyn BackingStore>,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    syncs: AtomicU64,
    in_flight: AtomicU64,
    in_flight_greatest: AtomicU64,
}

/// What a [`Counting`] store has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `read_at`.
    pub reads: u64,
    /// Bytes that came, by successful reads.
    pub bytes_read: u64,
    /// Calls of `write_at`.
    pub writes: u64,
    /// Bytes that went, by successful writes.
    pub bytes_written: u64,
    /// Calls of `sync`.
    pub syncs: u64,
    /// The most reads that were under way at one time.
    pub in_flight_greatest: u64,
}

impl Counting {
    /// Counts from 0 on.
    pub fn new(inner: Arc<dyn BackingStore>) -> Counting {
        let zero = || AtomicU64::new(0);
        Counting {
            inner,
            reads: zero(),
            bytes_read: zero(),
            writes: zero(),
            bytes_written: zero(),
            syncs: zero(),
            in_flight: zero(),
            in_flight_greatest: zero(),
        }
    }

    /// The counts so far; each exact, together not of one moment.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reads: get(&self.reads),
            bytes_read: get(&self.bytes_read),
            writes: get(&self.writes),
            bytes_written: get(&self.bytes_written),
            syncs: get(&self.syncs),
            in_flight_greatest: get(&self.in_flight_greatest),
        }
    }
}

/// A read under way; over when it is dropped, by a panic too.
struct InFlight<'a>(&'a AtomicU64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Decorator for Counting {
    fn inner(&self) -> &dyn BackingStore {
        &self.inner
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_greatest.fetch_max(now, Ordering::Relaxed);
        let _over = InFlight(&self.in_flight);
        let outcome = self.inner.read_at(offset, into);
        self.bytes_read.fetch_add(*outcome.as_ref().unwrap_or(&0) as u64, Ordering::Relaxed);
        outcome
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write_at(offset, bytes)?;
        self.bytes_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync()
    }
}
