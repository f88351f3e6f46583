//! What a forked child does with the views that it has from its parent, before fork(2) returns in it.

use std::any::Any;
use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, MutexGuard, RwLockWriteGuard};

use super::LinuxHost;
use super::calls::Errno;
use super::faults::Faults;
use super::memory::Kind;
use super::userfaultfd::{Notice, Userfaultfd};
use super::view::{LinuxView, hold_unmarked};
use super::view_list::ViewList;
use super::window::Window;
use super::{failures, fault_ranges, fault_signals, fault_slots, page_bytes, pagemap};
use crate::{Result, Use, View, ViewRequest};

/// The views of a child: mapped and registered as its parent's were, and served by whoever has the descriptor.
pub struct ChildViews {
    faults: Arc<Faults>,
    userfaultfd: Arc<Userfaultfd>,
    /// Of no memory that we know: whoever serves them fills it.
    unlisted: (Arc<ViewList>, Arc<Window>),
}

impl ChildViews {
    /// None yet.
    ///
    /// # Errors
    /// As [`LinuxHost::open`].
    pub fn new() -> Result<ChildViews> {
        let userfaultfd = Arc::new(Userfaultfd::open(Notice::Message)?);
        let faults = Arc::new(Faults::over(userfaultfd.clone())?);
        Ok(ChildViews { faults, userfaultfd, unlisted: Default::default() })
    }

    /// Shows a part of a memory as a parent did, or takes over a private view that came along; for good.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn show(&self, memory: BorrowedFd<'_>, request: &ViewRequest, used_as: Use) -> Result<()> {
        let kind = Kind { page_bytes: page_bytes(), used_as, exclusive: 0 };
        let (views, window) = &self.unlisted;
        let view = LinuxView::map(memory, request, kind, (&self.faults, None), (views, window))?;
        // In a process of one thread: nobody stores there before whoever serves it has been told.
        view.admit_stores()?;
        fault_signals::serve_here(
            view.start().0..view.start().0 + view.length() as usize,
            memory,
            request.offset,
        );
        // The child unmaps it by address, or ends.
        std::mem::forget(view);
        Ok(())
    }

    /// For whoever serves them.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.userfaultfd.as_fd()
    }

    /// A host that serves these views itself, now that nobody else does.
    ///
    /// # Errors
    /// As [`LinuxHost::open`].
    pub fn into_host(self) -> Result<LinuxHost> {
        LinuxHost::over(self.faults)
    }
}

/// Locks of this crate that a child needs, kept from other threads while the process is forked: the child has no such
/// threads, and drops its copy of this.
pub struct HeldForFork {
    _unmarked: RwLockWriteGuard<'static, ()>,
    _signals: MutexGuard<'static, ()>,
    _failures: MutexGuard<'static, usize>,
    _ranges: MutexGuard<'static, ()>,
    _slots: Box<dyn Any>,
    _pagemap: Box<dyn Any>,
}

impl HeldForFork {
    /// Waits for them. The caller holds no other lock that their holders want: they want none.
    pub fn new() -> HeldForFork {
        // Whoever maps a view needs the others to drop it, if that fails.
        let _unmarked = hold_unmarked();
        HeldForFork {
            _unmarked,
            // Its holders want the next two.
            _signals: fault_signals::hold(),
            _failures: failures::hold(),
            _ranges: fault_ranges::hold(),
            _slots: Box::new(fault_slots::unused()),
            _pagemap: Box::new(pagemap::hold()),
        }
    }
}

impl Default for HeldForFork {
    fn default() -> Self {
        Self::new()
    }
}

/// Calls `prepare` before each fork(2) of the process, `parent` after it in the parent and `child` in the child
/// (pthread_atfork(3)). Not by vfork, posix_spawn, or a bare clone.
///
/// # Errors
/// `ENOMEM`.
pub fn at_fork(
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> std::result::Result<(), Errno> {
    unsafe extern "C" {
        fn pthread_atfork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn())
        -> c_int;
    }
    // SAFETY: the handlers have the signature asked for, live for ever, and do not unwind: they abort instead.
    match unsafe { pthread_atfork(prepare, parent, child) } {
        0 => Ok(()),
        errno => Err(errno),
    }
}
