//! Who may look for the end of a transfer instead of sleeping: few at a time, and only where that has paid lately.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long at the most: what a fast disk takes, when others use it too.
const TIME_MAX: Duration = Duration::from_micros(150);
/// Looking that fails this often in a row is not worth it, and is tried again only now and then.
const FAILED_MAX: u32 = 4;
/// How often it is tried then: for one in so many transfers.
const SHARE: u32 = 64;

/// Threads that look now.
static LOOKING: AtomicU32 = AtomicU32::new(0);
/// How often in a row it has failed.
static FAILED: AtomicU32 = AtomicU32::new(0);

/// A thread that looks.
pub(crate) struct Looking<'a> {
    since: Option<Instant>,
    /// Called each time.
    meanwhile: &'a mut dyn FnMut(),
}

/// Nothing if it is better to sleep at once.
pub(crate) fn begin(meanwhile: &mut dyn FnMut()) -> Option<Looking<'_>> {
    static MOST: OnceLock<u32> = OnceLock::new();
    // Somebody has to do the work that the others wait for.
    let most = *MOST.get_or_init(|| std::thread::available_parallelism().map_or(0, |n| n.get() as u32 / 2));
    let failed = FAILED.load(Ordering::Relaxed);
    if failed >= FAILED_MAX && !failed.is_multiple_of(SHARE) {
        FAILED.store(failed.wrapping_add(1), Ordering::Relaxed);
        return None;
    }
    let looking = Looking { since: None, meanwhile };
    // Counted back when it is dropped, whatever the answer.
    (LOOKING.fetch_add(1, Ordering::Relaxed) < most).then_some(looking)
}

impl Looking<'_> {
    /// Whether to look once more. Lets whoever waits for this very processor go first.
    pub(crate) fn goes_on(&mut self) -> bool {
        let now = Instant::now();
        let passed = now - *self.since.get_or_insert(now);
        (self.meanwhile)();
        std::thread::yield_now();
        passed < TIME_MAX
    }

    pub(crate) fn ended(&self, found: bool) {
        let failed = if found { 0 } else { FAILED.load(Ordering::Relaxed).wrapping_add(1) };
        FAILED.store(failed, Ordering::Relaxed);
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}
