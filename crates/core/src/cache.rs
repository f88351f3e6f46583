//! The page cache: everything that shares one memory budget.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use omnimap_host::{
    Exclusive, FaultStream, Host, HostError, Memory, Place, ProcessId, Protection, Sharing, Use, View,
    ViewRequest, die,
};
use omnimap_store::{Answers, BackingStore, Transfer, Writability, catch};

use crate::address_space::{AddressSpace, Placed, Reader, Shown};
use crate::budget::Budget;
use crate::durable::{Pace, Sweeping};
use crate::early_wake::EarlyWake;
use crate::error::{Error, Result};
use crate::exit;
use crate::fillers::Fillers;
use crate::large::Collapsing;
use crate::location::Location;
use crate::lone_misses::LoneMisses;
use crate::mapped_view::MappedView;
use crate::object::MemoryObject;
use crate::readahead::{Bounds, Streams};
use crate::replacement::{ObjectId, Replacement};
use crate::stats::{self, Counters, Stats};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock, read, write};
use crate::transit::Waiter;
use crate::units::{PageIndex, PageRange, PageSize};
use crate::workers::Workers;

/// Longer than anybody waits.
const FILL_TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a cache may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// Bytes of pages that are resident or being filled; never exceeded. Rounded down to whole pages.
    pub budget_bytes: u64,
    /// How long an access waits for the store, or for room, before it fails; more than a year counts as one.
    pub fill_time_max: Duration,
    /// Threads that serve raw accesses, each with one fill at a time.
    pub workers_max: NonZeroUsize,
    /// Threads that fill for checked accesses, readahead and prefetch, each with one fill at a time.
    pub fillers_max: NonZeroUsize,
    /// Threads that write back, each with one transfer at a time.
    pub writers_max: NonZeroUsize,
    /// Dirty bytes above which they are written back in the background.
    pub dirty_bytes_max: u64,
    /// How long something is dirty before it is written back in the background.
    pub dirty_time_max: Duration,
    /// The most that is written in the background, in bytes a second; nothing bounds it without.
    pub write_back_bytes_per_second_max: Option<u64>,
}

impl CacheOptions {
    /// Pages that a budget has at the least: enough for a few threads whose accesses need two pages each.
    pub const BUDGET_PAGES_MIN: u64 = 8;

    /// A budget, and defaults for the rest: 60 s, 64 workers, 64 fillers, 16 writers; half of the budget may be dirty, for
    /// 30 s.
    pub fn new(budget_bytes: u64) -> CacheOptions {
        const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
        CacheOptions {
            budget_bytes,
            fill_time_max: Duration::from_secs(60),
            workers_max: THREADS_MAX,
            fillers_max: THREADS_MAX,
            writers_max: const { NonZeroUsize::new(16).unwrap() },
            dirty_bytes_max: budget_bytes / 2,
            dirty_time_max: Duration::from_secs(30),
            write_back_bytes_per_second_max: None,
        }
    }
}

/// The resident pages of all objects that share one budget, and the threads that bring and drop them.
///
/// Dropping it stops the threads. Views keep it alive.
pub struct PageCache {
    pub(crate) inner: Arc<Inner>,
}

/// What the cache's threads see of it.
pub(crate) struct Inner {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) faults: Arc<dyn FaultStream>,
    pub(crate) page: PageSize,
    pub(crate) options: CacheOptions,
    pub(crate) budget: Budget,
    /// Pages pinned by the user; at most [`Inner::pinned_pages_max`].
    pub(crate) pinned: AtomicU64,
    pub(crate) replacement: Mutex<Replacement>,
    pub(crate) space: AddressSpace,
    pub(crate) fillers: Fillers,
    pub(crate) writers: Fillers,
    pub(crate) pace: Pace,
    pub(crate) early_wake: EarlyWake,
    pub(crate) lone_misses: LoneMisses,
    /// Pages that are dirty or being written back, but for those that only a sync writes because it is all or nothing.
    pub(crate) dirty: AtomicU64,
    /// No more of the dirty pages can be stored to until some have been written.
    pub(crate) too_scattered: AtomicBool,
    pub(crate) sweeping: Sweeping,
    pub(crate) collapsing: Mutex<Collapsing>,
    pub(crate) counters: Counters,
    pub(crate) made_in: ProcessId,
    workers: Workers,
    objects: RwLock<HashMap<ObjectId, Weak<MemoryObject>>>,
    objects_made: AtomicU64,
}

/// The longest fill. Several shorter ones overlap better than one that is longer.
const FILL_BYTES_MAX: u64 = 1 << 20;
/// The longest fill from a store that is better asked for more at a time, because it is far away.
const FAR_FILL_BYTES_MAX: u64 = 8 << 20;
/// A fill takes at most this part of the budget.
const FILL_BUDGET_SHARE: u64 = 4;

impl PageCache {
    /// A cache on a machine.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`].
    pub fn new(host: Arc<dyn Host>, mut options: CacheOptions) -> Result<Arc<PageCache>> {
        // A moment that is later than any there is cannot be waited for.
        options.fill_time_max = options.fill_time_max.min(FILL_TIME_MAX);
        let page = PageSize::new(host.page_bytes());
        let pages = options.budget_bytes / page.bytes();
        if pages < CacheOptions::BUDGET_PAGES_MIN {
            return Err(Error::BudgetTooSmall {
                bytes: options.budget_bytes,
                least_bytes: CacheOptions::BUDGET_PAGES_MIN * page.bytes(),
                least_pages: CacheOptions::BUDGET_PAGES_MIN,
            });
        }
        let inner = Inner {
            faults: host.faults(),
            host,
            page,
            options,
            budget: Budget::new(pages),
            pinned: AtomicU64::new(0),
            replacement: Mutex::default(),
            space: AddressSpace::default(),
            fillers: Fillers::new(options.fillers_max, pages * page.bytes()),
            writers: Fillers::new(options.writers_max, 0),
            pace: Pace::new(options.write_back_bytes_per_second_max),
            early_wake: EarlyWake::new(),
            lone_misses: LoneMisses::new(),
            dirty: AtomicU64::new(0),
            too_scattered: AtomicBool::new(false),
            sweeping: Sweeping::default(),
            collapsing: Mutex::default(),
            counters: Counters::default(),
            made_in: ProcessId::current(),
            workers: Workers::new(options.workers_max),
            objects: RwLock::default(),
            objects_made: AtomicU64::new(0),
        };
        let inner = Arc::new(inner);
        exit::register(&inner);
        let server: Weak<Inner> = Arc::downgrade(&inner);
        inner.faults.serve_with(server);
        Ok(Arc::new(PageCache { inner }))
    }

    /// An object over a store, with nothing in memory yet, to be read.
    ///
    /// # Errors
    /// If the machine has no memory for it to be in (descriptors, for one).
    pub fn open(&self, store: Arc<dyn BackingStore>) -> Result<Arc<MemoryObject>> {
        self.open_as(store, Use::ReadOnly).map(|(object, _)| object)
    }

    /// An object over a store, whose bytes will be borrowed as `used_as` says; with the right to them, if that is for one
    /// alone.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if the store cannot be written where the object is to be stored to.
    pub fn open_as(
        &self,
        store: Arc<dyn BackingStore>,
        used_as: Use,
    ) -> Result<(Arc<MemoryObject>, Option<Exclusive>)> {
        let inner = &self.inner;
        let (name, length) = catch(|| (Arc::<str>::from(store.name()), store.len()))?;
        if !inner.made_in.is_current() {
            return Err(Error::Forked { object: name });
        }
        if used_as.is_writable() && catch(|| store.writability())? == Writability::ReadOnly {
            return Err(Error::NotAllowed {
                object: name,
                reason: "the store is read-only; map it read-only, or private for changes that nobody else sees",
            });
        }
        let refused = |e| Error::Host { object: name.clone(), source: Arc::new(e) };
        let (memory, exclusive) = inner.host.create_memory(&name, length, used_as).map_err(refused)?;
        let object = self.register(name, store, length, memory);
        tracing::debug!(object = object.name(), bytes = object.len(), "opened");
        Ok((object, exclusive))
    }

    pub(crate) fn register(
        &self,
        name: Arc<str>,
        store: Arc<dyn BackingStore>,
        length: u64,
        memory: Arc<dyn Memory>,
    ) -> Arc<MemoryObject> {
        let inner = &self.inner;
        let id = ObjectId(inner.objects_made.fetch_add(1, Ordering::Relaxed));
        let object = Arc::new(MemoryObject::new(id, name, store, length, memory, inner.clone()));
        write(&inner.objects).insert(id, Arc::downgrade(&object));
        object
    }

    /// Shows `length` bytes of an object of this cache, from `offset` on, which need not be at a page's beginning.
    ///
    /// `readahead_bytes_max` bounds what is fetched ahead of each reader; a quarter of the budget does too. A range of an
    /// object that can be stored to may reach beyond its end, to be used when it has grown.
    ///
    /// # Errors
    /// If the range is not inside the object, or the machine refuses.
    ///
    /// # Panics
    /// If the object is of another cache.
    pub fn map(
        self: &Arc<Self>,
        object: &Arc<MemoryObject>,
        offset: u64,
        length: u64,
        readahead_bytes_max: u64,
    ) -> Result<MappedView> {
        self.map_to(object, offset, length, readahead_bytes_max, Location::default())
    }

    /// As [`map`](Self::map), at a location.
    ///
    /// # Errors
    /// As there; and if what was set aside is not of as many pages.
    ///
    /// # Panics
    /// As there.
    pub fn map_to(
        self: &Arc<Self>,
        object: &Arc<MemoryObject>,
        offset: u64,
        length: u64,
        readahead_bytes_max: u64,
        mut location: Location,
    ) -> Result<MappedView> {
        let inner = &self.inner;
        let name = || object.name.clone();
        assert!(Arc::ptr_eq(&object.cache, inner), "an object is mapped through the cache that opened it");
        if !inner.made_in.is_current() {
            return Err(Error::Forked { object: name() });
        }
        let writable = object.memory.used_as().is_writable();
        if offset
            .checked_add(length)
            .is_none_or(|end| end > object.len() && !(writable && offset <= object.len()))
        {
            return Err(Error::OutOfRange { object: name(), offset, length, end: object.len() });
        }
        let pages = inner.page.pages_of(offset..offset + length);
        let reader = inner.reader(readahead_bytes_max);
        let view = if length == 0 {
            None // There is nothing to touch.
        } else {
            Some(self.place(object, pages, offset, length, &reader, &mut location)?)
        };
        let view = MappedView::new(self.clone(), object.clone(), view, offset, length, reader);
        Ok(view.with_location(location))
    }

    pub(crate) fn start_workers(&self, object: &MemoryObject) -> Result<()> {
        self.inner.workers.start(&self.inner).map_err(|source| {
            object.host_error(HostError::Call { call: "starting a thread for faults", source })
        })
    }

    /// Makes a view, and lets its faults be served.
    pub(crate) fn place(
        &self,
        object: &Arc<MemoryObject>,
        pages: PageRange,
        offset: u64,
        length: u64,
        reader: &Arc<Reader>,
        location: &mut Location,
    ) -> Result<Arc<dyn View>> {
        let inner = &self.inner;
        self.start_workers(object)?;
        let start = inner.page.bytes_of(pages).start;
        let write = object.memory.used_as().is_writable();
        let mut request = ViewRequest {
            offset: start,
            length: offset - start + length,
            place: Place::anywhere(),
            protection: Protection { write, ..Protection::READ },
            sharing: Sharing::Shared,
        };
        let made = match location {
            Location::At(place) => {
                request.place = *place;
                object.memory.map_as(&request)
            }
            Location::In(addresses) => addresses.map(&*object.memory, &request),
        };
        let view = made.map_err(|e| object.host_error(e))?;
        self.serve(object, view.clone(), pages, reader)?;
        Ok(view)
    }

    /// Lets the faults of a new view be served.
    pub(crate) fn serve(
        &self,
        object: &Arc<MemoryObject>,
        view: Arc<dyn View>,
        pages: PageRange,
        reader: &Arc<Reader>,
    ) -> Result<()> {
        let shown = Shown { view, page: self.inner.page, base: pages.start, pages };
        object.add_view(shown.clone())?;
        self.inner.space.insert(Placed { shown, object: object.clone(), reader: reader.clone() });
        Ok(())
    }

    /// Figures of all objects together since the cache was made.
    pub fn stats(&self) -> Stats {
        Stats { pages_resident: self.inner.budget.resident(), ..self.inner.counters.stats() }
    }

    /// The budget in bytes, in whole pages.
    pub fn budget_bytes(&self) -> u64 {
        self.inner.budget.pages() * self.inner.page.bytes()
    }

    /// Bytes of a page here.
    pub fn page_bytes(&self) -> u64 {
        self.inner.page.bytes()
    }
}

impl Drop for PageCache {
    fn drop(&mut self) {
        let inner = &self.inner;
        if !inner.made_in.is_current() {
            return; // The threads are in the parent, and so is whoever stops them.
        }
        inner.faults.close();
        inner.workers.close();
        inner.fillers.close();
        inner.writers.close();
        inner.workers.wait_for_end();
        inner.fillers.wait_for_end();
        inner.writers.wait_for_end();
    }
}

impl Inner {
    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// A reader of whom nothing is known yet.
    pub(crate) fn reader(&self, readahead_bytes_max: u64) -> Arc<Reader> {
        let most = self.budget.pages() / FILL_BUDGET_SHARE;
        let window_pages_max = (readahead_bytes_max / self.page.bytes()).min(most).max(1);
        Arc::new(Reader { streams: Mutex::new(Streams::default()), window_pages_max })
    }

    /// Takes a view out of all lists; gives how many its object has left.
    pub(crate) fn take_out(&self, view: &dyn View) -> usize {
        let start = view.start().0;
        let addresses = start..start + view.length().next_multiple_of(self.page.bytes()) as usize;
        let parts = self.space.cut(addresses.clone());
        parts.iter().fold(0, |_, part| part.object.remove_views(addresses.clone()))
    }

    pub(crate) fn object(&self, id: ObjectId) -> Option<Arc<MemoryObject>> {
        read(&self.objects).get(&id)?.upgrade()
    }

    pub(crate) fn objects(&self) -> Vec<Arc<MemoryObject>> {
        read(&self.objects).values().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn object_ids(&self) -> Vec<ObjectId> {
        read(&self.objects).keys().copied().collect()
    }

    pub(crate) fn forget_object(&self, id: ObjectId) {
        write(&self.objects).remove(&id);
    }

    /// Pages that the user may pin: half, so that the other half always lets fills go on.
    pub(crate) fn pinned_pages_max(&self) -> u64 {
        self.budget.pages() / 2
    }

    /// The longest fill of an object, in pages.
    pub(crate) fn fill_pages_max(&self, object: &MemoryObject) -> u64 {
        let preferred = self.transfer(object).preferred_bytes.get() as u64;
        let bytes = preferred.clamp(FILL_BYTES_MAX, FAR_FILL_BYTES_MAX);
        (bytes / self.page.bytes()).min(self.budget.pages() / FILL_BUDGET_SHARE).max(1)
    }

    /// What bounds the plan for a page of an object, of which a reader sees these.
    pub(crate) fn bounds(
        &self,
        object: &MemoryObject,
        seen: PageRange,
        page: PageIndex,
        reader: &Reader,
    ) -> Bounds {
        let mut window_pages_max = reader.window_pages_max;
        if let Some(bytes) = self.lone_misses.ahead_bytes_max()
            && self.transfer(object).answers == Answers::Promptly
        {
            window_pages_max = window_pages_max.min((bytes / self.page.bytes()).max(1));
        }
        Bounds {
            object: seen.intersect(object.all_pages()),
            chunk: self.chunk_pages(object, page),
            window_pages_max,
            window_pages_min: self.window_pages_min(object),
        }
    }

    /// What a stream through an object begins with, in pages.
    fn window_pages_min(&self, object: &MemoryObject) -> u64 {
        let is_far = self.transfer(object).preferred_bytes.get() as u64 > FILL_BYTES_MAX;
        if is_far { FILL_BYTES_MAX / self.page.bytes() } else { 1 }
    }

    /// How the store's transfers are best made.
    pub(crate) fn transfer(&self, object: &MemoryObject) -> Transfer {
        catch(|| object.store.transfer()).unwrap_or_default()
    }

    /// The pages of the store's chunk around a page, as far as one fill takes them.
    pub(crate) fn chunk_pages(&self, object: &MemoryObject, page: PageIndex) -> PageRange {
        let start = page.0 * self.page.bytes();
        // The store's code: one that panics has no chunks.
        let chunk = catch(|| object.store.chunk_at(start)).unwrap_or(start..start + 1);
        let inside = self.page.pages_inside(chunk.start..chunk.end);
        let end = if chunk.end >= object.len() { object.all_pages().end } else { inside.end };
        let pages = PageRange { start: inside.start.min(page), end: end.max(page.next()) };
        pages.part_around(page, self.fill_pages_max(object))
    }

    /// Lets the waiters that do not sleep on the transit itself know that it is over.
    pub(crate) fn wake(&self, object: &MemoryObject, waiters: &[Waiter]) {
        for waiter in waiters {
            match waiter {
                Waiter::Raw { address, since, .. } => {
                    stats::waited(&object.counters, &self.counters, since.elapsed());
                    if let Err(error) = self.faults.wake(*address, self.page.bytes()) {
                        die(&format!("the thread that waits at {address} cannot be woken: {error}"));
                    }
                }
                Waiter::Prefetch { pieces, .. } => pieces.one_done(),
                Waiter::Checked { .. } => {}
            }
        }
    }
}
