//! Readers that go nowhere in particular, and wait behind whatever else their disk has been asked for.

use std::time::{Duration, Instant};

use crate::readahead::{Bounds, Plan};
use crate::sync::atomic::{AtomicU64, Ordering};

/// So many in a hundred milliseconds are of a reader at random; fewer may be streams that begin.
const COUNT_MIN: u64 = 8;
/// So long after those, others are expected.
const EXPECTED_FOR: Duration = Duration::from_millis(100);
/// What is fetched ahead of a stream meanwhile, at the most: a disk goes on with it nearly as fast, and gets to others sooner.
pub(crate) const AHEAD_BYTES_MAX: u64 = 256 << 10;

/// How often, of late, somebody has waited for a page that is part of no stream.
pub(crate) struct LoneMisses {
    begin: Instant,
    /// Tenths of a second after the beginning, times 256, and how many there were in that one.
    counted: AtomicU64,
    /// Milliseconds after the beginning until which others are expected.
    until: AtomicU64,
}

impl LoneMisses {
    pub(crate) fn new() -> LoneMisses {
        LoneMisses { begin: Instant::now(), counted: AtomicU64::new(0), until: AtomicU64::new(0) }
    }

    /// Somebody waits for what is planned, since a moment ago.
    pub(crate) fn note(&self, plan: &Plan, bounds: &Bounds, since: Instant) {
        if !plan.ahead.is_empty() || plan.now != bounds.chunk {
            return;
        }
        let tenth = (self.milliseconds(since) / 100) << 8;
        let counted = self.counted.load(Ordering::Relaxed);
        // Two threads may count one; there will be others.
        let counted =
            if counted & !0xFF == tenth { counted + u64::from(counted & 0xFF < 0xFF) } else { tenth + 1 };
        self.counted.store(counted, Ordering::Relaxed);
        if counted & 0xFF >= COUNT_MIN {
            self.until.store(self.milliseconds(since + EXPECTED_FOR), Ordering::Relaxed);
        }
    }

    /// Whether others will probably come.
    pub(crate) fn are_expected(&self) -> bool {
        self.until.load(Ordering::Relaxed) > 0 && self.are_expected_at(Instant::now())
    }

    fn are_expected_at(&self, now: Instant) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        let are_expected = self.milliseconds(now) < until;
        if !are_expected {
            // So that nobody looks at the clock again; a miss that is lost by this will have others after it.
            self.until.store(0, Ordering::Relaxed);
        }
        are_expected
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begin).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readahead::Ahead;
    use crate::units::PageRange;

    #[test]
    fn others_are_expected_for_a_while_after_a_miss_that_is_part_of_no_stream() {
        let misses = LoneMisses::new();
        let bounds = Bounds {
            object: PageRange::new(0, 100),
            chunk: PageRange::new(7, 8),
            window_pages_max: 64,
            window_pages_min: 1,
        };
        let now = misses.begin + Duration::from_secs(1);
        let of_a_stream = Plan { now: PageRange::new(7, 20), ahead: Ahead::nothing() };
        misses.note(&of_a_stream, &bounds, now);
        misses.note(&Plan { ahead: PageRange::new(8, 20).into(), now: bounds.chunk }, &bounds, now);
        assert!(!misses.are_expected_at(now));
        let alone = Plan { now: bounds.chunk, ahead: Ahead::nothing() };
        (1..COUNT_MIN).for_each(|_| misses.note(&alone, &bounds, now));
        assert!(!misses.are_expected_at(now), "streams that begin");
        misses.note(&alone, &bounds, now);
        assert!(misses.are_expected_at(now + EXPECTED_FOR / 2));
        assert!(!misses.are_expected_at(now + EXPECTED_FOR));
    }
}
