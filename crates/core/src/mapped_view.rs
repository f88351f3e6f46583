//! A mapping as the engine has it: a view of an object, and the checked ways to use it.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Instant;

use omnimap_host::{Address, Exclusive, View};
use omnimap_store::Answers;

use crate::address_space::Reader;
use crate::cache::PageCache;
use crate::error::{Error, Result};
use crate::fill::For;
use crate::location::Location;
use crate::locks::Locks;
use crate::object::{Claim, Intent, MemoryObject};
use crate::prefetch::Prefetch;
use crate::readahead::{Bounds, Pattern};
use crate::stats::{self, Counter, Stats};
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, lock};
use crate::transit::{Cause, Waited, Waiter};
use crate::units::{PageIndex, PageRange};

/// Bytes that a checked access has between the object and the caller's slice: as many as stay in a processor's cache, and a
/// multiple of any page.
pub(crate) const COPIED_BYTES_MAX: u64 = 128 << 10;

/// A contiguous range of addresses that shows a part of an object; unmapped when dropped.
///
/// All offsets are in bytes from its start.
pub struct MappedView {
    pub(crate) cache: Arc<PageCache>,
    pub(crate) object: Arc<MemoryObject>,
    /// None for a mapping of no bytes.
    pub(crate) view: Option<Arc<dyn View>>,
    pub(crate) offset: u64,
    /// Bytes of the view; the object may end before.
    pub(crate) length: u64,
    pub(crate) reader: Arc<Reader>,
    /// The right to the bytes, where one alone has it.
    pub(crate) exclusive: Option<Exclusive>,
    /// Where the view was made.
    pub(crate) location: Location,
    /// The pages that the user has locked through this mapping, each once.
    pub(crate) held: Mutex<Locks>,
}

impl MappedView {
    pub(crate) fn new(
        cache: Arc<PageCache>,
        object: Arc<MemoryObject>,
        view: Option<Arc<dyn View>>,
        offset: u64,
        length: u64,
        reader: Arc<Reader>,
    ) -> MappedView {
        let (location, held) = (Location::default(), Mutex::default());
        MappedView { cache, object, view, offset, length, reader, exclusive: None, location, held }
    }

    /// Length in bytes, of what the object has of it now.
    pub fn len(&self) -> u64 {
        self.length.min(self.object.len().saturating_sub(self.offset))
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of its first byte, if it has any.
    pub fn address(&self) -> Option<Address> {
        let skip = (self.offset % self.object.cache.page.bytes()) as usize;
        self.view.as_ref().map(|view| Address(view.start().0 + skip))
    }

    /// What it shows.
    pub fn object(&self) -> &Arc<MemoryObject> {
        &self.object
    }

    /// Whose budget it uses.
    pub fn cache(&self) -> &Arc<PageCache> {
        &self.cache
    }

    /// The bytes. Touching one may wait for the store, and raises SIGBUS if the store fails.
    pub fn bytes(&self) -> &[u8] {
        // The view begins at a page.
        let skip = (self.offset % self.object.cache.page.bytes()) as usize;
        let range = skip..skip + self.length as usize;
        self.view.as_ref().map_or(&[], |view| &view.bytes()[range])
    }

    /// Figures of the object since it was opened.
    pub fn stats(&self) -> Stats {
        if !self.object.cache.made_in.is_current() {
            return Stats::default(); // Of a child, which has nothing of it.
        }
        let pages_resident = self.object.pages().table.resident_count();
        Stats { pages_resident, ..self.object.counters.stats() }
    }

    /// Copies bytes out, fetching what is not in memory: no pointer, so no signal.
    ///
    /// # Errors
    /// If the range is not inside the mapping, or the store fails; what `into` holds then is not defined.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let wanted = self.locate(offset, into.len() as u64)?;
        let pages = self.object.cache.page.pages_of(wanted.clone());
        let mut copy = Vec::new();
        self.for_each_pinned(wanted, |part, at, pinned| {
            copy.resize(part.len(), 0);
            self.object.memory.read(at, &mut copy).map_err(|e| self.object.host_error(e))?;
            // The caller's slice may be a mapping, whose pages need room.
            drop(pinned);
            into[part].copy_from_slice(&copy);
            Ok(())
        })?;
        self.read_ahead(pages);
        Ok(())
    }

    /// Brings a range into memory and keeps it there: the bytes it gives cannot fault for want of the store.
    ///
    /// # Errors
    /// If the range is not inside the mapping, or the store fails, or more than half of the budget would be pinned.
    pub fn pin(&self, offset: u64, length: u64) -> Result<PinGuard<'_>> {
        let wanted = self.locate(offset, length)?;
        let inner = &self.object.cache;
        let pages = inner.page.pages_of(wanted);
        let quota = self.quota(pages)?;
        self.object.split_around(pages);
        let mut guard = PinGuard {
            mapping: self,
            range: offset as usize..(offset + length) as usize,
            quota,
            pinned: Pinned {
                object: &self.object,
                range: PageRange { start: pages.start, end: pages.start },
            },
        };
        while guard.pinned.range.end < pages.end {
            let next = guard.pinned.range.end;
            let resident = self.object.pin_resident(next, pages.end);
            if resident.is_empty() {
                self.fetch(next, pages, next.0 * inner.page.bytes())?;
                guard.pinned.range.end = next.next();
            } else {
                self.object.count(Counter::checked_pages_resident, resident.count());
                guard.pinned.range.end = resident.end;
            }
        }
        debug_assert_eq!(guard.quota.pages, guard.pinned.range.count());
        Ok(guard)
    }

    /// Keeps pages in memory that are there or come, until [`unlock`](Self::unlock): of the same pages, as often. Those
    /// behind the object's end count as well.
    ///
    /// # Errors
    /// If more than half of the budget would be pinned or locked.
    pub fn lock(&self, pages: PageRange) -> Result<()> {
        self.locate(0, 0)?;
        self.quota(pages)?.keep();
        self.object.split_around(pages);
        self.object.pages().locks.add(pages);
        Ok(())
    }

    /// Takes a [`lock`](Self::lock) back, or that of some of its pages.
    pub fn unlock(&self, pages: PageRange) {
        if !self.object.cache.made_in.is_current() {
            return; // Locks are not inherited by fork.
        }
        self.object.pages().locks.remove(pages);
        drop(Quota { object: &self.object, pages: pages.count() });
        self.object.cache.budget.evictable();
    }

    /// Takes a part of what may be pinned.
    fn quota(&self, pages: PageRange) -> Result<Quota<'_>> {
        let inner = &self.object.cache;
        let limit = inner.pinned_pages_max();
        let add = |now: u64| now.checked_add(pages.count()).filter(|n| *n <= limit);
        if inner.pinned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
            return Err(Error::PinLimit {
                object: self.object.name.clone(),
                wanted_bytes: pages.count().saturating_mul(inner.page.bytes()),
                limit_bytes: limit * inner.page.bytes(),
            });
        }
        Ok(Quota { object: &self.object, pages: pages.count() })
    }

    /// Begins to fetch ranges, and comes back at once.
    ///
    /// # Errors
    /// If a range is not inside the mapping; what fails later, the [`Prefetch`] tells.
    pub fn prefetch(&self, ranges: &[Range<u64>]) -> Result<Prefetch> {
        let mut pages = Vec::with_capacity(ranges.len());
        for range in ranges {
            let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
            pages.push(self.object.cache.page.pages_of(wanted));
        }
        Ok(Prefetch::begin(&self.cache, &self.object, &pages))
    }

    /// Says how a range will be read from now on.
    ///
    /// # Errors
    /// If the range is not inside the mapping.
    pub fn expect(&self, range: Range<u64>, pattern: Pattern) -> Result<()> {
        let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
        lock(&self.reader.streams).expect(self.object.cache.page.pages_of(wanted), pattern);
        Ok(())
    }

    /// Drops the clean pages that lie wholly in a range and are not pinned; the next access fetches them again.
    ///
    /// # Errors
    /// If the range is not inside the mapping.
    pub fn evict(&self, range: Range<u64>) -> Result<u64> {
        let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
        let inner = &self.object.cache;
        let end = if wanted.end == self.object.len() {
            wanted.end.next_multiple_of(inner.page.bytes())
        } else {
            wanted.end
        };
        let pages = self.object.evict_range(inner.page.pages_inside(wanted.start..end));
        Ok(pages * inner.page.bytes())
    }

    /// Which parts of a range are in memory: runs of whole pages (cut to the range), and whether they are.
    ///
    /// # Errors
    /// If the range is not inside the mapping.
    pub fn residency(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
        let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
        let page = self.object.cache.page;
        let runs = self.object.pages().table.resident_runs(page.pages_of(wanted.clone()));
        let cut = |run: PageRange| {
            let bytes = page.bytes_of(run);
            bytes.start.max(wanted.start) - self.offset..bytes.end.min(wanted.end) - self.offset
        };
        Ok(runs.into_iter().map(|(run, resident)| (cut(run), resident)).collect())
    }

    /// Pins one part after the other of a range of the object, few pages at a time, and calls `work` with each:
    /// which bytes of the range it is, where in the object it begins, and its pages.
    pub(crate) fn for_each_pinned(
        &self,
        wanted: Range<u64>,
        mut work: impl FnMut(Range<usize>, u64, Pinned<'_>) -> Result<()>,
    ) -> Result<()> {
        let page_size = self.object.cache.page;
        let pages_max = (COPIED_BYTES_MAX / page_size.bytes()).max(1);
        let pages = page_size.pages_of(wanted.clone());
        let mut at = wanted.start;
        while at < wanted.end {
            let first = page_size.page_at(at);
            let last = pages.end.min(PageIndex(first.0 + pages_max));
            let mut pinned = self.object.pin_resident(first, last);
            if pinned.is_empty() {
                self.fetch(first, pages, at)?;
                pinned = PageRange::single(first);
            } else {
                self.object.count(Counter::checked_pages_resident, pinned.count());
            }
            let pinned = Pinned { object: &self.object, range: pinned };
            let stop = page_size.bytes_of(pinned.range).end.min(wanted.end);
            let part = (at - wanted.start) as usize..(stop - wanted.start) as usize;
            work(part, at, pinned)?;
            at = stop;
        }
        Ok(())
    }

    /// A range of the mapping as a range of the object; no range, if it is not inside, or the process is another.
    pub(crate) fn locate(&self, offset: u64, length: u64) -> Result<Range<u64>> {
        let object = || self.object.name.clone();
        if offset.checked_add(length).is_none_or(|end| end > self.len()) {
            return Err(Error::OutOfRange { object: object(), offset, length, end: self.len() });
        }
        if !self.object.cache.made_in.is_current() {
            return Err(Error::Forked { object: object() });
        }
        Ok(self.offset + offset..self.offset + offset + length)
    }

    fn bounds(&self, page: PageIndex) -> Bounds {
        let cache = &self.object.cache;
        let seen = cache.page.pages_of(self.offset..self.offset + self.len());
        cache.bounds(&self.object, seen, page, &self.reader)
    }

    /// Gets a page that was not in memory, pinned. `at` is the byte that is wanted first, for errors.
    pub(crate) fn fetch(&self, page: PageIndex, wanted: PageRange, at: u64) -> Result<()> {
        let inner = &self.object.cache;
        let since = Instant::now();
        let limit = inner.options.fill_time_max;
        let bounds = self.bounds(page);
        let plan = lock(&self.reader.streams).on_fault(page, &bounds);
        let end = plan.now.end.max(wanted.end);
        let now =
            PageRange { start: plan.now.start, end }.part_around(page, inner.fill_pages_max(&self.object));
        self.object.count(Counter::checked_pages_waited, 1);
        let ahead = match plan.ahead.range().filter(|_| plan.ahead.step == 1) {
            Some(range) => PageRange::new(range.start.0.max(now.end.0), range.end.0).into(),
            None => plan.ahead,
        };
        inner.fill_ahead(&self.object, ahead, &self.reader);
        let mut joined;
        let outcome = loop {
            let transit = match self.object.claim(page, now, Some(Waiter::Checked { page }), Intent::Load) {
                Claim::Resident => break Ok(()),
                Claim::BeyondEnd => break Err(self.object.error_at(at, Cause::BeyondEnd)),
                Claim::Joined(transit) => {
                    joined = true;
                    transit
                }
                Claim::Mine(fill) => {
                    joined = false;
                    inner.lone_misses.note(plan.part_of, since);
                    let transit = fill.transit();
                    match inner.transfer(&self.object).answers {
                        // What becomes of it, the transit tells.
                        Answers::AtOnce | Answers::Promptly => drop(fill.run(For::Waiter(page))),
                        Answers::Eventually => inner.fill_for_waiter(fill, page),
                    }
                    transit
                }
            };
            match transit.wait(page, limit.saturating_sub(since.elapsed())) {
                Waited::Pinned => break Ok(()),
                Waited::Retry => {}
                // Somebody's time for finding room was up, and ours is not.
                Waited::Failed(Cause::NoRoom) if joined && since.elapsed() < limit => {}
                Waited::Failed(cause) => break Err(self.object.error_at(at, cause)),
                Waited::TimedOut => break Err(self.object.timed_out(at)),
            }
        };
        stats::waited(&self.object.counters, &inner.counters, since.elapsed());
        outcome
    }

    /// Keeps ahead of a reader that needs no faults to be known.
    fn read_ahead(&self, pages: PageRange) {
        let bounds = self.bounds(pages.start);
        let ahead = lock(&self.reader.streams).on_read(pages, &bounds);
        if !ahead.is_empty() {
            self.object.cache.fill_ahead(&self.object, ahead.into(), &self.reader);
        }
    }
}

impl Drop for MappedView {
    fn drop(&mut self) {
        if !self.object.cache.made_in.is_current() {
            return; // Not the child's, and locks may be held by threads that are not here.
        }
        let left = match self.view.take() {
            Some(view) => {
                self.release();
                // The last references go here and now: the range is unmapped when this returns.
                let left = self.object.cache.take_out(&*view);
                self.leave(view);
                left
            }
            // It may have been written to by calls.
            None => self.object.view_count(),
        };
        if left == 0 && self.object.memory.used_as().is_writable() {
            self.object.last_writer_left();
        }
    }
}

/// Pages that stay until it is dropped.
pub(crate) struct Pinned<'a> {
    pub(crate) object: &'a MemoryObject,
    pub(crate) range: PageRange,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if !self.range.is_empty() && self.object.cache.made_in.is_current() {
            self.object.unpin(self.range);
        }
    }
}

/// A part of what may be pinned.
struct Quota<'a> {
    object: &'a MemoryObject,
    pages: u64,
}

impl Quota<'_> {
    /// It stays taken.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Quota<'_> {
    fn drop(&mut self) {
        self.object.cache.pinned.fetch_sub(self.pages, Ordering::Relaxed);
    }
}

/// Bytes that are in memory and stay there until it is dropped.
pub struct PinGuard<'a> {
    mapping: &'a MappedView,
    range: Range<usize>,
    pinned: Pinned<'a>,
    quota: Quota<'a>,
}

impl Deref for PinGuard<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }
}
