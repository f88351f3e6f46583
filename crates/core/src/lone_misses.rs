//! Readers that go nowhere in particular, and wait behind whatever else their disk has been asked for.

use std::time::{Duration, Instant};

use crate::readahead::PartOf;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What is fetched ahead of a stream, at the most, for so long as there have been so many lone misses in a hundred
/// milliseconds: fewer may be streams that begin. A disk goes on with a stream nearly as fast by 128 KiB, and gets to others
/// sooner; by 32 KiB less fast, but then somebody waits for it all the time.
const LIMITS: [Limit; 2] =
    [Limit { misses: 64, ahead_bytes: 32 << 10 }, Limit { misses: 8, ahead_bytes: 128 << 10 }];
/// So long after those, others are expected.
const EXPECTED_FOR: Duration = Duration::from_millis(100);

struct Limit {
    misses: u64,
    ahead_bytes: u64,
}

/// How often, of late, somebody has waited for a page that is part of no stream.
pub(crate) struct LoneMisses {
    begin: Instant,
    /// Tenths of a second after the beginning, times 256, and how many there were in that one.
    counted: AtomicU64,
    /// For each limit, milliseconds after the beginning until which it holds.
    until: [AtomicU64; LIMITS.len()],
}

impl LoneMisses {
    pub(crate) fn new() -> LoneMisses {
        LoneMisses { begin: Instant::now(), counted: AtomicU64::new(0), until: Default::default() }
    }

    /// Somebody waits for a page, since a moment ago.
    pub(crate) fn note(&self, part_of: PartOf, since: Instant) {
        let tenth = (self.milliseconds(since) / 100) << 8;
        let counted = self.counted.load(Ordering::Relaxed);
        let counted = if counted & !0xFF == tenth { counted } else { tenth };
        let count = counted & 0xFF;
        // Two threads may count one; there will be others.
        let count = match part_of {
            PartOf::Nothing => (count + 1).min(0xFF),
            // The one before was none.
            PartOf::NewStream => count.saturating_sub(1),
            PartOf::Stream => return,
        };
        self.counted.store(tenth + count, Ordering::Relaxed);
        for (limit, until) in LIMITS.iter().zip(&self.until) {
            if count >= limit.misses {
                until.store(self.milliseconds(since + EXPECTED_FOR), Ordering::Relaxed);
            }
        }
    }

    /// What is to be fetched ahead of a stream at the most, because others will probably come.
    pub(crate) fn ahead_bytes_max(&self) -> Option<u64> {
        let any = self.until.iter().any(|until| until.load(Ordering::Relaxed) > 0);
        any.then(Instant::now).and_then(|now| self.ahead_bytes_max_at(now))
    }

    fn ahead_bytes_max_at(&self, now: Instant) -> Option<u64> {
        let now = self.milliseconds(now);
        let holds = |until: &AtomicU64| {
            let holds = now < until.load(Ordering::Relaxed);
            if !holds {
                // So that nobody looks at the clock again; a miss that is lost by this will have others after it.
                until.store(0, Ordering::Relaxed);
            }
            holds
        };
        LIMITS.iter().zip(&self.until).find(|(_, until)| holds(until)).map(|(limit, _)| limit.ahead_bytes)
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begin).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readahead::{Bounds, Streams};
    use crate::units::{PageIndex, PageRange};

    #[test]
    fn others_are_expected_for_a_while_after_misses_that_are_part_of_no_stream() {
        let misses = LoneMisses::new();
        let now = misses.begin + Duration::from_secs(1);
        let soon = now + EXPECTED_FOR / 2;
        let [many, some] = &LIMITS;
        let miss = |count| (0..count).for_each(|_| misses.note(PartOf::Nothing, now));
        miss(some.misses - 1);
        (0..100).for_each(|_| misses.note(PartOf::Stream, now));
        assert_eq!(misses.ahead_bytes_max_at(now), None, "streams that begin");
        miss(1);
        assert_eq!(misses.ahead_bytes_max_at(soon), Some(some.ahead_bytes));
        miss(many.misses - some.misses);
        assert_eq!(misses.ahead_bytes_max_at(soon), Some(many.ahead_bytes));
        assert_eq!(misses.ahead_bytes_max_at(now + EXPECTED_FOR), None);
    }

    /// What may be fetched ahead of a stream after those misses, one every 0.5 ms.
    fn ahead_after(pages: impl Iterator<Item = u64>) -> Option<u64> {
        let (misses, mut streams) = (LoneMisses::new(), Streams::default());
        let mut now = misses.begin + Duration::from_secs(1);
        for page in pages {
            let bounds = Bounds {
                object: PageRange::new(0, 1 << 20),
                chunk: PageRange::new(page, page + 1),
                window_pages_max: 64,
                window_pages_min: 1,
            };
            now += Duration::from_micros(500);
            misses.note(streams.on_fault(PageIndex(page), &bounds).part_of, now);
        }
        misses.ahead_bytes_max_at(now)
    }

    #[test]
    fn runs_in_order_and_in_steps_are_not_taken_for_readers_at_random() {
        let scattered = |n: u64| n * 7919 % 1_000_003;
        assert_eq!(ahead_after((0..1000).map(scattered)), Some(LIMITS[0].ahead_bytes));
        assert_eq!(ahead_after((0..1000).map(|n| scattered(n / 20) + n % 20)), None, "short runs");
        assert_eq!(ahead_after((0..1000).map(|n| 5 * n)), None, "steps");
        assert_eq!(ahead_after((0..1000).map(|n| 100_000 - n)), None, "backward");
    }
}
