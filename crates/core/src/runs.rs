//! What is known of pages, kept by runs of pages of which the same is known.

use std::collections::BTreeMap;

use crate::units::{PageIndex, PageRange};

/// A value for each page; most have the default, which takes no room.
#[derive(Debug, Default)]
pub(crate) struct Runs<V> {
    /// By its first page, where each run ends, and its value. They do not overlap, and neighbours differ. A tree, for
    /// there may be as many as every second page is locked.
    runs: BTreeMap<PageIndex, (PageIndex, V)>,
}

impl<V: Copy + Default + PartialEq> Runs<V> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Gives the pages of the run that is farthest from a page the default.
    pub(crate) fn forget_farthest(&mut self, page: PageIndex) {
        let first = self.runs.keys().next().map_or(0, |start| start.0.abs_diff(page.0));
        let last = self.runs.keys().next_back().map_or(0, |start| start.0.abs_diff(page.0));
        let _ = if first > last { self.runs.pop_first() } else { self.runs.pop_last() };
    }

    /// The value of a page.
    pub(crate) fn get(&self, page: PageIndex) -> V {
        let before = self.runs.range(..=page).next_back();
        before.filter(|(_, (end, _))| page < *end).map_or(V::default(), |(_, (_, value))| *value)
    }

    /// The parts of a range that have not the default, in order.
    pub(crate) fn inside(&self, range: PageRange) -> impl Iterator<Item = (PageRange, V)> {
        let parts = self.touching(range).map(move |(run, value)| (run.intersect(range), value));
        parts.filter(|(part, _)| !part.is_empty())
    }

    /// Gives each page of a range another value.
    pub(crate) fn change(&mut self, range: PageRange, change: impl Fn(V) -> V) {
        if range.is_empty() {
            return;
        }
        let touching: Vec<(PageRange, V)> = self.touching(range).collect();
        let mut parts: Vec<(PageRange, V)> = Vec::with_capacity(2 * touching.len() + 1);
        let mut put = |start: PageIndex, end: PageIndex, value: V| match parts.last_mut() {
            _ if start >= end || value == V::default() => {}
            Some((last, same)) if last.end == start && *same == value => last.end = end,
            _ => parts.push((PageRange { start, end }, value)),
        };
        // The next page of the range that has not been put.
        let mut next = range.start;
        for (run, value) in &touching {
            put(run.start, run.end.min(range.start), *value);
            let both = run.intersect(range);
            let until = both.start.min(range.end);
            if next < until {
                put(next, until, change(V::default()));
            }
            if !both.is_empty() {
                put(both.start, both.end, change(*value));
            }
            next = next.max(both.end.min(range.end));
            put(run.start.max(range.end), run.end, *value);
        }
        if next < range.end {
            put(next, range.end, change(V::default()));
        }
        for (run, _) in touching {
            self.runs.remove(&run.start);
        }
        self.runs.extend(parts.into_iter().map(|(run, value)| (run.start, (run.end, value))));
    }

    /// The runs that a range has part in or may border on, in order.
    fn touching(&self, range: PageRange) -> impl Iterator<Item = (PageRange, V)> {
        let first = self.runs.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        let runs = self.runs.range(first..=range.end.max(first));
        runs.map(|(start, (end, value))| (PageRange { start: *start, end: *end }, *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_of_which_the_same_is_known_are_one_run() {
        let mut runs = Runs::default();
        (0..1000).map(PageIndex).for_each(|page| runs.change(PageRange::single(page), |_| 1));
        assert_eq!(runs.len(), 1);
        runs.change(PageRange::new(400, 600), |_| 2);
        assert_eq!(runs.len(), 3);
        runs.change(PageRange::new(400, 600), |_| 0);
        let all = runs.inside(PageRange::new(0, 2000)).collect::<Vec<_>>();
        assert_eq!(all, [(PageRange::new(0, 400), 1), (PageRange::new(600, 1000), 1)]);
        (400..600).rev().map(PageIndex).for_each(|page| runs.change(PageRange::single(page), |_| 1));
        assert_eq!(runs.len(), 1);
    }

    proptest! {
        #[test]
        fn runs_are_what_a_value_for_each_page_is(changes in prop::collection::vec((0u64..40, 0u64..12, 0u8..3), 0..60)) {
            let (mut runs, mut model) = (Runs::default(), [0u8; 52]);
            for (start, count, value) in changes {
                let range = PageRange::new(start, start + count);
                let change = |old: u8| if value == 2 { old.saturating_sub(1) } else { old + value };
                runs.change(range, change);
                range.iter().for_each(|page| model[page.0 as usize] = change(model[page.0 as usize]));
                let got: Vec<u8> = (0..52).map(|page| runs.get(PageIndex(page))).collect();
                prop_assert_eq!(&got[..], &model[..]);
                let inside: Vec<(u64, u8)> =
                    runs.inside(range).flat_map(|(part, value)| part.iter().map(move |page| (page.0, value))).collect();
                let expected: Vec<(u64, u8)> =
                    range.iter().map(|page| (page.0, model[page.0 as usize])).filter(|(_, value)| *value > 0).collect();
                prop_assert_eq!(inside, expected);
                let all: Vec<(PageRange, u8)> = runs.inside(PageRange::new(0, 60)).collect();
                let joined = |two: &[(PageRange, u8)]| two[0].0.end == two[1].0.start && two[0].1 == two[1].1;
                prop_assert!(!all.windows(2).any(joined), "{:?}", all);
            }
        }
    }
}
