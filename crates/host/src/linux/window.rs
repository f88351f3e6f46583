//! The view that a memory has to itself: it is filled through it where no other view shows the bytes.
//!
//! A private view will not do: UFFDIO_COPY would fill its copies. Nor will write(2), which publishes pages before they are
//! whole, and with `shmem_enabled=always` 2 MiB of zeros around them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::view::LinuxView;
use crate::{Place, Protection, Result, Sharing, ViewRequest};

/// A view that nobody has the address of. It is made when it is needed, and goes with the last private view or the memory.
#[derive(Default)]
pub(super) struct Window {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    view: Option<LinuxView>,
    private_views: usize,
}

impl Window {
    /// Shows the bytes of a memory of `length` bytes, by `map`.
    ///
    /// # Errors
    /// As mmap(2), if not even `bytes` can be mapped.
    pub(super) fn show(
        &self,
        bytes: Range<u64>,
        length: u64,
        map: impl Fn(&ViewRequest) -> Result<LinuxView>,
    ) -> Result<()> {
        let shared = |shown: Range<u64>| {
            map(&ViewRequest {
                offset: shown.start,
                length: shown.end - shown.start,
                place: Place::anywhere(),
                protection: Protection::NONE,
                sharing: Sharing::Shared,
            })
        };
        let mut state = self.state();
        // Once for all; where there is no room for that (RLIMIT_AS), for this time.
        let view = shared(0..length.max(bytes.end)).or_else(|_| shared(bytes))?;
        let before = state.view.replace(view);
        drop(state);
        drop(before);
        Ok(())
    }

    /// There is one more private view.
    pub(super) fn add_private_view(&self) {
        self.state().private_views += 1;
    }

    /// There is one less.
    pub(super) fn remove_private_view(&self) {
        let mut state = self.state();
        state.private_views -= 1;
        let gone = if state.private_views == 0 { state.view.take() } else { None };
        drop(state);
        drop(gone);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
