//! The states of an object's pages, stored only for pages that were touched.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::page_state::{PageState, Transition};
use crate::units::{PageIndex, PageRange};

/// Pages in a leaf.
const LEAF_PAGES: u64 = 64;

/// One page: its state, and marks that others keep there because it is looked up anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot(u16);

const STATE_BITS: u16 = 0b0111;

/// What is known about a page beside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Mark {
    /// The replacement queue has an entry for it.
    Queued = 1 << 3,
    /// It has pins; how many, is counted elsewhere.
    Pinned = 1 << 4,
    /// It was read without going through a view, so that the page tables do not tell.
    Read = 1 << 5,
    /// It was stored to since it was copied to be written back.
    Redirtied = 1 << 6,
    /// It was written back, and the store has not been synced since.
    Unsynced = 1 << 7,
    /// It is to be written back as it is now, and has not been copied yet.
    Uncopied = 1 << 8,
}

struct Leaf {
    slots: [Slot; LEAF_PAGES as usize],
    /// Slots that are not 0; at none, the leaf goes.
    used: u8,
    dirty: u8,
    unsynced: u8,
}

/// States and marks of all pages of an object: some 130 bytes for each 64 neighbouring pages of which one is not
/// absent.
#[derive(Default)]
pub(crate) struct PageTable {
    leaves: HashMap<u64, Box<Leaf>>,
    resident: u64,
    dirty: u64,
    /// Leaves of which something is known of each page: few look for these, but among many.
    full_leaves: BTreeSet<u64>,
    /// Leaves with pages that are dirty or being written back.
    dirty_leaves: BTreeSet<u64>,
    unsynced_leaves: BTreeSet<u64>,
}

impl PageTable {
    pub(crate) fn state(&self, page: PageIndex) -> PageState {
        self.slot(page).state()
    }

    /// Pages in memory.
    pub(crate) fn resident_count(&self) -> u64 {
        self.resident
    }

    /// Moves a page on by the transition table; gives the state after.
    pub(crate) fn apply(&mut self, page: PageIndex, transition: Transition) -> PageState {
        let mut state = PageState::Absent;
        self.change(page, |slot| {
            state = slot.state().after(transition);
            slot.0 = slot.0 & !STATE_BITS | state as u16;
        });
        state
    }

    /// Pages that the store does not have yet.
    pub(crate) fn dirty_count(&self) -> u64 {
        self.dirty
    }

    pub(crate) fn is(&self, page: PageIndex, mark: Mark) -> bool {
        self.slot(page).0 & mark as u16 != 0
    }

    pub(crate) fn set(&mut self, page: PageIndex, mark: Mark, on: bool) {
        if self.is(page, mark) != on {
            self.change(page, |slot| slot.0 ^= mark as u16);
        }
    }

    /// The runs of pages in a range that are dirty, and not being written back.
    pub(crate) fn dirty_runs(&self, range: PageRange) -> Vec<PageRange> {
        self.runs_in(&self.dirty_leaves, range, |slot| slot.state() == PageState::Dirty)
    }

    /// The runs of the first dirty pages of a range: as many pages as are wanted, or all.
    pub(crate) fn first_dirty_runs(&self, range: PageRange, wanted: u64) -> Vec<PageRange> {
        let dirty = self.pages_in(&self.dirty_leaves, range, |slot| slot.state() == PageState::Dirty);
        runs_of(dirty.take(wanted as usize))
    }

    /// The runs of pages in a range that are being written back.
    pub(crate) fn writing_runs(&self, range: PageRange) -> Vec<PageRange> {
        self.runs_in(&self.dirty_leaves, range, |slot| slot.state() == PageState::WritingBack)
    }

    /// The runs of all pages that were written back since the last sync.
    pub(crate) fn unsynced_runs(&self) -> Vec<PageRange> {
        let all = PageRange::new(0, u64::MAX);
        self.runs_in(&self.unsynced_leaves, all, |slot| slot.0 & Mark::Unsynced as u16 != 0)
    }

    fn runs_in(
        &self,
        leaves: &BTreeSet<u64>,
        range: PageRange,
        belongs: impl Fn(Slot) -> bool + Copy,
    ) -> Vec<PageRange> {
        runs_of(self.pages_in(leaves, range, belongs))
    }

    /// The pages of a range that belong, in order.
    fn pages_in(
        &self,
        leaves: &BTreeSet<u64>,
        range: PageRange,
        belongs: impl Fn(Slot) -> bool + Copy,
    ) -> impl Iterator<Item = PageIndex> {
        self.pages_of(leaves.range(leaves_around(range)).copied(), range, belongs)
    }

    /// The pages of some leaves and of a range that belong.
    fn pages_of(
        &self,
        leaves: impl Iterator<Item = u64>,
        range: PageRange,
        belongs: impl Fn(Slot) -> bool + Copy,
    ) -> impl Iterator<Item = PageIndex> {
        let leaves = leaves.filter_map(|key| Some((key * LEAF_PAGES, self.leaves.get(&key)?)));
        leaves.flat_map(move |(first, leaf)| {
            let pages = PageRange::new(first, first + LEAF_PAGES).intersect(range);
            let slots = &leaf.slots[(pages.start.0 - first) as usize..];
            pages.iter().zip(slots).filter(move |(_, slot)| belongs(**slot)).map(|(page, _)| page)
        })
    }

    /// The leaves that there are of a range, in order. Found in the range or in the table, whichever has fewer: a range may
    /// be terabytes with nothing in them.
    fn leaves_in(&self, range: PageRange) -> Vec<u64> {
        let around = leaves_around(range);
        if around.end.saturating_sub(around.start) <= self.leaves.len() as u64 {
            return around.filter(|leaf| self.leaves.contains_key(leaf)).collect();
        }
        let mut leaves: Vec<u64> = self.leaves.keys().copied().filter(|leaf| around.contains(leaf)).collect();
        leaves.sort_unstable();
        leaves
    }

    /// The run of dirty pages around a dirty page, inside `window`.
    pub(crate) fn dirty_run(&self, page: PageIndex, window: PageRange) -> PageRange {
        self.run(page, window, |state| state == PageState::Dirty)
    }

    /// The longest run of pages around `page`, inside `window`, that a fill may take.
    pub(crate) fn fillable_run(&self, page: PageIndex, window: PageRange) -> PageRange {
        self.run(page, window, PageState::is_fillable)
    }

    /// The pages from `start` on, up to `end`, that are in memory.
    pub(crate) fn readable_prefix(&self, start: PageIndex, end: PageIndex) -> PageRange {
        let prefix = PageRange { start, end };
        let stop = prefix.iter().find(|p| !self.state(*p).is_readable()).unwrap_or(end);
        PageRange { start, end: stop }
    }

    /// The runs of pages in a range of which anything is known: in memory, on their way, failed.
    pub(crate) fn present_runs(&self, range: PageRange) -> Vec<PageRange> {
        let leaves = self.leaves_in(range).into_iter();
        runs_of(self.pages_of(leaves, range, |slot| slot.state() != PageState::Absent))
    }

    /// The aligned ranges of so many pages that begin within a range, of which all pages are clean, in order; without those
    /// that are to be skipped, and no more than are wanted.
    pub(crate) fn clean_ranges(
        &self,
        pages: u64,
        within: PageRange,
        wanted: usize,
        skip: impl Fn(PageIndex) -> bool,
    ) -> Vec<PageRange> {
        // No system's large pages are that small.
        let all = (pages < LEAF_PAGES).then(|| self.leaves_in(within).into_iter().collect());
        let leaves: &BTreeSet<u64> = all.as_ref().unwrap_or(&self.full_leaves);
        let mut ranges = Vec::new();
        let mut next = within.start.0.next_multiple_of(pages);
        while ranges.len() < wanted
            && let Some(leaf) = leaves.range(next / LEAF_PAGES..).next()
        {
            // No range that begins before this leaf is whole.
            let start = next.max((leaf * LEAF_PAGES).next_multiple_of(pages));
            if start >= within.end.0 {
                break;
            }
            let range = PageRange::new(start, start + pages);
            if !skip(range.start) && self.is_clean(range) {
                ranges.push(range);
            }
            next = range.end.0;
        }
        ranges
    }

    fn is_clean(&self, range: PageRange) -> bool {
        leaves_around(range).all(|key| {
            let part = PageRange::new(key * LEAF_PAGES, (key + 1) * LEAF_PAGES).intersect(range);
            let slots = (part.start.0 - key * LEAF_PAGES) as usize..(part.end.0 - key * LEAF_PAGES) as usize;
            let leaf = self.leaves.get(&key);
            leaf.is_some_and(|leaf| leaf.slots[slots].iter().all(|slot| slot.state() == PageState::Clean))
        })
    }

    /// Splits a range into runs of equal residency.
    pub(crate) fn resident_runs(&self, range: PageRange) -> Vec<(PageRange, bool)> {
        let mut runs: Vec<(PageRange, bool)> = Vec::new();
        let mut add = |part: PageRange, resident: bool| match runs.last_mut() {
            _ if part.is_empty() => {}
            Some((last, same)) if *same == resident && last.end == part.start => last.end = part.end,
            _ => runs.push((part, resident)),
        };
        let mut page = range.start;
        for leaf in self.leaves_in(range) {
            let leaf = PageRange::new(leaf * LEAF_PAGES, (leaf + 1) * LEAF_PAGES).intersect(range);
            if leaf.is_empty() {
                continue;
            }
            add(PageRange { start: page, end: leaf.start }, false);
            for page in leaf.iter() {
                add(PageRange::single(page), self.state(page).is_resident());
            }
            page = leaf.end;
        }
        add(PageRange { start: page, end: range.end }, false);
        runs
    }

    fn run(&self, page: PageIndex, window: PageRange, belongs: impl Fn(PageState) -> bool) -> PageRange {
        if !belongs(self.state(page)) {
            return PageRange { start: page, end: page };
        }
        let outside = |p: &PageIndex| !belongs(self.state(*p));
        let start = PageRange { start: window.start.min(page), end: page }
            .iter()
            .rev()
            .find(outside)
            .map_or(window.start.min(page), PageIndex::next);
        let after = page.next();
        let end = PageRange { start: after, end: window.end.max(after) }.iter().find(outside);
        PageRange { start, end: end.unwrap_or(window.end.max(after)) }
    }

    fn slot(&self, page: PageIndex) -> Slot {
        match self.leaves.get(&(page.0 / LEAF_PAGES)) {
            Some(leaf) => leaf.slots[(page.0 % LEAF_PAGES) as usize],
            None => Slot::default(),
        }
    }

    fn change(&mut self, page: PageIndex, change: impl FnOnce(&mut Slot)) {
        let key = page.0 / LEAF_PAGES;
        let empty = || Leaf { slots: [Slot(0); LEAF_PAGES as usize], used: 0, dirty: 0, unsynced: 0 };
        let leaf = self.leaves.entry(key).or_insert_with(|| Box::new(empty()));
        let slot = &mut leaf.slots[(page.0 % LEAF_PAGES) as usize];
        let before = *slot;
        change(slot);
        let after = *slot;
        let count = |number: u8, is: fn(Slot) -> bool| number - u8::from(is(before)) + u8::from(is(after));
        let total = |number: u64, is: fn(Slot) -> bool| number - u64::from(is(before)) + u64::from(is(after));
        let used = count(leaf.used, |slot| slot.0 != 0);
        let is_full = |used: u8| u8::from(u64::from(used) == LEAF_PAGES);
        list(&mut self.full_leaves, key, is_full(std::mem::replace(&mut leaf.used, used)), is_full(used));
        let (dirty, unsynced) = (count(leaf.dirty, Slot::is_dirty), count(leaf.unsynced, Slot::is_unsynced));
        list(&mut self.dirty_leaves, key, std::mem::replace(&mut leaf.dirty, dirty), dirty);
        list(&mut self.unsynced_leaves, key, std::mem::replace(&mut leaf.unsynced, unsynced), unsynced);
        self.resident = total(self.resident, |slot| slot.state().is_resident());
        self.dirty = total(self.dirty, Slot::is_dirty);
        if used == 0 {
            self.leaves.remove(&key);
        }
    }
}

/// The numbers of the leaves that a range has part in.
fn leaves_around(range: PageRange) -> Range<u64> {
    range.start.0 / LEAF_PAGES..range.end.0.div_ceil(LEAF_PAGES)
}

/// Pages in order, as runs.
fn runs_of(pages: impl Iterator<Item = PageIndex>) -> Vec<PageRange> {
    let mut runs: Vec<PageRange> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if last.end == page => last.end = page.next(),
            _ => runs.push(PageRange::single(page)),
        }
    }
    runs
}

impl Slot {
    fn state(self) -> PageState {
        PageState::from_bits((self.0 & STATE_BITS) as u8)
    }

    fn is_dirty(self) -> bool {
        self.state().is_dirty()
    }

    fn is_unsynced(self) -> bool {
        self.0 & Mark::Unsynced as u16 != 0
    }
}

/// Keeps a leaf in a list of leaves as long as it has pages that belong there.
fn list(leaves: &mut BTreeSet<u64>, key: u64, pages_before: u8, pages: u8) {
    if pages_before == 0 && pages > 0 {
        leaves.insert(key);
    } else if pages_before > 0 && pages == 0 {
        leaves.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(table: &mut PageTable, page: u64) {
        table.apply(PageIndex(page), Transition::BeginFill);
        table.apply(PageIndex(page), Transition::Filled);
    }

    #[test]
    fn clean_ranges_are_aligned_and_whole() {
        let mut table = PageTable::default();
        let mut fill = |pages: std::ops::Range<u64>| {
            for page in pages.map(PageIndex) {
                table.apply(page, Transition::BeginFill);
                table.apply(page, Transition::Filled);
            }
        };
        fill(100..1030);
        fill(1500..2048);
        let all = |table: &PageTable, pages| {
            table
                .clean_ranges(pages, PageRange::new(0, u64::MAX), usize::MAX, |_| false)
                .iter()
                .map(|range| (range.start.0, range.end.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(&table, 512), [(512, 1024), (1536, 2048)]);
        assert_eq!(all(&table, 1024), [], "none is whole");
        assert_eq!(all(&table, 4).len(), (1028 - 100) / 4 + (2048 - 1500) / 4);
        table.apply(PageIndex(700), Transition::BeginEviction);
        assert_eq!(all(&table, 512), [(1536, 2048)]);
    }

    #[test]
    fn a_look_for_clean_ranges_ends_with_as_many_as_are_wanted() {
        let mut table = PageTable::default();
        (0..64 * 512).for_each(|page| fill(&mut table, page));
        let looked_at = std::cell::Cell::new(0);
        let look = |start: PageIndex| {
            looked_at.set(looked_at.get() + 1);
            start.0 == 33 * 512
        };
        let got = table.clean_ranges(512, PageRange::new(32 * 512, u64::MAX), 3, look);
        assert_eq!(got, [32, 34, 35].map(|number| PageRange::new(number * 512, (number + 1) * 512)));
        assert_eq!(looked_at.get(), 4);
    }

    #[test]
    fn runs_stop_at_what_is_there_and_at_the_window() {
        let mut table = PageTable::default();
        for page in [10, 63, 64, 200] {
            fill(&mut table, page);
        }
        let run = |page, from, to| table.fillable_run(PageIndex(page), PageRange::new(from, to));
        assert_eq!(run(20, 0, 100), PageRange::new(11, 63));
        assert_eq!(run(70, 0, 1000), PageRange::new(65, 200));
        assert_eq!(run(70, 68, 72), PageRange::new(68, 72));
        assert_eq!(run(70, 70, 70), PageRange::new(70, 71), "the page itself, even outside the window");
        assert!(run(64, 0, 100).is_empty());
    }

    #[test]
    fn a_leaf_goes_when_nothing_is_left_in_it() {
        let mut table = PageTable::default();
        for page in 0..1000 {
            fill(&mut table, page * 1_000_000);
        }
        assert_eq!((table.leaves.len(), table.resident_count()), (1000, 1000));
        for page in 0..1000 {
            table.apply(PageIndex(page * 1_000_000), Transition::BeginEviction);
            table.apply(PageIndex(page * 1_000_000), Transition::Evicted);
        }
        assert_eq!((table.leaves.len(), table.resident_count()), (0, 0));
    }

    #[test]
    fn what_is_dirty_or_unsynced_is_found_without_looking_everywhere() {
        let mut table = PageTable::default();
        for page in [3, 4, 5, 64, 1 << 40] {
            fill(&mut table, page);
            table.apply(PageIndex(page), Transition::Dirtied);
        }
        let all = PageRange::new(0, u64::MAX);
        let runs = [PageRange::new(3, 6), PageRange::new(64, 65), PageRange::new(1 << 40, (1 << 40) + 1)];
        assert_eq!((table.dirty_runs(all), table.dirty_count()), (runs.to_vec(), 5));
        table.apply(PageIndex(4), Transition::BeginWriteBack);
        assert_eq!(table.dirty_runs(PageRange::new(0, 6)), [PageRange::new(3, 4), PageRange::new(5, 6)]);
        let first = |wanted| table.first_dirty_runs(all, wanted);
        assert_eq!((first(0), first(2)), (Vec::new(), table.dirty_runs(PageRange::new(0, 6))));
        assert_eq!(first(100), table.dirty_runs(all));
        assert_eq!(table.writing_runs(all), [PageRange::new(4, 5)]);
        table.apply(PageIndex(4), Transition::WrittenBack);
        table.set(PageIndex(4), Mark::Unsynced, true);
        assert_eq!((table.unsynced_runs(), table.dirty_count()), (vec![PageRange::new(4, 5)], 4));
        table.set(PageIndex(4), Mark::Unsynced, false);
        assert!(table.unsynced_runs().is_empty() && table.unsynced_leaves.is_empty());
        for page in [3, 5, 64, 1 << 40] {
            table.apply(PageIndex(page), Transition::Discarded);
        }
        assert!(table.dirty_leaves.is_empty());
    }

    #[test]
    fn residency_of_a_huge_range_costs_what_was_touched() {
        let mut table = PageTable::default();
        fill(&mut table, 5);
        fill(&mut table, 64);
        let runs = table.resident_runs(PageRange::new(0, 1 << 20));
        let expected = [(0, 5, false), (5, 6, true), (6, 64, false), (64, 65, true), (65, 1 << 20, false)];
        assert_eq!(runs, expected.map(|(a, b, r)| (PageRange::new(a, b), r)));
    }

    proptest! {
        #[test]
        fn present_and_clean_pages_are_those_that_a_look_at_each_finds(
            fills in prop::collection::vec((0u64..40, 1u64..12), 0..20),
            evicted in prop::collection::vec(0u64..3200, 0..6),
            (start, count) in (0u64..3300, 0u64..3300),
            (pages, wanted, skipped) in (0usize..4, 0usize..8, 0u64..4),
        ) {
            let mut table = PageTable::default();
            for page in fills.iter().flat_map(|(leaf, leaves)| leaf * 64 + leaf % 3..(leaf + leaves) * 64) {
                if table.state(PageIndex(page)) == PageState::Absent {
                    fill(&mut table, page);
                }
            }
            for page in evicted.into_iter().map(PageIndex).filter(|page| page.0 % 2 == 0) {
                if table.state(page) == PageState::Clean {
                    table.apply(page, Transition::BeginEviction);
                    table.apply(page, Transition::Evicted);
                }
            }
            let within = PageRange::new(start, start + count);
            let present = within.iter().filter(|page| table.state(*page) != PageState::Absent);
            prop_assert_eq!(table.present_runs(within), runs_of(present));

            let pages = [4, 64, 128, 512][pages];
            let skip = |start: PageIndex| start.0 / pages % 4 < skipped;
            let whole = (0..6600 / pages).map(|number| PageRange::new(number * pages, (number + 1) * pages));
            let clean: Vec<PageRange> = whole
                .filter(|range| within.contains(range.start) && !skip(range.start))
                .filter(|range| range.iter().all(|page| table.state(page) == PageState::Clean))
                .take(wanted)
                .collect();
            prop_assert_eq!(table.clean_ranges(pages, within, wanted, skip), clean);
        }
    }
}
