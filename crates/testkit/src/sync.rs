//! Threads and locks of the simulated machine: ordinary ones, or shuttle's (`--cfg shuttle`).

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub use std::thread;

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(shuttle)]
pub use shuttle::thread;

/// Runs a scenario under many interleavings: as many as `OMNIMAP_MODEL_SCHEDULES` says (1,000) under shuttle, and a
/// few on ordinary threads.
///
/// # Panics
/// If the scenario does; shuttle also finds threads that all wait for each other, and says how to replay it.
pub fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    #[cfg(shuttle)]
    {
        let schedules =
            std::env::var("OMNIMAP_MODEL_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
        let scenario = std::sync::Arc::new(scenario);
        let again = scenario.clone();
        let mut config = shuttle::Config::default();
        config.stack_size = 256 << 10;
        let random = shuttle::scheduler::RandomScheduler::new(schedules / 2);
        shuttle::Runner::new(random, config.clone()).run(move || again());
        // Few preemptions at unlucky places: finds other bugs than chance does.
        let unlucky = shuttle::scheduler::PctScheduler::new(3, schedules / 2);
        shuttle::Runner::new(unlucky, config).run(move || scenario());
    }
    #[cfg(not(shuttle))]
    for _ in 0..20 {
        scenario();
    }
}

/// One or the other, as the scheduler draws it.
pub(crate) fn either() -> bool {
    #[cfg(shuttle)]
    {
        use shuttle::rand::RngCore;
        shuttle::rand::thread_rng().next_u32() & 1 == 0
    }
    #[cfg(not(shuttle))]
    {
        use std::sync::atomic::{AtomicBool, Ordering};
        static LAST: AtomicBool = AtomicBool::new(false);
        LAST.fetch_not(Ordering::Relaxed)
    }
}
