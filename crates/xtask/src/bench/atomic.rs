//! What it costs that a sync is all or nothing: scattered dirty pages, all of them in memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use omnimap::store::{BackingStore, FileStore};
use omnimap::{MapOptions, MappingMut};
use omnimap_testkit::Prng;

use super::sequential::write_random;
use super::{Arguments, medians};

const PAGE_BYTES: u64 = 4096;
const DIRTY_PAGES: u64 = 16384;
const BUDGET_BYTES: u64 = 256 << 20;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let directory = tempfile::tempdir_in(&arguments.directory)?;
    let path = directory.path().join("synced");
    let bytes = arguments.file_bytes() / PAGE_BYTES * PAGE_BYTES;
    ensure!(bytes / PAGE_BYTES >= 2 * DIRTY_PAGES, "the pages are not scattered in a file so small");
    write_random(&path, bytes)?;
    let pages = scattered(bytes / PAGE_BYTES);
    let stamp = std::cell::Cell::new(0);
    let plain = || {
        stamp.set(stamp.get() + 1);
        let mapping = options().open_mut(&path)?;
        synced(mapping, &path, &pages, stamp.get(), |mapping| Ok(mapping.sync()?))
    };
    let what = format!("atomic, {DIRTY_PAGES} scattered dirty pages of {} MiB", bytes >> 20);
    let atomic = || {
        stamp.set(stamp.get() + 1);
        let mapping = options().atomic(true).open_mut(&path)?;
        synced(mapping, &path, &pages, stamp.get(), |mapping| Ok(mapping.sync_atomic()?))
    };
    let [plain, atomic] = medians(arguments.runs, [Box::new(plain), Box::new(atomic)])?;
    println!(
        "{what}: sync {:.3} s, sync_atomic {:.3} s, ratio {:.2}",
        plain.as_secs_f64(),
        atomic.as_secs_f64(),
        atomic.as_secs_f64() / plain.as_secs_f64()
    );
    Ok(())
}

/// Nothing is written before the sync: that would be time that nobody measures.
fn options() -> MapOptions {
    let mut options = MapOptions::new();
    options.budget(BUDGET_BYTES).dirty_max(BUDGET_BYTES).dirty_time_max(Duration::from_secs(3600));
    options
}

/// Makes the pages dirty, and times the sync alone.
fn synced(
    mut mapping: MappingMut,
    path: &Path,
    pages: &[u64],
    stamp: u64,
    sync: impl FnOnce(&MappingMut) -> Result<()>,
) -> Result<Duration> {
    for page in pages {
        mapping[(page * PAGE_BYTES) as usize..][..8].copy_from_slice(&stamp.to_ne_bytes());
    }
    let (dirty, wanted) = (mapping.dirty_bytes(), DIRTY_PAGES * mapping.page_bytes());
    ensure!(dirty == wanted, "{dirty} bytes are dirty before the sync, and not {wanted}");
    let begin = Instant::now();
    sync(&mapping)?;
    let time = begin.elapsed();
    drop(mapping);
    let store = FileStore::open(path)?;
    for page in pages {
        let mut found = [0; 8];
        store.read_at(page * PAGE_BYTES, &mut found)?;
        ensure!(u64::from_ne_bytes(found) == stamp, "page {page} was not written");
    }
    Ok(time)
}

/// Different pages, in random order.
fn scattered(pages: u64) -> Vec<u64> {
    let (mut random, mut seen) = (Prng::new(13), std::collections::HashSet::new());
    std::iter::repeat_with(|| random.below(pages))
        .filter(|page| seen.insert(*page))
        .take(DIRTY_PAGES as usize)
        .collect()
}
