//! What can be done with a mapping that can be stored to, beside storing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use omnimap_host::Exclusive;

use crate::error::{Error, Result};
use crate::location::Location;
use crate::mapped_view::{COPIED_BYTES_MAX, MappedView};
use crate::object::{MemoryObject, Pages};
use crate::page_state::{PageState, Transition};
use crate::page_table::Mark;
use crate::snapshot::store_error;
use crate::sync::atomic::Ordering;
use crate::sync::{MutexGuard, lock, read, thread};
use crate::units::{PageIndex, PageRange};

impl MappedView {
    /// Gives the mapping the right to its bytes, which came with the object.
    pub fn with_exclusive(mut self, exclusive: Option<Exclusive>) -> MappedView {
        self.exclusive = exclusive;
        self
    }

    /// The bytes, as for the one that may store to them. Touching one may wait for the store, and raises SIGBUS if that
    /// fails.
    ///
    /// # Panics
    /// If the mapping has no right to them.
    pub fn exclusive_bytes(&self) -> &[u8] {
        let range = self.range_in_view();
        let Some(view) = &self.view else { return &[] };
        let exclusive = self.exclusive.as_ref().expect("the right to the bytes");
        &view.bytes_of(exclusive)[range]
    }

    /// As [`exclusive_bytes`](Self::exclusive_bytes), to be stored to.
    ///
    /// # Panics
    /// As there.
    pub fn exclusive_bytes_mut(&mut self) -> &mut [u8] {
        let range = self.range_in_view();
        let Some(view) = &self.view else { return &mut [] };
        let exclusive = self.exclusive.as_mut().expect("the right to the bytes");
        &mut view.bytes_mut(exclusive)[range]
    }

    /// The bytes as cells that any number of threads may load and store.
    ///
    /// # Panics
    /// If the object was not opened for that.
    pub fn cells(&self) -> &[AtomicU8] {
        let range = self.range_in_view();
        self.view.as_ref().map_or(&[], |view| &view.cells()[range])
    }

    fn range_in_view(&self) -> Range<usize> {
        // The view begins at a page.
        let skip = (self.offset % self.object.cache.page.bytes()) as usize;
        skip..skip + self.len() as usize
    }

    /// Copies bytes in, fetching what is not in memory first: no pointer, so no signal.
    ///
    /// # Errors
    /// If the range is not inside the mapping, or the store does not give what it has there; some of the bytes may have
    /// been written then, from the first on.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.check_writable()?;
        let wanted = self.locate(offset, from.len() as u64)?;
        let (mut at, mut rest, mut copy) = (wanted.start, from, Vec::new());
        while at < wanted.end {
            let end = wanted.end.min((at / COPIED_BYTES_MAX + 1) * COPIED_BYTES_MAX);
            let (piece, behind) = rest.split_at((end - at) as usize);
            // It may be a mapping: its pages cannot come while the kernel copies from them, for it holds what an eviction
            // needs, nor by a system call in every fault mode.
            copy.clear();
            copy.extend_from_slice(piece);
            self.for_each_pinned(at..end, |part, at, pinned| {
                self.object.overwrite(pinned.range, at, &copy[part])
            })?;
            (at, rest) = (end, behind);
        }
        self.object.cache.limit_dirty();
        self.object.swap_kept_out();
        Ok(())
    }

    /// Makes what is dirty of a range durable; where the store's sync is all or nothing, everything that was stored until
    /// now.
    ///
    /// # Errors
    /// If the store did not take something, now or in the background since the last sync. What it did not take is dirty
    /// still, and the next sync tries again.
    pub fn sync(&self, range: Range<u64>) -> Result<()> {
        self.object.sync(self.pages_of(range)?)
    }

    /// Begins to write back what is dirty of a range, and comes back at once.
    ///
    /// # Errors
    /// If the range is not inside the mapping; what goes wrong later, the next sync tells.
    pub fn start_sync(&self, range: Range<u64>) -> Result<()> {
        self.object.start_sync(self.pages_of(range)?);
        Ok(())
    }

    /// Writes back what is dirty of a range, without making it durable, as when that is unmapped. What is all or nothing
    /// waits for its sync.
    ///
    /// # Errors
    /// If the store did not take something: it stays dirty, and the next sync tells too.
    pub fn write_back(&self, range: Range<u64>) -> Result<()> {
        self.object.write_unmapped(self.pages_of(range)?)
    }

    /// Drops what is clean of a range, after taking the store's object as it is now: the next access sees what the store
    /// has. What is dirty stays, and will be written over whatever others wrote. The object's length stays as well.
    ///
    /// # Errors
    /// If the range is not inside the mapping, or the store cannot be asked, or a snapshot needs the version of before; if what
    /// was on its way does not come in time.
    pub fn invalidate(&self, range: Range<u64>) -> Result<()> {
        let pages = self.pages_of(range)?;
        self.check_writable()?;
        let _no_snapshot = lock(&self.object.reshaping);
        if self.object.has_snapshots() {
            let reason = "the version that is mapped cannot be given up while a snapshot of it is in use; drop the snapshot first";
            return Err(Error::NotAllowed { object: self.object.name.clone(), reason });
        }
        store_error(&self.object, || self.object.store.refresh())?;
        self.object.wait_for_transits(pages)?;
        self.object.evict_range(pages);
        Ok(())
    }

    /// Bytes that the store does not have yet.
    pub fn dirty_bytes(&self) -> u64 {
        if !self.object.cache.made_in.is_current() {
            return 0; // Of a child, which has nothing of it.
        }
        self.object.pages().table.dirty_count() * self.object.cache.page.bytes()
    }

    /// Makes the object longer, with zeros, or shorter.
    ///
    /// # Errors
    /// If the store refuses; then nothing has changed. If a snapshot needs what would be cut off.
    pub fn set_object_len(&self, length: u64) -> Result<()> {
        self.check_writable()?;
        self.locate(0, 0)?;
        self.object.set_len(length)
    }

    /// As [`set_object_len`](Self::set_object_len); the mapping goes to the object's new end, perhaps at another address.
    ///
    /// # Errors
    /// As there; and if the machine has no address range for it. Nothing has changed then.
    pub fn resize(&mut self, length: u64) -> Result<()> {
        let wanted = length.saturating_sub(self.offset);
        if wanted <= self.length {
            return self.set_object_len(length);
        }
        self.check_writable()?;
        // The addresses first: a view may reach beyond the end, and nothing may change without them.
        let pages = self.object.cache.page.pages_of(self.offset..self.offset + wanted);
        let mut location = Location::default();
        let new = self.cache.place(&self.object, pages, self.offset, wanted, &self.reader, &mut location)?;
        if let Err(error) = self.set_object_len(length) {
            self.object.cache.take_out(&*new);
            return Err(error);
        }
        self.length = wanted;
        if let Some(old) = self.view.replace(new) {
            self.object.cache.take_out(&*old);
            self.leave(old);
        }
        self.location = location;
        Ok(())
    }

    /// The bytes of this moment, for good, as an object of the same cache; costs nothing until it is stored to.
    ///
    /// # Errors
    /// If the machine has no memory for it to be in.
    pub fn snapshot(&self) -> Result<Arc<MemoryObject>> {
        self.check_writable()?;
        self.locate(0, 0)?;
        let number = self.object.snapshots_made.fetch_add(1, Ordering::Relaxed);
        let store = self.object.snapshot(number)?;
        self.cache.open(Arc::new(store))
    }

    fn pages_of(&self, range: Range<u64>) -> Result<PageRange> {
        let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
        Ok(self.object.cache.page.pages_of(wanted))
    }

    fn check_writable(&self) -> Result<()> {
        if self.object.memory.used_as().is_writable() {
            return Ok(());
        }
        let reason = "it was mapped read-only; map it writable, or private";
        Err(Error::NotAllowed { object: self.object.name.clone(), reason })
    }
}

impl MemoryObject {
    /// Copies bytes into pages that are pinned.
    fn overwrite(&self, pinned: PageRange, offset: u64, bytes: &[u8]) -> Result<()> {
        let _not_within_a_moment = read(&self.writing);
        let make_dirty = || {
            let mut pages = self.pages();
            pinned.iter().for_each(|page| self.make_dirty(&mut pages, page));
        };
        make_dirty();
        let written = self.memory.write(offset, bytes);
        // They may have been copied meanwhile, with half of the bytes.
        make_dirty();
        written.map_err(|e| self.host_error(e))
    }

    /// Changes the length, here and in the store.
    fn set_len(self: &Arc<Self>, length: u64) -> Result<()> {
        let _turn = self.syncs.take();
        let before = self.len();
        if length < before {
            return self.shrink(before, length);
        }
        let page = self.cache.page.page_at(before);
        let tail = before..self.cache.page.bytes_of(PageRange::single(page)).end.min(length);
        // Not on its way out when it is written to.
        let last = match before.is_multiple_of(self.cache.page.bytes()) || self.is_absent(page) {
            true => None,
            false => Some(self.bring(page)?),
        };
        store_error(self, || self.store.set_len(length))?;
        let mut pages = self.pages();
        self.memory.set_len(length).map_err(|e| self.host_error(e))?;
        if last.is_some() {
            // What was stored behind the end is no part of the object.
            let zeros = vec![0; (tail.end - tail.start) as usize];
            self.memory.write(tail.start, &zeros).map_err(|e| self.host_error(e))?;
        }
        pages.writes.length_unsynced = true;
        self.set_length(length);
        Ok(())
    }

    fn is_absent(&self, page: PageIndex) -> bool {
        self.pages().table.state(page) == PageState::Absent
    }

    fn shrink(self: &Arc<Self>, before: u64, length: u64) -> Result<()> {
        let _no_snapshot = lock(&self.reshaping);
        if self.has_snapshots() {
            let reason =
                "it cannot be made shorter while a snapshot of it is in use; drop the snapshot first";
            return Err(Error::NotAllowed { object: self.name.clone(), reason });
        }
        let gone = PageRange::new(
            length.div_ceil(self.cache.page.bytes()),
            before.div_ceil(self.cache.page.bytes()),
        );
        // The page that the new end cuts stays: fetched meanwhile, it would have too much of the old bytes, or, if the store
        // refuses, too little.
        let _cut = match length.is_multiple_of(self.cache.page.bytes()) {
            true => None,
            false => Some(self.bring(self.cache.page.page_at(length))?),
        };
        // Nothing else is fetched, and nothing written back, until it is done.
        self.set_length(length);
        self.pages().writes.sealed = true;
        let outcome = self
            .wait_until_still(gone, length)
            .and_then(|()| store_error(self, || self.store.set_len(length)));
        // Pages may have been evicted, or pinned by whoever had looked at the length before, while the store was asked.
        let mut pages = if outcome.is_ok() { self.wait_for_evictions(gone) } else { self.pages() };
        pages.writes.sealed = false;
        if outcome.is_err() {
            self.set_length(before);
            return outcome;
        }
        let (mut resident, mut dirty) = (0, 0);
        for page in pages.table.present_runs(gone).into_iter().flat_map(PageRange::iter) {
            let state = pages.table.state(page);
            resident += u64::from(state.is_resident());
            dirty += u64::from(state.is_dirty());
            pages.table.apply(page, Transition::Discarded);
            for mark in [Mark::Queued, Mark::Read] {
                pages.table.set(page, mark, false);
            }
        }
        for page in pages.table.unsynced_runs().into_iter().flat_map(|run| run.intersect(gone).iter()) {
            pages.table.set(page, Mark::Unsynced, false);
        }
        pages.writes.lost.retain(|page| !gone.contains(*page));
        pages.writes.length_unsynced = true;
        let cut = self.memory.set_len(length).map_err(|e| self.host_error(e));
        drop(pages);
        self.count_dirty(-(dirty as i64));
        self.cache.budget.release(resident);
        self.cache.note_stale(resident);
        cut
    }

    /// Waits for what is on its way of some pages at this moment: it may have bytes of before.
    fn wait_for_transits(&self, range: PageRange) -> Result<()> {
        let transits = self.pages().transits_of(range);
        let limit = self.cache.options.fill_time_max;
        if transits.iter().all(|transit| transit.wait_for_end(limit)) {
            return Ok(());
        }
        Err(self.timed_out(self.cache.page.bytes_of(range).start))
    }

    /// Waits until pages that nobody can claim any more are not on their way anywhere, and not pinned; and until the page
    /// that the new end cuts is not being written back as it was, which would bring back what is cut off.
    fn wait_until_still(&self, range: PageRange, length: u64) -> Result<()> {
        let cut = PageRange::new(self.cache.page.page_at(length).0, range.end.0);
        let begin = std::time::Instant::now();
        loop {
            {
                let pages = self.pages();
                if !pages.is_moving(range) && pages.table.writing_runs(cut).is_empty() {
                    return Ok(());
                }
            }
            if begin.elapsed() > self.cache.options.fill_time_max {
                let (object, limit) = (self.name.clone(), self.cache.options.fill_time_max);
                return Err(Error::TimedOut { object, offset: self.cache.page.bytes_of(range).start, limit });
            }
            thread::yield_now();
        }
    }

    /// The pages, when those that nobody can claim any more are neither on their way out nor pinned.
    fn wait_for_evictions(&self, range: PageRange) -> MutexGuard<'_, Pages> {
        loop {
            let pages = self.pages();
            if !pages.is_moving(range) {
                return pages;
            }
            drop(pages);
            thread::yield_now();
        }
    }
}
