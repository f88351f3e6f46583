//! Fetching what will be wanted: many ranges at once, in the background, awaited if one likes.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::cache::PageCache;
use crate::error::{Error, Result};
use crate::fill::{Became, Fill};
use crate::object::MemoryObject;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, lock, wait_while};
use crate::transit::Cause;
use crate::units::{PageIndex, PageRange};

/// Failed reads after which what fails is not tried by parts any more: one bad chunk of a piece makes about ten.
const FAILURES_MAX: u64 = 64;

/// A prefetch under way; waiting for it, or awaiting it, is optional. Dropping it lets it go on.
#[must_use = "a prefetch goes on by itself; wait for it, await it, or drop it"]
pub struct Prefetch {
    pieces: Arc<Pieces>,
    _cache: Arc<PageCache>,
}

/// What a prefetch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetched {
    /// Bytes of the ranges that were in memory or were brought there.
    pub bytes: u64,
    /// Bytes that were left out because the budget has no room for them.
    pub bytes_left_out: u64,
}

/// The pieces of a prefetch, and how far it is.
pub(crate) struct Pieces {
    object: Arc<MemoryObject>,
    /// Reads that failed, of parts too.
    failures: AtomicU64,
    state: Mutex<State>,
    done: Condvar,
}

struct State {
    left: VecDeque<PageRange>,
    under_way: usize,
    /// That fetch pieces, or are queued to. As long as there is one, what is left is fetched.
    jobs: usize,
    bytes: u64,
    bytes_left_out: u64,
    error: Option<Error>,
    waker: Option<Waker>,
}

/// What did not come of some pieces.
#[derive(Default)]
struct Missing {
    /// The first page of each part that failed, and why.
    failed: Vec<(PageIndex, Cause)>,
    /// There was no room for these, for too much was on its way.
    cut: Vec<PageRange>,
    /// There is no room for these.
    left_out: Vec<PageRange>,
    /// For others there was.
    any_room: bool,
}

impl State {
    fn is_done(&self) -> bool {
        self.left.is_empty() && self.under_way == 0
    }

    /// Some pieces are over, but for what is cut of them because too much was on its way. That is tried again: by this job, if
    /// it brought anything, for that has arrived by now; else by another; without another it is left out, which nobody hangs
    /// for. Tells what is left out, and whether the job goes on.
    fn settle(&mut self, pieces: usize, cut: Vec<PageRange>, any_room: bool) -> (Vec<PageRange>, bool) {
        let in_vain = !cut.is_empty() && !any_room;
        let mut left_out = Vec::new();
        if in_vain && self.jobs == 1 {
            left_out = cut;
        } else {
            cut.into_iter().rev().for_each(|part| self.left.push_front(part));
        }
        self.under_way -= pieces;
        let goes_on = !(self.left.is_empty() || in_vain && self.jobs > 1);
        self.jobs -= usize::from(!goes_on);
        (left_out, goes_on)
    }

    fn outcome(&self) -> Result<Prefetched> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(Prefetched { bytes: self.bytes, bytes_left_out: self.bytes_left_out }),
        }
    }
}

impl Prefetch {
    /// Begins to fetch the ranges, as much of them as the budget can hold beside what is pinned.
    pub(crate) fn begin(
        cache: &Arc<PageCache>,
        object: &Arc<MemoryObject>,
        ranges: &[PageRange],
    ) -> Prefetch {
        let inner = &cache.inner;
        // Some room is left for the accesses that happen meanwhile.
        let pinned = inner.pinned.load(Ordering::Relaxed);
        let mut room = (inner.budget.pages() - pinned.min(inner.budget.pages())) * 3 / 4;
        let piece_pages = inner.piece_pages(object);
        let (mut left, mut left_out) = (VecDeque::new(), 0u64);
        for mut rest in merged(ranges) {
            while !rest.is_empty() {
                let count = rest.count().min(piece_pages).min(room);
                if count == 0 {
                    left_out += rest.count();
                    break;
                }
                left.push_back(PageRange::new(rest.start.0, rest.start.0 + count));
                rest.start.0 += count;
                room -= count;
            }
        }
        let bytes_left_out = left_out * inner.page.bytes();
        let state = State { left, under_way: 0, jobs: 0, bytes: 0, bytes_left_out, error: None, waker: None };
        let pieces = Arc::new(Pieces {
            object: object.clone(),
            failures: AtomicU64::new(0),
            state: Mutex::new(state),
            done: Condvar::new(),
        });
        inner.fill_pieces(&pieces, object);
        Prefetch { pieces, _cache: cache.clone() }
    }

    /// Waits until all is there, or has failed.
    ///
    /// # Errors
    /// The first thing that went wrong; the rest was fetched all the same, unless much of it failed.
    pub fn wait(self) -> Result<Prefetched> {
        self.pieces.check_process()?;
        let mut state = lock(&self.pieces.state);
        loop {
            if state.is_done() {
                return state.outcome();
            }
            // Each fill has its own time limit; this only bounds one sleep.
            state = wait_while(&self.pieces.done, state, Duration::from_secs(60), |s| !s.is_done()).0;
        }
    }

    /// Whether all is there, or has failed.
    pub fn is_done(&self) -> bool {
        lock(&self.pieces.state).is_done()
    }
}

impl Future for Prefetch {
    type Output = Result<Prefetched>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(forked) = self.pieces.check_process() {
            return Poll::Ready(Err(forked));
        }
        let mut state = lock(&self.pieces.state);
        if state.is_done() {
            return Poll::Ready(state.outcome());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The same pages, in order, each once.
fn merged(ranges: &[PageRange]) -> Vec<PageRange> {
    let mut sorted: Vec<PageRange> = ranges.iter().copied().filter(|r| !r.is_empty()).collect();
    sorted.sort_unstable_by_key(|r| r.start);
    let mut merged: Vec<PageRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

impl Pieces {
    /// Gives how many jobs are to be begun, at most so many.
    pub(crate) fn begin(&self, jobs_max: usize) -> usize {
        let mut state = lock(&self.state);
        state.jobs = jobs_max.min(state.left.len());
        state.jobs
    }

    fn check_process(&self) -> Result<()> {
        if self.object.cache.made_in.is_current() {
            return Ok(());
        }
        Err(Error::Forked { object: self.object.name.clone() })
    }

    /// Fetches one piece that nobody fetches yet, or several that the store reads together; whether to go on.
    pub(crate) fn fetch_some(self: &Arc<Self>) -> bool {
        let pieces = self.take_pieces();
        if pieces.is_empty() {
            return false;
        }
        let mut missing = Missing::default();
        self.fetch(&pieces, &mut missing);
        // What others are fetching already is part of what was asked for: they tell when they are done.
        for piece in &pieces {
            // First counted, so that the first to be done is not the last.
            lock(&self.state).under_way += 1;
            let joined = self.object.join_transits(*piece, self);
            let parts = missing.cut.iter().chain(&missing.left_out).map(|part| part.intersect(*piece));
            let missing_bytes: u64 = parts.filter(|part| !part.is_empty()).map(|part| self.bytes(part)).sum();
            let mut state = lock(&self.state);
            state.under_way = state.under_way + joined - 1;
            match missing.failed.iter().find(|(page, _)| piece.contains(*page)) {
                None => state.bytes += self.bytes(*piece).saturating_sub(missing_bytes),
                Some((page, cause)) => {
                    let offset = page.0 * self.object.cache.page.bytes();
                    state.error.get_or_insert_with(|| self.object.error_at(offset, cause.clone()));
                }
            }
        }
        let mut state = lock(&self.state);
        let (left_out, goes_on) = state.settle(pieces.len(), missing.cut, missing.any_room);
        let left_out = left_out.into_iter().chain(missing.left_out);
        state.bytes_left_out += left_out.map(|part| self.bytes(part)).sum::<u64>();
        self.tell_if_done(state);
        goes_on
    }

    /// As many as the store reads together, and are not too long to be in memory twice. With none, the job is over.
    fn take_pieces(&self) -> Vec<PageRange> {
        let inner = &self.object.cache;
        let (most, mut room) = (inner.reads_together(&self.object), inner.piece_pages(&self.object));
        let mut state = lock(&self.state);
        let mut taken: Vec<PageRange> = Vec::new();
        while let Some(piece) = state.left.front().copied()
            && taken.len() < most
            && (taken.is_empty() || piece.count() <= room)
        {
            state.left.pop_front();
            room = room.saturating_sub(piece.count());
            taken.push(piece);
        }
        state.under_way += taken.len();
        state.jobs -= usize::from(taken.is_empty());
        taken
    }

    /// A piece, or what somebody else was fetching of one, is over.
    pub(crate) fn one_done(&self) {
        let mut state = lock(&self.state);
        state.under_way -= 1;
        self.tell_if_done(state);
    }

    fn tell_if_done(&self, mut state: MutexGuard<'_, State>) {
        if state.is_done() {
            let waker = state.waker.take();
            drop(state);
            self.done.notify_all();
            // The program's code: what it does wrong is not our thread's end.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.into_iter().for_each(Waker::wake)));
        }
    }

    /// Fetches what nobody has or fetches of some pieces. Those that fail are tried by halves, down to the chunk that is bad;
    /// where much fails, the store does.
    fn fetch(&self, pieces: &[PageRange], missing: &mut Missing) {
        let fills = self.object.claim_all_absent(pieces);
        let mut again = Vec::new();
        Fill::run_together(fills, |range, became| {
            missing.any_room |= !matches!(became, Became::LeftOut { .. });
            match became {
                Became::Arrived => {}
                Became::LeftOut { more_soon: true } => missing.cut.push(range),
                Became::LeftOut { more_soon: false } => missing.left_out.push(range),
                Became::Failed(cause) => {
                    let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                    match self.halves(range).filter(|_| failures < FAILURES_MAX) {
                        Some(halves) => again.extend(halves),
                        None => missing.failed.push((range.start, cause)),
                    }
                }
            }
        });
        if !again.is_empty() {
            self.fetch(&again, missing);
        }
    }

    /// Two parts of about the same length, which share no chunk; nothing if it is of one chunk.
    fn halves(&self, range: PageRange) -> Option<[PageRange; 2]> {
        let middle = PageIndex(range.start.0 + range.count() / 2);
        let chunk = self.object.cache.chunk_pages(&self.object, middle);
        let inside = |page: &PageIndex| range.start < *page && *page < range.end;
        let cut = [chunk.start, chunk.end].into_iter().find(inside)?;
        Some([PageRange { start: range.start, end: cut }, PageRange { start: cut, end: range.end }])
    }

    fn bytes(&self, piece: PageRange) -> u64 {
        let bytes = self.object.cache.page.bytes_of(piece);
        // The object may have become shorter meanwhile.
        bytes.end.min(self.object.len()).saturating_sub(bytes.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(left: &[PageRange], jobs: usize) -> State {
        let left = left.iter().copied().collect();
        State { left, under_way: 0, jobs, bytes: 0, bytes_left_out: 0, error: None, waker: None }
    }

    #[test]
    fn what_is_cut_is_tried_again_as_long_as_anything_comes() {
        let (first, second) = (PageRange::new(0, 8), PageRange::new(8, 16));
        let mut state = state(&[], 2);
        state.under_way = 2;
        let (left_out, goes_on) = state.settle(1, vec![first, second], false);
        assert_eq!((left_out, goes_on), (vec![], false), "it is for the other job");
        let taken = state.left.pop_front();
        assert_eq!((taken, state.jobs, state.is_done()), (Some(first), 1, false));
        let rest = PageRange::new(4, 8);
        assert_eq!(state.settle(1, vec![rest], true), (vec![], true), "something came");
        assert_eq!(state.left, [rest, second]);
        (state.under_way, state.left) = (1, [second].into());
        assert_eq!(state.settle(1, vec![rest], false), (vec![rest], true), "nobody else would");
        (state.under_way, state.left) = (1, [].into());
        assert_eq!(state.settle(1, vec![second], false), (vec![second], false));
        assert!(state.is_done() && state.jobs == 0);
    }
}
