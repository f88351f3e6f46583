//! How much to fetch at a fault. Pure: offsets in, ranges out.
//!
//! A fault begins with its own page (or chunk). Where one fault follows another, the two are a stream: more is fetched
//! each time, first with the page that is waited for, then ahead of the reader by other threads, up to a limit. Many
//! streams are told apart in one mapping, so that threads and interleaved columns do not disturb each other. Readers that go
//! backward, or in steps, are told by equal distances (`stride.rs`).

use crate::runs::Runs;
use crate::stride::Strides;
use crate::units::{PageIndex, PageRange};

/// How a mapping will be read (madvise(2), posix_fadvise(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pattern {
    /// Unknown: found out.
    #[default]
    Normal,
    /// At random places: nothing is fetched but what is needed.
    Random,
    /// From the beginning to the end: fetch far ahead at once.
    Sequential,
}

/// Streams told apart in one mapping; the one that was used longest ago goes.
const STREAMS_MAX: usize = 32;
/// The most that a reader waits for in a stream, when less would do.
const WAITED_PAGES_MAX: u64 = 32;
/// A window is filled up in so many steps.
const WINDOW_STEPS: u64 = 8;
/// Parts of a mapping about which something is remembered. It is only a hint, and looked up at each fault.
const PATTERNS_MAX: usize = 4096;
/// From this window on, pages are fetched ahead.
const AHEAD_PAGES_MIN: u64 = 16;

/// What to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// With the page that is waited for, in one transfer.
    pub now: PageRange,
    /// By others, soon; may be empty.
    pub ahead: Ahead,
    /// What the fault is part of.
    pub part_of: PartOf,
}

/// What a fault is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartOf {
    /// Nothing that is known.
    Nothing,
    /// A stream, whose first seemed to be part of nothing.
    NewStream,
    /// A stream.
    Stream,
}

/// Pages in equal steps, the one that is wanted first first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// The first.
    pub first: PageIndex,
    /// How many there are.
    pub count: u64,
    /// Pages from one to the next: 1 and -1 for neighbours.
    pub step: i64,
}

impl Ahead {
    /// No pages.
    pub fn nothing() -> Ahead {
        Ahead { first: PageIndex(0), count: 0, step: 1 }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        (0..self.count as i64).map(move |n| PageIndex(self.first.0.wrapping_add_signed(n * self.step)))
    }

    /// The same pages, if they are neighbours.
    pub fn range(&self) -> Option<PageRange> {
        match self.step {
            1 => Some(PageRange::new(self.first.0, self.first.0 + self.count)),
            -1 => Some(PageRange::new(self.first.0 + 1 - self.count, self.first.0 + 1)),
            _ => None,
        }
    }
}

impl From<PageRange> for Ahead {
    fn from(range: PageRange) -> Ahead {
        Ahead { first: range.start, count: range.count(), step: 1 }
    }
}

/// One reader that goes forward.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The page after the last that is known to be read.
    next: u64,
    /// The page after the last that was planned to be fetched.
    planned: u64,
    /// Pages to keep planned beyond `next`.
    window: u64,
    used_at: u64,
}

/// The streams of one mapping.
#[derive(Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
    strides: Strides,
    clock: u64,
    /// What was said about parts of the mapping.
    patterns: Runs<Pattern>,
}

/// What bounds a plan.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The pages of the mapped object that can be fetched.
    pub object: PageRange,
    /// The pages of the store's chunk around the fault; at least the page itself.
    pub chunk: PageRange,
    /// The most to be fetched ahead of a reader, in pages.
    pub window_pages_max: u64,
    /// What a stream begins with: more of what takes long to come.
    pub window_pages_min: u64,
}

impl Streams {
    /// Says how some pages will be read; what was said about them before is forgotten. So is, when it is of too many parts,
    /// what was said about those farthest away.
    ///
    /// ```text
    /// before  [ random                    ]
    /// said           [ sequential ]
    /// after   [random][sequential ][random]
    /// ```
    pub fn expect(&mut self, range: PageRange, pattern: Pattern) {
        self.patterns.change(range, |_| pattern);
        while self.patterns.len() > PATTERNS_MAX {
            self.patterns.forget_farthest(range.start);
        }
    }

    fn pattern(&self, page: PageIndex) -> Pattern {
        self.patterns.get(page)
    }

    /// A reader needs `page`, and it is not there (or is only on its way).
    pub fn on_fault(&mut self, page: PageIndex, bounds: &Bounds) -> Plan {
        let pattern = self.pattern(page);
        let alone = Plan { now: bounds.chunk, ahead: Ahead::nothing(), part_of: PartOf::Nothing };
        if pattern == Pattern::Random {
            return alone;
        }
        self.clock += 1;
        let clock = self.clock;
        let Some(stream) = self.streams.iter_mut().find(|s| (s.next..=s.planned).contains(&page.0)) else {
            if let Some(plan) = self.strides.on_fault(page, bounds) {
                return plan;
            }
            self.strides.note(page);
            let mut stream =
                Stream { next: page.0 + 1, planned: bounds.chunk.end.0, window: 1, used_at: clock };
            let mut plan = alone;
            if pattern == Pattern::Sequential {
                stream.window = bounds.window_pages_max;
                plan = stream.go_on(page, bounds);
            }
            self.begin(stream);
            return plan;
        };
        let part_of = if stream.window == 1 { PartOf::NewStream } else { PartOf::Stream };
        stream.used_at = clock;
        stream.next = page.0 + 1;
        stream.window = stream.window.min(bounds.window_pages_max);
        let in_time = page.0 + stream.window / 2 < stream.planned;
        if in_time {
            // Planned, but not there: late, or it was dropped for want of room.
            let end = stream.planned.min(page.0 + WAITED_PAGES_MAX).max(bounds.chunk.end.0);
            let now = PageRange::new(bounds.chunk.start.0, end).intersect(bounds.object);
            return Plan { now, ahead: stream.fill_up(page, bounds).into(), part_of };
        }
        let grows_fast = stream.window < 4 * WAITED_PAGES_MAX.max(bounds.window_pages_min);
        let grown = if grows_fast { stream.window * 4 } else { stream.window * 2 };
        stream.window = grown.max(bounds.window_pages_min).min(bounds.window_pages_max).max(1);
        Plan { part_of, ..stream.go_on(page, bounds) }
    }

    /// A reader has `pages`, without a fault or after one: what to fetch ahead of it, if it is a known stream that wants
    /// more.
    pub fn on_read(&mut self, pages: PageRange, bounds: &Bounds) -> PageRange {
        let nothing = PageRange::new(pages.end.0, 0);
        self.clock += 1;
        let clock = self.clock;
        let (start, end) = (pages.start.0, pages.end.0);
        let follows =
            |s: &&mut Stream| (s.next..=s.planned).contains(&start) || (start..=end).contains(&s.next);
        let Some(stream) = self.streams.iter_mut().find(follows) else { return nothing };
        stream.used_at = clock;
        stream.next = stream.next.max(end);
        stream.planned = stream.planned.max(stream.next);
        if stream.window < AHEAD_PAGES_MIN || stream.next + stream.window / 2 < stream.planned {
            return nothing;
        }
        stream.window = (stream.window * 2).min(bounds.window_pages_max).max(1);
        let ahead = PageRange::new(stream.planned, stream.next + stream.window).intersect(bounds.object);
        stream.planned = stream.planned.max(ahead.end.0);
        ahead
    }

    /// Of `ahead`, which was planned, only what comes before `reached` will be fetched.
    pub fn fell_short(&mut self, ahead: &Ahead, reached: PageIndex) {
        let planned = ahead.first.0 + ahead.count;
        let stream = self.streams.iter_mut().find(|s| ahead.step == 1 && s.planned == planned);
        match stream {
            Some(stream) => stream.planned = reached.0.max(stream.next),
            None => self.strides.fell_short(ahead, reached),
        }
    }

    fn begin(&mut self, stream: Stream) {
        if self.streams.len() < STREAMS_MAX {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used_at) {
            *oldest = stream;
        }
    }
}

impl Stream {
    /// What is missing of a whole window before a reader that waits: from far away, where many transfers share a line, they
    /// all arrive at about the same time, and the reader goes through them without a fault. Whole eighths only, so that
    /// transfers do not become small.
    fn fill_up(&mut self, page: PageIndex, bounds: &Bounds) -> PageRange {
        let step = self.window / WINDOW_STEPS;
        if self.window < AHEAD_PAGES_MIN || step == 0 {
            return PageRange::new(page.0, 0);
        }
        let ahead =
            PageRange::new(self.planned, (page.0 + self.window) / step * step).intersect(bounds.object);
        self.planned = self.planned.max(ahead.end.0);
        ahead
    }

    /// Plans a window from `page` on.
    fn go_on(&mut self, page: PageIndex, bounds: &Bounds) -> Plan {
        let waited = self.window.min(WAITED_PAGES_MAX);
        let now_end = (page.0 + waited).max(bounds.chunk.end.0);
        let now = PageRange::new(bounds.chunk.start.0, now_end).intersect(bounds.object);
        let mut ahead = PageRange::new(now.end.0, 0);
        if self.window >= AHEAD_PAGES_MIN {
            let start = now.end.0.max(self.planned);
            ahead = PageRange::new(start, page.0 + self.window + waited).intersect(bounds.object);
        }
        self.planned = now.end.0.max(ahead.end.0).max(self.planned);
        Plan { now, ahead: ahead.into(), part_of: PartOf::Stream }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(page: u64, window_pages_max: u64) -> Bounds {
        Bounds {
            object: PageRange::new(0, 1 << 20),
            chunk: PageRange::new(page, page + 1),
            window_pages_max,
            window_pages_min: 1,
        }
    }

    /// Reads the pages in order; gives the pages that were waited for alone, and all that were fetched.
    fn drive(pages: impl Iterator<Item = u64>, pattern: Pattern) -> (usize, usize) {
        let mut streams = Streams::default();
        streams.expect(PageRange::new(0, 1 << 20), pattern);
        let mut there = std::collections::HashSet::new();
        let mut faults = 0;
        for page in pages {
            if there.contains(&page) {
                continue;
            }
            faults += 1;
            let plan = streams.on_fault(PageIndex(page), &bounds(page, 2048));
            assert!(plan.now.contains(PageIndex(page)), "{plan:?} {page}");
            assert!(plan.ahead.is_empty() || plan.ahead.first >= plan.now.end, "{plan:?}");
            there.extend(plan.now.iter().map(|p| p.0));
            there.extend(plan.ahead.pages().map(|p| p.0));
        }
        (faults, there.len())
    }

    #[test]
    fn a_scan_faults_seldom() {
        let (faults, _) = drive(0..100_000, Pattern::Normal);
        assert!(faults < 80, "{faults}");
        let (faults, _) = drive(0..100_000, Pattern::Sequential);
        assert!(faults < 60, "{faults}");
    }

    #[test]
    fn random_reads_fetch_single_pages() {
        let scattered = (0..1000u64).map(|i| i * 7919 % 1_000_003);
        assert_eq!(drive(scattered.clone(), Pattern::Normal), (1000, 1000));
        assert_eq!(drive(scattered, Pattern::Random), (1000, 1000));
        assert_eq!(drive(0..500, Pattern::Random), (500, 500));
    }

    #[test]
    fn interleaved_scans_are_told_apart() {
        let interleaved = (0..160_000u64).map(|i| i % 16 * 50_000 + i / 16);
        let (faults, fetched) = drive(interleaved, Pattern::Normal);
        assert!(faults < 16 * 20, "{faults}");
        assert!(fetched < 160_000 + 16 * 2100, "{fetched}");
    }

    #[test]
    fn reads_of_many_pages_each_are_a_stream() {
        let mut streams = Streams::default();
        let mut faults = 0;
        let mut there = 0;
        for read in 0..1000u64 {
            let pages = PageRange::new(read * 16, (read + 1) * 16);
            if there < pages.end.0 {
                faults += 1;
                let page = PageIndex(there.max(pages.start.0));
                let plan = streams.on_fault(page, &bounds(page.0, 2048));
                let ahead = plan.ahead.first.0 + plan.ahead.count;
                there = there.max(plan.now.end.0).max(ahead).max(pages.end.0);
            }
            there = there.max(streams.on_read(pages, &bounds(pages.start.0, 2048)).end.0);
        }
        assert!(faults < 10, "{faults}");
    }

    #[test]
    fn what_was_not_fetched_is_planned_again() {
        let mut streams = Streams::default();
        streams.expect(PageRange::new(0, 1 << 20), Pattern::Sequential);
        let plan = streams.on_fault(PageIndex(0), &bounds(0, 2048));
        streams.fell_short(&plan.ahead, PageIndex(100));
        let again = streams.on_fault(PageIndex(100), &bounds(100, 2048));
        let end = again.ahead.first.0 + again.ahead.count;
        assert!(again.now.contains(PageIndex(100)) && end > 2000, "{again:?}");
    }

    #[test]
    fn advice_holds_for_its_range_alone() {
        let mut streams = Streams::default();
        streams.expect(PageRange::new(0, 100), Pattern::Random);
        streams.expect(PageRange::new(40, 60), Pattern::Sequential);
        streams.expect(PageRange::new(90, 95), Pattern::Normal);
        let said = |page| streams.pattern(PageIndex(page));
        assert_eq!([39, 60, 89, 95, 99].map(said), [Pattern::Random; 5]);
        assert_eq!([40, 59].map(said), [Pattern::Sequential; 2]);
        assert_eq!([90, 94, 100].map(said), [Pattern::Normal; 3]);
    }

    #[test]
    fn advice_about_page_after_page_is_one() {
        let (mut streams, all) = (Streams::default(), PageRange::new(0, 1000));
        all.iter().for_each(|page| streams.expect(PageRange::single(page), Pattern::Random));
        assert_eq!(streams.patterns.len(), 1);
        assert!(all.iter().all(|page| streams.pattern(page) == Pattern::Random));
    }

    #[test]
    fn of_too_much_advice_the_nearest_is_kept() {
        let mut streams = Streams::default();
        for page in (0..100_000).filter(|page| page % 2 == 0).map(PageIndex) {
            streams.expect(PageRange::single(page), Pattern::Random);
            assert!(streams.patterns.len() <= PATTERNS_MAX);
            assert_eq!(streams.pattern(page), Pattern::Random);
        }
        assert_eq!(streams.patterns.len(), PATTERNS_MAX);
        assert_eq!(streams.pattern(PageIndex(99_998 - 2 * 4095)), Pattern::Random);
        streams.expect(PageRange::single(PageIndex(0)), Pattern::Sequential);
        assert_eq!(
            [0, 99_998].map(|page| streams.pattern(PageIndex(page))),
            [Pattern::Sequential, Pattern::Normal]
        );
    }

    #[test]
    fn nothing_is_planned_beyond_the_end() {
        let mut streams = Streams::default();
        let object = PageRange::new(0, 100);
        streams.expect(object, Pattern::Sequential);
        for page in 0..100 {
            let bounds = Bounds { object, ..bounds(page, 2048) };
            let plan = streams.on_fault(PageIndex(page), &bounds);
            assert_eq!(plan.now.intersect(object), plan.now);
            assert!(plan.ahead.first.0 + plan.ahead.count <= 100, "{plan:?}");
        }
    }

    #[test]
    fn a_reader_without_faults_is_kept_ahead_of() {
        let mut streams = Streams::default();
        let mut there = 0;
        for page in 0..4 {
            let fault = there.max(page);
            there = streams.on_fault(PageIndex(fault), &bounds(fault, 2048)).now.end.0;
        }
        let mut page = 0;
        while page < 50_000 {
            let ahead = streams.on_read(PageRange::new(page, page + 16), &bounds(page, 2048));
            there = there.max(ahead.end.0);
            page += 16;
            assert!(
                page < 64 || there >= page,
                "the reader is at {page}, and {there} is the end of what is planned"
            );
        }
    }
}
