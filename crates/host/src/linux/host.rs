//! One host: a userfaultfd, and the memory and views that report to it.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use std::os::fd::{AsFd, OwnedFd};

use super::memory::{Kind, Memfd};
use super::userfaultfd::Userfaultfd;
use super::{page_bytes, sigbus};
use crate::error::During;
use crate::{Address, Exclusive, Fault, FaultStream, Host, Memory, Result, Use, Waited};

/// The machine as Linux makes it.
pub struct LinuxHost {
    faults: Arc<UserfaultStream>,
    page_bytes: u64,
}

impl LinuxHost {
    /// Opens a userfaultfd and sees to it that SIGBUS is explained.
    ///
    /// # Errors
    /// Where userfaultfd cannot be had or lacks what the engine needs; the error says what to do.
    pub fn open() -> Result<LinuxHost> {
        let userfaultfd = Arc::new(Userfaultfd::open()?);
        sigbus::install()?;
        let closed =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).during("eventfd")?;
        let faults = Arc::new(UserfaultStream { userfaultfd, closed });
        Ok(LinuxHost { faults, page_bytes: page_bytes() })
    }
}

impl Host for LinuxHost {
    fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    fn create_memory(
        &self,
        name: &str,
        length: u64,
        used_as: Use,
    ) -> Result<(Arc<dyn Memory>, Option<Exclusive>)> {
        let faults = self.faults.userfaultfd.clone();
        if used_as.is_writable() {
            faults.check_traps()?;
        }
        let (exclusive, id) = Exclusive::new();
        let memory = Memfd::create(
            name,
            length,
            Kind { page_bytes: self.page_bytes, used_as, exclusive: id },
            faults,
        )?;
        Ok((Arc::new(memory), (used_as == Use::Exclusive).then_some(exclusive)))
    }

    fn faults(&self) -> Arc<dyn FaultStream> {
        self.faults.clone()
    }
}

struct UserfaultStream {
    userfaultfd: Arc<Userfaultfd>,
    /// Readable once the stream is closed.
    closed: OwnedFd,
}

impl FaultStream for UserfaultStream {
    fn take(&self) -> Result<Option<Fault>> {
        self.userfaultfd.take()
    }

    fn is_pending(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut polled = [PollFd::from_borrowed_fd(self.userfaultfd.as_fd(), PollFlags::IN)];
        matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1))
    }

    fn wait(&self, limit: Duration) -> Result<Waited> {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        let mut polled = [
            PollFd::from_borrowed_fd(self.userfaultfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.closed.as_fd(), PollFlags::IN),
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
        // Adding 1 to an eventfd that nobody reads can only fail when it is readable already.
        let _ = rustix::io::write(&self.closed, &1u64.to_ne_bytes());
    }

    fn wake(&self, start: Address, bytes: u64) -> Result<()> {
        self.userfaultfd.wake(start, bytes)
    }
}
