//! Mappings that the kernel serves by itself, owned: of anonymous memory, files, devices.

use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use super::reservation::Part;
use super::{calls, own_memory, page_bytes};
use crate::{Address, HostError, Protection, Result, Sharing};

/// What is to be mapped.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Zeros.
    Anonymous,
    /// What a descriptor is of, from an offset in bytes on, which is a multiple of the page size.
    File(BorrowedFd<'a>, u64),
}

/// What is wished for besides (mmap(2), madvise(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// All of it is brought into memory, best effort (`MAP_POPULATE`).
    pub populate: bool,
    /// It is kept there, as far as the process may lock so much (`MAP_LOCKED`).
    pub lock: bool,
    /// Large pages where that is possible (`MADV_HUGEPAGE`), which never fails.
    pub huge: bool,
    /// No swap is set aside (`MAP_NORESERVE`).
    pub no_reserve: bool,
    /// Addresses below 2 GiB (`MAP_32BIT`).
    pub below_2gib: bool,
    /// A forked child finds zeros (`MADV_WIPEONFORK`); private anonymous memory only.
    pub wipe_on_fork: bool,
}

/// A mapping that is asked for.
#[derive(Debug)]
pub struct KernelRequest<'a> {
    /// Its length.
    pub bytes: u64,
    /// What it shows.
    pub source: Source<'a>,
    /// Who sees stores.
    pub sharing: Sharing,
    /// What accesses it allows.
    pub protection: Protection,
    /// What else.
    pub wishes: Wishes,
    /// Where: in a part of a reservation of as many pages, or anywhere.
    pub part: Option<Part>,
}

/// A mapping of the kernel's, unmapped when it is dropped. A forked child has it too.
///
/// Nothing of it is borrowed but by who knows better what it shows. Ranges are in bytes from its start.
#[derive(Debug)]
pub struct KernelRange {
    start: NonNull<u8>,
    bytes: usize,
    sharing: Sharing,
    protection: Protection,
    part: Option<Part>,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for KernelRange {}
// SAFETY: all that `&self` does are system calls.
unsafe impl Sync for KernelRange {}

impl KernelRange {
    /// Maps what is asked for.
    ///
    /// # Errors
    /// The kernel's (mmap(2)): EINVAL for a length of 0 or an offset that is not at a page, EACCES, EAGAIN where too much
    /// would be locked, ENODEV, ENOMEM, …
    pub fn map(request: KernelRequest<'_>) -> Result<KernelRange> {
        let KernelRequest { bytes, source, sharing, protection, wishes, mut part } = request;
        let bytes = usize::try_from(bytes).map_err(|_| refused("mmap", libc::ENOMEM))?;
        let (fd, offset) = match source {
            Source::Anonymous => (-1, 0),
            Source::File(fd, offset) => (fd.as_raw_fd(), offset as i64),
        };
        let mut flags = match sharing {
            Sharing::Shared => libc::MAP_SHARED,
            Sharing::Private => libc::MAP_PRIVATE,
        };
        for (wished, flag) in [
            (fd == -1, libc::MAP_ANONYMOUS),
            (wishes.populate, libc::MAP_POPULATE),
            (wishes.lock, libc::MAP_LOCKED),
            (wishes.no_reserve, libc::MAP_NORESERVE),
            (wishes.below_2gib && part.is_none(), libc::MAP_32BIT),
        ] {
            flags |= if wished { flag } else { 0 };
        }
        let map = |address: Address, how: i32| {
            // SAFETY: without MAP_FIXED nothing is replaced, and with it a part of a reservation, which is ours.
            unsafe { calls::mmap(address, bytes, bits_of(protection), flags | how, fd, offset) }
                .map_err(|errno| refused("mmap", errno))
        };
        let start = match &mut part {
            None => map(Address(0), 0)?,
            Some(part) if bytes.next_multiple_of(page_bytes() as usize) != part.bytes() => {
                return Err(refused("mmap", libc::EINVAL));
            }
            Some(part) => part.fill(|start| map(start, libc::MAP_FIXED))?,
        };
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut(start.0))
            .ok_or_else(|| refused("mmap", libc::ENOMEM))?;
        let range = KernelRange { start, bytes, sharing, protection, part };
        if wishes.huge {
            // SAFETY: a hint. A kernel without large pages says EINVAL.
            let _ = unsafe { calls::madvise(range.start(), range.mapped_bytes(), libc::MADV_HUGEPAGE) };
        }
        if wishes.wipe_on_fork {
            range.advise(0..bytes, libc::MADV_WIPEONFORK)?;
        }
        Ok(range)
    }

    /// Where it begins; page-aligned.
    pub fn start(&self) -> Address {
        Address(self.start.as_ptr().expose_provenance())
    }

    /// Its first byte. What may be done with it depends on what it shows.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its length in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes; it always has.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Who sees stores.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    fn mapped_bytes(&self) -> usize {
        self.bytes.next_multiple_of(page_bytes() as usize)
    }

    /// The whole pages of a range, if it is inside.
    fn pages(&self, range: &Range<usize>) -> Result<(Address, usize)> {
        if range.start > range.end || range.end > self.bytes {
            return Err(refused("a range that is not inside the mapping", libc::EINVAL));
        }
        let page = page_bytes() as usize;
        let start = range.start - range.start % page;
        Ok((Address(self.start().0 + start), range.end.next_multiple_of(page) - start))
    }

    /// Makes two mappings of one, at a page inside it: gives what begins there, and keeps the rest.
    ///
    /// # Errors
    /// EINVAL if that is not at a page, or at an end; nothing has changed then.
    pub fn split_off(&mut self, at: usize) -> Result<KernelRange> {
        if at == 0 || at >= self.bytes || !at.is_multiple_of(page_bytes() as usize) {
            return Err(refused("splitting a mapping", libc::EINVAL));
        }
        let part = self.part.as_mut().map(|part| part.split_off(at));
        let (sharing, protection) = (self.sharing, self.protection);
        // SAFETY: `at` is inside the mapping.
        let start = unsafe { self.start.add(at) };
        let bytes = self.bytes - at;
        self.bytes = at;
        Ok(KernelRange { start, bytes, sharing, protection, part })
    }

    /// Gives an advice that changes no byte (madvise(2)).
    fn advise(&self, range: Range<usize>, advice: i32) -> Result<()> {
        let (start, bytes) = self.pages(&range)?;
        // SAFETY: the callers give no advice that changes bytes here and now.
        unsafe { calls::madvise(start, bytes, advice) }.map_err(|errno| refused("madvise", errno))
    }

    /// Says that a range will be read at random places, in order, soon, not soon, or in no known way (madvise(2)).
    ///
    /// # Errors
    /// EINVAL if it is not inside the mapping.
    pub fn expect(&self, range: Range<usize>, expected: Expected) -> Result<()> {
        self.advise(
            range,
            match expected {
                Expected::Anything => libc::MADV_NORMAL,
                Expected::Random => libc::MADV_RANDOM,
                Expected::Sequential => libc::MADV_SEQUENTIAL,
                Expected::Soon => libc::MADV_WILLNEED,
                // Not DONTNEED, which drops what was stored to private memory.
                Expected::NotSoon => libc::MADV_COLD,
            },
        )
    }

    /// Lets the program touch a range no more: an access is SIGSEGV.
    pub(super) fn forbid(&self, range: Range<usize>) -> Result<()> {
        let (start, bytes) = self.pages(&range)?;
        // SAFETY: the callers borrow nothing of the range.
        unsafe { calls::mprotect(start, bytes, libc::PROT_NONE) }.map_err(|errno| refused("mprotect", errno))
    }

    /// Locks a range (mlock(2)): brought into memory, and kept there.
    ///
    /// # Errors
    /// ENOMEM above the limit of the process (RLIMIT_MEMLOCK); EPERM where it may lock nothing.
    pub fn lock(&self, range: Range<usize>) -> Result<()> {
        let (start, bytes) = self.pages(&range)?;
        lock(start, bytes)
    }

    /// Takes all locks of a range back.
    ///
    /// # Errors
    /// EINVAL if it is not inside the mapping.
    pub fn unlock(&self, range: Range<usize>) -> Result<()> {
        let (start, bytes) = self.pages(&range)?;
        unlock(start, bytes)
    }

    /// Which pages of a range are in memory (mincore(2)), from the one on that has its first byte.
    ///
    /// # Errors
    /// EINVAL if it is not inside the mapping.
    pub fn resident(&self, range: Range<usize>) -> Result<Vec<bool>> {
        let (start, bytes) = self.pages(&range)?;
        let mut pages = vec![0; bytes / page_bytes() as usize];
        // SAFETY: only asks.
        unsafe { calls::mincore(start, bytes, &mut pages) }.map_err(|errno| refused("mincore", errno))?;
        Ok(pages.into_iter().map(|page| page & 1 != 0).collect())
    }

    /// Makes what was stored to a shared mapping durable (`MS_SYNC`), or begins to write it (`MS_ASYNC`).
    ///
    /// # Errors
    /// As msync(2): EIO, ENOSPC.
    pub fn sync(&self, range: Range<usize>, wait: Wait) -> Result<()> {
        let (start, bytes) = self.pages(&range)?;
        let flags = if wait == Wait::Yes { libc::MS_SYNC } else { libc::MS_ASYNC };
        // SAFETY: nothing is invalidated.
        unsafe { calls::msync(start, bytes, flags) }.map_err(|errno| refused("msync", errno))
    }

    /// All bytes as atomic cells, if they are shared and can be stored to: then they are borrowed in no other way.
    pub fn cells(&self) -> Option<&[AtomicU8]> {
        let Protection { read, write, .. } = self.protection;
        let borrowed = self.sharing == Sharing::Shared && read && write;
        // SAFETY: readable and writable until `self` is dropped; what others do to a shared mapping is stores by others.
        borrowed.then(|| unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes) })
    }

    /// Copies bytes out; gives how many there were before one that cannot be read, where an access would raise SIGBUS.
    ///
    /// The kernel does it, at the mapped addresses (process_vm_readv(2)), so it is what the mapping shows, and no signal.
    ///
    /// # Errors
    /// EINVAL if the range is not inside; EPERM or ENOSYS where the call is not allowed (old seccomp profiles of containers).
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> Result<usize> {
        self.pages(&(offset..offset.saturating_add(into.len())))?;
        own_memory::read(Address(self.start().0 + offset), into)
    }

    /// Copies bytes in; gives how many before one that cannot be stored to.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<usize> {
        self.pages(&(offset..offset.saturating_add(from.len())))?;
        // SAFETY: a mapping that its only holder, who is borrowed mutably, lets be stored to, or one that is shared, whose
        // bytes are cells.
        unsafe { own_memory::write_own_memory(Address(self.start().0 + offset), from) }
    }
}

impl Drop for KernelRange {
    fn drop(&mut self) {
        if self.part.is_none() {
            // SAFETY: ours, and all borrows of it end before it is dropped.
            let _ = unsafe { calls::munmap(self.start(), self.mapped_bytes()) };
        } // Else the part puts nothing in its place.
    }
}

/// How a range will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing is known.
    Anything,
    /// Single pages.
    Random,
    /// From the beginning to the end.
    Sequential,
    /// Soon: it is fetched.
    Soon,
    /// Not soon: it may leave memory first.
    NotSoon,
}

/// Whether a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it is done.
    Yes,
    /// It is only begun.
    No,
}

/// Locks addresses (mlock(2)), whoever's they are: no byte changes.
///
/// # Errors
/// ENOMEM above the limit of the process (RLIMIT_MEMLOCK), or where nothing is mapped; EPERM.
pub fn lock(start: Address, bytes: usize) -> Result<()> {
    // SAFETY: locking changes no byte.
    unsafe { calls::mlock2(start, bytes, 0) }.map_err(|errno| refused("mlock", errno))
}

/// Takes all locks of addresses back (munlock(2)).
///
/// # Errors
/// ENOMEM where nothing is mapped.
pub fn unlock(start: Address, bytes: usize) -> Result<()> {
    // SAFETY: unlocking changes no byte.
    unsafe { calls::munlock(start, bytes) }.map_err(|errno| refused("munlock", errno))
}

/// Private anonymous memory, as a slice.
#[derive(Debug)]
pub struct PrivatePages {
    range: KernelRange,
    /// Bytes at the beginning that cannot be touched.
    guard: usize,
}

impl PrivatePages {
    /// Maps zeros that nobody else has.
    ///
    /// # Errors
    /// As [`KernelRange::map`].
    pub fn new(bytes: u64, wishes: Wishes, part: Option<Part>) -> Result<PrivatePages> {
        Self::of(bytes, Source::Anonymous, wishes, part)
    }

    /// The same, from /dev/zero (mem(4)): the older way.
    ///
    /// # Errors
    /// As [`new`](Self::new); ENODEV if the descriptor is of something else.
    pub fn of_zero_device(device: BorrowedFd<'_>, bytes: u64, wishes: Wishes) -> Result<PrivatePages> {
        let found = rustix::fs::fstat(device).map_err(|e| refused("fstat", e.raw_os_error()))?;
        let is_zero = rustix::fs::FileType::from_raw_mode(found.st_mode)
            == rustix::fs::FileType::CharacterDevice
            && found.st_rdev == rustix::fs::makedev(1, 5);
        if !is_zero {
            return Err(refused("mapping what is not /dev/zero", libc::ENODEV));
        }
        Self::of(bytes, Source::File(device, 0), wishes, None)
    }

    fn of(bytes: u64, source: Source<'_>, wishes: Wishes, part: Option<Part>) -> Result<PrivatePages> {
        let (sharing, protection) = (Sharing::Private, Protection::READ_WRITE);
        let request = KernelRequest { bytes, source, sharing, protection, wishes, part };
        Ok(PrivatePages { range: KernelRange::map(request)?, guard: 0 })
    }

    /// With pages at the beginning, of which `guard` has some bytes, that cannot be touched: an access is SIGSEGV.
    ///
    /// # Errors
    /// EINVAL if that is not inside.
    pub fn guarded(mut self, guard: usize) -> Result<PrivatePages> {
        let guard = guard.next_multiple_of(page_bytes() as usize);
        self.range.forbid(0..guard)?;
        self.guard = guard;
        Ok(self)
    }

    /// Bytes at the beginning that cannot be touched, and are not part of the slice.
    pub fn guard(&self) -> usize {
        self.guard
    }

    /// Its mapping.
    pub fn range(&self) -> &KernelRange {
        &self.range
    }

    /// Gives the memory of pages back that lie wholly in a range: they are zeros again.
    ///
    /// # Errors
    /// EINVAL if the range is not inside, or something of it is locked.
    pub fn discard(&mut self, range: Range<usize>) -> Result<()> {
        let page = page_bytes() as usize;
        let start = range.start.next_multiple_of(page);
        let end = range.end - range.end % page;
        if start < end {
            let pages = start + self.guard..end + self.guard;
            self.range.advise(pages, libc::MADV_DONTNEED)?;
        }
        Ok(())
    }

    /// Makes two of one, as [`KernelRange::split_off`].
    ///
    /// # Errors
    /// As there.
    pub fn split_off(&mut self, at: usize) -> Result<PrivatePages> {
        Ok(PrivatePages { range: self.range.split_off(self.guard + at)?, guard: 0 })
    }

    /// The first byte behind the guard, and how many there are.
    fn behind_guard(&self) -> (*mut u8, usize) {
        (self.range.as_ptr().wrapping_add(self.guard), self.range.len() - self.guard)
    }
}

impl Deref for PrivatePages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let (start, bytes) = self.behind_guard();
        // SAFETY: readable until `self` is dropped. It is private memory of ours, so only borrows of `self` reach it;
        // `discard` needs it exclusively.
        unsafe { std::slice::from_raw_parts(start, bytes) }
    }
}

impl DerefMut for PrivatePages {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, bytes) = self.behind_guard();
        // SAFETY: as above, and writable; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }
}

fn bits_of(protection: Protection) -> i32 {
    let bit = |on: bool, bit: i32| if on { bit } else { 0 };
    bit(protection.read, libc::PROT_READ)
        | bit(protection.write, libc::PROT_WRITE)
        | bit(protection.execute, libc::PROT_EXEC)
}

fn refused(call: &'static str, errno: i32) -> HostError {
    HostError::Call { call, source: std::io::Error::from_raw_os_error(errno) }
}
