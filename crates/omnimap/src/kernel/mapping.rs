//! A file or a device, as the kernel maps it.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use omnimap_core::{Error, Result};
use omnimap_host::linux::{KernelRange, KernelRequest, Source, Wait};
use omnimap_host::{Protection, Sharing};
use omnimap_store::StoreError;
use rustix::fs::OFlags;

use super::{common, expected, inside, residency};
use crate::place::refused;
use crate::{Advice, MapOptions, Residency, SyncMode};

/// A file or a device, as the kernel maps it.
///
/// Others may change a file at any time, so there is no slice of it. [`read_at`](Self::read_at) and
/// [`write_at`](Self::write_at) copy, and answer with an error where the file is shorter than it was;
/// [`as_ptr`](Self::as_ptr) is the mapping itself, for unsafe code that knows what others do.
///
/// # Example
/// ```
/// use omnimap::MapOptions;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let file = tempfile::NamedTempFile::new()?;
/// # std::fs::write(file.path(), b"abc")?;
/// # let path = file.path();
/// let mut mapping = MapOptions::new().kernel_open_mut(path)?;
/// mapping.write_at(1, b"d")?;
/// assert_eq!(std::fs::read(path)?, b"adc");
///
/// std::fs::write(path, b"")?;
/// assert!(mapping.read_at(0, &mut [0]).is_err(), "and no SIGBUS");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct KernelMapping {
    name: Arc<str>,
    file: File,
    offset: u64,
    range: KernelRange,
    writable: bool,
}

common!(KernelMapping);

impl MapOptions {
    /// Maps a local file or a device as the kernel does, to be read (`MAP_SHARED`, mmap(2)). What others store is seen.
    ///
    /// Of these options, offset (at a page), length, advice, wishes and place count. A device needs a length.
    ///
    /// # Errors
    /// [`Error::Open`]; [`Error::Host`]: if it cannot be mapped so, has no bytes, or the range does not begin at a page.
    pub fn kernel_open(&self, path: impl AsRef<Path>) -> Result<KernelMapping> {
        self.kernel_map(path.as_ref(), Sharing::Shared, Protection::READ)
    }

    /// Maps a local file or a device as the kernel does, to be stored to.
    ///
    /// # Errors
    /// As [`kernel_open`](Self::kernel_open).
    pub fn kernel_open_mut(&self, path: impl AsRef<Path>) -> Result<KernelMapping> {
        self.kernel_map(path.as_ref(), Sharing::Shared, Protection::READ_WRITE)
    }

    /// Maps a local file or a device as the kernel does, to be stored to without anybody's seeing it (`MAP_PRIVATE`, mmap(2)).
    /// Pages that were not stored to show what others do to the file.
    ///
    /// # Errors
    /// As [`kernel_open`](Self::kernel_open).
    pub fn kernel_open_private(&self, path: impl AsRef<Path>) -> Result<KernelMapping> {
        self.kernel_map(path.as_ref(), Sharing::Private, Protection::READ_WRITE)
    }

    fn kernel_map(&self, path: &Path, sharing: Sharing, protection: Protection) -> Result<KernelMapping> {
        let name: Arc<str> = path.display().to_string().into();
        let write = protection.write && sharing == Sharing::Shared;
        let open = |source| Error::from(StoreError::Open { name: name.to_string(), source });
        // A FIFO would wait for who writes to it; none can be mapped, and regular files ignore it.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).map_err(open)?;
        let end = file.metadata().map_err(open)?.len();
        let bytes = self.length.unwrap_or_else(|| end.saturating_sub(self.offset));
        let request = KernelRequest {
            bytes,
            source: Source::File(file.as_fd(), self.offset),
            sharing,
            protection,
            wishes: self.wishes,
            part: self.part(&name, bytes)?,
        };
        let range = KernelRange::map(request).map_err(|e| refused(&name, e))?;
        let mapping = KernelMapping { name, file, offset: self.offset, range, writable: protection.write };
        if self.advice != Advice::Normal {
            mapping.advise(0..bytes, self.advice)?;
        }
        Ok(mapping)
    }
}

impl KernelMapping {
    fn range(&self) -> &KernelRange {
        &self.range
    }

    /// Its length in bytes. The file may have become shorter.
    pub fn len(&self) -> u64 {
        self.range.len() as u64
    }

    /// Whether it has no bytes; it always has.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Its first byte. Whoever uses it answers for what others do to the file meanwhile, and may get SIGBUS.
    pub fn as_ptr(&self) -> *const u8 {
        self.range.as_ptr()
    }

    /// As [`as_ptr`](Self::as_ptr), to be stored to if it was mapped for that.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.range.as_ptr()
    }

    /// All bytes as atomics; `None` unless it is shared and writable. A cell beyond the end of a file that has become
    /// shorter raises SIGBUS.
    pub fn cells(&self) -> Option<&[AtomicU8]> {
        self.range.cells()
    }

    /// Copies bytes out; raises no signal.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if that reaches beyond the mapping; [`Error::Read`] if the file is shorter now, or its disk fails.
    /// What `into` holds after an error is not defined.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let wanted = into.len() as u64;
        let range = inside(&self.name, &self.range, &(offset..offset.saturating_add(wanted)))?;
        let got = self.range.read_at(range.start, into).map_err(|e| refused(&self.name, e))? as u64;
        if got == wanted {
            return Ok(());
        }
        let cause = if self.has(offset + got) {
            StoreError::Io { action: "read", length: wanted, source: failed() }
        } else {
            StoreError::Short { wanted, got }
        };
        Err(Error::Read { object: self.name.clone(), offset: offset + got, source: Arc::new(cause) })
    }

    /// Copies bytes in; raises no signal.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] if it was mapped to be read; [`Error::OutOfRange`]; [`Error::Write`] if the file is shorter now, or
    /// its disk fails or is full. Some of the bytes may have been written then, from the first on.
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        if !self.writable {
            let reason = "it was mapped read-only; use kernel_open_mut or kernel_open_private";
            return Err(Error::NotAllowed { object: self.name.clone(), reason });
        }
        let length = from.len() as u64;
        let range = inside(&self.name, &self.range, &(offset..offset.saturating_add(length)))?;
        let done = self.range.write_at(range.start, from).map_err(|e| refused(&self.name, e))? as u64;
        if done == length {
            return Ok(());
        }
        let cause = if self.has(offset + done) {
            StoreError::Io { action: "write", length, source: failed() }
        } else {
            let end = self.file.metadata().map_or(0, |m| m.len()).saturating_sub(self.offset);
            StoreError::BeyondEnd { offset, length, end }
        };
        Err(Error::Write { object: self.name.clone(), offset: offset + done, source: Arc::new(cause) })
    }

    /// Whether the file still has the byte.
    fn has(&self, offset: u64) -> bool {
        self.file.metadata().is_ok_and(|m| !m.is_file() || m.len() > self.offset + offset)
    }

    /// Makes everything that was stored durable, as fsync(2) (`MS_SYNC`, msync(2)).
    ///
    /// # Errors
    /// [`Error::Host`] if the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.sync_range(0..self.len(), SyncMode::Durable)
    }

    /// Keeps a range in step with the file (msync(2)).
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; else as [`sync`](Self::sync).
    pub fn sync_range(&self, range: Range<u64>, mode: SyncMode) -> Result<()> {
        let range = inside(&self.name, &self.range, &range)?;
        let wait = if mode == SyncMode::Durable { Wait::Yes } else { Wait::No };
        self.range.sync(range, wait).map_err(|e| refused(&self.name, e))
    }

    /// Makes two independent mappings of one: keeps the first `at` bytes, whole pages, and gives the rest. Neither moves.
    ///
    /// # Errors
    /// [`Error::Host`] if `at` is not at a page, or at an end, or there is no descriptor; nothing has changed then.
    pub fn split_off(&mut self, at: u64) -> Result<KernelMapping> {
        let here = inside(&self.name, &self.range, &(0..at))?.end;
        let file = self
            .file
            .try_clone()
            .map_err(|source| refused(&self.name, omnimap_host::HostError::Call { call: "dup", source }))?;
        let range = self.range.split_off(here).map_err(|e| refused(&self.name, e))?;
        let (name, offset) = (self.name.clone(), self.offset + at);
        Ok(KernelMapping { name, file, offset, range, writable: self.writable })
    }
}

/// What the kernel does not say about a page that cannot be accessed.
fn failed() -> std::io::Error {
    const EIO: i32 = 5;
    std::io::Error::from_raw_os_error(EIO)
}
