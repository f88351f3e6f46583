//! Makes a store slow, in the way a distant one is.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Decorator;
use crate::{BackingStore, Result, Transfer};

/// How slow.
#[derive(Debug, Clone, Copy)]
pub struct Throttle {
    /// What each request takes, however short it is.
    pub latency: Duration,
    /// Shared by all requests.
    pub bytes_per_second_max: u64,
    /// Requests that are served at a time; more wait.
    pub in_flight_max: usize,
}

/// A slow, parallel store: each request waits its latency, all share a bandwidth.
pub struct Throttled {
    inner: Arc<dyn BackingStore>,
    throttle: Throttle,
    line: Mutex<Line>,
    freed: Condvar,
}

struct Line {
    in_flight: usize,
    /// When the line will have carried all that it has been given.
    free_at: Instant,
}

impl Throttled {
    /// Makes `inner` as slow as `throttle` says.
    pub fn new(inner: Arc<dyn BackingStore>, throttle: Throttle) -> Throttled {
        let throttle = Throttle { in_flight_max: throttle.in_flight_max.max(1), ..throttle };
        let line = Mutex::new(Line { in_flight: 0, free_at: Instant::now() });
        Throttled { inner, throttle, line, freed: Condvar::new() }
    }

    /// Waits as long as a request of so many bytes takes.
    fn pass(&self, bytes: usize) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        while line.in_flight >= self.throttle.in_flight_max {
            line = self.freed.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        line.in_flight += 1;
        let now = Instant::now();
        let carried =
            Duration::from_secs_f64(bytes as f64 / self.throttle.bytes_per_second_max.max(1) as f64);
        line.free_at = line.free_at.max(now) + carried;
        let done_at = line.free_at + self.throttle.latency;
        drop(line);
        std::thread::sleep(done_at.saturating_duration_since(now));
        self.line.lock().unwrap_or_else(PoisonError::into_inner).in_flight -= 1;
        self.freed.notify_one();
    }
}

impl Decorator for Throttled {
    fn inner(&self) -> &dyn BackingStore {
        &self.inner
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let there = self.inner.len().saturating_sub(offset);
        self.pass(into.len().min(usize::try_from(there).unwrap_or(usize::MAX)));
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.pass(bytes.len());
        self.inner.write_at(offset, bytes)
    }

    fn transfer(&self) -> Transfer {
        let inner = self.inner.transfer();
        // A request should last at least as long as its latency, or the latency is what one pays for.
        let worth = self.throttle.latency.as_secs_f64() * self.throttle.bytes_per_second_max as f64
            / self.throttle.in_flight_max as f64;
        let preferred = inner.preferred_bytes.get().max((worth as usize).min(8 << 20));
        Transfer::new(preferred, self.throttle.in_flight_max)
    }
}
