//! Making room: choosing pages with [`Replacement`](crate::replacement::Replacement), asking the kernel which were
//! used, punching holes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_store::Answers;

use crate::cache::Inner;
use crate::large::SPLITS_MAX;
use crate::object::MemoryObject;
use crate::page_state::Transition;
use crate::page_table::Mark;
use crate::replacement::{CachedPage, Queue, Step};
use crate::stats::Counter;
use crate::sync::lock;
use crate::transit::{Outcome, Transit};
use crate::units::{PageIndex, PageRange};

/// With more views than this of one object, asking each which pages were used costs more than it brings.
pub(crate) const VIEWS_ASKED_MAX: usize = 8;
/// Entries of pages that are gone which the queues may have, where the budget is smaller.
const STALE_MAX: usize = 1024;
/// The most pages evicted in one go when somebody asks for it.
const EVICTED_TOGETHER_MAX: u64 = 1024;
/// Dirty pages looked at, and as a part of the budget, before whoever needs room waits for them to be written.
const UNWRITTEN_PAGES_MAX: u64 = 256;
const UNWRITTEN_PAGES_MIN: u64 = 4;
const UNWRITTEN_SHARE: u64 = 4;
/// How long whoever needs room waits before he looks again for himself.
const RETRY_TIME: Duration = Duration::from_millis(50);
/// Pages looked at together: a scan's are neighbours, and each system call for them interrupts the other processors once.
const BATCH_PAGES_MAX: u64 = 256;
const BATCH_SHARE: u64 = 64;
/// The same of a small budget, which can spare a larger part of itself.
const SMALL_BATCH_PAGES_MAX: u64 = 64;
const SMALL_BATCH_SHARE: u64 = 16;

/// Which pages may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spare {
    /// Those in use, and the pinned.
    Used,
    /// The pinned alone.
    Pinned,
}

/// Where the pages to be evicted come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chosen {
    /// Out of the replacement queue: what stays goes back into it.
    ByQueue,
    /// By somebody who did not look there: the queue finds out when it comes to them.
    ByCaller,
}

/// What of the budget could be had.
pub(crate) struct Room {
    pub(crate) pages: u64,
    /// There would have been more, but that too much is on its way.
    pub(crate) more_soon: bool,
}

impl Inner {
    /// Takes `wanted` pages of the budget, evicting for them; fewer, but at least `least`, if there is no more to be had
    /// without waiting. Waits for `least` until the time limit of a fill; then there are 0.
    ///
    /// `answers` is how the store does that the room is for: who does not wait for it has nobody evict ahead of him, for
    /// another thread that runs is one that has to be told of each page that goes (TLB shootdowns). When it is no longer
    /// `awaited`, nothing is waited for.
    pub(crate) fn make_room(
        self: &Arc<Self>,
        wanted: u64,
        least: u64,
        answers: Answers,
        awaited: impl Fn() -> bool,
    ) -> Room {
        let deadline = Instant::now() + self.options.fill_time_max;
        let mut taken = 0;
        loop {
            let more = self.budget.take(wanted - taken);
            taken += more.pages;
            if more.replenish {
                match answers {
                    Answers::AtOnce => self.budget.give_up_replenishing(),
                    Answers::Promptly | Answers::Eventually => self.submit_replenishing(),
                }
            }
            if taken < wanted && more.not_free > 0 && self.evict(more.not_free) > 0 {
                continue;
            }
            let room = Room { pages: taken, more_soon: taken < wanted && more.not_free == 0 };
            if taken >= least || !awaited() {
                return room;
            }
            // Not all at once: what failed to be written is tried again now and then.
            let soon = deadline.min(Instant::now() + RETRY_TIME);
            if !self.budget.wait(more.since, soon) && Instant::now() >= deadline {
                return room;
            }
        }
    }

    /// Evicts ahead of the fills that will want room.
    pub(crate) fn replenish(self: &Arc<Self>) {
        loop {
            let missing = self.budget.missing();
            if missing == 0 {
                return;
            }
            if self.evict(missing) == 0 {
                return self.budget.give_up_replenishing();
            }
        }
    }

    /// Evicts at least `wanted` pages if it can; gives how many it did.
    fn evict(self: &Arc<Self>, wanted: u64) -> u64 {
        let batch = batch_pages(self.budget.pages());
        let unwritten_max = unwritten_pages_max(self.budget.pages());
        let mut evicted = 0;
        // With four looks a page, all have been judged. When they are still in use, use is no excuse.
        let queued = lock(&self.replacement).len() as u64;
        let mut looks_left = 8 * queued + batch;
        // Dirty pages have to be written first. When enough are on their way, it is better to wait for those.
        let mut unwritten = 0;
        // When large pages are left that would have to be split, whoever needs more comes again.
        let mut splits_left = SPLITS_MAX;
        while evicted < wanted
            && looks_left > 0
            && unwritten < unwritten_max
            && (splits_left > 0 || evicted == 0)
        {
            let spare = if looks_left > 4 * queued { Spare::Used } else { Spare::Pinned };
            let step = lock(&self.replacement).next_step(batch as usize);
            match step {
                Step::Forget(pages, queue) => {
                    looks_left = looks_left.saturating_sub(pages.len() as u64);
                    self.for_runs(pages, |object, runs| object.forget_touches(runs, queue, &mut splits_left));
                }
                Step::Judge(pages) => {
                    looks_left = looks_left.saturating_sub(pages.len() as u64);
                    self.for_runs(pages, |object, runs| {
                        let mut dirty = Vec::new();
                        for run in runs {
                            evicted += object.judge(*run, spare, &mut splits_left, &mut dirty);
                        }
                        unwritten += dirty.iter().map(|run| run.count()).sum::<u64>();
                        if !dirty.is_empty() {
                            self.write_back_soon(object, &dirty);
                        }
                    });
                }
                Step::Exhausted => break,
            }
        }
        evicted
    }

    /// Calls `work` with the runs of neighbouring pages of each object; those of objects that are gone are left out.
    fn for_runs(&self, mut pages: Vec<CachedPage>, mut work: impl FnMut(&Arc<MemoryObject>, &[PageRange])) {
        pages.sort_unstable();
        for pages in pages.chunk_by(|a, b| a.object == b.object) {
            let Some(object) = self.object(pages[0].object) else { continue };
            let runs: Vec<PageRange> = pages
                .chunk_by(|a, b| a.page.next() == b.page)
                .map(|run| PageRange::new(run[0].page.0, run[0].page.0 + run.len() as u64))
                .collect();
            work(&object, &runs);
        }
    }

    /// Notes that the queues have entries of pages that are gone, and clears them out when there are many.
    pub(crate) fn note_stale(&self, pages: u64) {
        let all = {
            let mut replacement = lock(&self.replacement);
            replacement.note_stale(pages as usize);
            if replacement.stale() <= (self.budget.pages() as usize).max(STALE_MAX) {
                return;
            }
            replacement.take_all()
        };
        for (queue, pages) in all {
            self.for_runs(pages, |object, runs| runs.iter().for_each(|run| object.requeue(*run, queue)));
        }
        // Whoever found the queues empty meanwhile looks again.
        self.budget.evictable();
    }
}

fn unwritten_pages_max(budget_pages: u64) -> u64 {
    (budget_pages / UNWRITTEN_SHARE).clamp(UNWRITTEN_PAGES_MIN, UNWRITTEN_PAGES_MAX)
}

fn batch_pages(budget_pages: u64) -> u64 {
    let small = (budget_pages / SMALL_BATCH_SHARE).clamp(1, SMALL_BATCH_PAGES_MAX);
    (budget_pages / BATCH_SHARE).clamp(small, BATCH_PAGES_MAX)
}

impl MemoryObject {
    /// Forgets who used the pages, so that it can be told later, and puts them into a queue.
    fn forget_touches(&self, runs: &[PageRange], queue: Queue, splits_left: &mut usize) {
        runs.iter().for_each(|run| self.split_in(*run, splits_left));
        if self.view_count() <= VIEWS_ASKED_MAX {
            self.for_views(runs, |shown, ranges| {
                if let Err(error) = shown.view.forget_touches(ranges) {
                    tracing::debug!(object = %self.name, %error, "touches cannot be forgotten");
                }
            });
        }
        let mut pages = self.pages();
        let mut replacement = lock(&self.cache.replacement);
        for page in runs.iter().flat_map(|run| run.iter()) {
            pages.table.set(page, Mark::Read, false);
            replacement.put(queue, CachedPage { object: self.id, page });
        }
    }

    /// Spares the pages of a run that were used since that was forgotten last, and evicts the others, but for those that
    /// are dirty: they are told.
    fn judge(
        &self,
        run: PageRange,
        spare: Spare,
        splits_left: &mut usize,
        dirty: &mut Vec<PageRange>,
    ) -> u64 {
        self.split_in(run, splits_left);
        let mut used = vec![false; run.count() as usize];
        if spare == Spare::Used && self.view_count() <= VIEWS_ASKED_MAX {
            let mut parts = Vec::new();
            self.for_views(&[run], |shown, ranges| {
                parts.clear();
                if ranges.iter().any(|range| shown.view.touched(range.clone(), &mut parts).is_err()) {
                    return; // Without the pagemap all count as unused: first in, first out.
                }
                for part in &parts {
                    let pages = self.cache.page.pages_of(part.clone());
                    for page in pages.iter().map(|p| PageIndex(p.0 + shown.base.0)) {
                        if run.contains(page) {
                            used[(page.0 - run.start.0) as usize] = true;
                        }
                    }
                }
            });
        }
        let transits = self.begin_eviction(run, &used, spare, Chosen::ByQueue, dirty);
        transits.into_iter().map(|(part, transit)| self.finish_eviction(part, &transit)).sum()
    }

    /// Marks what can go as Evicting, in runs; puts the rest where it belongs.
    fn begin_eviction(
        &self,
        run: PageRange,
        used: &[bool],
        spare: Spare,
        chosen: Chosen,
        dirty: &mut Vec<PageRange>,
    ) -> Vec<(PageRange, Arc<Transit>)> {
        let large_page_pages = self.cache.large_page_pages();
        let mut pages = self.pages();
        let by_queue = chosen == Chosen::ByQueue;
        let mut parts: Vec<PageRange> = Vec::new();
        for (page, used) in run.iter().zip(used) {
            let state = pages.table.state(page);
            if !state.is_readable() {
                // Gone otherwise, or on its way in: it will be queued when it is there.
                if by_queue {
                    pages.table.set(page, Mark::Queued, false);
                }
                continue;
            }
            let used = *used || (spare == Spare::Used && pages.table.is(page, Mark::Read));
            let is_kept = pages.table.is(page, Mark::Pinned)
                || pages.locks.has(page)
                || pages.large.has(page, large_page_pages);
            if used || is_kept {
                if by_queue {
                    self.count(Counter::pages_spared, 1);
                    lock(&self.cache.replacement).put(Queue::Spared, CachedPage { object: self.id, page });
                }
                continue;
            }
            if state.is_dirty() {
                if by_queue {
                    lock(&self.cache.replacement).put(Queue::Probation, CachedPage { object: self.id, page });
                }
                match dirty.last_mut() {
                    Some(last) if last.end == page => last.end = page.next(),
                    _ => dirty.push(PageRange::single(page)),
                }
                continue;
            }
            pages.table.apply(page, Transition::BeginEviction);
            if by_queue {
                pages.table.set(page, Mark::Queued, false);
            }
            match parts.last_mut() {
                Some(last) if last.end == page => last.end = page.next(),
                _ => parts.push(PageRange::single(page)),
            }
        }
        parts
            .into_iter()
            .map(|part| {
                let transit = Transit::new(part, None);
                pages.transits.push(transit.clone());
                (part, transit)
            })
            .collect()
    }

    /// Evicts what can go of a range because somebody asked for it, used or not.
    pub(crate) fn evict_range(&self, range: PageRange) -> u64 {
        self.split_all_in(range);
        let resident: Vec<PageRange> = self
            .pages()
            .table
            .resident_runs(range)
            .into_iter()
            .filter(|(_, r)| *r)
            .map(|(run, _)| run)
            .collect();
        let mut evicted = 0;
        for run in resident {
            let mut start = run.start.0;
            while start < run.end.0 {
                let part = PageRange::new(start, run.end.0.min(start + EVICTED_TOGETHER_MAX));
                let unused = vec![false; part.count() as usize];
                for (part, transit) in
                    self.begin_eviction(part, &unused, Spare::Pinned, Chosen::ByCaller, &mut Vec::new())
                {
                    evicted += self.finish_eviction(part, &transit);
                }
                start = part.end.0;
            }
        }
        self.cache.note_stale(evicted);
        evicted
    }

    /// Puts those of some pages back into a queue that are still there.
    fn requeue(&self, run: PageRange, queue: Queue) {
        let mut pages = self.pages();
        let mut replacement = lock(&self.cache.replacement);
        for page in run.iter() {
            if pages.table.state(page).is_readable() {
                replacement.put(queue, CachedPage { object: self.id, page });
            } else {
                pages.table.set(page, Mark::Queued, false);
            }
        }
    }

    fn finish_eviction(&self, part: PageRange, transit: &Arc<Transit>) -> u64 {
        let bytes = self.cache.page.bytes_of(part);
        let punched = self.memory.punch(bytes.start, bytes.end - bytes.start, self.cache.budget.counted());
        let (transition, evicted) = match &punched {
            Ok(()) => (Transition::Evicted, part.count()),
            Err(error) => {
                tracing::warn!(object = %self.name, %error, "eviction failed");
                (Transition::EvictionAbandoned, 0)
            }
        };
        let (waiters, _) = self.end_transit(transit, transition, Outcome::Retry);
        if evicted > 0 {
            tracing::trace!(object = %self.name, page = part.start.0, pages = evicted, "evicted");
            self.count(Counter::pages_evicted, evicted);
            self.count(Counter::evictions, 1);
            self.cache.budget.release(evicted);
        }
        self.cache.wake(self, &waiters);
        evicted
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_looked_through_by_parts_of_it() {
        let parts = |pages| (batch_pages(pages), unwritten_pages_max(pages));
        assert_eq!(parts(8), (1, 4), "clean pages may follow two that are dirty");
        assert_eq!(parts(256), (16, 64));
        assert_eq!(parts(4096), (64, 256));
        assert_eq!(parts(1 << 20), (256, 256));
    }
}
