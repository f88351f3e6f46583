//! brk(2), sbrk(2): a data segment of our own, beside the one of the C library's allocator.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use omnimap_host::Address;
use omnimap_host::linux::{calls, write_own_memory};

use crate::errno::{Errno, Result};
use crate::flags::Prot;
use crate::range::{address, page_bytes, pointer, whole_pages};

/// Held by who moves the end of a segment, and by who forks. Nobody allocates under it: an allocator may lie above.
pub(crate) fn moving() -> MutexGuard<'static, ()> {
    static MOVING: Mutex<()> = Mutex::new(());
    crate::fork::care();
    MOVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A range of addresses whose first part is memory, up to an end that can be moved.
///
/// ```text
/// [ memory, zeros at first ][ reserved, no access             ]
/// ^ start                   ^ end, in whole pages             ^ the most
/// ```
/// Dropping it unmaps all of it.
pub struct DataSegment {
    reserved: Range<usize>,
    /// Changed with [`moving`] held.
    end: AtomicUsize,
}

impl DataSegment {
    /// A segment that is empty and can grow to `bytes_max`, in whole pages. Reserving takes addresses and no memory.
    ///
    /// # Errors
    /// `EINVAL` for 0 bytes; `ENOMEM` if there are no such addresses (`RLIMIT_AS`).
    pub fn reserve(bytes_max: usize) -> Result<DataSegment> {
        let bytes = whole_pages(bytes_max).ok_or(Errno::ENOMEM)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let start = unsafe { calls::mmap(Address(0), bytes, Prot::NONE.0, flags, -1, 0) }?.0;
        Ok(DataSegment { reserved: start..start + bytes, end: AtomicUsize::new(start) })
    }

    /// Where it begins.
    pub fn start(&self) -> *mut c_void {
        pointer(Address(self.reserved.start))
    }

    /// Sets the end (brk(2)). Growing gives zeros, also where there was something before, but for the rest of a page that
    /// may not be written.
    ///
    /// # Errors
    /// `ENOMEM` if the address is not inside what is reserved, or there is no memory (`RLIMIT_DATA`): nothing has changed.
    ///
    /// # Safety
    /// What lies behind the new end is not used any more.
    pub unsafe fn brk(&self, end: *mut c_void) -> Result<()> {
        let _moving = moving();
        // SAFETY: the caller promised it.
        unsafe { self.set(address(end).0) }
    }

    /// Moves the end by `increment` bytes and gives the old one (sbrk(2)); 0 only asks.
    ///
    /// # Errors
    /// As [`brk`](Self::brk).
    ///
    /// # Safety
    /// As there.
    pub unsafe fn sbrk(&self, increment: isize) -> Result<*mut c_void> {
        let _moving = moving();
        let old = self.end.load(Ordering::Relaxed);
        let end = old.checked_add_signed(increment).ok_or(Errno::ENOMEM)?;
        // SAFETY: the caller promised it.
        unsafe { self.set(end) }?;
        Ok(pointer(Address(old)))
    }

    /// With [`moving`] held.
    unsafe fn set(&self, end: usize) -> Result<()> {
        let now = self.end.load(Ordering::Relaxed);
        if end < self.reserved.start || end > self.reserved.end {
            return Err(Errno::ENOMEM);
        }
        let pages = |end: usize| end.next_multiple_of(page_bytes());
        let (before, after) = (pages(now), pages(end));
        if after > before {
            let prot = Prot::READ | Prot::WRITE;
            // SAFETY: inside what is ours, where nothing is used yet.
            unsafe { calls::mprotect(Address(before), after - before, prot.0) }?;
        }
        if after < before {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            // SAFETY: inside what is ours, and the caller promised that it is not used any more.
            unsafe { calls::mmap(Address(after), before - after, Prot::NONE.0, flags, -1, 0) }?;
        }
        if end < now {
            zero(end..after.min(now));
        }
        self.end.store(end, Ordering::Relaxed);
        Ok(())
    }
}

/// Zeros the rest of a page, which is not used any more. If its user has protected it, its bytes stay, as all do in the
/// kernel's segment.
fn zero(mut rest: Range<usize>) {
    static ZEROS: [u8; 4096] = [0; 4096];
    while !rest.is_empty() {
        let part = &ZEROS[..rest.len().min(ZEROS.len())];
        // SAFETY: nobody uses it.
        if unsafe { write_own_memory(Address(rest.start), part) }.is_err() {
            // The call is not allowed (seccomp(2)).
            // SAFETY: inside the segment.
            unsafe { std::ptr::write_bytes(rest.start as *mut u8, 0, part.len()) };
        }
        rest.start += part.len();
    }
}

impl Drop for DataSegment {
    fn drop(&mut self) {
        // SAFETY: ours; who uses it still was told (`brk`) that it ends with the segment.
        let _ = unsafe { calls::munmap(Address(self.reserved.start), self.reserved.len()) };
    }
}

/// The most that the process's segment reserves.
const BYTES_MAX: usize = 1 << 40;
/// The least; with less address space than that there is no segment.
const BYTES_MIN: usize = 1 << 20;

fn segment() -> Result<&'static DataSegment> {
    static SEGMENT: OnceLock<Result<DataSegment>> = OnceLock::new();
    let reserve = || {
        let mut bytes = BYTES_MAX;
        loop {
            match DataSegment::reserve(bytes) {
                Err(_) if bytes > BYTES_MIN => bytes /= 2,
                outcome => return outcome,
            }
        }
    };
    // A child forked by another thread meanwhile would find it half made.
    let _moving = moving();
    SEGMENT.get_or_init(reserve).as_ref().map_err(|error| *error)
}

/// Sets the end of the process's [`DataSegment`] (brk(2)). It is not the C library's, whose allocator stays undisturbed.
///
/// # Errors
/// As [`DataSegment::brk`].
///
/// # Safety
/// As there.
///
/// # Example
/// ```
/// use omnimap_posix::{brk, sbrk};
///
/// # fn main() -> Result<(), omnimap_posix::Errno> {
/// // SAFETY: nothing is used behind the new ends.
/// unsafe {
///     let start = sbrk(0)?.cast::<u8>();
///     brk(start.add(10_000).cast())?;
///     start.add(9_999).write(1);
///     assert_eq!(sbrk(-10_000)?, start.add(10_000).cast());
/// }
/// # Ok(())
/// # }
/// ```
pub unsafe fn brk(end: *mut c_void) -> Result<()> {
    // SAFETY: the caller promised it.
    unsafe { segment()?.brk(end) }
}

/// Moves the end of the process's [`DataSegment`] by `increment` bytes and gives the old one; 0 only asks (sbrk(2)).
///
/// # Errors
/// As [`DataSegment::brk`].
///
/// # Safety
/// As there.
pub unsafe fn sbrk(increment: isize) -> Result<*mut c_void> {
    // SAFETY: the caller promised it.
    unsafe { segment()?.sbrk(increment) }
}
