//! How one host learns of faults and answers them: the ways of [`FaultMode`] behind one interface.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use std::os::fd::{AsFd, OwnedFd};

use super::failures;
use super::fault_ranges::{self, FaultRange};
use super::fault_slots::{OwnSlots, Verdict};
use super::guarded::{self, GuardedMemory, GuardedSpace};
use super::kin::Kin;
use super::userfaultfd::{Notice, Userfaultfd};
use crate::error::During;
use crate::{
    Address, Fault, FaultMode, FaultServer, FaultStream, HostError, Result, Sharing, Stores, Waited,
};

/// The faults of one host.
pub(super) enum Faults {
    /// [`FaultMode::Worker`].
    Messages {
        userfaultfd: Arc<Userfaultfd>,
        /// Readable once the stream is closed.
        closed: OwnedFd,
        /// Children whose faults arrive here as well.
        kin: Kin,
    },
    /// [`FaultMode::InThread`].
    Signals { userfaultfd: Arc<Userfaultfd>, slots: OwnSlots },
    /// [`FaultMode::Trap`].
    Guards { space: GuardedSpace, slots: OwnSlots },
}

impl Faults {
    pub(super) fn open(mode: FaultMode) -> Result<Faults> {
        match mode {
            FaultMode::Worker => Self::over(Arc::new(Userfaultfd::open(Notice::Message)?)),
            FaultMode::InThread => Ok(Faults::Signals {
                userfaultfd: Arc::new(Userfaultfd::open(Notice::Signal)?),
                slots: OwnSlots::new(),
            }),
            FaultMode::Trap => {
                guarded::supported()?;
                Ok(Faults::Guards { space: GuardedSpace::default(), slots: OwnSlots::new() })
            }
        }
    }

    /// Those of a userfaultfd that sends messages.
    pub(super) fn over(userfaultfd: Arc<Userfaultfd>) -> Result<Faults> {
        let closed =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).during("eventfd")?;
        Ok(Faults::Messages { userfaultfd, closed, kin: Kin::new()? })
    }

    /// The children; an error where their faults cannot arrive.
    pub(super) fn kin(&self) -> Result<&Kin> {
        match self {
            Faults::Messages { kin, .. } => Ok(kin),
            _ => Err(HostError::MissingFeature {
                missing: "messages, which mappings for other addresses and processes need (FaultMode::Worker)",
                since: "4.11",
            }),
        }
    }

    pub(super) fn mode(&self) -> FaultMode {
        match self {
            Faults::Messages { .. } => FaultMode::Worker,
            Faults::Signals { .. } => FaultMode::InThread,
            Faults::Guards { .. } => FaultMode::Trap,
        }
    }

    pub(super) fn userfaultfd(&self) -> Option<&Arc<Userfaultfd>> {
        match self {
            Faults::Messages { userfaultfd, .. } | Faults::Signals { userfaultfd, .. } => Some(userfaultfd),
            Faults::Guards { .. } => None,
        }
    }

    fn slots(&self) -> Option<&OwnSlots> {
        match self {
            Faults::Messages { .. } => None,
            Faults::Signals { slots, .. } | Faults::Guards { slots, .. } => Some(slots),
        }
    }

    /// What a memory needs beside its memfd, in this mode.
    pub(super) fn guarded_memory(&self, page_bytes: u64) -> Option<Arc<GuardedMemory>> {
        matches!(self, Faults::Guards { .. }).then(|| Arc::new(GuardedMemory::new(page_bytes)))
    }

    /// Whether stores can be trapped; an error that says what is missing, if not.
    pub(super) fn check_traps(&self) -> Result<()> {
        self.userfaultfd().map_or(Ok(()), |userfaultfd| userfaultfd.check_traps())
    }

    /// Reports the faults of a view from now on; the view is inaccessible. Whether it is to be made accessible now, or will
    /// be part by part.
    pub(super) fn register(
        &self,
        start: Address,
        shown: Range<u64>,
        is_writable: bool,
        memory: Option<&Arc<GuardedMemory>>,
    ) -> Result<Accessible> {
        let bytes = shown.end - shown.start;
        if let Some(userfaultfd) = self.userfaultfd() {
            userfaultfd.register(start, bytes)?;
        }
        if let (Faults::Guards { space, .. }, Some(memory)) = (self, memory) {
            // After mlockall(MCL_FUTURE), guards are refused (madvise(2)): what they keep out is no memory to be locked.
            // SAFETY: changes no bytes. A failure shows where the guards are refused.
            unsafe { libc::munlock(start.0 as *const libc::c_void, bytes as usize) };
            space.add(start, shown, is_writable, memory);
        }
        if let Some(slots) = self.slots() {
            fault_ranges::add(FaultRange {
                start,
                bytes: bytes as usize,
                slots: slots.shared(),
                mode: self.mode(),
                is_writable,
            });
        }
        Ok(if self.mode() == FaultMode::Trap { Accessible::ByParts } else { Accessible::Now })
    }

    /// A view is about to be unmapped.
    pub(super) fn forget(&self, start: Address) {
        if self.slots().is_some() {
            fault_ranges::remove(start);
        }
        if let Faults::Guards { space, .. } = self {
            space.remove(start);
        }
    }

    /// As [`Userfaultfd::protect`].
    pub(super) fn protect(&self, start: Address, bytes: u64, stores: Stores) -> Result<()> {
        match self {
            Faults::Messages { userfaultfd, .. } | Faults::Signals { userfaultfd, .. } => {
                userfaultfd.protect(start, bytes, stores)
            }
            Faults::Guards { space, .. } => space.protect(start, bytes, stores),
        }
    }

    /// Makes accesses to holes raise SIGBUS. What is to be said there has been recorded, and where signals are handled
    /// anyway that is enough.
    pub(super) fn poison(
        &self,
        start: Address,
        bytes: u64,
        page_bytes: u64,
        is_writable: bool,
    ) -> Result<()> {
        let Some(userfaultfd) = self.userfaultfd() else { return Ok(()) };
        if is_writable {
            // Poison does not take the place of a marker; the next fill sets one again.
            userfaultfd.protect(start, bytes, Stores::Let)?;
        }
        userfaultfd.poison(start, bytes, page_bytes)
    }
}

/// When a view becomes accessible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accessible {
    Now,
    ByParts,
}

impl FaultStream for Faults {
    fn take(&self) -> Result<Option<Fault>> {
        match self {
            Faults::Messages { userfaultfd, kin, .. } => match userfaultfd.take()? {
                Some(fault) => Ok(Some(fault)),
                None => kin.take(),
            },
            Faults::Signals { slots, .. } | Faults::Guards { slots, .. } => Ok(slots.take()),
        }
    }

    fn is_pending(&self) -> bool {
        match self {
            Faults::Messages { userfaultfd, kin, .. } => {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                let mut polled = [
                    PollFd::from_borrowed_fd(userfaultfd.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(kin.as_fd(), PollFlags::IN),
                ];
                matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1..))
            }
            Faults::Signals { slots, .. } | Faults::Guards { slots, .. } => slots.is_pending(),
        }
    }

    fn wait(&self, limit: Duration) -> Result<Waited> {
        let (userfaultfd, closed, kin) = match self {
            Faults::Messages { userfaultfd, closed, kin } => (userfaultfd, closed, kin),
            Faults::Guards { slots, .. } => return Ok(slots.wait(limit)),
            Faults::Signals { slots, userfaultfd } => {
                let waited = slots.wait(limit);
                if waited == Waited::TimedOut {
                    // Without it, holes read as zeros, and no signal tells.
                    rustix::io::fcntl_getfd(&**userfaultfd).during("fcntl(userfaultfd)")?;
                }
                return Ok(waited);
            }
        };
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut polled = [
            PollFd::from_borrowed_fd(userfaultfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(closed.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(kin.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Ok(0) => Ok(Waited::TimedOut),
            Ok(_) if !polled[1].revents().is_empty() => Ok(Waited::Closed),
            // A signal that was handled on this thread is not an end (EINTR, even with SA_RESTART).
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Waited::Ready),
            Err(e) => Err(e).during("poll(userfaultfd)"),
        }
    }

    fn close(&self) {
        match self {
            Faults::Messages { closed, .. } => {
                // Adding 1 to an eventfd that nobody reads can only fail when it is readable already.
                let _ = rustix::io::write(closed, &1u64.to_ne_bytes());
            }
            Faults::Signals { slots, .. } | Faults::Guards { slots, .. } => slots.close(),
        }
    }

    fn serve_with(&self, server: Weak<dyn FaultServer>) {
        if let Some(slots) = self.slots() {
            slots.set_server(Some(server));
        }
    }

    fn wake(&self, start: Address, bytes: u64) -> Result<()> {
        match self {
            Faults::Messages { userfaultfd, kin, .. } => match start.kin() {
                0 => userfaultfd.wake(start, bytes),
                number => kin.wake(number, start, bytes),
            },
            Faults::Signals { slots, .. } => {
                slots.tell(start, bytes, Verdict::Retry);
                Ok(())
            }
            Faults::Guards { space, slots } => {
                if let Err(error) = space.open(start) {
                    failures::record(start, bytes, Sharing::Shared, &error.to_string());
                }
                slots.tell(start, bytes, Verdict::Retry);
                Ok(())
            }
        }
    }

    fn refuse(&self, start: Address, bytes: u64) -> Result<()> {
        match self {
            Faults::Messages { userfaultfd, kin, .. } => match start.kin() {
                0 => userfaultfd.wake(start, bytes),
                number => kin.wake(number, start, bytes),
            },
            Faults::Signals { slots, .. } | Faults::Guards { slots, .. } => {
                slots.tell(start, bytes, Verdict::Refused);
                Ok(())
            }
        }
    }
}
