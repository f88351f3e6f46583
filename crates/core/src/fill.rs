//! A fill: one transfer from the store to memory.
//!
//! Claimed → room → bytes → memory → published. Whoever holds a [`Fill`] owns its pages' Filling state; dropping it
//! gives them back, so that no path, a panic included, leaves a thread waiting.

use std::sync::Arc;

use omnimap_host::{Address, Counted, HostError, Stores, die};
use omnimap_store::{AlignedBytes, ReadAt, StoreError, catch};

use crate::evict::Room;
use crate::object::MemoryObject;
use crate::page_state::Transition;
use crate::stats::{Counter, Resolution};
use crate::transit::{Cause, Outcome, Transit, Waiter};
use crate::units::{PageIndex, PageRange};

/// The right, and the duty, to fill some pages.
pub(crate) struct Fill {
    object: Arc<MemoryObject>,
    transit: Arc<Transit>,
    range: PageRange,
    /// The page that a store through a view waits for, if it is for one.
    store_page: Option<PageIndex>,
    /// Pages of the budget that it holds.
    reserved: u64,
    /// Where the thread waits for it, if the one that fills leads meanwhile, and takes no other fault.
    led_for: Option<Address>,
    ended: bool,
}

/// For whom a fill is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Somebody waits for this page: it must come, or fail.
    Waiter(PageIndex),
    /// Nobody yet: it may as well be left.
    Later,
}

/// What became of pages that nobody waits for.
pub(crate) enum Became {
    Arrived,
    Failed(Cause),
    /// There was no room for them, but perhaps will be when what is on its way has arrived.
    LeftOut {
        more_soon: bool,
    },
}

/// Bytes on their way from the store.
struct Reading {
    offset: u64,
    /// Those of the buffer that are the object's.
    wanted: usize,
    buffer: AlignedBytes,
}

impl Fill {
    pub(crate) fn new(
        object: Arc<MemoryObject>,
        transit: Arc<Transit>,
        range: PageRange,
        store_page: Option<PageIndex>,
    ) -> Fill {
        Fill { object, transit, range, store_page, reserved: 0, led_for: None, ended: false }
    }

    /// The pages that it will fill, if there is room for all.
    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    /// What a waiter in another thread waits on.
    pub(crate) fn transit(&self) -> Arc<Transit> {
        self.transit.clone()
    }

    /// Does it.
    ///
    /// # Errors
    /// The cause, which the waiters have been told.
    pub(crate) fn run(mut self, whom: For) -> Result<Resolution, Cause> {
        let span = tracing::trace_span!("fill", object = %self.object.name, page = self.range.start.0,
            pages = self.range.count(), whom = ?whom);
        let _entered = span.enter();
        while self.reserved == 0 && self.make_room(whom).pages == 0 {
            match self.smaller(whom) {
                Some(least) if self.is_cut_off() => self.shrink(least),
                _ if self.is_cut_off() => return Err(self.fail(whom, Cause::BeyondEnd)),
                _ => return Err(self.fail(whom, Cause::NoRoom)),
            }
        }
        loop {
            let arrived = self.transfer().and_then(|bytes| {
                let arrived = self.arrive(whom, &bytes);
                self.object.cache.fillers.spare.keep(bytes);
                arrived
            });
            match arrived {
                Ok(resolution) => return Ok(resolution),
                Err(cause) => match self.smaller(whom) {
                    // Another page's failure is none of the waiter's business: try what it needs alone.
                    Some(least) => self.shrink(least),
                    None => return Err(self.fail(whom, cause)),
                },
            }
        }
    }

    /// Reserves budget for the page and as many others as there is room for without waiting; whether there was any. The
    /// caller may be the one that others wait for, and read for a thread at an address.
    pub(crate) fn has_room_now(&mut self, focus: PageIndex, led_for: Option<Address>) -> bool {
        self.reserved = self.room(0).pages;
        if self.reserved > 0 && self.reserved < self.range.count() {
            self.shrink(self.range.part_around(focus, self.reserved));
        }
        self.led_for = led_for.filter(|_| self.reserved > 0);
        self.reserved > 0
    }

    /// Reserves budget for all pages, or for as many as there is room for; with none, the fill is to be ended.
    fn make_room(&mut self, whom: For) -> Room {
        let (focus, least) = match whom {
            For::Waiter(page) => (page, 1),
            For::Later => (self.range.start, 0),
        };
        let room = self.room(least);
        self.reserved = room.pages;
        if (1..self.range.count()).contains(&self.reserved) {
            self.shrink(self.range.part_around(focus, self.reserved));
        }
        room
    }

    fn room(&self, least: u64) -> Room {
        let cache = &self.object.cache;
        let answers = cache.transfer(&self.object).answers;
        // Who makes the object shorter waits for what is on its way behind the new end.
        cache.make_room(self.range.count(), least, answers, || !self.is_cut_off())
    }

    /// From the store to memory; nobody sees the pages yet but through views. The page that a store waits for is left
    /// out: it comes when it is published.
    fn transfer(&mut self) -> Result<AlignedBytes, Cause> {
        let mut reading = self.reading()?;
        let store = &self.object.store;
        let got = match self.led_for {
            Some(address) => self.read_leading(&mut reading, address),
            None => catch(|| store.read_at(reading.offset, &mut reading.buffer)).and_then(|outcome| outcome),
        };
        self.put(reading, got)
    }

    /// Reads while other faults wait, if there are any, for a thread that is woken shortly before the end.
    fn read_leading(&self, reading: &mut Reading, address: Address) -> omnimap_store::Result<usize> {
        let (cache, store) = (&self.object.cache, &self.object.store);
        let mut awaited = cache.early_wake.begin();
        let wake = || cache.faults.wake(address, cache.page.bytes()).is_ok();
        let mut meanwhile = |time| awaited.look(time, || cache.faults.is_pending(), wake);
        let got = catch(|| store.read_awaited(reading.offset, &mut reading.buffer, &mut meanwhile));
        // Looked at before the waiter goes on, who may be the next to come.
        if awaited.end(cache.faults.is_pending()) {
            cache.workers().note_crowd();
        }
        got.and_then(|outcome| outcome)
    }

    /// Whether the object has become shorter. It will be as long as before again, if its store does not.
    fn is_cut_off(&self) -> bool {
        let page = self.object.cache.page;
        page.bytes_of(self.range).end > self.object.len().next_multiple_of(page.bytes())
    }

    fn reading(&self) -> Result<Reading, Cause> {
        let page = self.object.cache.page;
        let (bytes, length) = (page.bytes_of(self.range), self.object.len());
        if self.is_cut_off() {
            return Err(Cause::BeyondEnd);
        }
        let wanted = bytes.end.min(length) - bytes.start;
        // Whole pages, although the object may end in the last: direct I/O takes nothing else.
        let buffer = self.object.cache.fillers.spare.take((bytes.end - bytes.start) as usize);
        Ok(Reading { offset: bytes.start, wanted: wanted as usize, buffer })
    }

    /// Into memory, but for the page that a store waits for.
    fn put(&self, reading: Reading, got: omnimap_store::Result<usize>) -> Result<AlignedBytes, Cause> {
        let object = &self.object;
        let bytes = object.cache.page.bytes_of(self.range);
        let Reading { wanted, mut buffer, .. } = reading;
        match got {
            Ok(got) if got >= wanted => {}
            Ok(got) => {
                let short = StoreError::Short { wanted: wanted as u64, got: got as u64 };
                return Err(Cause::Store(Arc::new(short)));
            }
            Err(error) => return Err(Cause::Store(Arc::new(error))),
        }
        // What lies behind the object's end in its last page is zeros.
        buffer[wanted..].fill(0);
        let store = self.store_page.filter(|page| self.range.contains(*page));
        let store = store.map_or(bytes.end..bytes.end, |p| object.cache.page.bytes_of(PageRange::single(p)));
        for part in [bytes.start..store.start, store.end..bytes.end].into_iter().filter(|p| !p.is_empty()) {
            let slice = &buffer[(part.start - bytes.start) as usize..(part.end - bytes.start) as usize];
            object.memory.fill(part.start, slice, Stores::Trap).map_err(|error| self.undo(error))?;
        }
        Ok(buffer)
    }

    /// Does several fills of one object that nobody waits for yet, and reads their bytes together; `ended` is told the pages of
    /// each and what became of it, and apart from those the ones that there was no room for.
    pub(crate) fn run_together(fills: Vec<Fill>, mut ended: impl FnMut(PageRange, Became)) {
        let mut begun = Vec::with_capacity(fills.len());
        for mut fill in fills {
            let wanted = fill.range;
            let room = fill.make_room(For::Later);
            let cut = PageRange::new(wanted.start.0 + room.pages, wanted.end.0);
            if !cut.is_empty() {
                ended(cut, Became::LeftOut { more_soon: room.more_soon });
            }
            // Dropped, it gives its pages back.
            if room.pages == 0 {
                continue;
            }
            match fill.reading() {
                Ok(reading) => begun.push((fill, reading)),
                Err(cause) => ended(fill.range, Became::Failed(cause)),
            }
        }
        let Some((first, _)) = begun.first() else { return };
        let store = first.object.store.clone();
        let mut outcomes: Vec<Option<omnimap_store::Result<usize>>> = begun.iter().map(|_| None).collect();
        let mut reads: Vec<ReadAt<'_>> =
            begun.iter_mut().map(|(_, r)| ReadAt { offset: r.offset, into: &mut r.buffer }).collect();
        // Of a store that panics, those that it did not tell have no bytes.
        let _ = catch(|| {
            store.read_each(&mut reads, &mut |number, outcome| outcomes[number] = Some(outcome));
        });
        for ((mut fill, reading), outcome) in begun.into_iter().zip(outcomes) {
            let range = fill.range;
            let put = fill.put(reading, outcome.unwrap_or(Ok(0)));
            let arrived = put.and_then(|bytes| {
                let arrived = fill.arrive(For::Later, &bytes);
                fill.object.cache.fillers.spare.keep(bytes);
                arrived
            });
            ended(
                range,
                match arrived {
                    Ok(_) => Became::Arrived,
                    Err(cause) => Became::Failed(fill.fail(For::Later, cause)),
                },
            );
        }
    }

    fn undo(&self, error: HostError) -> Cause {
        let object = &self.object;
        let bytes = object.cache.page.bytes_of(self.range);
        // Some of the pages may be there: they must not be taken for holes, or be found by anybody.
        if object.memory.punch(bytes.start, bytes.end - bytes.start, Counted::Exactly).is_err() {
            die(&format!("{}: memory that was filled in part cannot be emptied", object.name));
        }
        Cause::Host(Arc::new(error))
    }

    /// What can be tried instead after a failure: the least that gives the waiter its page, if that is less.
    fn smaller(&self, whom: For) -> Option<PageRange> {
        let For::Waiter(page) = whom else { return None };
        let least = self.object.cache.chunk_pages(&self.object, page).intersect(self.range);
        let least = if least.contains(page) { least } else { PageRange::single(page) };
        (least.count() < self.range.count()).then_some(least)
    }

    /// Gives up all pages but `keep`.
    fn shrink(&mut self, keep: PageRange) {
        let object = self.object.clone();
        let waiters: Vec<Waiter> = {
            let mut pages = object.pages();
            for page in self.range.iter().filter(|p| !keep.contains(*p)) {
                pages.table.apply(page, Transition::FillAbandoned);
            }
            let mut state = self.transit.lock();
            state.range = keep;
            self.transit.notify(&state);
            state.waiters.extract_if(.., |w| !keep.contains(w.page())).collect()
        };
        self.range = keep;
        let surplus = self.reserved.saturating_sub(keep.count());
        self.reserved -= surplus;
        object.cache.budget.give_up(surplus);
        object.cache.wake(&object, &waiters);
    }

    /// Publishes the pages. The one that a store waits for is put into memory here, under the lock: as soon as it is there
    /// it is stored to, and nobody may take it for clean.
    ///
    /// # Errors
    /// If there is no memory for that page; then nothing is published.
    fn arrive(&mut self, whom: For, buffer: &[u8]) -> Result<Resolution, Cause> {
        let object = self.object.clone();
        // The pages hold it from now on, and may be evicted as soon as they are published.
        object.cache.budget.arrived(self.reserved);
        let mut pages = object.pages();
        let mut stored = None;
        if let Some(page) = self.store_page.filter(|page| self.range.contains(*page)) {
            let bytes = object.cache.page.bytes_of(PageRange::single(page));
            let from = (bytes.start - object.cache.page.bytes_of(self.range).start) as usize;
            let slice = &buffer[from..from + object.cache.page.bytes() as usize];
            // With somebody who wants the bytes of before, the store has to come and ask once more.
            let stores = if pages.writes.keepers.is_empty() { Stores::Let } else { Stores::Trap };
            object.memory.fill(bytes.start, slice, stores).map_err(|error| {
                object.cache.budget.not_arrived(self.reserved);
                self.undo(error)
            })?;
            stored = (stores == Stores::Let).then_some(page);
        }
        self.ended = true;
        self.reserved = 0;
        let bytes = object.cache.page.bytes_of(self.range);
        let bytes = bytes.end.min(object.len()).saturating_sub(bytes.start);
        object.count(Counter::fills, 1);
        object.count(Counter::bytes_filled, bytes);
        if whom == For::Later {
            object.count(Counter::fills_ahead, 1);
            object.count(Counter::bytes_filled_ahead, bytes);
        }
        let (waiters, poisoned) = object.end_transit_locked(
            &mut pages,
            &self.transit,
            Transition::Filled,
            stored,
            Outcome::Arrived,
        );
        drop(pages);
        object.clear_poison(&poisoned);
        object.cache.wake(&object, &waiters);
        object.cache.budget.evictable();
        Ok(Resolution::Filled)
    }

    /// Ends it with a failure, if somebody waits for it: who only might want the pages will ask, and be told, himself.
    fn fail(&mut self, whom: For, cause: Cause) -> Cause {
        self.object.count(Counter::fills_failed, 1);
        let offset = self.range.start.0 * self.object.cache.page.bytes();
        tracing::warn!(object = %self.object.name, offset, ?cause, "fill failed");
        if whom == For::Later {
            self.abandon();
            return cause;
        }
        self.ended = true;
        let outcome = Outcome::Failed(cause.clone());
        let (waiters, _) = self.object.end_transit(&self.transit, Transition::FillFailed, outcome);
        self.object.cache.budget.give_up(std::mem::take(&mut self.reserved));
        self.object.fail_raw(&waiters, |offset| self.object.error_at(offset, cause.clone()));
        cause
    }

    fn abandon(&mut self) {
        self.ended = true;
        let (waiters, _) = self.object.end_transit(&self.transit, Transition::FillAbandoned, Outcome::Retry);
        self.object.cache.budget.give_up(std::mem::take(&mut self.reserved));
        self.object.cache.wake(&self.object, &waiters);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if !self.ended {
            self.abandon();
        }
    }
}
