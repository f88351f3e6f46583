//! Which pages are locked (mlock(2)), and how often: two mappings of a page lock it independently.

use crate::units::{PageIndex, PageRange};

/// Counts of locks, of pages that are there or not.
#[derive(Default)]
pub(crate) struct Locks {
    /// Neighbouring pages that are locked equally often, in order, none empty and none with a count of 0.
    runs: Vec<(PageRange, u32)>,
}

impl Locks {
    /// Whether a page is locked.
    pub(crate) fn has(&self, page: PageIndex) -> bool {
        let at = self.runs.partition_point(|(run, _)| run.end <= page);
        self.runs.get(at).is_some_and(|(run, _)| run.contains(page))
    }

    /// Locks pages once more.
    pub(crate) fn add(&mut self, range: PageRange) {
        self.change(range, |count| count + 1);
    }

    /// Unlocks pages once.
    ///
    /// # Panics
    /// In a debug build, if one of them is not locked.
    pub(crate) fn remove(&mut self, range: PageRange) {
        self.change(range, |count| {
            debug_assert!(count > 0, "a page is unlocked as often as it was locked");
            count.saturating_sub(1)
        });
    }

    /// A range, in parts that are locked equally often.
    pub(crate) fn parts(&self, range: PageRange) -> Vec<(PageRange, u32)> {
        let mut parts = Vec::new();
        let mut next = range.start.0;
        for (run, count) in &self.runs {
            let both = run.intersect(range);
            if !both.is_empty() {
                parts.push((PageRange::new(next, both.start.0), 0));
                parts.push((both, *count));
                next = both.end.0;
            }
        }
        parts.push((PageRange::new(next, range.end.0), 0));
        parts.retain(|(part, _)| !part.is_empty());
        parts
    }

    fn change(&mut self, range: PageRange, count: impl Fn(u32) -> u32) {
        let mut runs = Vec::with_capacity(self.runs.len() + 2);
        let mut put = |start: u64, end: u64, old: u32, change: &dyn Fn(u32) -> u32| {
            if start < end {
                runs.push((PageRange::new(start, end), change(old)));
            }
        };
        let same = |old: u32| old;
        // The next page of the range that has not been put.
        let mut next = range.start.0;
        for (run, old) in &self.runs {
            put(run.start.0, run.end.0.min(range.start.0), *old, &same);
            let both = run.intersect(range);
            if !both.is_empty() {
                put(next, both.start.0, 0, &count);
                put(both.start.0, both.end.0, *old, &count);
                next = both.end.0;
            } else if run.start >= range.end {
                put(next, range.end.0, 0, &count);
                next = range.end.0;
            }
            put(run.start.0.max(range.end.0), run.end.0, *old, &same);
        }
        put(next, range.end.0, 0, &count);
        runs.retain(|(_, count)| *count > 0);
        self.runs = runs;
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
}
