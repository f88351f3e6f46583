//! The kernel's page cache of a file: which pages are in it, bringing them in, dropping and locking them.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use super::page_bytes;
use crate::Result;
use crate::error::During;

/// A part of a file, mapped only so that the kernel can be asked about its pages and told to lock them.
///
/// No byte of it is ever touched here: so it raises no signal, whatever becomes of the file, and keeps no page from
/// being dropped (but for [`lock`](Self::lock)).
pub struct FilePages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, and only its address is used.
unsafe impl Send for FilePages {}
// SAFETY: as above.
unsafe impl Sync for FilePages {}

impl FilePages {
    /// Maps `length` bytes from `offset` on, which is a multiple of the page's size.
    ///
    /// # Errors
    /// As mmap(2): a length of 0 or an offset inside a page is EINVAL, a file that cannot be mapped ENODEV.
    pub fn map(file: &File, offset: u64, length: u64) -> Result<FilePages> {
        let too_long = |_| rustix::io::Errno::NOMEM;
        let bytes = usize::try_from(length).map_err(too_long).during("mmap")?;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                file.as_fd(),
                offset,
            )
        }
        .during("mmap")?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM).during("mmap")?;
        Ok(FilePages { start, bytes })
    }

    /// How many pages they are.
    pub fn count(&self) -> u64 {
        (self.bytes as u64).div_ceil(page_bytes())
    }

    /// Whether each of some pages, counted from the first of these, is in memory (mincore(2)). Those that are not among
    /// them are left out.
    ///
    /// The kernel tells it only to who owns the file or may write to it; to others it says that all are.
    ///
    /// # Errors
    /// As mincore(2).
    pub fn resident(&self, pages: Range<u64>) -> Result<Vec<bool>> {
        let end = pages.end.min(self.count());
        let start = pages.start.min(end);
        let mut told = vec![0u8; (end - start) as usize];
        // SAFETY: `start` is at most the number of pages, so this is inside the mapping or at its end.
        let from = unsafe { self.start.as_ptr().add((start * page_bytes()) as usize) };
        let bytes = told.len() * page_bytes() as usize;
        // SAFETY: the pages are mapped, and `told` has a byte for each; mincore(2) writes there alone.
        let answer = unsafe { libc::mincore(from.cast(), bytes, told.as_mut_ptr()) };
        if answer != 0 {
            return Err(std::io::Error::last_os_error()).during("mincore");
        }
        Ok(told.into_iter().map(|page| page & 1 != 0).collect())
    }

    /// Brings all of them into memory and keeps them there while it lives (mlock(2)).
    ///
    /// # Errors
    /// As mlock(2): EPERM or ENOMEM if RLIMIT_MEMLOCK does not allow it, ENOMEM if a page cannot be read.
    pub fn lock(&self) -> Result<()> {
        // SAFETY: the range is this mapping; locking changes no byte.
        unsafe { rustix::mm::mlock(self.start.as_ptr().cast(), self.bytes) }.during("mlock")
    }
}

impl Drop for FilePages {
    fn drop(&mut self) {
        // SAFETY: ours, and nothing borrows from it. The locks go with it (munmap(2)).
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Drops the pages of a part of a file from the kernel's page cache, but for those that are dirty, locked or in somebody's
/// page tables (posix_fadvise(2), `POSIX_FADV_DONTNEED`).
///
/// Of a page of which only a part is in the range, nothing is dropped, unless that is the file's end.
///
/// # Errors
/// As posix_fadvise(2).
pub fn evict_cached(file: &File, range: Range<u64>) -> Result<()> {
    let Some(length) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) else {
        return Ok(()); // To the kernel, 0 bytes are all that there are.
    };
    rustix::fs::fadvise(file, range.start, Some(length), rustix::fs::Advice::DontNeed)
        .during("posix_fadvise(DONTNEED)")
}
