//! The engine's own [`Replacement`], driven as the engine does (`core/evict.rs`), with a kernel that tells as much as the
//! real one.

use omnimap_core::replacement::{CachedPage, ObjectId, Queue, Replacement, Step};
use omnimap_core::units::PageIndex;

use super::policies::Policy;

/// Pages looked at together, as in `core/evict.rs`.
const BATCH_PAGES_MAX: usize = 64;

/// A cache without bytes.
pub(super) struct Ours {
    cache_pages: usize,
    free: usize,
    replacement: Replacement,
    resident: Vec<bool>,
    /// The page has a page-table entry: it was used since its entry was last taken away.
    mapped: Vec<bool>,
}

impl Ours {
    pub(super) fn new(cache_pages: usize, pages: usize) -> Ours {
        Ours {
            cache_pages,
            free: cache_pages,
            replacement: Replacement::default(),
            resident: vec![false; pages],
            mapped: vec![false; pages],
        }
    }

    /// As `Inner::evict` of `core/evict.rs`, where nothing is dirty or pinned.
    fn evict(&mut self) {
        let batch = (self.cache_pages / 16).clamp(1, BATCH_PAGES_MAX);
        let queued = self.replacement.len();
        let mut looks_left = 8 * queued + batch;
        while self.free == 0 && looks_left > 0 {
            let spare_used = looks_left > 4 * queued;
            match self.replacement.next_step(batch) {
                Step::Forget(mut pages, queue) => {
                    looks_left = looks_left.saturating_sub(pages.len());
                    pages.sort_unstable();
                    for page in pages {
                        self.mapped[page.page.0 as usize] = false;
                        self.replacement.put(queue, page);
                    }
                }
                Step::Judge(mut pages) => {
                    looks_left = looks_left.saturating_sub(pages.len());
                    pages.sort_unstable();
                    for page in pages {
                        if spare_used && self.mapped[page.page.0 as usize] {
                            self.replacement.put(Queue::Spared, page);
                        } else {
                            self.resident[page.page.0 as usize] = false;
                            self.mapped[page.page.0 as usize] = false;
                            self.free += 1;
                        }
                    }
                }
                Step::Exhausted => break,
            }
        }
    }
}

impl Policy for Ours {
    fn access(&mut self, page: u32) -> bool {
        let hit = self.resident[page as usize];
        // The kernel makes an entry, and tells nobody.
        self.mapped[page as usize] = true;
        if !hit {
            if self.free == 0 {
                self.evict();
            }
            assert!(self.free > 0, "all pages are taken, and none can be evicted");
            self.free -= 1;
            self.resident[page as usize] = true;
            self.replacement.arrived(CachedPage { object: ObjectId(1), page: PageIndex(page.into()) });
        }
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_seen_only_when_it_was_forgotten_before() {
        let mut cache = Ours::new(2, 10);
        let hits = |cache: &mut Ours, trace: &[u32]| -> Vec<bool> {
            trace.iter().map(|page| cache.access(*page)).collect()
        };
        // 0 was used three times, but nobody had forgotten the first: the oldest goes.
        assert_eq!(hits(&mut cache, &[0, 1, 0, 0, 2]), [false, false, true, true, false]);
        assert_eq!(cache.resident[..3], [false, true, true]);
    }

    #[test]
    fn what_is_used_all_the_time_stays_among_what_is_used_once() {
        let mut cache = Ours::new(30, 5000);
        let uses = (1..5000).filter(|other| {
            cache.access(*other);
            !cache.access(0)
        });
        let misses = uses.count();
        assert!(misses <= 2, "page 0 was missed {misses} times, by its first use and in the first round");
        let forgotten =
            cache.resident.iter().zip(&cache.mapped).filter(|(resident, mapped)| **resident && !**mapped);
        assert!(forgotten.count() > 0, "pages on probation that were used once have no entries");
    }

    #[test]
    fn no_more_pages_are_resident_than_there_is_room_for() {
        for cache_pages in [1, 2, 30, 1000] {
            let mut cache = Ours::new(cache_pages, 5000);
            for access in 0..20_000u32 {
                cache.access(access * access % 4999);
                let resident = cache.resident.iter().filter(|resident| **resident).count();
                assert_eq!(resident + cache.free, cache_pages);
            }
        }
    }
}
