//! Waking a thread before its page is there, so that the time which waking takes passes while the store answers.
//!
//! On a virtual machine whose processors halt, a thread runs as long after it was woken as a fast disk takes to answer. Who comes
//! too early finds nothing and waits again, by another fault (handle_userfault() of fs/userfaultfd.c); then the next is woken
//! later.

use std::time::Duration;

use crate::sync::Mutex;
use crate::sync::lock;

/// Nobody looks for the end of a read for so long.
const DELAY_MAX: Duration = Duration::from_millis(1);
/// By how much the next is woken earlier, and later if one has come too early: one in three does.
const EARLIER: Duration = Duration::from_micros(1);
const LATER: Duration = Duration::from_micros(2);

/// How long after a read began who waits for it is woken.
pub(crate) struct EarlyWake {
    delay: Mutex<Duration>,
}

impl EarlyWake {
    pub(crate) fn new() -> EarlyWake {
        EarlyWake { delay: Mutex::new(DELAY_MAX) }
    }

    pub(crate) fn delay(&self) -> Duration {
        *lock(&self.delay)
    }

    /// A read has ended, after so long, before anybody was woken.
    pub(crate) fn ended(&self, time: Duration) {
        let mut delay = lock(&self.delay);
        *delay = time.min(*delay).saturating_sub(EARLIER);
    }

    /// A read has ended after its thread was woken; whether that was waiting again already.
    pub(crate) fn woke(&self, too_early: bool) {
        let mut delay = lock(&self.delay);
        *delay = if too_early { (*delay + LATER).min(DELAY_MAX) } else { delay.saturating_sub(EARLIER) };
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const READ: Duration = Duration::from_micros(80);

    #[test]
    fn a_thread_is_woken_about_as_long_before_the_end_as_it_needs() {
        let early = EarlyWake::new();
        early.ended(READ);
        assert_eq!(early.delay(), READ - EARLIER);
        early.ended(2 * READ);
        assert_eq!(early.delay(), READ - 2 * EARLIER, "not yet waited for");
        // One that needs 50 microseconds, of reads that take as long as each other.
        let wakes: Vec<Duration> = (0..300)
            .map(|_| {
                let delay = early.delay();
                early.woke(delay + Duration::from_micros(50) < READ);
                delay
            })
            .collect();
        let settled = &wakes[100..];
        assert!(settled.iter().all(|delay| (28..34).contains(&delay.as_micros())), "{settled:?}");
    }

    #[test]
    fn what_can_only_be_too_early_is_left() {
        let early = EarlyWake::new();
        early.ended(READ);
        (0..1000).for_each(|_| early.woke(true));
        assert_eq!(early.delay(), DELAY_MAX);
        early.ended(READ);
        (0..1000).for_each(|_| early.woke(false));
        assert_eq!(early.delay(), Duration::ZERO);
    }
}
