//! The end of the process: what is dirty is written back (munmap(2), `exit`).

use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use crate::cache::Inner;

/// All caches of the process. Not under the model's locks: the end of a process is no part of a schedule.
static CACHES: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Lets a cache's dirty pages be written back when the process ends.
pub(crate) fn register(cache: &Arc<Inner>) {
    if cfg!(shuttle) {
        return; // Its locks cannot be taken when its schedules are over.
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = omnimap_host::at_exit(write_back_all) {
            tracing::warn!(%error, "what is dirty at the end of the process will not be written");
        }
    });
    let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    caches.retain(|cache| cache.strong_count() > 0);
    caches.push(Arc::downgrade(cache));
}

/// The list of caches, kept from other threads while the process is forked: the child makes caches of its own.
pub struct CachesHeld {
    _caches: MutexGuard<'static, Vec<Weak<Inner>>>,
}

impl CachesHeld {
    /// Waits for it; whoever has it wants no other lock.
    pub fn new() -> CachesHeld {
        CachesHeld { _caches: CACHES.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Default for CachesHeld {
    fn default() -> Self {
        Self::new()
    }
}

fn write_back_all() {
    // A child that was forked while it was locked finds it so for ever.
    let Ok(caches) = CACHES.try_lock().map(|mut caches| std::mem::take(&mut *caches)) else { return };
    for cache in caches.iter().filter_map(Weak::upgrade) {
        cache.write_back_all();
        // Dropped here, it could wait for threads.
        std::mem::forget(cache);
    }
}
