//! What is dirty, and how it reaches the store: marking, copying, writing.
//!
//! A page is dirty before the first store to it goes through, and its stores are trapped again before it is copied to be
//! written back. Both happen under the object's lock, so that a page that is not dirty is one that nobody can change.
//! The copy is written without a lock; a store that comes meanwhile makes the page dirty again.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use omnimap_host::{View, die};
use omnimap_store::{AlignedBytes, StoreError, WriteAt, catch};

use crate::cache::Inner;
use crate::error::{Error, Result};
use crate::object::{MemoryObject, Pages};
use crate::page_state::{PageState, Transition};
use crate::page_table::Mark;
use crate::snapshot::Kept;
use crate::stats::Counter;
use crate::sync::atomic::Ordering;
use crate::sync::{Condvar, Mutex, lock};
use crate::units::{PageIndex, PageRange};

/// Pages copied under one lock: some tens of microseconds.
const COPIED_TOGETHER_MAX: u64 = 32;
/// Dirty neighbours that are written along with a page, on each side.
const NEIGHBOURS_MAX: u64 = 32;
/// After a write that failed nothing is written for so long, unless a sync asks for it.
pub(crate) const FAILED_PAUSE: Duration = Duration::from_millis(100);

/// Pages that are told sooner after others than this are settled with those that come next.
const UNSETTLED_TIME_MAX: Duration = Duration::from_millis(1);

/// What an object knows about its writing, beside the pages' states.
#[derive(Default)]
pub(crate) struct Writes {
    /// The first failure that no sync has reported yet.
    pub(crate) error: Option<Error>,
    failed_at: Option<Instant>,
    /// Since when there has been something dirty.
    pub(crate) dirty_since: Option<Instant>,
    /// An atomic sync is under way: only its own pages may reach the store.
    pub(crate) sealed: bool,
    /// What pages held at the moment that is being synced, where they were stored to before they could be copied.
    copies: HashMap<PageIndex, Vec<u8>>,
    /// Snapshots, which want the bytes of before.
    pub(crate) keepers: Vec<Weak<Kept>>,
    /// Pages whose write-back the store has lost, and that were evicted since.
    pub(crate) lost: BTreeSet<PageIndex>,
    /// Where the next search for dirty pages begins that writes some of them in the background.
    pub(crate) swept_to: PageIndex,
    /// The length was changed since the last sync.
    pub(crate) length_unsynced: bool,
}

/// For what pages are written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// To make room, or because they have been dirty for long: not while an atomic sync is under way.
    Room,
    /// Because somebody waits for it.
    Sync,
}

/// Lets one thread at a time do something, without a lock that is held meanwhile.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Mutex<bool>,
    free: Condvar,
}

/// A turn; over when it is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut taken = lock(&self.taken);
        while *taken {
            taken = crate::sync::wait(&self.free, taken);
        }
        *taken = true;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) = false;
        self.0.free.notify_one();
    }
}

/// A run of pages as it was copied.
struct Copied {
    range: PageRange,
    bytes: AlignedBytes,
}

/// Pages that have reached the store, and are still called being written back: settled together, for each time costs a
/// lock that accesses want.
struct Written<'a> {
    object: &'a MemoryObject,
    ranges: Vec<PageRange>,
    settled_at: Instant,
}

impl Written<'_> {
    fn add(&mut self, range: PageRange) {
        self.ranges.push(range);
        if self.settled_at.elapsed() >= UNSETTLED_TIME_MAX {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if !self.ranges.is_empty() {
            self.object.settle(&self.ranges, None);
            self.ranges.clear();
            self.settled_at = Instant::now();
        }
    }
}

impl MemoryObject {
    /// Notes that a page which was not dirty is about to be.
    pub(crate) fn note_dirty(&self, pages: &mut Pages) {
        self.count_dirty(1);
        pages.writes.dirty_since.get_or_insert_with(Instant::now);
    }

    /// Counts pages that became dirty, or (less than 0) are not any more.
    pub(crate) fn count_dirty(&self, pages: i64) {
        if !self.store.is_atomic() {
            self.cache.dirty.fetch_add(pages as u64, Ordering::Relaxed);
        }
        self.memory.note_dirty(pages);
    }

    /// Makes a page that is in memory dirty, so that it may be changed; what it holds is kept for whoever wants it.
    pub(crate) fn make_dirty(&self, pages: &mut Pages, page: PageIndex) {
        self.keep(pages, page);
        match pages.table.state(page) {
            PageState::Clean => {
                pages.table.apply(page, Transition::Dirtied);
                self.note_dirty(pages);
            }
            PageState::WritingBack => pages.table.set(page, Mark::Redirtied, true),
            PageState::Dirty => {}
            state => panic!("a page that is {state:?} cannot be stored to"),
        }
    }

    /// Lets the stores to a page that is in memory go through in a view, from now on.
    pub(crate) fn let_stores(&self, pages: &mut Pages, page: PageIndex, view: &dyn View, bytes: Range<u64>) {
        self.make_dirty(pages, page);
        self.count(Counter::stores_trapped, 1);
        match view.let_stores(bytes) {
            Ok(()) => {}
            // There may be no more mappings, where each run of such pages is one (`FaultMode::Trap`): the thread comes back
            // until some have been written.
            Err(error) if error.is_out_of_memory() => self.cache.too_scattered.store(true, Ordering::Relaxed),
            // The thread would come back for ever.
            Err(error) => die(&format!("{}: a page cannot be made writable: {error}", self.name)),
        }
    }

    /// Keeps what a page holds, before it changes, for a sync or a snapshot of an earlier moment.
    pub(crate) fn keep(&self, pages: &mut Pages, page: PageIndex) {
        let uncopied = pages.table.is(page, Mark::Uncopied);
        if !uncopied && pages.writes.keepers.is_empty() {
            return;
        }
        let mut bytes: Option<Vec<u8>> = None;
        let mut read = || bytes.get_or_insert_with(|| self.page_bytes(page)).clone();
        if uncopied {
            pages.writes.copies.insert(page, read());
            pages.table.set(page, Mark::Uncopied, false);
        }
        pages.writes.keepers.retain(|keeper| {
            let Some(keeper) = keeper.upgrade() else { return false };
            keeper.keep(page, &mut read);
            self.kept.fetch_add(1, Ordering::Relaxed);
            true
        });
    }

    /// What a page in memory holds, up to the object's end.
    pub(crate) fn page_bytes(&self, page: PageIndex) -> Vec<u8> {
        let bytes = self.bytes_inside(PageRange::single(page));
        let mut copy = vec![0; (bytes.end - bytes.start) as usize];
        self.read_memory(bytes.start, &mut copy);
        copy
    }

    /// Copies bytes of pages in memory. That fails only where the machine is broken, and then nothing can be saved.
    pub(crate) fn read_memory(&self, offset: u64, into: &mut [u8]) {
        if let Err(error) = self.memory.read(offset, into) {
            die(&format!("{}: pages in memory cannot be read: {error}", self.name));
        }
    }

    /// The bytes of pages, as far as the object goes.
    pub(crate) fn bytes_inside(&self, range: PageRange) -> Range<u64> {
        let bytes = self.cache.page.bytes_of(range);
        let end = bytes.end.min(self.len());
        bytes.start.min(end)..end
    }

    /// Traps the stores to pages in all views.
    pub(crate) fn trap_stores(&self, runs: &[PageRange]) -> Result<()> {
        let mut outcome = Ok(());
        self.for_views(runs, |shown, ranges| {
            if outcome.is_ok() {
                outcome = shown.view.trap_stores(ranges).map_err(|e| self.host_error(e));
            }
        });
        outcome
    }

    /// Marks all dirty pages as to be written back as they are at this moment, which all their bytes are of: a store that
    /// was made before another one is there if the other is. Gives the pages. From now on, until
    /// [`unseal`](Self::unseal), only they reach the store.
    pub(crate) fn seal(&self) -> Result<Vec<PageRange>> {
        let _no_write_half_done = crate::sync::write(&self.writing);
        // While it is held, no clean page becomes dirty; and the dirty ones are trapped one after the other. What is stored
        // to one that is not trapped yet is part of the moment, and nothing that came after a trapped one can be.
        let mut pages = self.pages();
        // What is being written back already may be newer by now, or fail.
        while !pages.table.writing_runs(self.all_pages()).is_empty() {
            pages = crate::sync::wait(&self.written, pages);
        }
        let runs = pages.table.dirty_runs(self.all_pages());
        self.trap_stores(&runs)?;
        for page in runs.iter().flat_map(|run| run.iter()) {
            pages.table.set(page, Mark::Uncopied, true);
        }
        pages.writes.sealed = true;
        Ok(runs)
    }

    pub(crate) fn unseal(&self, runs: &[PageRange]) {
        let mut pages = self.pages();
        pages.writes.sealed = false;
        pages.writes.copies.clear();
        for page in runs.iter().flat_map(|run| run.iter()) {
            pages.table.set(page, Mark::Uncopied, false);
        }
        drop(pages);
        self.cache.budget.evictable();
    }

    /// Writes back the dirty ones of some pages. Tells which of them others are writing back just now.
    ///
    /// # Errors
    /// The first failure, which is also kept for the next sync; what failed is dirty still.
    pub(crate) fn write_back(&self, runs: &[PageRange], why: Why, theirs: &mut Vec<PageRange>) -> Result<()> {
        let mut first = Ok(());
        let mut rest = runs;
        while !rest.is_empty() {
            // A long run alone, short ones together.
            let mut pages = 0;
            let fits = |run: &&PageRange| {
                pages += run.count();
                pages <= COPIED_TOGETHER_MAX
            };
            let together = rest.iter().take_while(fits).count().max(1);
            // Before they are called being written back: a sync waits for those, and nothing bounds a sync.
            let turn = if why == Why::Room { self.cache.pace.wait() } else { None };
            let Some(copied) = self.copy_runs(&rest[..together], why, theirs)? else { break };
            if let Some(turn) = turn {
                self.cache.pace.note(turn, copied.iter().map(|copied| copied.bytes.len() as u64).sum());
            }
            first = first.and(self.write_copied(copied));
            rest = &rest[together..];
            if why == Why::Room && first.is_err() {
                break;
            }
        }
        first
    }

    /// Traps the stores to the dirty ones of some pages, copies them, and calls them being written back. Nothing, if
    /// nothing may be written now.
    fn copy_runs(
        &self,
        runs: &[PageRange],
        why: Why,
        theirs: &mut Vec<PageRange>,
    ) -> Result<Option<Vec<Copied>>> {
        let _one = lock(&self.copying);
        let mut pages = self.pages();
        if why == Why::Room && pages.writes.must_wait() {
            return Ok(None);
        }
        let mut dirty: Vec<PageRange> = Vec::new();
        for run in runs {
            dirty.extend(pages.table.dirty_runs(*run));
            theirs.extend(pages.table.writing_runs(*run));
        }
        if why == Why::Sync && pages.writes.sealed {
            dirty = self.uncopied_or_kept(&pages, &dirty);
        }
        if dirty.is_empty() {
            return Ok(Some(Vec::new()));
        }
        self.trap_stores(&dirty)?;
        let mut copied = Vec::with_capacity(dirty.len());
        for range in dirty {
            copied.push(self.copy_run(&mut pages, range));
            for page in range.iter() {
                pages.table.apply(page, Transition::BeginWriteBack);
            }
        }
        Ok(Some(copied))
    }

    /// Those of some dirty pages that a sealed sync is about.
    fn uncopied_or_kept(&self, pages: &Pages, runs: &[PageRange]) -> Vec<PageRange> {
        let mut wanted: Vec<PageRange> = Vec::new();
        for page in runs.iter().flat_map(|run| run.iter()) {
            if pages.table.is(page, Mark::Uncopied) || pages.writes.copies.contains_key(&page) {
                match wanted.last_mut() {
                    Some(last) if last.end == page => last.end = page.next(),
                    _ => wanted.push(PageRange::single(page)),
                }
            }
        }
        wanted
    }

    fn copy_run(&self, pages: &mut Pages, range: PageRange) -> Copied {
        let whole = self.cache.page.bytes_of(range);
        let inside = self.bytes_inside(range);
        let mut bytes = AlignedBytes::new((whole.end - whole.start) as usize);
        let length = (inside.end - inside.start) as usize;
        self.read_memory(inside.start, &mut bytes[..length]);
        for page in range.iter() {
            pages.table.set(page, Mark::Uncopied, false);
            // The page has been stored to since the moment that is written: it goes on being dirty.
            if let Some(kept) = pages.writes.copies.remove(&page) {
                let at = ((page.0 - range.start.0) * self.cache.page.bytes()) as usize;
                bytes[at..at + kept.len()].copy_from_slice(&kept);
                pages.table.set(page, Mark::Redirtied, true);
            }
        }
        Copied { range, bytes }
    }

    /// Gives copies to the store together, and settles what the pages of each are as its outcome is told.
    fn write_copied(&self, copied: Vec<Copied>) -> Result<()> {
        let mut wanted = Vec::with_capacity(copied.len());
        for copied in copied {
            let inside = self.bytes_inside(copied.range);
            if inside.is_empty() {
                // Cut off meanwhile.
                self.settle(&[copied.range], None);
            } else {
                wanted.push((copied, inside));
            }
        }
        let writes: Vec<WriteAt<'_>> = wanted
            .iter()
            .map(|(copied, inside)| WriteAt {
                offset: inside.start,
                bytes: &copied.bytes[..(inside.end - inside.start) as usize],
            })
            .collect();
        let mut first = Ok(());
        let mut told = vec![false; writes.len()];
        let mut written = Written { object: self, ranges: Vec::new(), settled_at: Instant::now() };
        let mut tell = |number: usize, outcome: std::result::Result<(), Arc<StoreError>>| {
            if told.get_mut(number).is_none_or(|told| std::mem::replace(told, true)) {
                return;
            }
            let range = wanted[number].0.range;
            match self.note_written(&writes[number], outcome) {
                Ok(()) => written.add(range),
                Err(error) => {
                    written.settle();
                    self.settle(&[range], Some(&error));
                    first = first.clone().and(Err(error));
                }
            }
        };
        let outcome = catch(|| {
            self.store.write_each(&writes, &mut |number, outcome| {
                // Not the store's panic: whoever waits for the pages would do so for ever.
                let told = catch_unwind(AssertUnwindSafe(|| tell(number, outcome.map_err(Arc::new))));
                told.unwrap_or_else(|_| die("a panic while pages were written back"));
            });
        });
        let untold = Arc::new(outcome.err().unwrap_or_else(|| StoreError::Io {
            action: "write",
            length: 0,
            source: std::io::Error::other("the store does not say what became of it"),
        }));
        (0..writes.len()).for_each(|number| tell(number, Err(untold.clone())));
        written.settle();
        first
    }

    /// Counts a write, and puts what went wrong with it into words.
    fn note_written(
        &self,
        write: &WriteAt<'_>,
        outcome: std::result::Result<(), Arc<StoreError>>,
    ) -> Result<()> {
        self.count(Counter::write_backs, 1);
        let Err(source) = outcome else {
            self.count(Counter::bytes_written_back, write.bytes.len() as u64);
            return Ok(());
        };
        self.count(Counter::write_backs_failed, 1);
        let (object, offset) = (self.name.clone(), write.offset);
        tracing::warn!(object = self.name(), offset, error = %source, "write-back failed");
        Err(Error::Write { object, offset, source })
    }

    /// Pages have been written back, or could not be.
    fn settle(&self, ranges: &[PageRange], error: Option<&Error>) {
        let mut clean = 0;
        let one = lock(&self.copying);
        let mut pages = self.pages();
        for page in ranges.iter().flat_map(|range| range.iter()) {
            let redirtied = pages.table.is(page, Mark::Redirtied);
            pages.table.set(page, Mark::Redirtied, false);
            if error.is_some() || redirtied {
                pages.table.apply(page, Transition::StillDirty);
            } else {
                pages.table.apply(page, Transition::WrittenBack);
                clean += 1;
            }
            if error.is_none() {
                pages.table.set(page, Mark::Unsynced, true);
                pages.writes.lost.remove(&page);
            }
        }
        match error {
            Some(error) => {
                pages.writes.error.get_or_insert_with(|| error.clone());
                pages.writes.failed_at = Some(Instant::now());
            }
            None => pages.writes.failed_at = None,
        }
        if pages.table.dirty_count() == 0 {
            pages.writes.dirty_since = None;
        }
        drop(pages);
        drop(one);
        self.count_dirty(-i64::from(clean));
        self.written.notify_all();
        self.cache.budget.evictable();
    }

    /// Widens pages to be written by their dirty neighbours.
    pub(crate) fn with_dirty_neighbours(&self, runs: &[PageRange]) -> Vec<PageRange> {
        let pages = self.pages();
        let mut wide: Vec<PageRange> = Vec::with_capacity(runs.len());
        for run in runs {
            let around =
                PageRange::new(run.start.0.saturating_sub(NEIGHBOURS_MAX), run.end.0 + NEIGHBOURS_MAX);
            let first = pages.table.dirty_run(run.start, around);
            let last = pages.table.dirty_run(PageIndex(run.end.0 - 1), around);
            let run = PageRange::new(first.start.0.min(run.start.0), last.end.0.max(run.end.0));
            match wide.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => wide.push(run),
            }
        }
        wide
    }

    /// Why there is no room: dirty pages that cannot be written are one reason.
    pub(crate) fn no_room(&self, offset: u64) -> Error {
        let (object, limit) = (self.name.clone(), self.cache.options.fill_time_max);
        self.unwritable(offset).unwrap_or(Error::NoRoom { object, offset, limit })
    }

    /// Why an access was not served in time.
    pub(crate) fn timed_out(&self, offset: u64) -> Error {
        let (object, limit) = (self.name.clone(), self.cache.options.fill_time_max);
        self.unwritable(offset).unwrap_or(Error::TimedOut { object, offset, limit })
    }

    fn unwritable(&self, offset: u64) -> Option<Error> {
        let cause = self.cache.objects().iter().find_map(|o| o.pages().writes.error.clone())?;
        let (object, limit) = (self.name.clone(), self.cache.options.fill_time_max);
        Some(Error::NoRoomUnwritable { object, offset, limit, cause: Arc::new(cause) })
    }
}

impl Writes {
    /// Whether nothing may be written for the sake of room now.
    pub(crate) fn must_wait(&self) -> bool {
        self.sealed || self.failed_at.is_some_and(|at| at.elapsed() < FAILED_PAUSE)
    }
}

impl Inner {
    /// Pages in the cache that their stores do not have yet, and can be given.
    pub(crate) fn dirty_pages(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }
}
