//! The states of an object's pages, stored only for pages that were touched.

use std::collections::HashMap;

use crate::page_state::{PageState, Transition};
use crate::units::{PageIndex, PageRange};

/// Pages in a leaf.
const LEAF_PAGES: u64 = 64;

/// One page: its state, and three marks that others keep there because it is looked up anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot(u8);

const STATE_BITS: u8 = 0b0111;
/// The replacement queue has an entry for the page.
const QUEUED: u8 = 0b1000;
/// The page has pins; how many, is counted elsewhere.
const PINNED: u8 = 0b1_0000;
/// The page was read without going through a view, so that the page tables do not tell.
const READ: u8 = 0b10_0000;

struct Leaf {
    slots: [Slot; LEAF_PAGES as usize],
    /// Slots that are not 0; at none, the leaf goes.
    used: u8,
}

/// States and marks of all pages of an object: 66 bytes for each 64 neighbouring pages of which one is not
/// absent.
#[derive(Default)]
pub(crate) struct PageTable {
    leaves: HashMap<u64, Box<Leaf>>,
    resident: u64,
}

impl PageTable {
    pub(crate) fn state(&self, page: PageIndex) -> PageState {
        PageState::from_bits(self.slot(page).0 & STATE_BITS)
    }

    /// Pages in memory.
    pub(crate) fn resident_count(&self) -> u64 {
        self.resident
    }

    /// Moves a page on by the transition table; gives the state after.
    pub(crate) fn apply(&mut self, page: PageIndex, transition: Transition) -> PageState {
        let mut state = PageState::Absent;
        let mut resident_before = false;
        self.change(page, |slot| {
            let before = PageState::from_bits(slot.0 & STATE_BITS);
            resident_before = before.is_resident();
            state = before.after(transition);
            slot.0 = slot.0 & !STATE_BITS | state as u8;
        });
        self.resident = self.resident - u64::from(resident_before) + u64::from(state.is_resident());
        state
    }

    pub(crate) fn is_queued(&self, page: PageIndex) -> bool {
        self.slot(page).0 & QUEUED != 0
    }

    pub(crate) fn set_queued(&mut self, page: PageIndex, queued: bool) {
        self.mark(page, QUEUED, queued);
    }

    pub(crate) fn is_pinned(&self, page: PageIndex) -> bool {
        self.slot(page).0 & PINNED != 0
    }

    pub(crate) fn set_pinned(&mut self, page: PageIndex, pinned: bool) {
        self.mark(page, PINNED, pinned);
    }

    pub(crate) fn is_read(&self, page: PageIndex) -> bool {
        self.slot(page).0 & READ != 0
    }

    pub(crate) fn set_read(&mut self, page: PageIndex, read: bool) {
        self.mark(page, READ, read);
    }

    fn mark(&mut self, page: PageIndex, mark: u8, on: bool) {
        if (self.slot(page).0 & mark != 0) != on {
            self.change(page, |slot| slot.0 ^= mark);
        }
    }

    /// The longest run of pages around `page`, inside `window`, that a fill may take.
    pub(crate) fn fillable_run(&self, page: PageIndex, window: PageRange) -> PageRange {
        self.run(page, window, PageState::is_fillable)
    }

    /// The pages from `start` on, up to `end`, that are in memory.
    pub(crate) fn clean_prefix(&self, start: PageIndex, end: PageIndex) -> PageRange {
        let prefix = PageRange { start, end };
        let stop = prefix.iter().find(|p| self.state(*p) != PageState::Clean).unwrap_or(end);
        PageRange { start, end: stop }
    }

    /// Splits a range into runs of equal residency.
    pub(crate) fn resident_runs(&self, range: PageRange) -> Vec<(PageRange, bool)> {
        let mut runs: Vec<(PageRange, bool)> = Vec::new();
        let mut add = |part: PageRange, resident: bool| match runs.last_mut() {
            _ if part.is_empty() => {}
            Some((last, same)) if *same == resident && last.end == part.start => last.end = part.end,
            _ => runs.push((part, resident)),
        };
        // By the leaves that there are, for the range may be terabytes with nothing in them.
        let around = range.start.0 / LEAF_PAGES..range.end.0.div_ceil(LEAF_PAGES);
        let leaves: Vec<u64> = if around.end - around.start <= self.leaves.len() as u64 {
            around.filter(|leaf| self.leaves.contains_key(leaf)).collect()
        } else {
            let mut leaves: Vec<u64> =
                self.leaves.keys().copied().filter(|leaf| around.contains(leaf)).collect();
            leaves.sort_unstable();
            leaves
        };
        let mut page = range.start;
        for leaf in leaves {
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
        let leaf = self
            .leaves
            .entry(key)
            .or_insert_with(|| Box::new(Leaf { slots: [Slot(0); LEAF_PAGES as usize], used: 0 }));
        let slot = &mut leaf.slots[(page.0 % LEAF_PAGES) as usize];
        let used_before = slot.0 != 0;
        change(slot);
        leaf.used = leaf.used - u8::from(used_before) + u8::from(slot.0 != 0);
        if leaf.used == 0 {
            self.leaves.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(table: &mut PageTable, page: u64) {
        table.apply(PageIndex(page), Transition::BeginFill);
        table.apply(PageIndex(page), Transition::Filled);
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
    fn residency_of_a_huge_range_costs_what_was_touched() {
        let mut table = PageTable::default();
        fill(&mut table, 5);
        fill(&mut table, 64);
        let runs = table.resident_runs(PageRange::new(0, 1 << 20));
        let expected = [(0, 5, false), (5, 6, true), (6, 64, false), (64, 65, true), (65, 1 << 20, false)];
        assert_eq!(runs, expected.map(|(a, b, r)| (PageRange::new(a, b), r)));
    }
}
