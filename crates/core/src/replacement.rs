//! Which page goes when room is needed. Pure: it is told what happened, and says what to look at next.
//!
//! Two queues. A page that was filled enters *fresh*. When it has come to the head there, its page-table entries are
//! taken away (the bytes stay) and it is put on *probation*; when it comes to the head there and has been touched
//! since, the kernel has made an entry again: the page goes back to fresh. If not, it is evicted. So a page that is
//! used at least once while a quarter of the cache is replaced stays, at the price of a minor fault; one that was
//! read once in passing goes.

use std::collections::VecDeque;

use crate::units::PageIndex;

/// Names an object within its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

/// A resident page of some object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CachedPage {
    /// Whose page it is.
    pub object: ObjectId,
    /// Which one.
    pub page: PageIndex,
}

/// What to do next to find room.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Forget the touches of these pages, then [`put`](Replacement::put) them on probation.
    Forget(Vec<CachedPage>),
    /// Look which of these pages were touched: [`put`](Replacement::put) those among the fresh, evict the others.
    Judge(Vec<CachedPage>),
    /// There is no page to be had.
    Exhausted,
}

/// One in so many of the pages is on probation.
const PROBATION_SHARE: usize = 4;

/// Where a page stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// It came, or has shown that it is used.
    Fresh,
    /// Its touches were forgotten; it must show that it is used.
    Probation,
}

/// The queues.
#[derive(Debug, Default)]
pub struct Replacement {
    fresh: VecDeque<CachedPage>,
    probation: VecDeque<CachedPage>,
    /// Entries whose pages went another way.
    stale: usize,
}

impl Replacement {
    /// Puts a page at the end of a queue.
    pub fn put(&mut self, queue: Queue, page: CachedPage) {
        match queue {
            Queue::Fresh => self.fresh.push_back(page),
            Queue::Probation => self.probation.push_back(page),
        }
    }

    /// Takes at most `batch` pages out of the queues, to be looked at.
    pub fn next_step(&mut self, batch: usize) -> Step {
        let pages = self.fresh.len() + self.probation.len();
        let take = |queue: &mut VecDeque<CachedPage>| queue.drain(..batch.min(queue.len())).collect();
        if self.probation.len() < pages / PROBATION_SHARE + 1 && !self.fresh.is_empty() {
            Step::Forget(take(&mut self.fresh))
        } else if !self.probation.is_empty() {
            Step::Judge(take(&mut self.probation))
        } else {
            Step::Exhausted
        }
    }

    /// Counts pages that went without being taken out here first.
    pub fn note_stale(&mut self, pages: usize) {
        self.stale = (self.stale + pages).min(self.len());
    }

    /// The most entries that can be of pages that are gone.
    pub fn stale(&self) -> usize {
        self.stale
    }

    /// Takes everything out, in order, so that what is not gone can be put back.
    pub fn take_all(&mut self) -> [(Queue, Vec<CachedPage>); 2] {
        self.stale = 0;
        let take = |queue: &mut VecDeque<CachedPage>| std::mem::take(queue).into();
        [(Queue::Fresh, take(&mut self.fresh)), (Queue::Probation, take(&mut self.probation))]
    }

    /// Pages in the queues.
    pub fn len(&self) -> usize {
        self.fresh.len() + self.probation.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn page(n: u64) -> CachedPage {
        CachedPage { object: ObjectId(1), page: PageIndex(n) }
    }

    /// A cache of `room` pages that is driven by a trace; gives the number of misses.
    fn misses(room: usize, trace: impl Iterator<Item = u64>) -> usize {
        let mut queues = Replacement::default();
        let (mut resident, mut touched, mut misses) = (HashSet::new(), HashSet::new(), 0);
        for n in trace {
            if resident.contains(&page(n)) {
                touched.insert(page(n));
                continue;
            }
            misses += 1;
            while resident.len() >= room {
                match queues.next_step(1) {
                    Step::Forget(pages) => pages.into_iter().for_each(|p| {
                        touched.remove(&p);
                        queues.put(Queue::Probation, p);
                    }),
                    Step::Judge(pages) => {
                        for p in pages {
                            if touched.contains(&p) {
                                queues.put(Queue::Fresh, p);
                            } else {
                                resident.remove(&p);
                            }
                        }
                    }
                    Step::Exhausted => panic!("{} pages are resident and none is queued", resident.len()),
                }
            }
            resident.insert(page(n));
            touched.insert(page(n));
            queues.put(Queue::Fresh, page(n));
        }
        misses
    }

    #[test]
    fn pages_in_use_survive_a_scan() {
        // Ten pages used again and again, between pages that are used once.
        let trace = (0..10_000u64).map(|i| if i % 2 == 0 { i / 2 % 10 } else { 1000 + i });
        let misses = misses(64, trace);
        assert!((5010..5060).contains(&misses), "{misses} of which 5000 are of pages used once");
    }

    #[test]
    fn a_cache_of_one_page_works() {
        assert_eq!(misses(1, [1, 1, 2, 2, 1].into_iter()), 3);
    }

    #[test]
    fn what_is_taken_out_can_be_put_back() {
        let mut queues = Replacement::default();
        (0..10).for_each(|n| queues.put(Queue::Fresh, page(n)));
        queues.put(Queue::Probation, page(10));
        queues.note_stale(100);
        assert_eq!(queues.stale(), 11, "no more than there are");
        let all = queues.take_all();
        assert!(queues.is_empty() && queues.stale() == 0);
        assert_eq!(all[0], (Queue::Fresh, (0..10).map(page).collect()));
        assert_eq!(all[1], (Queue::Probation, vec![page(10)]));
    }
}
