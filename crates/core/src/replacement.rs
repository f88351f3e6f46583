//! Which page goes when room is needed. Pure: it is told what happened, and says what to look at next.
//!
//! The kernel tells of a use once, and only if it is asked: when a page's entries are taken out of the page tables (the
//! bytes stay), the next use makes one again, and whoever looks later sees that there was a use. So, after S3-FIFO (Yang
//! and others, "FIFO queues are all you need for cache eviction", SOSP 2023), with that one bit instead of a count:
//!
//! ```text
//!           new, a tenth                          proven, the rest
//! filled → fresh ─forget→ probation ─used→ spared ─forget→ proven
//!    │                        │              ↑               │ │
//!    └─ if it is a ghost ─────│──────────────┤          used │ │ unused
//!                        unused              └───────────────┘ │
//!                             ↓                                ↓
//!                     evicted, a ghost                      evicted
//! ```
//! A page that is new has to be used again soon, or it goes: what is read once in passing takes a tenth of the cache. One
//! that was, or that comes back soon after it went, is proven, and judged again only when new ones want in. When all of a
//! batch of proven pages are used, one of new ones is looked at instead: what is used more than the newcomers is not
//! driven out by them, as in a loop over more pages than there is room for.

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
    /// Forget the touches of these pages, then [`put`](Replacement::put) them into that queue.
    Forget(Vec<CachedPage>, Queue),
    /// Look which of these pages were touched: [`put`](Replacement::put) those among the spared, and evict the others. What
    /// has to be written first is put on probation. Whatever is not put back counts as evicted.
    Judge(Vec<CachedPage>),
    /// There is no page to be had.
    Exhausted,
}

/// One in so many of the pages is new, unless too few are proven.
const NEW_SHARE: usize = 10;
/// And so many at the least: were it one, each new page would drive out the one before, used or not.
const NEW_MIN: usize = 2;
/// One in so many is new even when others come back: they take the room of proven ones only as those are found unused.
const NEW_LEAST_SHARE: usize = 20;

/// So many ghosts are remembered however few pages there are: of fewer, most take each other's place.
const GHOSTS_MIN: usize = 16;

/// Batches of new pages that are forgotten for each one that is judged: when a cache has just become full, nothing has been
/// forgotten yet, and half of a large one takes too long for the first who needs a page.
const FORGOTTEN_BATCHES_MAX: usize = 16;

/// Queues grow by this part of them.
const GROWTH_SHARE: usize = 8;
/// Or by so many entries.
const GROWTH_LEAST: usize = 64;

/// Where a page stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// It came, and nothing is known of it.
    Fresh,
    /// New, and its touches were forgotten; it must show that it is used.
    Probation,
    /// It has shown that it is used.
    Spared,
    /// The same, and its touches were forgotten; it must show it again.
    Proven,
}

/// The queues, 16 bytes a page, and the ghosts, at most 2.
#[derive(Debug, Default)]
pub struct Replacement {
    fresh: VecDeque<CachedPage>,
    probation: VecDeque<CachedPage>,
    spared: VecDeque<CachedPage>,
    proven: VecDeque<CachedPage>,
    ghosts: Ghosts,
    /// How many were proven before some of them were judged; until it has been seen what became of those.
    judged_of: Option<usize>,
    /// Pages whose touches were forgotten since some were judged last.
    forgotten: usize,
    /// Entries whose pages went another way.
    stale: usize,
}

impl Replacement {
    /// Takes in a page that was filled.
    pub fn arrived(&mut self, page: CachedPage) {
        let returns = self.ghosts.take(page);
        let has_room = NEW_LEAST_SHARE * self.main_len() < (NEW_LEAST_SHARE - 1) * self.len();
        self.put(if returns && has_room { Queue::Spared } else { Queue::Fresh }, page);
    }

    /// Puts a page at the end of a queue.
    pub fn put(&mut self, queue: Queue, page: CachedPage) {
        self.ghosts.take(page);
        let queue = self.queue(queue);
        if queue.len() == queue.capacity() {
            // Twice as much would leave half of it unused, which for millions of pages is a lot.
            queue.reserve_exact((queue.len() / GROWTH_SHARE).max(GROWTH_LEAST));
        }
        queue.push_back(page);
    }

    /// Takes at most `batch` pages out of the queues, to be looked at.
    pub fn next_step(&mut self, batch: usize) -> Step {
        // Soon, so that they have had time to be used when their turn comes.
        if self.spared.len() >= batch || self.len() == self.spared.len() && !self.spared.is_empty() {
            return Step::Forget(take(&mut self.spared, batch), Queue::Proven);
        }
        let (new, main) = (self.len() - self.main_len(), self.main_len());
        let all_used = self.judged_of.is_some_and(|before| main >= before);
        if !self.proven.is_empty() && (new == 0 || (is_small(new, new + main) && !all_used)) {
            self.judged_of = Some(main);
            self.forgotten = 0;
            return Step::Judge(take(&mut self.proven, batch));
        }
        if 2 * self.probation.len() < new && self.forgotten < FORGOTTEN_BATCHES_MAX * batch {
            self.forgotten += batch.min(self.fresh.len());
            return Step::Forget(take(&mut self.fresh, batch), Queue::Probation);
        }
        self.judged_of = None;
        self.forgotten = 0;
        let judged = take(&mut self.probation, batch);
        if judged.is_empty() {
            return Step::Exhausted;
        }
        // Those that stay are put back, and are none.
        judged.iter().for_each(|page| self.ghosts.put(*page, (new + main) / 2));
        Step::Judge(judged)
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
    pub fn take_all(&mut self) -> [(Queue, Vec<CachedPage>); 4] {
        self.stale = 0;
        [Queue::Fresh, Queue::Probation, Queue::Spared, Queue::Proven]
            .map(|queue| (queue, std::mem::take(self.queue(queue)).into()))
    }

    /// Pages in the queues.
    pub fn len(&self) -> usize {
        self.fresh.len() + self.probation.len() + self.main_len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn main_len(&self) -> usize {
        self.spared.len() + self.proven.len()
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<CachedPage> {
        match queue {
            Queue::Fresh => &mut self.fresh,
            Queue::Probation => &mut self.probation,
            Queue::Spared => &mut self.spared,
            Queue::Proven => &mut self.proven,
        }
    }
}

/// Whether the new ones are fewer than their share of all pages.
fn is_small(new: usize, all: usize) -> bool {
    new < NEW_MIN || NEW_SHARE * new < all
}

/// Takes the first pages out of a queue, and gives back memory where most have moved on to another.
fn take(queue: &mut VecDeque<CachedPage>, batch: usize) -> Vec<CachedPage> {
    let pages = queue.drain(..batch.min(queue.len())).collect();
    if queue.len() < queue.capacity() / 4 {
        queue.shrink_to(2 * queue.len());
    }
    pages
}

/// Pages that were evicted not long ago: a table of tags, in which a later one takes the place of an earlier.
///
/// Two bytes a ghost, no order to keep. One page in 32,768 is taken for another: it is proven for nothing, and goes when
/// its turn comes.
#[derive(Debug, Default)]
struct Ghosts {
    tags: Vec<u16>,
}

impl Ghosts {
    /// Remembers a page; of about `wanted` in all, those that came last.
    fn put(&mut self, page: CachedPage, wanted: usize) {
        let wanted = wanted.max(GHOSTS_MIN).next_power_of_two();
        if self.tags.len() < wanted {
            self.tags = vec![0; wanted];
        }
        let (place, tag) = self.locate(page);
        self.tags[place] = tag;
    }

    /// Whether a page is remembered; it is not afterwards.
    fn take(&mut self, page: CachedPage) -> bool {
        if self.tags.is_empty() {
            return false;
        }
        let (place, tag) = self.locate(page);
        let found = self.tags[place] == tag;
        if found {
            self.tags[place] = 0;
        }
        found
    }

    fn locate(&self, page: CachedPage) -> (usize, u16) {
        let hash = mixed(page.object.0.rotate_left(32) ^ page.page.0);
        // 0 is nobody's.
        (hash as usize & (self.tags.len() - 1), (hash >> 48) as u16 | 1)
    }
}

/// All bits from each (the finalizer of splitmix64; Steele and others, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014). A stream asks some times for each page.
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn page(n: u64) -> CachedPage {
        CachedPage { object: ObjectId(1), page: PageIndex(n) }
    }

    /// A cache whose pages are looked at in small batches.
    #[derive(Default)]
    struct Cache {
        room: usize,
        batch: usize,
        replacement: Replacement,
        resident: HashSet<CachedPage>,
        touched: HashSet<CachedPage>,
    }

    impl Cache {
        fn new(room: usize) -> Cache {
            Cache { room, batch: 1, ..Cache::default() }
        }

        /// Uses some pages one after the other; gives the number of misses.
        fn misses(&mut self, trace: impl IntoIterator<Item = u64>) -> usize {
            trace.into_iter().filter(|n| !self.hits(page(*n))).count()
        }

        fn hits(&mut self, page: CachedPage) -> bool {
            let hit = self.resident.contains(&page);
            if !hit {
                while self.resident.len() >= self.room {
                    self.make_room();
                }
                self.resident.insert(page);
                self.replacement.arrived(page);
            }
            self.touched.insert(page);
            hit
        }

        fn make_room(&mut self) {
            match self.replacement.next_step(self.batch) {
                Step::Forget(pages, queue) => pages.into_iter().for_each(|p| {
                    self.touched.remove(&p);
                    self.replacement.put(queue, p);
                }),
                Step::Judge(pages) => {
                    for p in pages {
                        if self.touched.contains(&p) {
                            self.replacement.put(Queue::Spared, p);
                        } else {
                            self.resident.remove(&p);
                        }
                    }
                }
                Step::Exhausted => panic!("{} pages are resident and none is queued", self.resident.len()),
            }
        }
    }

    #[test]
    fn pages_in_use_survive_a_scan() {
        // Ten pages used again and again, between pages that are used once.
        let trace = (0..10_000u64).map(|i| if i % 2 == 0 { i / 2 % 10 } else { 1000 + i });
        let misses = Cache::new(64).misses(trace);
        assert!((5010..5060).contains(&misses), "{misses} of which 5000 are of pages used once");
    }

    #[test]
    fn a_hot_set_of_most_of_the_cache_survives_a_scan_without_being_used_meanwhile() {
        let mut cache = Cache::new(100);
        // By and by it becomes known that they are used.
        (0..10).for_each(|round| {
            cache.misses((0..80).chain(1000 + 40 * round..1040 + 40 * round));
        });
        assert_eq!(cache.misses(5000..15_000), 10_000);
        assert_eq!(cache.misses(0..80), 0, "of 80 were driven out by pages used once");
    }

    #[test]
    fn the_first_page_that_goes_waits_for_few_others() {
        let mut replacement = Replacement::default();
        (0..100_000).for_each(|n| replacement.arrived(page(n)));
        let batch = 64;
        for _ in 0..100 {
            let mut forgotten = 0;
            loop {
                match replacement.next_step(batch) {
                    Step::Forget(pages, queue) => {
                        forgotten += pages.len();
                        pages.into_iter().for_each(|page| replacement.put(queue, page));
                    }
                    Step::Judge(pages) => break assert_eq!(pages.len(), batch),
                    Step::Exhausted => panic!("there are pages"),
                }
            }
            assert!(forgotten <= FORGOTTEN_BATCHES_MAX * batch, "{forgotten}");
        }
        assert!(2 * (replacement.probation.len() + batch) >= replacement.len(), "soon as far as ever");
    }

    #[test]
    fn pages_in_use_drive_out_proven_ones_that_are_not_however_small_the_cache() {
        for room in 4..40 {
            let mut cache = Cache::new(room);
            let hot = room as u64 - 1;
            cache.misses((0..100).flat_map(|round| (0..hot).chain([1000 + round]).chain(0..hot)));
            let misses = cache.misses((0..100).flat_map(|_| 100..103));
            assert!(misses < 60, "{misses} of 300, of three pages in a cache of {room}");
        }
    }

    #[test]
    fn a_loop_a_little_larger_than_the_cache_hits_for_the_most_part() {
        let mut cache = Cache::new(100);
        cache.misses((0..10).flat_map(|_| 0..110));
        let misses = cache.misses((0..10).flat_map(|_| 0..110));
        assert!(misses < 300, "{misses} of 1100; the optimum is some 110, and LRU has 1100");
    }

    #[test]
    fn a_page_that_returns_is_proven() {
        let mut cache = Cache::new(100);
        cache.misses(0..110);
        assert_eq!(cache.misses([0]), 1, "it went, not having been used again");
        cache.misses(1000..1300);
        assert_eq!(cache.misses([0]), 0, "it came back, and outlived 300 that are new");
        assert_eq!(cache.misses([1]), 1, "another did not come back");
    }

    #[test]
    fn a_proven_page_that_goes_has_to_prove_itself_anew() {
        for comes in ["by use", "as a ghost"] {
            let mut replacement = Replacement::default();
            replacement.arrived(page(0));
            assert_eq!(replacement.next_step(1), Step::Forget(vec![page(0)], Queue::Probation));
            replacement.put(Queue::Probation, page(0));
            assert_eq!(replacement.next_step(1), Step::Judge(vec![page(0)]));
            if comes == "by use" {
                replacement.put(Queue::Spared, page(0));
            } else {
                (1..30).for_each(|n| replacement.put(Queue::Fresh, page(n)));
                replacement.arrived(page(0));
                replacement.fresh.clear();
            }
            let forget = Step::Forget(vec![page(0)], Queue::Proven);
            assert_eq!(replacement.next_step(1), forget, "soon, so that a use can be seen: {comes}");
            replacement.put(Queue::Proven, page(0));
            assert_eq!(replacement.next_step(1), Step::Judge(vec![page(0)]), "{comes}");
            // It goes, and comes back.
            (1..30).for_each(|n| replacement.put(Queue::Fresh, page(n)));
            replacement.arrived(page(0));
            assert_eq!(replacement.fresh.back(), Some(&page(0)), "{comes}");
        }
    }

    #[test]
    fn when_new_pages_are_few_proven_ones_are_judged_and_the_spared_are_forgotten_before() {
        let with = |counts: [(Queue, u64); 3]| {
            let mut replacement = Replacement::default();
            for ((queue, count), first) in counts.into_iter().zip([0, 100, 200]) {
                (first..first + count).for_each(|n| replacement.put(queue, page(n)));
            }
            replacement
        };
        let mut mostly_proven = with([(Queue::Fresh, 9), (Queue::Spared, 3), (Queue::Proven, 88)]);
        assert_eq!(mostly_proven.next_step(2), Step::Forget(vec![page(100), page(101)], Queue::Proven));
        assert_eq!(mostly_proven.next_step(2), Step::Judge(vec![page(200), page(201)]));
        let mut half_new = with([(Queue::Fresh, 50), (Queue::Spared, 0), (Queue::Proven, 50)]);
        assert_eq!(half_new.next_step(1), Step::Forget(vec![page(0)], Queue::Probation));
        let mut all_spared = with([(Queue::Fresh, 0), (Queue::Spared, 1), (Queue::Proven, 0)]);
        assert_eq!(all_spared.next_step(4), Step::Forget(vec![page(100)], Queue::Proven));
        assert_eq!(all_spared.next_step(4), Step::Exhausted);
    }

    #[test]
    fn pages_that_return_leave_room_for_new_ones() {
        let mut cache = Cache::new(100);
        cache.misses((0..20).flat_map(|_| 0..110));
        let new = cache.replacement.len() - cache.replacement.main_len();
        assert!((4..=20).contains(&new), "{new} of 100 are new");
    }

    #[test]
    fn pages_that_were_hot_once_make_room_for_others() {
        let mut cache = Cache::new(100);
        cache.misses((0..20).flat_map(|_| 0..90));
        cache.misses((0..20).flat_map(|_| 1000..1090));
        let misses = cache.misses(1000..1090);
        assert!(misses <= 5, "{misses} of 90 pages still miss when they are used the 21st time");
    }

    #[test]
    fn caches_of_few_pages_work() {
        assert_eq!(Cache::new(1).misses([1, 1, 2, 2, 1]), 3);
        for room in 1..20 {
            let mut cache = Cache { batch: 4, ..Cache::new(room) };
            cache.misses((0..500).map(|i| i * i % 47 + i % 2));
            assert_eq!(cache.replacement.len(), cache.resident.len());
        }
    }

    #[test]
    fn when_all_are_used_all_are_looked_at() {
        let mut replacement = Replacement::default();
        (0..50).for_each(|n| replacement.arrived(page(n)));
        let mut judged = HashSet::new();
        // As often as the engine looks before use is no excuse any more.
        for _ in 0..4 * 50 {
            match replacement.next_step(1) {
                Step::Forget(pages, queue) => pages.into_iter().for_each(|p| replacement.put(queue, p)),
                Step::Judge(pages) => pages.into_iter().for_each(|p| {
                    judged.insert(p);
                    replacement.put(Queue::Spared, p);
                }),
                Step::Exhausted => panic!("there are 50"),
            }
        }
        assert_eq!(judged.len(), 50);
    }

    #[test]
    fn memory_is_bounded_by_the_pages_in_the_queues() {
        let mut cache = Cache::new(1000);
        // The queues are long one after the other.
        cache.misses((0..20).flat_map(|round| (0..1100).chain(10_000 * round..10_000 * round + 500)));
        let queues = [Queue::Fresh, Queue::Probation, Queue::Spared, Queue::Proven];
        let entries: usize = queues.map(|queue| cache.replacement.queue(queue).capacity()).iter().sum();
        assert!(entries <= 2500, "{entries} entries for 1000 pages");
        assert!(cache.replacement.ghosts.tags.len() <= 1000);
    }

    #[test]
    fn what_is_taken_out_can_be_put_back() {
        let mut queues = Replacement::default();
        (0..10).for_each(|n| queues.arrived(page(n)));
        let others = [Queue::Probation, Queue::Spared, Queue::Proven];
        (10..).zip(others).for_each(|(n, queue)| queues.put(queue, page(n)));
        queues.note_stale(100);
        assert_eq!(queues.stale(), 13, "no more than there are");
        let all = queues.take_all();
        assert!(queues.is_empty() && queues.stale() == 0);
        assert_eq!(all[0], (Queue::Fresh, (0..10).map(page).collect()));
        (10..).zip(others).zip(&all[1..]).for_each(|((n, queue), taken)| {
            assert_eq!(*taken, (queue, vec![page(n)]));
        });
    }
}
