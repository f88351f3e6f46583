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
    /// Forget the touches of these pages, then [`Replacement::probation`] them.
    Forget(Vec<CachedPage>),
    /// Look which of these pages were touched: [`Replacement::insert`] those, evict the others.
    Judge(Vec<CachedPage>),
    /// There is no page to be had.
    Exhausted,
}

/// One in so many of the pages is on probation.
const PROBATION_SHARE: usize = 4;

/// The queues.
#[derive(Debug, Default)]
pub struct Replacement {
    fresh: VecDeque<CachedPage>,
    probation: VecDeque<CachedPage>,
}

impl Replacement {
    /// A page came, or has shown that it is used.
    pub fn insert(&mut self, page: CachedPage) {
        self.fresh.push_back(page);
    }

    /// The touches of a page were forgotten; from now on it must show that it is used.
    pub fn probation(&mut self, page: CachedPage) {
        self.probation.push_back(page);
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

    /// Forgets all pages of an object.
    pub fn forget_object(&mut self, object: ObjectId) {
        self.fresh.retain(|p| p.object != object);
        self.probation.retain(|p| p.object != object);
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
                        queues.probation(p);
                    }),
                    Step::Judge(pages) => {
                        for p in pages {
                            if touched.contains(&p) {
                                queues.insert(p);
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
            queues.insert(page(n));
        }
        misses
    }

    #[test]
    fn pages_in_use_survive_a_scan() {
        // Ten pages used again and again, between pages that are used once.
        let trace = (0..10_000u64).map(|i| if i % 2 == 0 { i / 2 % 10 } else { 1000 + i });
        assert_eq!(misses(64, trace), 10 + 5000);
    }

    #[test]
    fn a_cache_of_one_page_works() {
        assert_eq!(misses(1, [1, 1, 2, 2, 1].into_iter()), 3);
    }

    #[test]
    fn a_forgotten_object_is_never_offered() {
        let mut queues = Replacement::default();
        for n in 0..10 {
            queues.insert(page(n));
        }
        queues.insert(CachedPage { object: ObjectId(2), page: PageIndex(0) });
        queues.forget_object(ObjectId(1));
        assert_eq!(queues.len(), 1);
    }
}
