//! Which pages are locked (mlock(2)), and how often: two mappings of a page lock it independently.

use crate::runs::Runs;
use crate::units::{PageIndex, PageRange};

/// Counts of locks, of pages that are there or not.
#[derive(Default)]
pub(crate) struct Locks(Runs<u32>);

impl Locks {
    /// Whether a page is locked.
    pub(crate) fn has(&self, page: PageIndex) -> bool {
        self.0.get(page) > 0
    }

    /// Locks pages once more.
    pub(crate) fn add(&mut self, range: PageRange) {
        self.0.change(range, |count| count + 1);
    }

    /// Unlocks pages once.
    ///
    /// # Panics
    /// In a debug build, if one of them is not locked.
    pub(crate) fn remove(&mut self, range: PageRange) {
        self.0.change(range, |count| {
            debug_assert!(count > 0, "a page is unlocked as often as it was locked");
            count.saturating_sub(1)
        });
    }

    /// A range, in parts that are locked equally often.
    pub(crate) fn parts(&self, range: PageRange) -> Vec<(PageRange, u32)> {
        let mut parts = Vec::new();
        let mut next = range.start.0;
        for (run, count) in self.0.inside(range) {
            parts.push((PageRange::new(next, run.start.0), 0));
            parts.push((run, count));
            next = run.end.0;
        }
        parts.push((PageRange::new(next, range.end.0), 0));
        parts.retain(|(part, _)| !part.is_empty());
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l02_a_page_is_locked_while_anybody_has_it_locked() {
        // All pairs of locks, and all parts that are unlocked of one, beside counts of each page.
        let all: Vec<PageRange> =
            (0..6).flat_map(|s| (s + 1..=6).map(move |e| PageRange::new(s, e))).collect();
        for a in &all {
            for b in &all {
                for gone in all.iter().map(|r| r.intersect(*a)).filter(|r| !r.is_empty()) {
                    let mut locks = Locks::default();
                    locks.add(*a);
                    locks.add(*b);
                    locks.remove(gone);
                    for page in (0..7).map(PageIndex) {
                        let count = i32::from(a.contains(page)) + i32::from(b.contains(page))
                            - i32::from(gone.contains(page));
                        assert_eq!(locks.has(page), count > 0, "{a:?} {b:?} {gone:?} {page:?}");
                        let parts = locks.parts(PageRange::new(1, 7));
                        assert!(parts.windows(2).all(|two| two[0].0.end == two[1].0.start), "{parts:?}");
                        let part = parts.iter().find(|(part, _)| part.contains(page));
                        assert_eq!(part.map(|(_, n)| *n as i32), (page.0 >= 1).then_some(count));
                    }
                }
            }
        }
    }

    #[test]
    fn pages_locked_one_by_one_are_one_part() {
        let (mut locks, all) = (Locks::default(), PageRange::new(0, 1000));
        all.iter().for_each(|page| locks.add(PageRange::single(page)));
        assert_eq!(locks.parts(all), [(all, 1)]);
        let middle = PageRange::new(400, 500);
        locks.remove(middle);
        assert_eq!(
            locks.parts(all),
            [(PageRange::new(0, 400), 1), (middle, 0), (PageRange::new(500, 1000), 1)]
        );
    }
}
