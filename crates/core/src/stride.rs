//! Readers that go in equal steps: backward, or over every n-th page. Pure, as all of [readahead](crate::readahead).

use crate::readahead::{Ahead, Bounds, PartOf, Plan};
use crate::units::{PageIndex, PageRange};

/// The longest step that is taken for one: random faults are seldom so near to each other three times in a row.
const STEP_PAGES_MAX: u64 = 64;
/// Faults that belong to nothing known, which the next may be a step away from.
const FAULTS_REMEMBERED: usize = 16;
/// Strides told apart in one mapping; the one that was used longest ago goes.
const STRIDES_MAX: usize = 16;
/// The first window, in steps.
const WINDOW_MIN: u64 = 4;
/// The most that is fetched ahead in steps over other pages: each costs the store a request.
const WINDOW_APART_MAX: u64 = 256;
/// The most that a reader waits for, when less would do.
const WAITED_PAGES_MAX: u64 = 32;

/// One reader that goes in steps.
#[derive(Debug, Clone, Copy)]
struct Stride {
    /// The last page that is known to be read.
    last: u64,
    /// Pages from one to the next; less than 0 if it goes backward.
    step: i64,
    /// Steps from `last` on that were planned to be fetched.
    planned: u64,
    /// Steps to keep planned; 0 as long as there was one step alone.
    window: u64,
    used_at: u64,
}

/// The strides of one mapping.
#[derive(Debug, Default)]
pub(crate) struct Strides {
    strides: Vec<Stride>,
    /// Faults that belong to nothing known, the newest last.
    faults: Vec<u64>,
    clock: u64,
}

impl Strides {
    /// What to fetch, if the fault is one of a reader that is known to go in steps.
    pub(crate) fn on_fault(&mut self, page: PageIndex, bounds: &Bounds) -> Option<Plan> {
        self.clock += 1;
        let clock = self.clock;
        let (stride, steps) = self.strides.iter_mut().find_map(|s| s.steps_to(page).map(|n| (s, n)))?;
        stride.used_at = clock;
        Some(stride.go_on(page, steps, bounds))
    }

    /// Remembers a fault that belongs to nothing known.
    pub(crate) fn note(&mut self, page: PageIndex) {
        let near = |other: &&u64| (1..=STEP_PAGES_MAX).contains(&page.0.abs_diff(**other));
        if let Some(other) = self.faults.iter().rev().find(near) {
            let step = page.0 as i64 - *other as i64;
            let stride = Stride { last: page.0, step, planned: 0, window: 0, used_at: self.clock };
            if self.strides.len() < STRIDES_MAX {
                self.strides.push(stride);
            } else if let Some(oldest) = self.strides.iter_mut().min_by_key(|s| s.used_at) {
                *oldest = stride;
            }
        }
        if self.faults.len() == FAULTS_REMEMBERED {
            self.faults.remove(0);
        }
        self.faults.push(page.0);
    }

    /// Of `ahead`, only what comes before `reached` will be fetched.
    pub(crate) fn fell_short(&mut self, ahead: &Ahead, reached: PageIndex) {
        let of = |s: &&mut Stride| s.step == ahead.step && s.steps_to(ahead.first).is_some();
        if let Some(stride) = self.strides.iter_mut().find(of)
            && let Some(steps) = stride.steps_to(reached)
        {
            stride.planned = steps - 1;
        }
    }
}

impl Stride {
    /// How many steps it is to a page that it may come to next.
    fn steps_to(&self, page: PageIndex) -> Option<u64> {
        let way = page.0 as i64 - self.last as i64;
        let steps = (way % self.step == 0).then_some(way / self.step)?;
        u64::try_from(steps).ok().filter(|steps| (1..=self.planned + 1).contains(steps))
    }

    fn go_on(&mut self, page: PageIndex, steps: u64, bounds: &Bounds) -> Plan {
        self.last = page.0;
        self.planned = self.planned.saturating_sub(steps);
        let alone = Plan { now: bounds.chunk, ahead: Ahead::nothing(), part_of: PartOf::Stream };
        if 2 * self.planned > self.window {
            return alone;
        }
        let most = bounds.window_pages_max.min(if self.step == -1 { u64::MAX } else { WINDOW_APART_MAX });
        self.window = (2 * self.window).max(WINDOW_MIN).min(most);
        let left = match self.step {
            ..0 => (page.0 - bounds.object.start.0.min(page.0)) / self.step.unsigned_abs(),
            _ => bounds.object.end.0.saturating_sub(page.0 + 1) / self.step.unsigned_abs(),
        };
        let wanted = self.window.min(left);
        let mut now = bounds.chunk;
        if self.step == -1 && self.planned == 0 {
            self.planned = wanted.min(WAITED_PAGES_MAX - 1);
            now = PageRange::new(now.start.0.min(page.0 - self.planned), now.end.0);
        }
        let first = PageIndex(page.0.wrapping_add_signed(self.step * (self.planned as i64 + 1)));
        let ahead = Ahead { first, count: wanted.saturating_sub(self.planned), step: self.step };
        self.planned = self.planned.max(wanted);
        let ahead = if ahead.count == 0 { Ahead::nothing() } else { ahead };
        Plan { now, ahead, part_of: PartOf::Stream }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::readahead::{Bounds, Pattern, Streams};
    use crate::units::{PageIndex, PageRange};

    const PAGES: u64 = 1 << 20;

    /// Reads the pages in order; gives how many faults there were, and how many pages were fetched.
    fn drive(pages: impl Iterator<Item = u64>) -> (usize, usize) {
        let mut streams = Streams::default();
        let (mut there, mut faults) = (HashSet::new(), 0);
        for page in pages {
            if there.contains(&page) {
                continue;
            }
            faults += 1;
            let bounds = Bounds {
                object: PageRange::new(0, PAGES),
                chunk: PageRange::new(page, page + 1),
                window_pages_max: 2048,
                window_pages_min: 1,
            };
            let plan = streams.on_fault(PageIndex(page), &bounds);
            assert!(plan.now.contains(PageIndex(page)), "{plan:?} {page}");
            let ahead: Vec<u64> = plan.ahead.pages().map(|p| p.0).collect();
            assert!(ahead.iter().all(|p| *p < PAGES && !plan.now.contains(PageIndex(*p))), "{plan:?} {page}");
            there.extend(plan.now.iter().map(|p| p.0).chain(ahead));
        }
        (faults, there.len())
    }

    #[test]
    fn a_backward_scan_faults_seldom() {
        let (faults, fetched) = drive((0..100_000).rev());
        assert!(faults < 80, "{faults}");
        assert_eq!(fetched, 100_000);
    }

    #[test]
    fn a_strided_scan_fetches_what_it_steps_on() {
        for step in [2, 5, 33, 64] {
            let (faults, fetched) = drive((0..5_000).map(|i| 7 + i * step));
            assert!(faults < 60, "step {step}: {faults}");
            assert!(fetched < 5_000 + 300, "step {step}: {fetched}");
            let (faults, fetched) = drive((0..5_000).rev().map(|i| 7 + i * step));
            assert!(faults < 60, "backward, step {step}: {faults}");
            assert!(fetched < 5_000 + 300, "backward, step {step}: {fetched}");
        }
    }

    #[test]
    fn strides_and_scans_in_one_mapping_are_told_apart() {
        let scans = |i: u64| match i % 3 {
            0 => i / 3,
            1 => 400_000 + i / 3 * 7,
            _ => 900_000 - i / 3,
        };
        let (faults, fetched) = drive((0..60_000).map(scans));
        assert!(faults < 300, "{faults}");
        assert!(fetched < 60_000 + 5_000, "{fetched}");
    }

    #[test]
    fn a_change_of_step_is_noticed_soon() {
        let there = (0..2_000).map(|i| i * 5);
        let back = (0..2_000).map(|i| 10_000 - i * 3);
        let (faults, fetched) = drive(there.chain(back));
        assert!(faults < 80, "{faults}");
        assert!(fetched < 4_000 + 700, "{fetched}");
    }

    #[test]
    fn random_faults_are_no_strides() {
        let mut state = 1u64;
        let random = std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % PAGES
        });
        let (faults, fetched) = drive(random.take(20_000));
        assert!(fetched - faults < 200, "{faults} faults fetched {fetched}");
    }

    #[test]
    fn advice_of_random_reads_holds_for_strides() {
        let mut streams = Streams::default();
        streams.expect(PageRange::new(0, PAGES), Pattern::Random);
        for page in (0..500).map(|i| 9_000 - i * 4) {
            let chunk = PageRange::new(page, page + 1);
            let bounds = Bounds {
                object: PageRange::new(0, PAGES),
                chunk,
                window_pages_max: 2048,
                window_pages_min: 1,
            };
            let plan = streams.on_fault(PageIndex(page), &bounds);
            assert!(plan.now == chunk && plan.ahead.is_empty(), "{plan:?}");
        }
    }

    #[test]
    fn what_was_not_fetched_is_planned_again() {
        let mut streams = Streams::default();
        let mut plan = None;
        for page in [100u64, 105, 110] {
            let chunk = PageRange::new(page, page + 1);
            let bounds = Bounds {
                object: PageRange::new(0, PAGES),
                chunk,
                window_pages_max: 2048,
                window_pages_min: 1,
            };
            plan = Some((streams.on_fault(PageIndex(page), &bounds), bounds));
        }
        let (plan, bounds) = plan.unwrap();
        assert_eq!(plan.ahead.pages().map(|p| p.0).collect::<Vec<_>>(), [115, 120, 125, 130]);
        streams.fell_short(&plan.ahead, PageIndex(120));
        let bounds = Bounds { chunk: PageRange::new(115, 116), ..bounds };
        let again = streams.on_fault(PageIndex(115), &bounds);
        assert_eq!(again.ahead.first, PageIndex(120), "{again:?}");
    }
}
