//! What an object held at a moment, while it goes on being written to.
//!
//! Nothing is copied when a snapshot is made: stores are trapped, and the first one to each page keeps what the page held
//! ([`Kept`]). The snapshot's own object reads what was kept, and the rest from the object that it was made of.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use omnimap_store::{BackingStore, StoreError, SwapOptions, SwapStore, Transfer, Version, catch};

use crate::error::{Error, Result};
use crate::object::MemoryObject;
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, lock};
use crate::units::{PageIndex, PageRange};

/// Pages kept as they are, until they go to swap.
const PLAIN_PAGES_MAX: u64 = 256;

/// The pages that have changed since the moment, as they were.
pub(crate) struct Kept {
    /// Of the object at the moment, in bytes: what comes behind that is no part of it.
    length: u64,
    page_bytes: u64,
    pages: Mutex<KeptPages>,
    swap: SwapStore,
}

#[derive(Default)]
struct KeptPages {
    plain: HashMap<PageIndex, Vec<u8>>,
    swapped: HashSet<PageIndex>,
}

/// Where a kept page is.
enum Place {
    Copied,
    Swapped,
}

impl Kept {
    /// Keeps a page, unless a store before this one has had it kept.
    pub(crate) fn keep(&self, page: PageIndex, bytes: impl FnOnce() -> Vec<u8>) {
        let inside = self.length.saturating_sub(page.0 * self.page_bytes);
        if inside == 0 {
            return;
        }
        let mut pages = lock(&self.pages);
        if !pages.swapped.contains(&page) {
            pages.plain.entry(page).or_insert_with(|| {
                let mut bytes = bytes();
                // The object may be longer by now.
                bytes.truncate(inside as usize);
                bytes
            });
        }
    }

    fn get(&self, page: PageIndex, skip: usize, into: &mut [u8]) -> Option<Place> {
        let pages = lock(&self.pages);
        if let Some(bytes) = pages.plain.get(&page) {
            into.copy_from_slice(&bytes[skip..skip + into.len()]);
            return Some(Place::Copied);
        }
        pages.swapped.contains(&page).then_some(Place::Swapped)
    }

    fn has(&self, page: PageIndex) -> bool {
        let pages = lock(&self.pages);
        pages.plain.contains_key(&page) || pages.swapped.contains(&page)
    }

    /// Moves what is kept plain to swap. What swap does not take stays.
    fn swap_out(&self) {
        let plain: Vec<PageIndex> = lock(&self.pages).plain.keys().copied().collect();
        for page in plain {
            let Some(bytes) = lock(&self.pages).plain.get(&page).cloned() else { continue };
            if let Err(error) = self.swap.write_at(page.0 * self.page_bytes, &bytes) {
                tracing::warn!(%error, "what a snapshot keeps stays in memory");
                return;
            }
            let mut pages = lock(&self.pages);
            pages.swapped.insert(page);
            pages.plain.remove(&page);
        }
    }
}

/// The store of a snapshot.
pub(crate) struct SnapshotStore {
    of: Arc<MemoryObject>,
    name: String,
    length: u64,
    kept: Arc<Kept>,
    version: Version,
}

impl MemoryObject {
    /// The bytes of this moment, as a store that never changes.
    ///
    /// # Errors
    /// If stores cannot be trapped.
    pub(crate) fn snapshot(self: &Arc<Self>, number: u64) -> Result<SnapshotStore> {
        loop {
            let swap = SwapStore::new(self.name(), self.len(), SwapOptions::default())
                .map_err(|e| Error::Open(Arc::new(e)))?;
            if let Some(store) = self.snapshot_with(swap, number)? {
                return Ok(store);
            }
        }
    }

    /// Nothing if the object has become longer or shorter than `swap`.
    fn snapshot_with(self: &Arc<Self>, swap: SwapStore, number: u64) -> Result<Option<SnapshotStore>> {
        let _as_it_is = lock(&self.reshaping);
        let _no_write_half_done = crate::sync::write(&self.writing);
        let mut pages = self.pages();
        let length = self.len();
        if swap.len() != length {
            return Ok(None);
        }
        // As for an atomic sync: with the lock held nothing becomes dirty, so the moment is one for all pages.
        let mut runs = pages.table.dirty_runs(self.all_pages());
        runs.extend(pages.table.writing_runs(self.all_pages()));
        runs.sort_unstable_by_key(|run| run.start);
        self.trap_stores(&runs)?;
        let page_bytes = self.cache.page.bytes();
        let kept = Arc::new(Kept { length, page_bytes, pages: Mutex::default(), swap });
        pages.writes.keepers.retain(|keeper| keeper.strong_count() > 0);
        pages.writes.keepers.push(Arc::downgrade(&kept));
        let name = format!("{} (snapshot {number})", self.name);
        let version = Version::new(name.as_str());
        Ok(Some(SnapshotStore { of: self.clone(), name, length, kept, version }))
    }

    /// Whether a snapshot needs the object as it is.
    pub(crate) fn has_snapshots(&self) -> bool {
        self.pages().writes.keepers.iter().any(|keeper| keeper.strong_count() > 0)
    }

    /// Moves what snapshots keep out of memory, when it is much.
    pub(crate) fn swap_kept_out(&self) {
        if self.kept.load(Ordering::Relaxed) < PLAIN_PAGES_MAX
            || self.kept.swap(0, Ordering::Relaxed) < PLAIN_PAGES_MAX
        {
            return;
        }
        let keepers: Vec<_> = self.pages().writes.keepers.iter().filter_map(Weak::upgrade).collect();
        keepers.iter().for_each(|keeper| keeper.swap_out());
    }

    /// Copies bytes of a page as they were at a snapshot's moment, or tells where they are.
    fn peek(&self, first: PageIndex, kept: &Kept, skip: usize, into: &mut [u8]) -> Peeked {
        let pages = self.pages();
        // Under the lock nothing is stored to that would have to be kept first.
        match kept.get(first, skip, into) {
            Some(Place::Copied) => return Peeked::Copied,
            Some(Place::Swapped) => return Peeked::Swapped,
            None => {}
        }
        if pages.table.state(first).is_readable() {
            let offset = first.0 * self.cache.page.bytes() + skip as u64;
            self.read_memory(offset, into);
            return Peeked::Copied;
        }
        Peeked::InStore
    }

    /// How many pages from `first` on, up to `end`, are neither in memory nor kept.
    fn in_store_from(&self, first: PageIndex, end: PageIndex, kept: &Kept) -> PageIndex {
        let pages = self.pages();
        let range = PageRange { start: first, end };
        let stops = |p: &PageIndex| pages.table.state(*p).is_readable() || kept.has(*p);
        range.iter().find(stops).unwrap_or(end)
    }
}

enum Peeked {
    Copied,
    Swapped,
    InStore,
}

impl SnapshotStore {
    /// Reads from the store of the object what was not in memory; none of it may have changed meanwhile.
    fn read_below(&self, offset: u64, into: &mut [u8]) -> omnimap_store::Result<()> {
        let got = self.of.store.read_at(offset, into)?;
        // What lies behind the end that the store has by now was kept, or the read is wrong.
        if got < into.len() {
            return Err(StoreError::Short { wanted: into.len() as u64, got: got as u64 });
        }
        Ok(())
    }
}

impl BackingStore for SnapshotStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn transfer(&self) -> Transfer {
        self.of.store.transfer()
    }

    fn chunk_at(&self, offset: u64) -> std::ops::Range<u64> {
        let chunk = self.of.store.chunk_at(offset);
        chunk.start..chunk.end.min(self.length)
    }

    fn version(&self) -> Option<Version> {
        Some(self.version.clone())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> omnimap_store::Result<usize> {
        let page_size = self.of.cache.page;
        let wanted = (into.len() as u64).min(self.length.saturating_sub(offset));
        let end = offset + wanted;
        let mut at = offset;
        while at < end {
            let page = page_size.page_at(at);
            let page_end = page_size.bytes_of(PageRange::single(page)).end.min(end);
            let part = (at - offset) as usize..(page_end - offset) as usize;
            let skip = (at - page.0 * page_size.bytes()) as usize;
            match self.of.peek(page, &self.kept, skip, &mut into[part.clone()]) {
                Peeked::InStore => {}
                Peeked::Copied => {
                    at = page_end;
                    continue;
                }
                Peeked::Swapped => {
                    self.kept.swap.read_at(at, &mut into[part])?;
                    at = page_end;
                    continue;
                }
            }
            let stop = self.of.in_store_from(page, page_size.pages_of(at..end).end, &self.kept);
            let stop = page_size.bytes_of(PageRange { start: page, end: stop.max(page.next()) }).end.min(end);
            let part = (at - offset) as usize..(stop - offset) as usize;
            let read = self.read_below(at, &mut into[part.clone()]);
            // Whatever was stored to, and written back perhaps, since it was seen to be in the store has been kept.
            let pages = page_size.pages_of(at..stop);
            if let Some(changed) = pages.iter().find(|p| self.kept.has(*p)) {
                at = at.max(changed.0 * page_size.bytes()).min(stop);
                continue;
            }
            read?;
            at = stop;
        }
        Ok(wanted as usize)
    }
}

/// An error of a store's code that is not about an offset.
pub(crate) fn store_error(
    object: &MemoryObject,
    work: impl FnOnce() -> omnimap_store::Result<()>,
) -> Result<()> {
    catch(work).and_then(|outcome| outcome).map_err(|source| Error::Write {
        object: object.name.clone(),
        offset: 0,
        source: Arc::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_object_that_grows_only_what_there_was_is_kept() {
        let (length, page_bytes) = (10_000, 4096);
        let swap = SwapStore::new("grows", length, SwapOptions::default()).unwrap();
        let kept = Kept { length, page_bytes, pages: Mutex::default(), swap };
        for page in 0..1000 {
            kept.keep(PageIndex(page), || vec![7; page_bytes as usize]);
        }
        assert_eq!(lock(&kept.pages).plain.len(), 3);
        kept.swap_out();
        assert_eq!(lock(&kept.pages).plain.len(), 0, "also the last page, which is longer by now");
        let mut bytes = vec![0; 10_000];
        kept.swap.read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}
