//! Memory that processes share, by name or by descriptor, with waiting and waking.
//!
//! It is the kernel's own shared mapping (shm_open(3), memfd_create(2)): no store and no budget are behind it, all of it is
//! in memory, and both sides see stores at once. For an object with a store, see [`SharedMapping`](crate::SharedMapping).

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use omnimap_host::linux::{
    SharedBytes, anonymous_shared, create_shared, open_shared, receive_descriptor, send_descriptor,
    unlink_shared,
};
use omnimap_host::{HostError, Result as HostResult};

pub use omnimap_host::linux::Awaited;

use crate::{Error, Result};

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;

/// Bytes that several processes see and store to, as atomics and copies; never as a slice.
///
/// What is mapped is what the object had when it was mapped: see [`remap`](Self::remap). A child made by fork(2) has the
/// mapping too, and shares the bytes; one that runs a program gets it by name, or is given the descriptor.
///
/// # When others make it shorter
/// Anybody who has the object may truncate it. Checked calls ([`read_at`](Self::read_at), [`write_at`](Self::write_at),
/// [`wait`](Self::wait), …) then answer with an error. An access to [cells](Self::cells) or atomics beyond the new end is
/// SIGBUS, as with any mapping of the kernel's.
///
/// # Example
/// ```
/// use std::sync::atomic::Ordering;
/// use omnimap::shm::{Awaited, SharedMemory};
///
/// # fn main() -> omnimap::Result<()> {
/// # let name = &format!("/omnimap-doc-{}", std::process::id());
/// let ours = SharedMemory::create(name, 4096, 0o600)?;
/// let theirs = SharedMemory::open(name)?; // in another process
/// SharedMemory::unlink(name)?; // it goes with the last who has it
///
/// theirs.write(8, &42u64)?;
/// theirs.atomic_u32(0).map(|ready| ready.store(1, Ordering::Release));
/// theirs.wake(0, u32::MAX)?;
///
/// while ours.atomic_u32(0).map(|ready| ready.load(Ordering::Acquire)) == Some(0) {
///     ours.wait(0, 0, None)?;
/// }
/// assert_eq!(ours.read::<u64>(8)?, 42);
/// assert_eq!(ours.wait(0, 0, None)?, Awaited::Changed); // it is 1 already
/// # Ok(())
/// # }
/// ```
pub struct SharedMemory {
    name: Arc<str>,
    bytes: SharedBytes,
}

impl SharedMemory {
    /// Makes an object of `length` zero bytes under a name that nobody has: `/name`, up to 255 bytes, with no other `/`
    /// (shm_open(3), `O_CREAT | O_EXCL`).
    ///
    /// `mode` (less the umask) says who may open it, as 0o600. It appears with its length: who opens it never finds it empty.
    ///
    /// # Errors
    /// [`Error::errno`] is that of shm_open(3): EEXIST, EACCES, EINVAL, ENAMETOOLONG.
    pub fn create(name: &str, length: u64, mode: u32) -> Result<SharedMemory> {
        Self::named(name, create_shared(name, length, mode))
    }

    /// Opens the object of a name, to be read and stored to (shm_open(3)).
    ///
    /// # Errors
    /// [`Error::errno`] is that of shm_open(3): ENOENT, EACCES, EINVAL, ENAMETOOLONG.
    pub fn open(name: &str) -> Result<SharedMemory> {
        Self::named(name, open_shared(name))
    }

    /// Opens the object of a name, which keeps its length, or makes it (shm_open(3), `O_CREAT`).
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`create`](Self::create), but for ENOENT and EEXIST.
    pub fn open_or_create(name: &str, length: u64, mode: u32) -> Result<SharedMemory> {
        /// Others may make it and take it away again while this looks.
        const TRIES_MAX: u32 = 100;
        for _ in 1..TRIES_MAX {
            match Self::open(name) {
                Err(error) if error.errno() == ENOENT => {}
                other => return other,
            }
            match Self::create(name, length, mode) {
                Err(error) if error.errno() == EEXIST => {}
                other => return other,
            }
        }
        Self::create(name, length, mode)
    }

    /// Takes a name away: nobody can open it any more, and who has the object keeps it (shm_unlink(3)).
    ///
    /// # Errors
    /// [`Error::errno`] is that of shm_unlink(3): ENOENT, EACCES, EINVAL, ENAMETOOLONG.
    pub fn unlink(name: &str) -> Result<()> {
        unlink_shared(name).map_err(|e| refused(name, e))
    }

    /// Makes an object of `length` zero bytes that has no name, to be passed by descriptor or to children made by fork(2)
    /// (memfd_create(2)). `label` is for errors, and for people who look at the process.
    ///
    /// # Errors
    /// As memfd_create(2).
    pub fn anonymous(label: &str, length: u64) -> Result<SharedMemory> {
        Self::named(label, anonymous_shared(label, length))
    }

    /// Maps the object of a descriptor, which must be open for reading and writing.
    ///
    /// # Errors
    /// [`Error::errno`] is that of mmap(2): EACCES; EINVAL for what is neither memory nor a file.
    pub fn from_fd(descriptor: OwnedFd) -> Result<SharedMemory> {
        Self::named("shared memory", Ok(descriptor))
    }

    /// Gives the other side of a socket a descriptor of the object, with one byte of the stream (unix(7), `SCM_RIGHTS`).
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn send(&self, socket: &UnixStream) -> Result<()> {
        send_descriptor(socket.as_fd(), self.bytes.as_fd()).map_err(|e| self.refused(e))
    }

    /// Takes what [`send`](Self::send) has given. It waits for it, or as the socket is set to.
    ///
    /// # Errors
    /// EPIPE if the other side is gone, EBADMSG if it has sent something else; else as recvmsg(2) and
    /// [`from_fd`](Self::from_fd).
    pub fn receive(socket: &UnixStream) -> Result<SharedMemory> {
        Self::named("shared memory", receive_descriptor(socket.as_fd()))
    }

    fn named(name: &str, descriptor: HostResult<OwnedFd>) -> Result<SharedMemory> {
        let bytes = descriptor.and_then(SharedBytes::map).map_err(|e| refused(name, e))?;
        Ok(SharedMemory { name: name.into(), bytes })
    }

    /// What it was opened as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that are mapped.
    pub fn len(&self) -> u64 {
        self.bytes.mapped_bytes()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the object now, which others may have made longer or shorter.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn object_len(&self) -> Result<u64> {
        self.bytes.object_bytes().map_err(|e| self.refused(e))
    }

    /// Makes the object longer, with zeros, or shorter, for everybody, and maps all of it here. Its address may change.
    ///
    /// # Errors
    /// As ftruncate(2) and mmap(2).
    pub fn resize(&mut self, length: u64) -> Result<()> {
        self.bytes.resize(length).map_err(|e| refused(&self.name, e))
    }

    /// Maps all of the object as others have left it. Its address may change.
    ///
    /// # Errors
    /// As mmap(2); the mapping is what it was then.
    pub fn remap(&mut self) -> Result<()> {
        self.bytes.remap().map_err(|e| refused(&self.name, e))
    }

    /// Lets memory be found for a range now, so that later stores to it do not fail for want of it (fallocate(2)).
    ///
    /// # Errors
    /// ENOSPC; [`Error::OutOfRange`].
    pub fn allocate(&self, range: Range<u64>) -> Result<()> {
        let length = range.end.saturating_sub(range.start);
        self.check(range.start, length)?;
        if length == 0 {
            return Ok(());
        }
        self.bytes.allocate(range.start, length).map_err(|e| self.refused(e))
    }

    /// Copies bytes out; touches no mapped address, so it raises no signal.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if not all of them are in the mapping, and in the object still.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let length = into.len() as u64;
        self.check(offset, length)?;
        match self.bytes.read_at(offset, into).map_err(|e| self.refused(e))? {
            count if count as u64 == length => Ok(()),
            _ => Err(self.out_of_range(offset, length, self.object_len()?)),
        }
    }

    /// Copies bytes in, and raises no signal. Others may see some of them before the rest.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if not all of them are in the mapping, and in the object still; ENOSPC if there is no memory
    /// for them. Some may have been written then, from the first on.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        let length = from.len() as u64;
        self.check(offset, length)?;
        let object = self.object_len()?;
        if offset + length > object {
            return Err(self.out_of_range(offset, length, object));
        }
        let count = self.bytes.write_at(offset, from).map_err(|e| self.refused(e))? as u64;
        if count == length {
            return Ok(());
        }
        let object = self.object_len()?;
        if offset + length > object {
            return Err(self.out_of_range(offset, length, object));
        }
        let source = std::io::Error::from_raw_os_error(ENOSPC);
        Err(self.refused(HostError::Call { call: "process_vm_writev", source }))
    }

    crate::typed::typed_access!();

    /// All mapped bytes as atomic cells.
    pub fn cells(&self) -> &[AtomicU8] {
        self.bytes.cells()
    }

    /// Sleeps while the 32-bit number at an offset is `expected`, until somebody [wakes](Self::wake) the offset, at most
    /// `limit` (futex(2), `FUTEX_WAIT`).
    ///
    /// The kernel compares and falls asleep in one step, so that a store and wake in between are not missed. What was waited
    /// for may not have happened when it comes back: look again.
    ///
    /// # Errors
    /// EINVAL if the number is not in the mapping, or not at a multiple of 4 bytes; EFAULT if the object has become shorter.
    pub fn wait(&self, offset: u64, expected: u32, limit: Option<Duration>) -> Result<Awaited> {
        self.bytes.wait(offset, expected, limit).map_err(|e| self.refused(e))
    }

    /// Wakes at most `count` threads, of any process, that [wait](Self::wait) at an offset; gives how many (`FUTEX_WAKE`).
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wake(&self, offset: u64, count: u32) -> Result<u32> {
        self.bytes.wake(offset, count).map_err(|e| self.refused(e))
    }

    fn part(&self, offset: u64, length: usize) -> Option<&[AtomicU8]> {
        let start = usize::try_from(offset).ok()?;
        self.cells().get(start..start.checked_add(length)?)
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.len());
        if inside { Ok(()) } else { Err(self.out_of_range(offset, length, self.len())) }
    }

    fn out_of_range(&self, offset: u64, length: u64, end: u64) -> Error {
        Error::OutOfRange { object: self.name.clone(), offset, length, end }
    }

    fn refused(&self, source: HostError) -> Error {
        refused(&self.name, source)
    }
}

fn refused(name: &str, source: HostError) -> Error {
    Error::Host { object: name.into(), source: Arc::new(source) }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bytes.as_fd()
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("name", &self.name())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
