//! Memory that processes share: a kernel mapping of a memfd or of an object in /dev/shm.
//!
//! No pager is behind it: all of it is in memory (or in the kernel's swap), and everybody who has it sees stores at once.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

use super::figures::{ObjectKind, Published};
use super::memory::{SHARED_PREFIX, memfd_name};
use super::own_memory;
use super::truncate::truncate;
use crate::error::During;
use crate::{Address, Result};

/// What [`SharedBytes::wait`] waited for, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Somebody has called wake. As everywhere, that may be for another reason than the one hoped for: look again.
    Woken,
    /// The number was another one already.
    Changed,
    /// The time was up.
    TimedOut,
}

/// An object's bytes, mapped to be stored to, and its descriptor. A forked child has the mapping too.
pub struct SharedBytes {
    file: File,
    start: NonNull<u8>,
    bytes: usize,
    /// For who looks from outside.
    _figures: Option<Published>,
}

// SAFETY: the mapping belongs to the process, not to a thread; its bytes are handed out as atomics only.
unsafe impl Send for SharedBytes {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes {}

impl SharedBytes {
    /// Maps all that there is of an object now.
    ///
    /// # Errors
    /// EINVAL for a descriptor of something else than a file; EACCES for one that is not open for reading and writing.
    pub fn map(descriptor: OwnedFd) -> Result<SharedBytes> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&descriptor).during("fstat")?.st_mode);
        if kind != FileType::RegularFile {
            return Err(Errno::INVAL).during("mapping a descriptor that is of no memory and no file");
        }
        let file = File::from(descriptor);
        let (start, bytes) = map(&file)?;
        let figures = Published::new(&file, ObjectKind::Kernel);
        Ok(SharedBytes { file, start, bytes, _figures: figures })
    }

    /// Bytes that are mapped: of what the object was when that was done.
    pub fn mapped_bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Bytes of the object now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn object_bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().during("fstat")?.len())
    }

    /// The mapped bytes. Touching one beyond the object's end, or for which there is no memory, raises SIGBUS.
    pub fn cells(&self) -> &[AtomicU8] {
        // SAFETY: mapped readable and writable until `self` is dropped or mapped anew, which needs it exclusively; nobody
        // in this process borrows the bytes but as cells, and what other processes do is stores by others.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes) }
    }

    /// Makes the object longer, with zeros, or shorter, and maps all of it.
    ///
    /// # Errors
    /// As ftruncate(2) and mmap(2).
    pub fn resize(&mut self, length: u64) -> Result<()> {
        truncate(&self.file, length).during("ftruncate")?;
        self.remap()
    }

    /// Maps all that there is of the object now; the address may change.
    ///
    /// # Errors
    /// As mmap(2); the old mapping stays then.
    pub fn remap(&mut self) -> Result<()> {
        let (start, bytes) = map(&self.file)?;
        self.unmap();
        (self.start, self.bytes) = (start, bytes);
        Ok(())
    }

    /// Lets memory be found for a range now, so that no store to it fails for want of it (fallocate(2)).
    ///
    /// # Errors
    /// ENOSPC.
    pub fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, length).during("fallocate")
    }

    /// Copies bytes out; gives how many there were up to the object's end. Touches no mapped address.
    ///
    /// # Errors
    /// As pread(2).
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).during("pread"),
            }
        }
        Ok(done)
    }

    /// Copies bytes in; gives how many went in before the object's (or the mapping's) end, or before memory ran out.
    ///
    /// The kernel does it, at the mapped address: unlike pwrite(2) that does not make an object longer that somebody else
    /// has just made shorter, and unlike a store it raises no signal (process_vm_writev(2)).
    ///
    /// # Errors
    /// EPERM or ENOSYS where the call is not allowed (old seccomp profiles of containers).
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<usize> {
        let Some(into) = usize::try_from(offset).ok().and_then(|at| self.cells().get(at..)) else {
            return Ok(0);
        };
        let count = from.len().min(into.len());
        let to = Address(into.as_ptr() as usize);
        // SAFETY: in the mapping, whose bytes are cells that anybody may store to.
        unsafe { own_memory::write_own_memory(to, &from[..count]) }
    }

    /// Sleeps while the number at an offset is `expected`, until [`wake`](Self::wake), at most `limit` (futex(2)).
    ///
    /// # Errors
    /// EINVAL if no 4 aligned bytes of the mapping are there; EFAULT if the object is shorter.
    pub fn wait(&self, offset: u64, expected: u32, limit: Option<Duration>) -> Result<Awaited> {
        let cell = self.cell(offset)?;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            // A time that the kernel cannot count to is none.
            let left = left.and_then(|left| rustix::time::Timespec::try_from(left).ok());
            match futex::wait(cell, futex::Flags::empty(), expected, left.as_ref()) {
                Ok(()) => return Ok(Awaited::Woken),
                Err(Errno::AGAIN) => return Ok(Awaited::Changed),
                Err(Errno::TIMEDOUT) => return Ok(Awaited::TimedOut),
                // A signal was handled on this thread.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).during("futex(FUTEX_WAIT)"),
            }
        }
    }

    /// Wakes at most `count` of those that wait at an offset, in all processes; gives how many that were.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wake(&self, offset: u64, count: u32) -> Result<u32> {
        // The kernel counts in `int`, and wakes one where it is told less.
        let count = count.min(i32::MAX as u32);
        let cell = self.cell(offset)?;
        if count == 0 {
            return Ok(0);
        }
        let woken = futex::wake(cell, futex::Flags::empty(), count).during("futex(FUTEX_WAKE)")?;
        Ok(woken as u32)
    }

    fn cell(&self, offset: u64) -> Result<&AtomicU32> {
        usize::try_from(offset)
            .ok()
            .and_then(|at| self.cells().get(at..at.checked_add(4)?))
            .and_then(crate::as_u32)
            .and_then(|words| words.first())
            .ok_or(Errno::INVAL)
            .during("futex (on 4 bytes of the memory, at a multiple of 4)")
    }

    fn unmap(&mut self) {
        if self.bytes > 0 {
            // SAFETY: ours, and nothing borrows from it, for `self` is borrowed exclusively.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

impl AsFd for SharedBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedBytes {
    fn drop(&mut self) {
        self.unmap();
    }
}

fn map(file: &File) -> Result<(NonNull<u8>, usize)> {
    let length = file.metadata().during("fstat")?.len();
    let bytes = usize::try_from(length).map_err(|_| Errno::NOMEM).during("mmap")?;
    if bytes == 0 {
        return Ok((NonNull::dangling(), 0));
    }
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
    let start = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file.as_fd(), 0)
    }
    .during("mmap")?;
    Ok((NonNull::new(start.cast()).ok_or(Errno::NOMEM).during("mmap")?, bytes))
}

/// Where shm_open(3) of the C libraries looks.
const DIRECTORY: &str = "/dev/shm";
const NAME_BYTES_MAX: usize = 255;

/// The path of a name as shm_open(3) takes it: a `/`, which may be missing, and a file's name.
fn path_of(name: &str) -> Result<String> {
    let file = name.strip_prefix('/').unwrap_or(name);
    if file.len() > NAME_BYTES_MAX {
        return Err(Errno::NAMETOOLONG).during("shm_open");
    }
    if matches!(file, "" | "." | "..") || file.contains(['/', '\0']) {
        return Err(Errno::INVAL).during("shm_open (a name is a / and what a file may be called)");
    }
    Ok(format!("{DIRECTORY}/{file}"))
}

/// Opens the shared memory object of a name, for reading and writing.
///
/// # Errors
/// As shm_open(3): ENOENT, EACCES, EINVAL, ENAMETOOLONG.
pub fn open_shared(name: &str) -> Result<OwnedFd> {
    // NONBLOCK: what lies there may be no memory.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    rustix::fs::openat(CWD, path_of(name)?, flags, Mode::empty()).during("shm_open")
}

/// Makes a shared memory object under a name that nobody has, of `length` zero bytes; `mode` (less the umask) says who
/// may open it.
///
/// Others find it with its length at once: it is made without a name, and then given one.
///
/// # Errors
/// As shm_open(3), with O_EXCL: EEXIST, EACCES, EINVAL, ENAMETOOLONG.
pub fn create_shared(name: &str, length: u64, mode: u32) -> Result<OwnedFd> {
    let path = path_of(name)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let descriptor =
        rustix::fs::openat(CWD, DIRECTORY, flags, Mode::from_raw_mode(mode & 0o777)).during("shm_open")?;
    truncate(&descriptor, length).during("ftruncate")?;
    // linkat(2) by descriptor needs a capability, by this path it does not.
    let itself = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    rustix::fs::linkat(CWD, itself, CWD, path, AtFlags::SYMLINK_FOLLOW).during("shm_open")?;
    // Opened by its name, it is called so in /proc too. Somebody may have taken the name meanwhile, or the mode forbids it.
    let by_name = open_shared(name).ok().filter(|by_name| is_same(by_name, &descriptor));
    Ok(by_name.unwrap_or(descriptor))
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    identity(one).is_ok_and(|one| identity(other) == Ok(one))
}

/// Takes a name away; who has the object keeps it (shm_unlink(3)).
///
/// # Errors
/// As shm_unlink(3): ENOENT, EACCES, EINVAL, ENAMETOOLONG.
pub fn unlink_shared(name: &str) -> Result<()> {
    rustix::fs::unlink(path_of(name)?).during("shm_unlink")
}

/// Makes memory without a name in /dev/shm, of `length` zero bytes (memfd_create(2)); `name` is for people who look.
///
/// # Errors
/// As memfd_create(2).
pub fn anonymous_shared(name: &str, length: u64) -> Result<OwnedFd> {
    let name = memfd_name(SHARED_PREFIX, name);
    let descriptor = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).during("memfd_create")?;
    truncate(&descriptor, length).during("ftruncate")?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::path_of;

    #[test]
    fn names_are_those_of_shm_open() {
        assert_eq!(path_of("/name").unwrap(), "/dev/shm/name");
        assert_eq!(path_of("name").unwrap(), "/dev/shm/name");
        assert_eq!(path_of(&"x".repeat(255)).unwrap().len(), "/dev/shm/".len() + 255);
        for wrong in ["", "/", "/.", "..", "//a", "/a/b", "a\0b"] {
            assert_eq!(path_of(wrong).unwrap_err().errno(), libc::EINVAL, "{wrong:?}");
        }
        assert_eq!(path_of(&"x".repeat(256)).unwrap_err().errno(), libc::ENAMETOOLONG);
    }
}
