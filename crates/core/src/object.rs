//! A paged memory object: a store, the memory that holds its resident pages, and the state of each page.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use omnimap_host::{Address, Counted, Memory, Sharing, View, die};
use omnimap_store::BackingStore;

use crate::address_map::{AddressMap, Span};
use crate::address_space::Shown;
use crate::cache::Inner;
use crate::error::{Error, Result};
use crate::fill::Fill;
use crate::large::LargePages;
use crate::locks::Locks;
use crate::page_state::{PageState, Transition};
use crate::page_table::{Mark, PageTable};
use crate::prefetch::Pieces;
use crate::replacement::{CachedPage, ObjectId};
use crate::stats::{Counter, Counters, count};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, RwLock, lock, read, write};
use crate::transit::{Cause, Outcome, Transit, Waiter};
use crate::units::{PageIndex, PageRange};
use crate::write_back::{Turns, Writes};

/// Pages that are pinned, or given back, under one lock: faults wait for it.
const PINNED_TOGETHER_MAX: u64 = 256;

/// What is mapped: page-indexed bytes from a store, of which a part is in memory.
pub struct MemoryObject {
    pub(crate) id: ObjectId,
    pub(crate) name: Arc<str>,
    length: AtomicU64,
    pub(crate) store: Arc<dyn BackingStore>,
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) cache: Arc<Inner>,
    pub(crate) counters: Counters,
    /// Held, shared, by checked writes from when their pages are dirty until the bytes are there; exclusively, while a
    /// moment is fixed that must not fall into the middle of one.
    pub(crate) writing: RwLock<()>,
    pages: Mutex<Pages>,
    /// Held by writers that copy pages or settle what became of them. They hold `pages` as well then, and there are many:
    /// thus an access that needs `pages` waits for one of them, and not for all.
    pub(crate) copying: Mutex<()>,
    /// Pages that were being written back are not any more. Goes with `pages`.
    pub(crate) written: Condvar,
    pub(crate) syncs: Turns,
    /// Held while a snapshot is made, and by what none may be made beside: another length, another version. After `syncs`,
    /// before `writing`.
    pub(crate) reshaping: Mutex<()>,
    pub(crate) snapshots_made: AtomicU64,
    /// Pages that were kept for snapshots since room was last made in their memory.
    pub(crate) kept: AtomicU64,
    pub(crate) views: RwLock<AddressMap<Shown>>,
}

/// Everything about an object's pages that changes.
#[derive(Default)]
pub(crate) struct Pages {
    pub(crate) table: PageTable,
    /// Each Filling or Evicting page is covered by exactly one.
    pub(crate) transits: Vec<Arc<Transit>>,
    pins: HashMap<PageIndex, u32>,
    /// Pages that the user has locked, there or not.
    pub(crate) locks: Locks,
    /// Addresses (of pages) that raise SIGBUS until that is taken back.
    pub(crate) poisoned: HashMap<PageIndex, Vec<Poisoned>>,
    pub(crate) writes: Writes,
    pub(crate) large: LargePages,
}

/// An address (of a page) whose accesses raise SIGBUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Poisoned {
    address: Address,
    since: Instant,
}

impl Pages {
    pub(crate) fn pin(&mut self, page: PageIndex) {
        *self.pins.entry(page).or_insert(0) += 1;
        self.table.set(page, Mark::Pinned, true);
        self.table.set(page, Mark::Read, true);
    }

    /// Gives one pin back; `true` if it was the page's last.
    fn unpin(&mut self, page: PageIndex) -> bool {
        let count = self.pins.get_mut(&page).expect("a page is unpinned as often as it was pinned");
        *count -= 1;
        let last = *count == 0;
        if last {
            self.pins.remove(&page);
            self.table.set(page, Mark::Pinned, false);
        }
        last
    }

    /// Whether some of the pages are on their way in or out, or pinned.
    pub(crate) fn is_moving(&self, range: PageRange) -> bool {
        self.pins.keys().any(|page| range.contains(*page)) || !self.transits_of(range).is_empty()
    }

    pub(crate) fn transits_of(&self, range: PageRange) -> Vec<Arc<Transit>> {
        let overlaps = |transit: &&Arc<Transit>| !transit.lock().range.intersect(range).is_empty();
        self.transits.iter().filter(overlaps).cloned().collect()
    }

    pub(crate) fn remove_transit(&mut self, transit: &Arc<Transit>) {
        let at = self.transits.iter().position(|t| Arc::ptr_eq(t, transit));
        self.transits.swap_remove(at.expect("a transit is in the list until it ends"));
    }

    fn poison(&mut self, waiters: &[Waiter]) {
        for waiter in waiters {
            if let Waiter::Raw { address, page, .. } = waiter {
                let poisoned = Poisoned { address: *address, since: Instant::now() };
                self.poisoned.entry(*page).or_default().push(poisoned);
            }
        }
    }

    fn is_poisoned(&self, page: PageIndex, address: Address) -> bool {
        self.poisoned.get(&page).is_some_and(|all| all.iter().any(|p| p.address == address))
    }

    fn take_poisoned(&mut self, range: PageRange) -> Vec<Poisoned> {
        if self.poisoned.is_empty() {
            return Vec::new();
        }
        self.poisoned.extract_if(|page, _| range.contains(*page)).flat_map(|(_, poisoned)| poisoned).collect()
    }
}

/// What a page is wanted for.
pub(crate) enum Intent<'a> {
    /// To be read; or to be looked at first, by whoever marks it as dirty himself.
    Load,
    /// For a store through a view, at these bytes of it.
    Store(&'a dyn View, Range<u64>),
}

/// What became of a request for a page.
pub(crate) enum Claim {
    /// It is in memory (and pinned, for a checked waiter; and its stores go through, for a store).
    Resident,
    /// It is on its way in or out; the waiter is in the list.
    Joined(Arc<Transit>),
    /// The caller has to fill it.
    Mine(Fill),
    /// The object has become shorter, and has no such page.
    BeyondEnd,
}

impl MemoryObject {
    pub(crate) fn new(
        id: ObjectId,
        name: Arc<str>,
        store: Arc<dyn BackingStore>,
        length: u64,
        memory: Arc<dyn Memory>,
        cache: Arc<Inner>,
    ) -> MemoryObject {
        let length = AtomicU64::new(length);
        MemoryObject {
            id,
            name,
            length,
            store,
            memory,
            cache,
            counters: Counters::default(),
            writing: RwLock::default(),
            pages: Mutex::default(),
            copying: Mutex::default(),
            written: Condvar::new(),
            syncs: Turns::default(),
            reshaping: Mutex::default(),
            snapshots_made: AtomicU64::new(1),
            kept: AtomicU64::new(0),
            views: RwLock::default(),
        }
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes, now.
    pub fn len(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    pub(crate) fn set_length(&self, length: u64) {
        self.length.store(length, Ordering::Release);
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its bytes come from.
    pub fn store(&self) -> &Arc<dyn BackingStore> {
        &self.store
    }

    /// Bytes of memory that it has, as the kernel counts them.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn kernel_resident_bytes(&self) -> Result<u64> {
        self.memory.resident_bytes().map_err(|e| self.host_error(e))
    }

    /// All of its pages.
    pub(crate) fn all_pages(&self) -> PageRange {
        self.cache.page.pages_of(0..self.len())
    }

    pub(crate) fn pages(&self) -> MutexGuard<'_, Pages> {
        lock(&self.pages)
    }

    pub(crate) fn count(&self, counter: Counter, by: u64) {
        count(Some(&self.counters), &self.cache.counters, counter, by);
    }

    pub(crate) fn host_error(&self, source: omnimap_host::HostError) -> Error {
        Error::Host { object: self.name.clone(), source: Arc::new(source) }
    }

    /// The error of an access that wanted a byte and could not have it.
    pub(crate) fn error_at(&self, offset: u64, cause: Cause) -> Error {
        let object = self.name.clone();
        match cause {
            Cause::Store(source) => Error::Read { object, offset, source },
            Cause::Host(source) => Error::Host { object, source },
            Cause::NoRoom => self.no_room(offset),
            Cause::BeyondEnd => Error::OutOfRange { object, offset, length: 1, end: self.len() },
        }
    }

    /// Asks for a page. If it has to be fetched, so are those around it that are in `window` and fetched by nobody.
    pub(crate) fn claim(
        self: &Arc<Self>,
        page: PageIndex,
        window: PageRange,
        waiter: Option<Waiter>,
        intent: Intent<'_>,
    ) -> Claim {
        let (claim, poisoned) = self.claim_with_view(page, window, waiter, intent);
        self.clear_poison(&poisoned);
        claim
    }

    /// As [`claim`](Self::claim), for who holds views: gives what to [clear](Self::clear_poison) when they are held no more.
    pub(crate) fn claim_with_view(
        self: &Arc<Self>,
        page: PageIndex,
        window: PageRange,
        waiter: Option<Waiter>,
        intent: Intent<'_>,
    ) -> (Claim, Vec<Poisoned>) {
        let mut pages = self.pages();
        let mut poisoned = Vec::new();
        let claim = match pages.table.state(page) {
            PageState::Clean | PageState::Dirty | PageState::WritingBack => {
                if let Intent::Store(view, bytes) = intent {
                    self.let_stores(&mut pages, page, view, bytes);
                }
                if let Some(Waiter::Checked { page }) = waiter {
                    pages.pin(page);
                }
                Claim::Resident
            }
            PageState::Filling | PageState::Evicting => {
                let transit = pages.transits.iter().find(|t| t.covers(page));
                let transit = transit.expect("a page in transit has one").clone();
                transit.lock().join(waiter);
                Claim::Joined(transit)
            }
            PageState::Absent | PageState::Failed => {
                let inside = self.all_pages();
                if !inside.contains(page) {
                    return (Claim::BeyondEnd, poisoned);
                }
                let range = pages.table.fillable_run(page, window.intersect(inside));
                for page in range.iter() {
                    pages.table.apply(page, Transition::BeginFill);
                }
                let transit = Transit::new(range, waiter);
                pages.transits.push(transit.clone());
                poisoned = pages.take_poisoned(range);
                let store = matches!(intent, Intent::Store(..)).then_some(page);
                Claim::Mine(Fill::new(self.clone(), transit, range, store))
            }
        };
        (claim, poisoned)
    }

    /// As [`claim`](Self::claim), for whoever does not wait: the first pages of `window` that nobody has or fetches, and
    /// what of the window comes after them.
    pub(crate) fn claim_absent(self: &Arc<Self>, mut window: PageRange) -> Option<(Fill, PageRange)> {
        loop {
            let first = {
                let pages = self.pages();
                window.iter().find(|p| pages.table.state(*p).is_fillable())?
            };
            window.start = first;
            if let Claim::Mine(fill) = self.claim(first, window, None, Intent::Load) {
                let rest = PageRange { start: fill.range().end, end: window.end };
                return Some((fill, rest));
            }
            // Somebody was faster.
            window.start = first.next();
        }
    }

    /// Claims all pages of some ranges that nobody has or fetches.
    pub(crate) fn claim_all_absent(self: &Arc<Self>, ranges: &[PageRange]) -> Vec<Fill> {
        let mut fills = Vec::new();
        for range in ranges {
            let mut rest = *range;
            while let Some((fill, after)) = self.claim_absent(rest) {
                rest = after;
                fills.push(fill);
            }
        }
        fills
    }

    /// Lets a prefetch know when the fills and evictions that are under way in a range are over; gives their number.
    pub(crate) fn join_transits(&self, range: PageRange, pieces: &Arc<Pieces>) -> usize {
        let pages = self.pages();
        let mut joined = 0;
        for transit in &pages.transits {
            let mut state = transit.lock();
            let both = state.range.intersect(range);
            if !both.is_empty() {
                state.waiters.push(Waiter::Prefetch { page: both.start, pieces: pieces.clone() });
                joined += 1;
            }
        }
        joined
    }

    /// Pins the pages from `start` on that are in memory, at most up to `end`, and not more than may be under one lock.
    pub(crate) fn pin_resident(&self, start: PageIndex, end: PageIndex) -> PageRange {
        let Some(first) = (PageRange { start, end }).parts(PINNED_TOGETHER_MAX).next() else {
            return PageRange { start, end: start };
        };
        let mut pages = self.pages();
        let prefix = pages.table.readable_prefix(first.start, first.end);
        for page in prefix.iter() {
            pages.pin(page);
        }
        prefix
    }

    pub(crate) fn unpin(&self, range: PageRange) {
        let mut any_last = false;
        for part in range.parts(PINNED_TOGETHER_MAX) {
            let mut pages = self.pages();
            for page in part.iter() {
                any_last |= pages.unpin(page);
            }
        }
        if any_last {
            self.cache.budget.evictable();
        }
    }

    /// Adds a view, of which nobody knows the address yet; stores to pages that are in memory, or will be in a moment, are
    /// trapped in it first.
    pub(crate) fn add_view(&self, shown: Shown) -> Result<()> {
        write(&self.views).insert(shown.clone());
        if !self.memory.used_as().is_writable() || shown.view.sharing() == Sharing::Private {
            return Ok(());
        }
        let pages = self.pages();
        let present = pages.table.present_runs(shown.pages);
        let present: Vec<Range<u64>> = present.into_iter().map(|run| shown.bytes_of(run)).collect();
        let trapped = shown.view.trap_stores(&present).and_then(|()| shown.view.admit_stores());
        drop(pages);
        trapped.map_err(|e| {
            self.remove_views(shown.addresses());
            self.host_error(e)
        })
    }

    /// Removes what shows the object at some addresses; gives how many views are left.
    pub(crate) fn remove_views(&self, addresses: Range<usize>) -> usize {
        let mut views = write(&self.views);
        views.cut(addresses);
        views.len()
    }

    /// Calls `work` with each shared view of some of the pages: what it shows, and the bytes of those within it.
    pub(crate) fn for_views(&self, runs: &[PageRange], mut work: impl FnMut(&Shown, &[Range<u64>])) {
        let mut ranges = Vec::with_capacity(runs.len());
        for shown in read(&self.views).iter().filter(|s| s.view.sharing() == Sharing::Shared) {
            let parts = runs.iter().map(|run| shown.pages.intersect(*run)).filter(|part| !part.is_empty());
            ranges.clear();
            ranges.extend(parts.map(|part| shown.bytes_of(part)));
            if !ranges.is_empty() {
                work(shown, &ranges);
            }
        }
    }

    pub(crate) fn view_count(&self) -> usize {
        read(&self.views).len()
    }

    /// Lets accesses at these addresses fault again instead of failing.
    pub(crate) fn clear_poison(&self, poisoned: &[Poisoned]) {
        for Poisoned { address, .. } in poisoned {
            self.with_page_at(*address, |view, bytes, _| self.clear_failure(view, bytes));
        }
    }

    fn clear_failure(&self, view: &dyn View, bytes: Range<u64>) {
        if let Err(error) = view.clear_failure(bytes) {
            tracing::warn!(object = %self.name, %error, "a failed page could not be made accessible again");
        }
    }

    /// Calls `work` with the view and the page at an address, if it still shows this object.
    fn with_page_at(&self, address: Address, work: impl FnOnce(&dyn View, Range<u64>, PageIndex)) {
        self.cache.space.with_view(address, |placed, offset| {
            if placed.object.id == self.id {
                let bytes = offset..offset + self.cache.page.bytes();
                work(&*placed.shown.view, bytes, placed.shown.page_at(offset));
            }
        });
    }

    /// Makes the accesses of these waiters, which stand among the poisoned, fail, and lets them find out.
    pub(crate) fn fail_raw(&self, waiters: &[Waiter], error: impl Fn(u64) -> Error) {
        for waiter in waiters {
            let Waiter::Raw { address, page, .. } = waiter else { continue };
            self.count(Counter::faults_failed, 1);
            let why = error(page.0 * self.cache.page.bytes()).to_string();
            self.with_page_at(*address, |view, bytes, there| {
                // Locked until it is done: in a page that somebody fills again, stores must stay trapped.
                let pages = self.pages();
                if there != *page || !pages.is_poisoned(*page, *address) {
                    return; // Mapped anew meanwhile, or claimed: the thread tries again.
                }
                if let Err(error) = view.fail(bytes, &why) {
                    // The thread would wait for ever, and without a word.
                    die(&format!("a page failed ({why}) and cannot be marked: {error}"));
                }
            });
        }
        self.cache.wake(self, waiters);
    }

    /// Ends a fill or an eviction for its pages, and gives back who waited for them.
    pub(crate) fn end_transit(
        &self,
        transit: &Arc<Transit>,
        transition: Transition,
        outcome: Outcome,
    ) -> (Vec<Waiter>, Vec<Poisoned>) {
        self.end_transit_locked(&mut self.pages(), transit, transition, None, outcome)
    }

    /// As [`end_transit`](Self::end_transit), where the stores to one of the pages go through already.
    pub(crate) fn end_transit_locked(
        &self,
        pages: &mut Pages,
        transit: &Arc<Transit>,
        transition: Transition,
        stored: Option<PageIndex>,
        outcome: Outcome,
    ) -> (Vec<Waiter>, Vec<Poisoned>) {
        pages.remove_transit(transit);
        let mut state = transit.lock();
        let range = state.range;
        let writable = self.memory.used_as().is_writable();
        for page in range.iter() {
            // With an address that is poisoned still, a view may let stores through: the trap went with the poison.
            let let_through =
                writable && transition == Transition::Filled && pages.poisoned.contains_key(&page);
            let after = if stored == Some(page) || let_through {
                self.note_dirty(pages);
                let after = pages.table.apply(page, Transition::FilledForStore);
                if let_through {
                    // Before a store: the poison is taken back later.
                    self.keep(pages, page);
                }
                after
            } else {
                pages.table.apply(page, transition)
            };
            if after.is_readable() && !pages.table.is(page, Mark::Queued) {
                pages.table.set(page, Mark::Queued, true);
                lock(&self.cache.replacement).arrived(CachedPage { object: self.id, page });
            }
        }
        let waiters = std::mem::take(&mut state.waiters);
        let mut poisoned = Vec::new();
        match &outcome {
            Outcome::Arrived => {
                for waiter in &waiters {
                    if let Waiter::Checked { page } = waiter {
                        pages.pin(*page);
                    }
                }
                poisoned = pages.take_poisoned(range);
            }
            Outcome::Failed(_) => pages.poison(&waiters),
            Outcome::Retry => {}
        }
        state.outcome = Some(outcome);
        transit.notify(&state);
        drop(state);
        (waiters, poisoned)
    }

    /// Fails the raw accesses that have waited since before `oldest`; their fills go on.
    pub(crate) fn expire_raw(&self, oldest: Instant) {
        let late: Vec<Waiter> = {
            let mut pages = self.pages();
            let mut late = Vec::new();
            for transit in &pages.transits {
                let old = |w: &mut Waiter| matches!(w, Waiter::Raw { since, .. } if *since < oldest);
                late.extend(transit.lock().waiters.extract_if(.., old));
            }
            pages.poison(&late);
            late
        };
        self.fail_raw(&late, |offset| self.timed_out(offset));
    }

    /// Lets accesses try again that failed before `oldest`.
    ///
    /// Those by pointers do so by themselves; but a system call that got EFAULT leaves nobody to do it for the next.
    pub(crate) fn forgive(&self, oldest: Instant) {
        let mut old = Vec::new();
        self.pages().poisoned.retain(|_, all| {
            old.extend(all.extract_if(.., |p| p.since < oldest));
            !all.is_empty()
        });
        self.clear_poison(&old);
    }
}

impl Drop for MemoryObject {
    fn drop(&mut self) {
        if !self.cache.made_in.is_current() {
            return; // The memory is the parent's too, and locks may be held by threads that are not here.
        }
        let pages = std::mem::take(&mut *self.pages());
        self.cache.forget_object(self.id);
        // The memory goes before the budget comes back, or both together would be above it for a moment.
        if pages.table.resident_count() > 0
            && let Err(error) =
                self.memory.punch(0, self.cache.page.bytes_of(self.all_pages()).end.max(1), Counted::Exactly)
        {
            tracing::warn!(object = %self.name, %error, "memory could not be given back before it was closed");
        }
        if pages.table.dirty_count() > 0 {
            let error = pages.writes.error.as_ref().map(ToString::to_string);
            tracing::error!(object = %self.name, pages = pages.table.dirty_count(), error, "dropped before it was written");
            if !self.store.is_atomic() {
                self.cache.dirty.fetch_sub(pages.table.dirty_count(), Ordering::Relaxed);
            }
        }
        self.cache.budget.release(pages.table.resident_count());
        self.cache.note_stale(pages.table.resident_count());
    }
}
