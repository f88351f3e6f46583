//! A memory budget that several mappings share.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use omnimap_core::{CacheOptions, Error, PageCache, Result, Stats};
use omnimap_host::FaultMode;
use omnimap_host::linux::LinuxHost;

/// A memory budget, and everything that lives on it; cheap to clone.
///
/// Mappings made with the same cache compete for its budget: what is used stays. The cache's threads end when the
/// last mapping and the last clone are gone.
///
/// # Example
/// ```
/// use omnimap::{Cache, MapOptions, store::MemoryStore};
///
/// # fn main() -> omnimap::Result<()> {
/// let cache = Cache::new(4 << 20)?;
/// let one = MapOptions::new().cache(&cache).map(MemoryStore::new("one", vec![1; 8 << 20]))?;
/// let two = MapOptions::new().cache(&cache).map(MemoryStore::new("two", vec![2; 8 << 20]))?;
/// assert!(one.iter().zip(two.iter()).all(|(a, b)| (*a, *b) == (1, 2)));
/// assert!(cache.stats().pages_resident * cache.page_bytes() <= 4 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cache {
    pub(crate) pages: Arc<PageCache>,
    fault_mode: FaultMode,
}

/// What a cache is made with; also part of [`MapOptions`](crate::MapOptions).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) budget_bytes: u64,
    pub(crate) workers_max: Option<NonZeroUsize>,
    pub(crate) fill_time_max: Option<Duration>,
    pub(crate) dirty_bytes_max: Option<u64>,
    pub(crate) dirty_time_max: Option<Duration>,
    pub(crate) write_back_bytes_per_second_max: Option<u64>,
    pub(crate) fault_mode: Option<FaultMode>,
}

impl Cache {
    /// A cache of `budget_bytes`, in whole pages; at least 8.
    ///
    /// # Errors
    /// A budget that is too small; a machine that allows no fault mode, with what to do about it.
    pub fn new(budget_bytes: u64) -> Result<Cache> {
        Self::with_limits(Limits { budget_bytes, ..Limits::default() })
    }

    pub(crate) fn with_limits(limits: Limits) -> Result<Cache> {
        let host = LinuxHost::open(limits.fault_mode)
            .map_err(|e| Error::Host { object: "page cache".into(), source: Arc::new(e) })?;
        let mut options = CacheOptions::new(limits.budget_bytes);
        if let Some(workers) = limits.workers_max {
            options.workers_max = workers;
            options.fillers_max = workers;
        }
        if let Some(time) = limits.fill_time_max {
            options.fill_time_max = time;
        }
        options.dirty_bytes_max = limits.dirty_bytes_max.unwrap_or(options.dirty_bytes_max);
        options.dirty_time_max = limits.dirty_time_max.unwrap_or(options.dirty_time_max);
        options.write_back_bytes_per_second_max = limits.write_back_bytes_per_second_max;
        let fault_mode = host.fault_mode();
        Ok(Cache { pages: PageCache::new(Arc::new(host), options)?, fault_mode })
    }

    /// As [`new`](Self::new), with faults served in one way and no other.
    ///
    /// # Errors
    /// As there, and if this machine does not allow that way.
    pub fn with_fault_mode(budget_bytes: u64, mode: FaultMode) -> Result<Cache> {
        Self::with_limits(Limits { budget_bytes, fault_mode: Some(mode), ..Limits::default() })
    }

    /// How faults are served.
    pub fn fault_mode(&self) -> FaultMode {
        self.fault_mode
    }

    /// The budget in bytes, in whole pages.
    pub fn budget_bytes(&self) -> u64 {
        self.pages.budget_bytes()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        self.pages.page_bytes()
    }

    /// Figures of all its mappings together.
    pub fn stats(&self) -> Stats {
        self.pages.stats()
    }
}
