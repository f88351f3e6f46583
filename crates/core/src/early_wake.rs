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

/// A read that a thread waits for.
pub(crate) struct Awaited<'a> {
    early: &'a EarlyWake,
    delay: Duration,
    /// How long it has taken when that was looked at last.
    time: Option<Duration>,
    /// How long it had taken when the thread was woken.
    woken: Option<Duration>,
    /// Others wait too, who would be taken for it.
    is_crowded: bool,
}

impl EarlyWake {
    pub(crate) fn new() -> EarlyWake {
        EarlyWake { delay: Mutex::new(DELAY_MAX) }
    }

    /// A read begins.
    pub(crate) fn begin(&self) -> Awaited<'_> {
        Awaited { early: self, delay: *lock(&self.delay), time: None, woken: None, is_crowded: false }
    }
}

impl Awaited<'_> {
    /// It has taken so long: wakes the thread if it is time, unless others wait. `wake` may fail.
    pub(crate) fn look(&mut self, time: Duration, others_wait: impl Fn() -> bool, wake: impl Fn() -> bool) {
        self.time = Some(time);
        if time >= self.delay && self.woken.is_none() && !self.is_crowded {
            self.is_crowded = others_wait();
            self.woken = (!self.is_crowded && wake()).then_some(time);
        }
    }

    /// It has ended; whether others wait. `is_pending`: somebody does, and that may be the thread, woken too early.
    pub(crate) fn end(self, is_pending: bool) -> bool {
        let mut delay = lock(&self.early.delay);
        match (self.woken, self.time) {
            (Some(time), _) if is_pending => *delay = DELAY_MAX.min(time + LATER),
            (Some(time), _) => *delay = DELAY_MAX.min(time.saturating_sub(EARLIER)),
            (None, _) if is_pending || self.is_crowded => return true,
            (None, Some(time)) => *delay = time.min(*delay).saturating_sub(EARLIER),
            (None, None) => {}
        }
        false
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const READ: Duration = Duration::from_micros(80);
    /// What the thread needs after it was woken.
    const WAKING: Duration = Duration::from_micros(50);

    /// A read that is looked at each microsecond from the tenth on; when its thread was woken.
    fn read(early: &EarlyWake, takes: Duration) -> Option<Duration> {
        let mut awaited = early.begin();
        (10..takes.as_micros() as u64)
            .for_each(|time| awaited.look(Duration::from_micros(time), || false, || true));
        let woken = awaited.woken;
        assert!(!awaited.end(woken.is_some_and(|time| time + WAKING < takes)));
        woken
    }

    #[test]
    fn a_thread_is_woken_about_as_long_before_the_end_as_it_needs() {
        let early = EarlyWake::new();
        assert_eq!(read(&early, READ), None, "it is not known yet how long one takes");
        let wakes: Vec<Duration> = (0..300).filter_map(|_| read(&early, READ)).skip(100).collect();
        assert!(wakes.iter().all(|time| (28..34).contains(&time.as_micros())), "{wakes:?}");
        // At the first look.
        let wakes: Vec<Duration> = (0..100).filter_map(|_| read(&early, READ / 2)).skip(50).collect();
        assert!(wakes.iter().all(|time| time.as_micros() == 10), "{wakes:?}");
        let wakes: Vec<Duration> = (0..30).filter_map(|_| read(&early, READ)).skip(15).collect();
        assert!(wakes.iter().all(|time| (28..34).contains(&time.as_micros())), "soon again: {wakes:?}");
    }

    #[test]
    fn nobody_is_woken_early_while_others_wait() {
        let early = EarlyWake::new();
        read(&early, READ);
        let mut awaited = early.begin();
        (0..READ.as_micros() as u64).for_each(|time| {
            awaited.look(
                Duration::from_micros(time),
                || true,
                || panic!("the others could not be told from it"),
            );
        });
        assert!(awaited.end(false), "a crowd");
        let mut awaited = early.begin();
        awaited.look(READ, || false, || false);
        assert!(awaited.end(true), "as it could not be woken");
        assert!(early.begin().end(true));
    }

    #[test]
    fn what_can_only_be_too_early_is_left() {
        let early = EarlyWake::new();
        let woken = (0..1000).map(|_| read(&early, 2 * DELAY_MAX)).collect::<Vec<_>>();
        assert!(woken.iter().all(|time| *time == Some(DELAY_MAX)), "and no later");
    }
}
