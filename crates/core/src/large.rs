//! Large pages: a range that is wholly in memory and in use is shown by one entry of the page tables (MADV_COLLAPSE,
//! madvise(2)), so that accesses all over it find it sooner. Given up before anything of it is evicted.
//!
//! ```text
//! no evictions for a while → Job::Collapse → MemoryObject::collapse
//!     Changing     nobody evicts its pages
//!     Large        nobody evicts its pages before it is split
//! somebody wants room, a pin or a lock → MemoryObject::split
//!     Changing     all pages Evicting → copied out, punched as one, filled again → all pages Clean
//! ```
//! Only of objects that are not stored to: stores are trapped page by page.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_host::{Collapsed, Counted, Stores, Use, die};

use crate::cache::Inner;
use crate::evict::VIEWS_ASKED_MAX;
use crate::object::{MemoryObject, Pages};
use crate::page_state::{PageState, Transition};
use crate::page_table::{Mark, PageTable};
use crate::stats::Counter;
use crate::sync::atomic::Ordering;
use crate::sync::{lock, thread};
use crate::transit::{Outcome, Transit};
use crate::units::{PageIndex, PageRange};

/// Time without an eviction before pages are made large: where room is short, pages come and go alone.
const QUIET_TIME: Duration = Duration::from_secs(3);
/// Time between looks for what could be made large; twice as long after each that found nothing.
const LOOK_TIME_MIN: Duration = Duration::from_secs(1);
const LOOK_TIME_MAX: Duration = Duration::from_secs(64);
/// Ranges that are looked for at a time, under the object's lock.
const RANGES_SOUGHT: usize = 64;
/// How long pages are made large in one go.
const COLLAPSE_TIME_MAX: Duration = Duration::from_millis(100);
/// Attempts in a row that the kernel refused, after which it is left alone for a while.
const REFUSALS_MAX: u32 = 8;
/// How long.
const REFUSED_TIME: Duration = Duration::from_secs(600);
/// A range is in use if at least this part of its pages was touched.
const TOUCHED_SHARE: u64 = 2;
/// Large pages split by one who wants room, before he looks again: each takes as long as some fills.
pub(crate) const SPLITS_MAX: usize = 4;
/// How often a pin or a lock tries to have small pages.
const TRIES_MAX: usize = 1000;

/// Large pages of an object, by their first small page.
#[derive(Default)]
pub(crate) struct LargePages {
    ranges: BTreeMap<PageIndex, Progress>,
    /// None are to be made.
    refused: bool,
    /// Where the next look begins.
    next: PageIndex,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It is just being made, or split.
    Changing,
    Large,
}

impl LargePages {
    /// Whether a page is part of one, which can only go as a whole.
    pub(crate) fn has(&self, page: PageIndex, pages_each: Option<u64>) -> bool {
        pages_each.is_some_and(|each| {
            !self.ranges.is_empty() && self.ranges.contains_key(&PageIndex(page.0 / each * each))
        })
    }

    /// The first pages of those that a range has part in.
    fn inside(&self, range: PageRange, each: u64) -> Vec<PageIndex> {
        let first = PageIndex(range.start.0 / each * each);
        self.ranges.range(first..range.end.max(first)).map(|(start, _)| *start).collect()
    }

    /// Who made the pages is gone, and did not say which are large. One whose range is whole may be.
    pub(crate) fn suspect(&mut self, pages: &PageTable, each: u64) {
        let whole = pages.clean_ranges(each, PageRange::new(0, u64::MAX), usize::MAX, |_| false);
        self.ranges.extend(whole.into_iter().map(|range| (range.start, Progress::Large)));
    }
}

/// When pages are made large.
#[derive(Default)]
pub(crate) struct Collapsing {
    evicted: u64,
    quiet_since: Option<Instant>,
    next_look: Option<Instant>,
    look_time: Duration,
    under_way: bool,
    refusals: u32,
}

impl Inner {
    /// Small pages in a large one; `None` if there are no large ones.
    pub(crate) fn large_page_pages(&self) -> Option<u64> {
        Some(self.host.large_page_bytes()? / self.page.bytes()).filter(|pages| *pages > 1)
    }

    /// To be called now and then: has pages made large if nobody is short of room.
    pub(crate) fn consider_large_pages(self: &Arc<Self>) {
        let Some(each) = self.large_page_pages() else { return };
        let now = Instant::now();
        let mut state = lock(&self.collapsing);
        let evicted = self.counters.pages_evicted.load(Ordering::Relaxed);
        if std::mem::replace(&mut state.evicted, evicted) != evicted || state.quiet_since.is_none() {
            (state.quiet_since, state.look_time) = (Some(now), LOOK_TIME_MIN);
            return;
        }
        let is_quiet = state.quiet_since.is_some_and(|since| now - since >= QUIET_TIME);
        let is_due = state.next_look.is_none_or(|next| now >= next);
        if !is_quiet || !is_due || state.under_way {
            return;
        }
        state.under_way = true;
        drop(state);
        // A job may cost a thread.
        if self.objects().iter().any(|object| object.may_collapse(each)) {
            self.submit_collapsing();
        } else {
            self.end_collapsing(0);
        }
    }

    /// Makes pages large for a while.
    pub(crate) fn collapse_some(&self) {
        let deadline = Instant::now() + COLLAPSE_TIME_MAX;
        let mut made = 0;
        // One at a time, so that none lives longer than its mappings for this.
        for id in self.object_ids() {
            if Instant::now() < deadline
                && let Some(object) = self.object(id)
            {
                made += object.collapse_some(deadline);
            }
        }
        self.end_collapsing(made);
    }

    /// Pages are not being made large any more.
    pub(crate) fn end_collapsing(&self, made: u64) {
        let mut state = lock(&self.collapsing);
        state.under_way = false;
        state.look_time = match made {
            0 => (2 * state.look_time).clamp(LOOK_TIME_MIN, LOOK_TIME_MAX),
            _ => LOOK_TIME_MIN,
        };
        let pause = if state.refusals >= REFUSALS_MAX { REFUSED_TIME } else { state.look_time };
        if state.refusals >= REFUSALS_MAX {
            state.refusals = 0;
        }
        state.next_look = Some(Instant::now() + pause);
    }

    /// Notes whether the kernel did it; whether to go on.
    fn note_attempt(&self, done: bool) -> bool {
        let mut state = lock(&self.collapsing);
        state.refusals = if done { 0 } else { state.refusals + 1 };
        state.refusals < REFUSALS_MAX
    }
}

impl MemoryObject {
    /// Whether there is a range that could be made large, for all that is known at once.
    fn may_collapse(&self, each: u64) -> bool {
        let is_shown = self.view_count() > 0 && self.view_count() <= VIEWS_ASKED_MAX;
        self.memory.used_as() == Use::ReadOnly && is_shown && {
            let pages = self.pages();
            let large = pages.large.ranges.len() as u64 * each;
            !pages.large.refused && pages.table.resident_count() >= large + each
        }
    }

    /// Makes pages large where all of a range is in memory and half of it was touched; gives how many.
    fn collapse_some(&self, deadline: Instant) -> u64 {
        let Some(each) = self.cache.large_page_pages() else { return 0 };
        if !self.may_collapse(each) {
            return 0;
        }
        let next = self.pages().large.next;
        let mut made = 0;
        for mut part in [PageRange::new(next.0, u64::MAX), PageRange::new(0, next.0)] {
            loop {
                let ranges = self.small_ranges(part, each);
                let Some(last) = ranges.last() else { break };
                part.start = last.end;
                for range in ranges {
                    if Instant::now() >= deadline {
                        self.pages().large.next = range.start;
                        return made;
                    }
                    if !self.is_in_use(range) {
                        continue;
                    }
                    let Some(done) = self.collapse(range) else { continue };
                    made += u64::from(done);
                    if !self.cache.note_attempt(done) {
                        tracing::info!(object = %self.name, "large pages are refused, and not asked for for a while");
                        return made;
                    }
                }
            }
        }
        made
    }

    /// Some ranges that are wholly in memory and are no large pages, the first ones that begin within a range.
    fn small_ranges(&self, within: PageRange, each: u64) -> Vec<PageRange> {
        let pages = self.pages();
        let is_large = |start: PageIndex| pages.large.ranges.contains_key(&start);
        pages.table.clean_ranges(each, within, RANGES_SOUGHT, is_large)
    }

    /// Makes the pages of a range large, used or not, as far as they are in memory; gives how many are now.
    pub fn collapse_range(&self, bytes: Range<u64>) -> u64 {
        let Some(each) = self.cache.large_page_pages() else { return 0 };
        let inside = self.cache.page.pages_inside(bytes.start..bytes.end.min(self.len()));
        let mut large = 0;
        for number in inside.start.0.div_ceil(each)..inside.end.0 / each {
            let range = PageRange::new(number * each, (number + 1) * each);
            let is_large = self.pages().large.ranges.get(&range.start) == Some(&Progress::Large);
            large += u64::from(is_large || self.collapse(range) == Some(true));
        }
        large
    }

    /// Whether a range is wholly in memory, and may leave it.
    fn can_collapse(&self, pages: &Pages, range: PageRange) -> bool {
        self.memory.used_as() == Use::ReadOnly
            && !pages.large.refused
            && !pages.large.ranges.contains_key(&range.start)
            && range.iter().all(|page| is_free(pages, page))
    }

    fn is_in_use(&self, range: PageRange) -> bool {
        let mut touched = 0;
        let mut parts = Vec::new();
        self.for_views(&[range], |shown, ranges| {
            parts.clear();
            if ranges.iter().all(|range| shown.view.touched(range.clone(), &mut parts).is_ok()) {
                let bytes: u64 = parts.iter().map(|part| part.end - part.start).sum();
                touched = touched.max(bytes / self.cache.page.bytes());
            }
        });
        touched >= range.count() / TOUCHED_SHARE
    }

    /// Makes one large page of a range; whether it is one, or `None` if there is no way to do it.
    fn collapse(&self, range: PageRange) -> Option<bool> {
        {
            let mut pages = self.pages();
            if !self.can_collapse(&pages, range) {
                return None;
            }
            pages.large.ranges.insert(range.start, Progress::Changing);
        }
        let mut outcome = Collapsed::Not;
        let bytes = range.count() * self.cache.page.bytes();
        self.for_views(&[range], |shown, ranges| {
            let whole = ranges.iter().find(|range| range.end - range.start == bytes);
            match whole.map_or(Collapsed::Not, |range| shown.view.collapse(range.clone())) {
                Collapsed::Not => {}
                Collapsed::Perhaps if outcome == Collapsed::Done => {}
                other => outcome = other,
            }
        });
        let mut pages = self.pages();
        if outcome == Collapsed::Not {
            pages.large.ranges.remove(&range.start);
            return None;
        }
        pages.large.ranges.insert(range.start, Progress::Large);
        drop(pages);
        let done = outcome == Collapsed::Done;
        if done {
            self.count(Counter::large_pages_made, 1);
        }
        Some(done)
    }

    /// Makes small pages of large ones in a range, so that each can be evicted by itself, as far as nothing of them is pinned
    /// or locked; counts them down.
    pub(crate) fn split_in(&self, range: PageRange, left: &mut usize) {
        let Some(each) = self.cache.large_page_pages() else { return };
        let inside = self.pages().large.inside(range, each);
        for start in inside.into_iter().take(*left) {
            *left -= 1;
            self.split(PageRange::new(start.0, start.0 + each));
        }
    }

    /// As [`split_in`](Self::split_in), all of them.
    pub(crate) fn split_all_in(&self, range: PageRange) {
        let mut all = usize::MAX;
        self.split_in(range, &mut all);
    }

    /// Splits large pages of which a range has a part, and not all: who keeps that must not keep the rest as well.
    pub(crate) fn split_around(&self, range: PageRange) {
        let Some(each) = self.cache.large_page_pages() else { return };
        for _ in 0..TRIES_MAX {
            let cut = |start: &PageIndex| *start < range.start || start.0 + each > range.end.0;
            let mut inside = self.pages().large.inside(range, each);
            inside.retain(cut);
            if inside.is_empty() {
                return;
            }
            for start in inside {
                self.split(PageRange::new(start.0, start.0 + each));
            }
            thread::yield_now(); // One may just be made, or read.
        }
    }

    fn split(&self, range: PageRange) {
        let transit = {
            let mut pages = self.pages();
            let is_large = pages.large.ranges.get(&range.start) == Some(&Progress::Large);
            if !is_large || !range.iter().all(|page| is_free(&pages, page)) {
                return;
            }
            pages.large.ranges.insert(range.start, Progress::Changing);
            for page in range.iter() {
                pages.table.apply(page, Transition::BeginEviction);
            }
            let transit = Transit::new(range, None);
            pages.transits.push(transit.clone());
            transit
        };
        let (became, transition) = self.punch_and_fill(self.cache.page.bytes_of(range));
        let mut pages = self.pages();
        match became {
            Some(progress) => pages.large.ranges.insert(range.start, progress),
            None => pages.large.ranges.remove(&range.start),
        };
        let (waiters, _) = self.end_transit_locked(&mut pages, &transit, transition, None, Outcome::Retry);
        drop(pages);
        if transition == Transition::Evicted {
            self.count(Counter::pages_evicted, range.count());
            self.cache.budget.release(range.count());
            self.cache.note_stale(range.count());
        }
        if became.is_none() {
            self.count(Counter::large_pages_split, 1);
        }
        self.cache.wake(self, &waiters);
    }

    /// Drops the bytes of a large page and puts them back page by page; how large it is then, and whether they are there.
    fn punch_and_fill(&self, bytes: Range<u64>) -> (Option<Progress>, Transition) {
        let length = bytes.end - bytes.start;
        // Without memory for a copy, the store has one.
        let mut copy = Vec::new();
        let copied = copy.try_reserve_exact(length as usize).is_ok() && {
            copy.resize(length as usize, 0);
            self.memory.read(bytes.start, &mut copy).is_ok()
        };
        if let Err(error) = self.memory.punch(bytes.start, length, Counted::Exactly) {
            tracing::warn!(object = %self.name, %error, "a large page could not be split");
            return (Some(Progress::Large), Transition::EvictionAbandoned);
        }
        if copied {
            match self.memory.fill(bytes.start, &copy, Stores::Let) {
                Ok(()) => return (None, Transition::EvictionAbandoned),
                Err(error) => {
                    tracing::warn!(object = %self.name, %error, "pages that were large could not be kept");
                    if self.memory.punch(bytes.start, length, Counted::Exactly).is_err() {
                        die(&format!("{}: memory that was filled in part cannot be emptied", self.name));
                    }
                }
            }
        }
        (None, Transition::Evicted)
    }

    /// No large pages from now on; those that there are, are split, but for what is just read.
    pub fn refuse_large_pages(&self) {
        self.pages().large.refused = true;
        self.split_all_in(PageRange::new(0, u64::MAX));
    }
}

/// Whether a page could be evicted.
fn is_free(pages: &Pages, page: PageIndex) -> bool {
    pages.table.state(page) == PageState::Clean
        && !pages.table.is(page, Mark::Pinned)
        && !pages.locks.has(page)
}
