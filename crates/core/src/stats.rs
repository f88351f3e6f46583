//! Figures: what was done, how often, and how long it took.

use std::time::Duration;

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of an access to a page that was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// Its bytes were fetched for it.
    Filled,
    /// Somebody was fetching them, or evicting the page, already.
    Joined,
    /// It had come meanwhile.
    Resident,
    /// The store did not give the bytes.
    Failed,
    /// The address is no longer mapped.
    Unmapped,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Live counters; each event adds to those of its object and those of its cache.
        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
            pub(crate) waiting: Histogram,
        }

        /// Figures of a moment: of one object since it was opened, or of a cache since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)+
            /// Pages in memory now.
            pub pages_resident: u64,
            /// How long accesses waited for bytes that were not there, from the arrival of the fault on.
            pub waiting: WaitingTimes,
        }

        impl Counters {
            /// Everything but what only the owner knows.
            pub(crate) fn stats(&self) -> Stats {
                Stats {
                    $($name: self.$name.load(Relaxed),)+
                    pages_resident: 0,
                    waiting: self.waiting.times(),
                }
            }
        }

        impl Stats {
            /// Each counter with its name.
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }

        /// Which counter.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy)]
        pub(crate) enum Counter { $($name),+ }

        impl Counter {
            fn of(self, counters: &Counters) -> &AtomicU64 {
                match self { $(Counter::$name => &counters.$name),+ }
            }

            #[cfg(feature = "metrics")]
            fn name(self) -> &'static str {
                match self { $(Counter::$name => concat!("omnimap_", stringify!($name))),+ }
            }
        }
    };
}

counters! {
    /// Raw accesses whose page was fetched for them.
    faults_filled,
    /// Raw accesses that found their page on its way.
    faults_joined,
    /// Raw accesses whose page had come before they were looked at.
    faults_resident,
    /// Raw accesses whose page could not be had, and that got SIGBUS or EFAULT.
    faults_failed,
    /// Raw accesses to addresses that were unmapped meanwhile.
    faults_unmapped,
    /// Stores to pages that were in memory and not dirty (or being looked at): the first one to each.
    stores_trapped,
    /// Transfers to the store, those that failed too; neighbouring pages go together.
    write_backs,
    /// Bytes that the store took.
    bytes_written_back,
    /// Transfers to the store that failed.
    write_backs_failed,
    /// Pages that a checked access (`read_at`, `pin`) found in memory.
    checked_pages_resident,
    /// Pages that a checked access waited for.
    checked_pages_waited,
    /// Fills: transfers from the store that succeeded.
    fills,
    /// Bytes that they brought.
    bytes_filled,
    /// Fills that nobody waited for: readahead and prefetch.
    fills_ahead,
    /// Bytes that these brought.
    bytes_filled_ahead,
    /// Fills that failed.
    fills_failed,
    /// Pages evicted.
    pages_evicted,
    /// Holes punched for that; neighbouring pages go together.
    evictions,
    /// Pages that were spared because they had been used again.
    pages_spared,
    /// Large pages that were made of many.
    large_pages_made,
    /// Large pages that were given up: somebody wanted room, or a child the object.
    large_pages_split,
}

/// Adds to a counter of an object, if it is about one, and of its cache.
pub(crate) fn count(object: Option<&Counters>, cache: &Counters, counter: Counter, by: u64) {
    for counters in object.into_iter().chain([cache]) {
        counter.of(counters).fetch_add(by, Relaxed);
    }
    #[cfg(feature = "metrics")]
    metrics::counter!(counter.name()).increment(by);
}

/// Notes how long an access to an object waited.
pub(crate) fn waited(object: &Counters, cache: &Counters, time: Duration) {
    object.waiting.record(time);
    cache.waiting.record(time);
    #[cfg(feature = "metrics")]
    metrics::histogram!("omnimap_waiting_seconds").record(time.as_secs_f64());
}

const BUCKETS: usize = 32;

/// Durations by powers of two of a microsecond.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Histogram {
    fn record(&self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - microseconds.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    fn times(&self) -> WaitingTimes {
        WaitingTimes { buckets: std::array::from_fn(|i| self.buckets[i].load(Relaxed)) }
    }
}

/// How many waits took how long. Bucket `i` counts those below 2^i µs that are in no earlier bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitingTimes {
    /// The counts.
    pub buckets: [u64; BUCKETS],
}

impl WaitingTimes {
    /// How many waits there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// A time that so large a part of the waits (0.5, 0.99, …) did not reach; zero if there were none.
    pub fn below(&self, part: f64) -> Duration {
        let wanted = (self.count() as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (i, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_micros(1 << i);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_in_the_bucket_that_bounds_them() {
        let histogram = Histogram::default();
        for microseconds in [0, 1, 2, 3, 900] {
            histogram.record(Duration::from_micros(microseconds));
        }
        histogram.record(Duration::MAX);
        let times = histogram.times();
        assert_eq!((times.buckets[0], times.buckets[1], times.buckets[2], times.buckets[10]), (1, 1, 2, 1));
        assert_eq!(times.count(), 6);
        assert_eq!(times.below(0.5), Duration::from_micros(4));
        assert_eq!(WaitingTimes::default().below(0.5), Duration::ZERO);
    }
}
