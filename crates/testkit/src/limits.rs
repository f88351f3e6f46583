//! Time limits, so that a lost wake-up is a failure and not a hang.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Runs `work` on another thread and gives its result.
///
/// # Panics
/// If it panics, or takes longer than `limit`. The thread is left behind then: it may hang in a fault.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("within".to_owned())
        .spawn(move || {
            let _ = sender.send(work());
        })
        .expect("a thread for the test");
    match receiver.recv_timeout(limit) {
        Ok(value) => {
            let _ = thread.join();
            value
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not done within {limit:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the thread ended without a result or a panic"),
        },
    }
}
