//! Keeping in step with the store: sync, atomic sync, background write-back (msync(2), fsync(2)).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::Inner;
use crate::error::{Error, Result};
use crate::fill::For;
use crate::mapped_view::Pinned;
use crate::object::{Claim, Intent, MemoryObject};
use crate::page_state::{PageState, Transition};
use crate::page_table::Mark;
use crate::snapshot::store_error;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Condvar, Mutex, lock};
use crate::transit::{Waited, Waiter};
use crate::units::{PageIndex, PageRange};
use crate::write_back::{FAILED_PAUSE, Turn, Turns, Why};

/// Pages that one thread writes back at a time when many do. Few, so that the threads move along the disk together: what is
/// near in time is near in place, and for scattered pages that is half of what they cost.
const SHARE_PAGES: u64 = 16;
/// Pages written in one transfer.
const TRANSFER_PAGES_MAX: u64 = 256;
/// Threads that write for one sync, beside the one that waits for it.
const HELPERS_MAX: usize = 15;
/// Of the dirty pages that are allowed, so many stay when the rest has been written in the background.
const SWEPT_TO: f64 = 0.75;
/// The part of the dirty pages that is written when no more of them can be stored to.
const SCATTERED_SHARE: u64 = 4;
/// The part of the budget that a sweep writes at the most, before it looks again.
const SWEEP_SHARE: u64 = 16;

/// Whether a sweep is queued or under way, and whether somebody waits for its end.
#[derive(Default)]
pub(crate) struct Sweeping {
    state: AtomicU8,
    /// The last one was in vain: until then, another would be as well.
    rests_until: Mutex<Option<Instant>>,
}

const IDLE: u8 = 0;
const UNDER_WAY: u8 = 1;
const AWAITED: u8 = 2;

impl Sweeping {
    /// Whether it is the caller's to submit one; whoever finds one under way is told when it is over.
    fn begin_or_await(&self) -> bool {
        let next = |now| Some(if now == IDLE { UNDER_WAY } else { AWAITED });
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) == Ok(IDLE)
    }

    /// Whether it is the caller's to submit one, which nobody waits for.
    fn begin(&self) -> bool {
        // Looked at before it is changed: it seldom is.
        self.state.load(Ordering::Relaxed) == IDLE
            && lock(&self.rests_until).is_none_or(|until| Instant::now() >= until)
            && self.state.compare_exchange(IDLE, UNDER_WAY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether somebody waits.
    fn end(&self, rest: Option<Duration>) -> bool {
        *lock(&self.rests_until) = rest.map(|rest| Instant::now() + rest);
        self.state.swap(IDLE, Ordering::Relaxed) == AWAITED
    }
}

/// Pages that several threads write back together.
pub(crate) struct Shares {
    object: Arc<MemoryObject>,
    why: Why,
    state: Mutex<SharesState>,
    done: Condvar,
}

#[derive(Default)]
struct SharesState {
    left: VecDeque<Vec<PageRange>>,
    under_way: usize,
    /// What others were writing back when it was their turn.
    theirs: Vec<PageRange>,
    error: Option<Error>,
}

impl Shares {
    fn new(object: Arc<MemoryObject>, runs: &[PageRange], why: Why) -> Arc<Shares> {
        let state = SharesState { left: shares(runs), ..SharesState::default() };
        Arc::new(Shares { object, why, state: Mutex::new(state), done: Condvar::new() })
    }

    /// Writes one share that nobody writes yet; whether there was one.
    pub(crate) fn write_one(&self) -> bool {
        let share = {
            let mut state = lock(&self.state);
            let Some(share) = state.left.pop_front() else { return false };
            state.under_way += 1;
            share
        };
        let mut theirs = Vec::new();
        let outcome = self.object.write_back(&share, self.why, &mut theirs);
        let mut state = lock(&self.state);
        state.under_way -= 1;
        state.theirs.append(&mut theirs);
        if let Err(error) = outcome {
            state.error.get_or_insert(error);
        }
        if state.under_way == 0 && state.left.is_empty() {
            self.done.notify_all();
        }
        true
    }

    /// Helps, and waits for those who help; gives what others were writing.
    fn finish(&self) -> Result<Vec<PageRange>> {
        while self.write_one() {}
        let mut state = lock(&self.state);
        while state.under_way > 0 {
            state = crate::sync::wait(&self.done, state);
        }
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut state.theirs)),
        }
    }
}

/// Cuts runs into shares of about [`SHARE_PAGES`].
fn shares(runs: &[PageRange]) -> VecDeque<Vec<PageRange>> {
    let mut shares = VecDeque::new();
    let (mut share, mut pages) = (Vec::new(), 0);
    for run in runs {
        let mut rest = *run;
        while !rest.is_empty() {
            // A long run is best written in long transfers.
            let count =
                if pages == 0 { rest.count().min(TRANSFER_PAGES_MAX) } else { rest.count().min(SHARE_PAGES) };
            share.push(PageRange::new(rest.start.0, rest.start.0 + count));
            rest.start.0 += count;
            pages += count;
            if pages >= SHARE_PAGES {
                shares.push_back(std::mem::take(&mut share));
                pages = 0;
            }
        }
    }
    if !share.is_empty() {
        shares.push_back(share);
    }
    shares
}

impl MemoryObject {
    /// Makes what is dirty of some pages durable.
    ///
    /// # Errors
    /// The first thing that went wrong; also what went wrong in the background since the last time.
    pub(crate) fn sync(self: &Arc<Self>, range: PageRange) -> Result<()> {
        let _turn = self.syncs.take();
        let outcome = if self.store.is_atomic() {
            self.sync_moment()
        } else {
            self.write_dirty(range).and_then(|()| self.sync_store())
        };
        // It is told now; the pages that it is about are dirty still, unless they were written by now.
        let before = self.pages().writes.error.take();
        outcome.and(before.map_or(Ok(()), Err))
    }

    /// Everything as it is at this moment, or nothing.
    fn sync_moment(self: &Arc<Self>) -> Result<()> {
        self.rewrite_lost()?;
        let runs = self.seal()?;
        let shares = Shares::new(self.clone(), &runs, Why::Sync);
        self.cache.help(&shares);
        let outcome = shares.finish().and_then(|_| self.sync_store());
        self.unseal(&runs);
        outcome
    }

    /// Begins to write back what is dirty of some pages.
    pub(crate) fn start_sync(self: &Arc<Self>, range: PageRange) {
        let runs = self.pages().table.dirty_runs(range);
        if !self.store.is_atomic() && !runs.is_empty() {
            self.cache.help(&Shares::new(self.clone(), &runs, Why::Sync));
        }
    }

    /// Writes back what is dirty of pages that somebody shows no more; what is all or nothing waits for its sync.
    ///
    /// # Errors
    /// As [`write_dirty`](Self::write_dirty).
    pub(crate) fn write_unmapped(self: &Arc<Self>, pages: PageRange) -> Result<()> {
        if !self.memory.used_as().is_writable() || self.store.is_atomic() || self.store.is_temporary() {
            return Ok(());
        }
        self.write_dirty(pages.intersect(self.all_pages()))
    }

    /// Writes back all pages of a range that are dirty now, and waits until they have been.
    ///
    /// # Errors
    /// The first failure; all that could be written was.
    pub(crate) fn write_dirty(self: &Arc<Self>, range: PageRange) -> Result<()> {
        self.rewrite_lost()?;
        // What others have copied may be older than now: it counts when it is written, or is dirty again.
        let (mut runs, mut theirs) = {
            let pages = self.pages();
            (pages.table.dirty_runs(range), pages.table.writing_runs(range))
        };
        loop {
            let shares = Shares::new(self.clone(), &runs, Why::Sync);
            if runs.iter().map(|run| run.count()).sum::<u64>() > SHARE_PAGES {
                self.cache.help(&shares);
            }
            theirs.extend(shares.finish()?);
            if theirs.is_empty() {
                return Ok(());
            }
            runs.clear();
            let mut pages = self.pages();
            for run in std::mem::take(&mut theirs) {
                while !pages.table.writing_runs(run).is_empty() {
                    pages = crate::sync::wait(&self.written, pages);
                }
                runs.extend(pages.table.dirty_runs(run));
            }
        }
    }

    /// Lets the store make durable what was written. If it cannot, all of that must be written again.
    fn sync_store(&self) -> Result<()> {
        let (written, length) = {
            let mut pages = self.pages();
            let written = pages.table.unsynced_runs();
            for page in written.iter().flat_map(|run| run.iter()) {
                pages.table.set(page, Mark::Unsynced, false);
            }
            (written, std::mem::take(&mut pages.writes.length_unsynced))
        };
        if written.is_empty() && !length {
            return Ok(());
        }
        let outcome = store_error(self, || self.store.sync());
        if outcome.is_err() {
            self.note_lost(written, length);
        }
        outcome
    }

    /// The store may have dropped these pages, and those that were written meanwhile, although it had taken them (fsync(2) tells
    /// of an error once).
    fn note_lost(&self, mut written: Vec<PageRange>, length: bool) {
        let mut pages = self.pages();
        pages.writes.length_unsynced |= length;
        let meanwhile = pages.table.unsynced_runs();
        for page in meanwhile.iter().flat_map(|run| run.iter()) {
            pages.table.set(page, Mark::Unsynced, false);
        }
        written.extend(meanwhile);
        // Some of these the store may have taken already.
        written.extend(pages.table.writing_runs(PageRange::new(0, u64::MAX)));
        for page in written.iter().flat_map(|run| run.iter()) {
            match pages.table.state(page) {
                PageState::Clean => {
                    pages.table.apply(page, Transition::Dirtied);
                    self.note_dirty(&mut pages);
                }
                PageState::WritingBack => pages.table.set(page, Mark::Redirtied, true),
                PageState::Dirty => {}
                // It comes back from the store, and is compared with what was written.
                _ => {
                    pages.writes.lost.insert(page);
                }
            }
        }
    }

    /// Brings back the pages that the store may have lost, so that they are written again.
    fn rewrite_lost(self: &Arc<Self>) -> Result<()> {
        let lost: Vec<PageIndex> = self.pages().writes.lost.iter().copied().collect();
        for page in lost {
            if !self.all_pages().contains(page) {
                self.pages().writes.lost.remove(&page);
                continue;
            }
            let _pinned = self.bring(page)?;
            let mut pages = self.pages();
            if pages.writes.lost.remove(&page) && pages.table.state(page) == PageState::Clean {
                pages.table.apply(page, Transition::Dirtied);
                self.note_dirty(&mut pages);
            }
        }
        Ok(())
    }

    /// Gets a page into memory, by this thread; it stays there until what this gives is dropped.
    pub(crate) fn bring(self: &Arc<Self>, page: PageIndex) -> Result<Pinned<'_>> {
        let offset = page.0 * self.cache.page.bytes();
        let pinned = || Pinned { object: self, range: PageRange::single(page) };
        loop {
            let transit =
                match self.claim(page, PageRange::single(page), Some(Waiter::Checked { page }), Intent::Load)
                {
                    Claim::Resident => return Ok(pinned()),
                    Claim::BeyondEnd => return Err(self.error_at(offset, crate::transit::Cause::BeyondEnd)),
                    Claim::Joined(transit) => transit,
                    Claim::Mine(fill) => {
                        let transit = fill.transit();
                        drop(fill.run(For::Waiter(page)));
                        transit
                    }
                };
            match transit.wait(page, self.cache.options.fill_time_max) {
                Waited::Pinned => return Ok(pinned()),
                Waited::Retry => {}
                Waited::Failed(cause) => return Err(self.error_at(offset, cause)),
                Waited::TimedOut => return Err(self.timed_out(offset)),
            }
        }
    }

    /// The last mapping that could be stored to is gone: what is dirty goes to the store, but is not made durable.
    ///
    /// Where a sync is all or nothing, what no sync has made durable is given up instead; and so is what goes with the store.
    pub(crate) fn last_writer_left(self: &Arc<Self>) {
        if self.store.is_atomic() || self.store.is_temporary() {
            return;
        }
        if let Err(error) = self.write_dirty(self.all_pages()) {
            tracing::error!(object = self.name(), %error, "not written back when its last mapping was dropped");
        }
    }
}

impl Inner {
    /// Lets writers help with shares.
    fn help(self: &Arc<Self>, shares: &Arc<Shares>) {
        let many = lock(&shares.state).left.len();
        let most = self.transfer(&shares.object).in_flight_max.get().min(HELPERS_MAX);
        for _ in 0..many.min(most) {
            self.submit_shares(shares.clone());
        }
    }

    /// Begins to write back pages that have to go, with others, unless a sweep makes room already.
    pub(crate) fn write_back_soon(self: &Arc<Self>, object: &Arc<MemoryObject>, runs: &[PageRange]) {
        if self.sweeping.begin_or_await() {
            self.submit_sweep(Some((object.clone(), runs.to_vec())));
        }
    }

    /// Begins to write back in the background where too much is dirty.
    pub(crate) fn limit_dirty(self: &Arc<Self>) {
        if self.surplus().is_some() && self.sweeping.begin() {
            self.submit_sweep(None);
        }
    }

    /// Writes back pages that have to go, and as many others as there are too many dirty ones: in the order of their offsets,
    /// for that is the order in which a disk writes them fastest. One at a time.
    pub(crate) fn sweep(self: &Arc<Self>, first: Option<(Arc<MemoryObject>, Vec<PageRange>)>) {
        let written = || self.counters.stats().bytes_written_back;
        let before = written();
        if let Some((object, runs)) = first {
            let more = object.oldest_dirty(self.sweep_pages());
            let runs = union(object.with_dirty_neighbours(&runs), more);
            self.write_for_room(&object, &runs);
        }
        // Who stored meanwhile found that a sweep was under way. What cannot be written stays dirty, and is left for the next.
        while let Some(surplus) = self.surplus() {
            let before = written();
            self.too_scattered.store(false, Ordering::Relaxed);
            self.sweep_once(surplus);
            if written() == before {
                break;
            }
        }
        let any_written = written() != before;
        // Whoever found that a sweep was under way looks again; at once only if that is not in vain. It may have found pages
        // that became dirty when the sweep had looked for them.
        let in_vain = !any_written && self.objects().iter().any(|object| object.pages().writes.must_wait());
        let awaited = self.sweeping.end(in_vain.then_some(FAILED_PAUSE));
        if any_written || (awaited && !in_vain) {
            self.budget.evictable();
        }
    }

    /// Writes back so many dirty pages, as far as that can be.
    fn sweep_once(self: &Arc<Self>, mut left: u64) {
        for object in self.objects() {
            while left > 0 && !object.store.is_atomic() {
                let runs = object.oldest_dirty(left.min(self.sweep_pages()));
                left = left.saturating_sub(runs.iter().map(|run| run.count()).sum());
                if runs.is_empty() || !self.write_for_room(&object, &runs) {
                    break;
                }
            }
        }
    }

    /// Whether all could be written, or is being written by others.
    fn write_for_room(self: &Arc<Self>, object: &Arc<MemoryObject>, runs: &[PageRange]) -> bool {
        let shares = Shares::new(object.clone(), runs, Why::Room);
        self.help(&shares);
        shares.finish().is_ok()
    }

    fn sweep_pages(&self) -> u64 {
        (self.budget.pages() / SWEEP_SHARE).max(1)
    }

    /// How many pages too many are dirty, if any.
    fn surplus(&self) -> Option<u64> {
        if self.too_scattered.load(Ordering::Relaxed) {
            return Some(self.dirty_pages().div_ceil(SCATTERED_SHARE));
        }
        surplus(self.dirty_pages(), self.options.dirty_bytes_max / self.page.bytes())
    }

    /// Begins to write back what has been dirty for too long.
    pub(crate) fn write_back_old(self: &Arc<Self>) {
        let now = Instant::now();
        for object in self.objects() {
            let since = object.pages().writes.dirty_since;
            let old = since.is_some_and(|since| now.duration_since(since) >= self.options.dirty_time_max);
            if old && !object.store.is_atomic() {
                let mut pages = object.pages();
                let runs = pages.table.dirty_runs(object.all_pages());
                // What becomes dirty from now on has its own time.
                pages.writes.dirty_since = Some(now);
                drop(pages);
                self.help(&Shares::new(object, &runs, Why::Room));
            }
        }
    }

    /// Writes back everything that is dirty, at the end of the process.
    pub(crate) fn write_back_all(self: &Arc<Self>) {
        if !self.made_in.is_current() {
            return;
        }
        for object in self.objects() {
            object.last_writer_left();
        }
    }
}

impl MemoryObject {
    /// Some of the dirty pages, in the order of their offsets, going round.
    fn oldest_dirty(&self, count: u64) -> Vec<PageRange> {
        let mut pages = self.pages();
        let from = pages.writes.swept_to;
        let end = self.all_pages().end;
        let (begin, from) = (PageIndex(0), from.min(end));
        let mut chosen = pages.table.first_dirty_runs(PageRange { start: from, end }, count);
        let left = count - chosen.iter().map(|run| run.count()).sum::<u64>();
        chosen.extend(pages.table.first_dirty_runs(PageRange { start: begin, end: from }, left));
        if let Some(last) = chosen.last() {
            pages.writes.swept_to = last.end;
        }
        chosen.sort_unstable_by_key(|run| run.start);
        chosen
    }
}

/// The pages of both, in order.
fn union(mut runs: Vec<PageRange>, more: Vec<PageRange>) -> Vec<PageRange> {
    runs.extend(more);
    runs.sort_unstable_by_key(|run| run.start);
    let mut union: Vec<PageRange> = Vec::with_capacity(runs.len());
    for run in runs {
        match union.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => union.push(run),
        }
    }
    union
}

/// How many dirty pages are to be written when there are more than `most`.
fn surplus(dirty: u64, most: u64) -> Option<u64> {
    (dirty > most).then(|| dirty - (most as f64 * SWEPT_TO) as u64)
}

/// Bounds how fast the background writes.
pub(crate) struct Pace {
    bytes_per_second_max: Option<u64>,
    /// So that those who wait do not all begin when the time has come.
    turns: Turns,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second_max: Option<u64>) -> Pace {
        Pace { bytes_per_second_max, turns: Turns::default(), free_at: Mutex::default() }
    }

    /// Waits until something may be written; nobody else may, until it is [noted](Self::note) how much it is.
    pub(crate) fn wait(&self) -> Option<Turn<'_>> {
        self.bytes_per_second_max?;
        let turn = self.turns.take();
        let free_at = *lock(&self.free_at);
        let now = Instant::now();
        std::thread::sleep(free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now)));
        Some(turn)
    }

    pub(crate) fn note(&self, _turn: Turn<'_>, bytes: u64) {
        let most = self.bytes_per_second_max.unwrap_or(u64::MAX).max(1);
        let time = Duration::from_secs_f64(bytes as f64 / most as f64);
        *lock(&self.free_at) = Some(Instant::now() + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_written_down_to_a_part_of_what_is_allowed() {
        assert_eq!((surplus(0, 0), surplus(8, 8), surplus(9, 8)), (None, None, Some(3)));
        assert_eq!(surplus(1, 0), Some(1));
    }

    #[test]
    fn after_a_sweep_in_vain_only_who_waits_for_one_begins_another() {
        let sweeping = Sweeping::default();
        assert!(sweeping.begin() && !sweeping.begin());
        assert!(!sweeping.end(Some(Duration::from_secs(3600))));
        assert!(!sweeping.begin() && sweeping.begin_or_await());
        assert!(!sweeping.begin_or_await() && sweeping.end(None), "somebody waited");
        assert!(sweeping.begin(), "it was not in vain");
    }

    #[test]
    fn a_union_holds_each_page_once() {
        let range = PageRange::new;
        let runs = union(vec![range(4, 6), range(20, 22)], vec![range(0, 4), range(5, 9), range(10, 11)]);
        assert_eq!(runs, [range(0, 9), range(10, 11), range(20, 22)]);
    }

    #[test]
    fn shares_hold_each_page_once_and_are_bounded() {
        let runs = [PageRange::new(0, 3), PageRange::new(10, 1000), PageRange::new(2000, 2001)];
        let shares = shares(&runs);
        let pages: Vec<u64> = shares.iter().flatten().flat_map(|run| run.iter().map(|p| p.0)).collect();
        let expected: Vec<u64> = (0..3).chain(10..1000).chain([2000]).collect();
        assert_eq!(pages, expected);
        let longest = shares.iter().map(|share| share.iter().map(|run| run.count()).sum::<u64>()).max();
        assert!(longest <= Some(TRANSFER_PAGES_MAX), "{longest:?}");
    }
}
