//! The kernel's own mappings of a file, to compare with: no pager, no budget, SIGBUS when the file shrinks.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, MsyncFlags, ProtFlags};

use crate::Result;
use crate::error::During;

/// A read-only shared kernel mapping of a whole file; its bytes are copied out, never borrowed.
///
/// The file may be changed by others at any time, so no `&[u8]` of it is handed out.
pub struct KernelFile {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, and is only read, but for `KernelFileMut`, which needs `&mut` to write.
unsafe impl Send for KernelFile {}
// SAFETY: as above.
unsafe impl Sync for KernelFile {}

impl KernelFile {
    /// Maps the file as it is now; an empty file has an empty mapping.
    pub fn map(file: &File) -> Result<KernelFile> {
        Self::map_as(file, ProtFlags::READ)
    }

    fn map_as(file: &File, protection: ProtFlags) -> Result<KernelFile> {
        let bytes = file.metadata().during("fstat")?.len() as usize;
        if bytes == 0 {
            return Ok(KernelFile { start: NonNull::dangling(), bytes });
        }
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file.as_fd(), 0)
        }
        .during("mmap")?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM).during("mmap")?;
        Ok(KernelFile { start, bytes })
    }

    /// Length in bytes when it was mapped.
    pub fn len(&self) -> u64 {
        self.bytes as u64
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Tells the kernel that accesses will be at random places, so that it reads single pages (madvise(2)).
    pub fn expect_random(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is this mapping; RANDOM changes speed only.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.bytes, Advice::Random) }
            .during("madvise(RANDOM)")
    }

    /// Copies bytes out; the part beyond the end is left alone. Returns how many were copied.
    ///
    /// Raises SIGBUS if the file has been truncated below: that is what the kernel's mapping is like.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> usize {
        let offset = offset.min(self.len()) as usize;
        let count = into.len().min(self.bytes - offset);
        // SAFETY: `offset` is at most the mapping's length.
        let from = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: `from + count` is inside the mapping, `into` has room for `count`, and they do not overlap, for
        // nobody can hold a `&mut` into this mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), count) };
        count
    }
}

/// A shared kernel mapping of a whole file that is stored to; bytes are copied in and out, never borrowed.
pub struct KernelFileMut {
    mapping: KernelFile,
}

impl KernelFileMut {
    /// Maps the file, which must be open for reading and writing, as it is now.
    pub fn map(file: &File) -> Result<KernelFileMut> {
        let mapping = KernelFile::map_as(file, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(KernelFileMut { mapping })
    }

    /// Copies bytes in; what would lie beyond the end is left out. Returns how many were copied.
    ///
    /// Raises SIGBUS if the file has been truncated below, or has no room on its disk.
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> usize {
        let offset = offset.min(self.len()) as usize;
        let count = from.len().min(self.bytes - offset);
        // SAFETY: `offset` is at most the mapping's length.
        let into = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: `into + count` is inside the mapping, which is writable; `from` has `count` bytes, and they do not
        // overlap, for nobody can hold a slice of this mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, count) };
        count
    }

    /// Makes everything that was stored durable (msync(2), `MS_SYNC`).
    pub fn sync(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is this mapping; nothing is invalidated.
        unsafe { rustix::mm::msync(self.start.as_ptr().cast(), self.bytes, MsyncFlags::SYNC) }
            .during("msync(MS_SYNC)")
    }
}

impl Deref for KernelFileMut {
    type Target = KernelFile;
    fn deref(&self) -> &KernelFile {
        &self.mapping
    }
}

/// Writes a file's dirty pages and drops all of it from the kernel's page cache, as far as nobody has it mapped.
pub fn drop_cached(file: &File) -> Result<()> {
    rustix::fs::fdatasync(file).during("fdatasync")?;
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).during("posix_fadvise(DONTNEED)")
}

impl Drop for KernelFile {
    fn drop(&mut self) {
        if !self.is_empty() {
            // SAFETY: ours, and nothing borrows from it.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}
