//! Page numbers and ranges of them, so that no bare integer can be taken for a byte, a page or an address.

use std::ops::Range;

/// The number of a page in its object; page 0 holds byte 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The page after it.
    pub(crate) fn next(self) -> PageIndex {
        PageIndex(self.0 + 1)
    }
}

/// Neighbouring pages of an object, from `start` up to and without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The first page.
    pub start: PageIndex,
    /// The page after the last.
    pub end: PageIndex,
}

impl PageRange {
    /// From `start` up to and without `end`; empty if that is not after `start`.
    pub fn new(start: u64, end: u64) -> PageRange {
        PageRange { start: PageIndex(start), end: PageIndex(end.max(start)) }
    }

    /// One page.
    pub fn single(page: PageIndex) -> PageRange {
        PageRange { start: page, end: page.next() }
    }

    /// How many pages.
    pub fn count(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether a page is among them.
    pub fn contains(self, page: PageIndex) -> bool {
        self.start <= page && page < self.end
    }

    /// The pages that are in both.
    pub fn intersect(self, other: PageRange) -> PageRange {
        PageRange::new(self.start.0.max(other.start.0), self.end.0.min(other.end.0))
    }

    /// Each page.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = PageIndex> {
        (self.start.0..self.end.0).map(PageIndex)
    }

    /// The same pages, in parts of at most `count`.
    pub(crate) fn parts(self, count: u64) -> impl Iterator<Item = PageRange> {
        let starts = (self.start.0..self.end.0).step_by(count as usize);
        starts.map(move |start| PageRange::new(start, self.end.0.min(start.saturating_add(count))))
    }

    /// The part of at most `count` pages that holds `page` and begins as late as it must.
    ///
    /// ```text
    /// |----------p---|   count 6:   |----------p---|
    ///                                        [p---] and before it, if that is not enough
    /// ```
    pub fn part_around(self, page: PageIndex, count: u64) -> PageRange {
        let end = self.end.0.min(page.0 + count.max(1));
        let start = self.start.0.max(end.saturating_sub(count.max(1)));
        PageRange::new(start.min(page.0), end)
    }
}

/// Bytes of a page, and what follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(u64);

impl PageSize {
    /// # Panics
    /// If it is no power of two, which no host's page size is.
    pub fn new(bytes: u64) -> PageSize {
        assert!(bytes.is_power_of_two(), "a page of {bytes} bytes");
        PageSize(bytes)
    }

    /// Bytes of a page.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The page that holds a byte.
    pub fn page_at(self, offset: u64) -> PageIndex {
        PageIndex(offset / self.0)
    }

    /// All pages that hold any of the bytes.
    pub fn pages_of(self, bytes: Range<u64>) -> PageRange {
        if bytes.is_empty() {
            return PageRange::new(bytes.start / self.0, 0);
        }
        PageRange::new(bytes.start / self.0, bytes.end.div_ceil(self.0))
    }

    /// The pages that hold only these bytes.
    pub fn pages_inside(self, bytes: Range<u64>) -> PageRange {
        PageRange::new(bytes.start.div_ceil(self.0), bytes.end / self.0)
    }

    /// The bytes of pages; they may reach beyond the end of the object.
    pub fn bytes_of(self, pages: PageRange) -> Range<u64> {
        pages.start.0 * self.0..pages.end.0 * self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_holds_its_page_and_is_as_long_as_it_may() {
        let range = PageRange::new(10, 30);
        for page in 10..30 {
            for count in 1..40 {
                let part = range.part_around(PageIndex(page), count);
                assert!(part.contains(PageIndex(page)), "{part:?} {page} {count}");
                assert_eq!(part.count(), count.min(20), "{part:?} {page} {count}");
                assert_eq!(part.intersect(range), part);
            }
        }
    }

    #[test]
    fn parts_are_of_each_page_once_and_are_bounded() {
        for (start, end) in (0..20).flat_map(|start| (start..20).map(move |end| (start, end))) {
            let parts: Vec<PageRange> = PageRange::new(start, end).parts(6).collect();
            assert!(parts.iter().all(|part| (1..=6).contains(&part.count())), "{parts:?}");
            assert_eq!(parts.len() as u64, (end - start).div_ceil(6));
            let pages: Vec<u64> = parts.iter().flat_map(|part| part.iter()).map(|page| page.0).collect();
            assert_eq!(pages, (start..end).collect::<Vec<_>>());
        }
        let last = PageRange::new(u64::MAX - 3, u64::MAX).parts(6).next();
        assert_eq!(last, Some(PageRange::new(u64::MAX - 3, u64::MAX)));
    }

    #[test]
    fn p1_nothing_depends_on_pages_of_4_kib() {
        for bytes in [4096, 16384, 65536] {
            let size = PageSize::new(bytes);
            assert_eq!(size.page_at(bytes - 1), PageIndex(0));
            assert_eq!(size.page_at(bytes), PageIndex(1));
            assert_eq!(size.pages_of(1..bytes + 1), PageRange::new(0, 2));
            assert_eq!(size.pages_of(5..5).count(), 0);
            assert_eq!(size.pages_inside(1..3 * bytes - 1), PageRange::new(1, 2));
            assert_eq!(size.pages_inside(1..bytes), PageRange::new(1, 1));
            assert_eq!(size.bytes_of(PageRange::new(1, 3)), bytes..3 * bytes);
        }
    }
}
