//! The threads that fill for others: checked accesses, readahead, prefetch.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use omnimap_host::die;

use crate::address_space::Reader;
use crate::cache::Inner;
use crate::durable::Shares;
use crate::fill::{Fill, For};
use crate::object::MemoryObject;
use crate::prefetch::Pieces;
use crate::readahead::Ahead;
use crate::spare_bytes::SpareBytes;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, lock, start_thread, wait_while};
use crate::units::{PageIndex, PageRange};
use crate::workers::END_WAIT_MAX;

/// Readahead that is queued or under way, in bytes; more is not begun. It bounds the memory for transfer buffers.
pub(crate) const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// And this part of the budget.
const AHEAD_BUDGET_SHARE: u64 = 2;
/// Reads handed to a store together: whoever waits for the first of them waits for the last.
const READS_TOGETHER_MAX: usize = 64;
/// How long a filler without work stays.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);

/// The queues and their threads.
pub(crate) struct Fillers {
    threads_max: usize,
    ahead_bytes_max: u64,
    ahead_bytes: AtomicU64,
    pub(crate) spare: SpareBytes,
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Somebody waits for these.
    urgent: VecDeque<Job>,
    later: VecDeque<Job>,
    idle: usize,
    threads: usize,
    closed: bool,
}

enum Job {
    Waiter(Fill, PageIndex),
    Ahead(Arc<MemoryObject>, Vec<PageRange>),
    Prefetch(Arc<Pieces>),
    /// Needs no room, and so has threads of its own: those that fill may all be waiting for the room that it makes.
    Write(Arc<Shares>),
    /// Likewise.
    Sweep(Option<(Arc<MemoryObject>, Vec<PageRange>)>),
    /// Likewise: it makes the room.
    Replenish,
    /// Needs no room either.
    Collapse,
}

impl Fillers {
    pub(crate) fn new(threads_max: NonZeroUsize, budget_bytes: u64) -> Fillers {
        Fillers {
            threads_max: threads_max.get(),
            ahead_bytes_max: AHEAD_BYTES_MAX.min(budget_bytes / AHEAD_BUDGET_SHARE),
            ahead_bytes: AtomicU64::new(0),
            spare: SpareBytes::new(budget_bytes),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// Lets all threads end when their fill has; what is queued is dropped.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = lock(&self.state);
            state.closed = true;
            (std::mem::take(&mut state.urgent), std::mem::take(&mut state.later))
        };
        drop(dropped);
        self.work.notify_all();
    }

    pub(crate) fn wait_for_end(&self) {
        drop(wait_while(&self.ended, lock(&self.state), END_WAIT_MAX, |s| s.threads > 0));
    }

    /// Takes `bytes` of what readahead may have under way, if there is so much left.
    fn begin_ahead(&self, bytes: u64) -> bool {
        let most = self.ahead_bytes_max;
        let add = |now: u64| (now + bytes <= most).then_some(now + bytes);
        self.ahead_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                break;
            }
            if let Some(job) = state.urgent.pop_front() {
                return Some(job);
            }
            if let Some(job) = state.later.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let nothing = |s: &mut State| !s.closed && s.urgent.is_empty() && s.later.is_empty();
            let (again, in_time) = wait_while(&self.work, state, IDLE_TIME_MAX, nothing);
            state = again;
            state.idle -= 1;
            if !in_time {
                self.spare.clear();
                break;
            }
        }
        state.threads -= 1;
        drop(state);
        self.ended.notify_all();
        None
    }
}

impl Inner {
    /// Fills in another thread; the page's waiters are told.
    pub(crate) fn fill_for_waiter(self: &Arc<Self>, fill: Fill, page: PageIndex) {
        self.submit(Job::Waiter(fill, page));
    }

    /// Fetches pages that a reader will probably want, as far as there is capacity for it; the reader's streams are told
    /// if that is less.
    pub(crate) fn fill_ahead(self: &Arc<Self>, object: &Arc<MemoryObject>, ahead: Ahead, reader: &Reader) {
        if ahead.is_empty() {
            return;
        }
        for pieces in self.pieces_ahead(object, ahead) {
            let pages: u64 = pieces.iter().map(|piece| piece.count()).sum();
            if !self.fillers.begin_ahead(pages * self.page.bytes()) {
                let Some(first) = pieces.first() else { return };
                let reached = if ahead.step == -1 { PageIndex(first.end.0 - 1) } else { first.start };
                lock(&reader.streams).fell_short(&ahead, reached);
                return;
            }
            self.submit(Job::Ahead(object.clone(), pieces));
        }
    }

    /// What is fetched by one job each, in the order in which it will be wanted.
    fn pieces_ahead(&self, object: &MemoryObject, ahead: Ahead) -> Vec<Vec<PageRange>> {
        let Some(range) = ahead.range() else {
            // Whole chunks: each is made as a whole anyway.
            let mut chunks: Vec<PageRange> =
                ahead.pages().map(|page| self.chunk_pages(object, page)).collect();
            chunks.dedup();
            return chunks.chunks(self.reads_together(object)).map(<[PageRange]>::to_vec).collect();
        };
        let piece_pages = self.piece_pages(object);
        let mut pieces = Vec::new();
        let mut start = range.start;
        while start < range.end {
            // Pieces end where chunks do, so that no chunk is fetched twice.
            let end = PageIndex((start.0 + piece_pages) / piece_pages * piece_pages).min(range.end);
            pieces.push(vec![PageRange { start, end }]);
            start = end;
        }
        if ahead.step < 0 {
            pieces.reverse();
        }
        pieces
    }

    /// Lets as many threads as help work on the pieces of a prefetch.
    pub(crate) fn fill_pieces(self: &Arc<Self>, pieces: &Arc<Pieces>, object: &MemoryObject) {
        // Each has several reads under way, where the store makes several together; and one puts into memory what it has
        // while another waits.
        let in_flight = self.transfer(object).in_flight_max.get();
        let threads = in_flight.div_ceil(self.reads_together(object)).max(2).min(self.fillers.threads_max);
        for _ in 0..pieces.begin(threads) {
            self.submit(Job::Prefetch(pieces.clone()));
        }
    }

    /// Pages that are best fetched in one transfer when more are wanted.
    pub(crate) fn piece_pages(&self, object: &MemoryObject) -> u64 {
        let preferred = self.transfer(object).preferred_bytes.get() as u64 / self.page.bytes();
        preferred.clamp(1, self.fill_pages_max(object))
    }

    /// Reads that are best handed to the store together.
    pub(crate) fn reads_together(&self, object: &MemoryObject) -> usize {
        self.transfer(object).reads_together_max.get().min(READS_TOGETHER_MAX)
    }

    /// Lets a writer help to write back.
    pub(crate) fn submit_shares(self: &Arc<Self>, shares: Arc<Shares>) {
        self.submit(Job::Write(shares));
    }

    /// Lets a writer [sweep](Self::sweep).
    pub(crate) fn submit_sweep(self: &Arc<Self>, first: Option<(Arc<MemoryObject>, Vec<PageRange>)>) {
        self.submit(Job::Sweep(first));
    }

    /// Lets a writer [replenish](Self::replenish) the reserve.
    pub(crate) fn submit_replenishing(self: &Arc<Self>) {
        self.submit(Job::Replenish);
    }

    /// Lets a writer [make pages large](Self::collapse_some).
    pub(crate) fn submit_collapsing(self: &Arc<Self>) {
        self.submit(Job::Collapse);
    }

    fn submit(self: &Arc<Self>, job: Job) {
        let writes = matches!(job, Job::Write(_) | Job::Sweep(_) | Job::Replenish | Job::Collapse);
        let pool: fn(&Inner) -> &Fillers =
            if writes { |inner| &inner.writers } else { |inner| &inner.fillers };
        let fillers = pool(self);
        let mut state = lock(&fillers.state);
        if state.closed {
            drop(state);
            return self.refuse(job);
        }
        match job {
            Job::Waiter(..) | Job::Write(_) | Job::Sweep(_) => state.urgent.push_back(job),
            Job::Replenish => state.urgent.push_front(job),
            Job::Ahead(..) | Job::Prefetch(_) | Job::Collapse => state.later.push_back(job),
        }
        let queued = state.urgent.len() + state.later.len();
        let spawn = queued > state.idle && state.threads < fillers.threads_max;
        state.threads += usize::from(spawn);
        let wake = state.idle > 0;
        drop(state);
        if wake {
            fillers.work.notify_one();
        }
        if !spawn {
            return;
        }
        let inner = self.clone();
        let work = move || {
            while let Some(job) = pool(&inner).next_job() {
                // Whoever waits for the job would do so for ever.
                if catch_unwind(AssertUnwindSafe(|| inner.perform(job))).is_err() {
                    die("a panic while pages were filled");
                }
            }
        };
        let name = if writes { "omnimap-write" } else { "omnimap-fill" };
        if let Err(error) = start_thread(name, work) {
            tracing::warn!(%error, "no further thread for fills");
            let mut state = lock(&fillers.state);
            state.threads -= 1;
            let alone = state.threads == 0;
            let job = if alone { state.urgent.pop_front().or_else(|| state.later.pop_front()) } else { None };
            drop(state);
            // Nobody else would do it.
            match job {
                // But for what nobody waits for, and takes long.
                Some(job @ Job::Collapse) => self.refuse(job),
                job => job.into_iter().for_each(|job| self.perform(job)),
            }
        }
    }

    fn perform(self: &Arc<Self>, job: Job) {
        match job {
            // Whoever waits has been told the outcome; for readahead nobody asks.
            Job::Waiter(fill, page) => drop(fill.run(For::Waiter(page))),
            Job::Ahead(object, pieces) => {
                // What fails is asked for, and fails, when somebody wants it.
                Fill::run_together(object.claim_all_absent(&pieces), |_, _| {});
                self.end_ahead(&pieces);
            }
            // A piece at a time, so that what is urgent comes between.
            Job::Write(shares) => while shares.write_one() {},
            Job::Sweep(first) => self.sweep(first),
            Job::Replenish => self.replenish(),
            Job::Collapse => self.collapse_some(),
            Job::Prefetch(pieces) => {
                if pieces.fetch_some() {
                    self.submit(Job::Prefetch(pieces));
                }
            }
        }
    }

    fn end_ahead(&self, pieces: &[PageRange]) {
        let pages: u64 = pieces.iter().map(|piece| piece.count()).sum();
        self.fillers.ahead_bytes.fetch_sub(pages * self.page.bytes(), Ordering::Relaxed);
    }

    /// A job that comes when the cache is closed.
    fn refuse(&self, job: Job) {
        match job {
            Job::Waiter(fill, page) => drop(fill.run(For::Waiter(page))),
            Job::Ahead(_, pieces) => self.end_ahead(&pieces),
            Job::Prefetch(pieces) => while pieces.fetch_some() {},
            // Whoever waits for it writes, or evicts, himself.
            Job::Write(_) | Job::Sweep(_) | Job::Replenish => {}
            Job::Collapse => self.end_collapsing(0),
        }
    }
}
