//! Anonymous memory of the kernel's.

use std::fs::File;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use omnimap_core::Result;
use omnimap_host::linux::{KernelRange, KernelRequest, PrivatePages, Source};
use omnimap_host::{Protection, Sharing};

use super::{common, expected, inside, residency};
use crate::place::refused;
use crate::{Advice, MapOptions, Residency};

/// Memory of the kernel's, all zeros at first, for one holder (`MAP_PRIVATE | MAP_ANONYMOUS`, mmap(2)).
///
/// A forked child has a copy, or zeros ([`MapOptions::wipe_on_fork`]).
///
/// # Example
/// ```
/// use omnimap::MapOptions;
///
/// # fn main() -> omnimap::Result<()> {
/// let mut memory = MapOptions::new().huge(true).kernel_anonymous(8 << 20)?;
/// memory[1 << 20] = 7;
/// assert_eq!((memory[0], memory[1 << 20]), (0, 7));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AnonymousMemory {
    name: Arc<str>,
    pages: PrivatePages,
}

/// Memory of the kernel's, all zeros at first, that forked children share (`MAP_SHARED | MAP_ANONYMOUS`, mmap(2)).
///
/// # Example
/// ```
/// use std::sync::atomic::Ordering;
/// use omnimap::MapOptions;
///
/// # fn main() -> omnimap::Result<()> {
/// let page = MapOptions::new().kernel_anonymous_shared(4096)?;
/// let counter = page.atomic_u64(0).expect("inside, and aligned");
/// counter.fetch_add(1, Ordering::Relaxed);
/// assert_eq!(counter.load(Ordering::Relaxed), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SharedAnonymousMemory {
    name: Arc<str>,
    range: KernelRange,
}

common!(AnonymousMemory);
common!(SharedAnonymousMemory);

impl MapOptions {
    /// Maps `length` bytes of the kernel's memory, for one holder. Of these options, the wishes and the place count.
    ///
    /// # Errors
    /// [`Error::Host`](crate::Error::Host): if there is no memory, or none may be locked.
    pub fn kernel_anonymous(&self, length: u64) -> Result<AnonymousMemory> {
        let name: Arc<str> = "anonymous memory".into();
        let part = self.part(&name, length)?;
        let pages = PrivatePages::new(length, self.wishes, part).map_err(|e| refused(&name, e))?;
        Ok(AnonymousMemory { name, pages })
    }

    /// The same, from /dev/zero: scratch memory as it was had before there was a flag for it. Of these options, the wishes
    /// count.
    ///
    /// # Errors
    /// [`Error::Host`](crate::Error::Host), also if there is no /dev/zero.
    pub fn kernel_zero_device(&self, length: u64) -> Result<AnonymousMemory> {
        let name: Arc<str> = "/dev/zero".into();
        let device = File::open(&*name)
            .map_err(|source| refused(&name, omnimap_host::HostError::Call { call: "open", source }))?;
        let pages = PrivatePages::of_zero_device(device.as_fd(), length, self.wishes)
            .map_err(|e| refused(&name, e))?;
        Ok(AnonymousMemory { name, pages })
    }

    /// Maps `length` bytes of the kernel's memory, for threads and forked children.
    ///
    /// # Errors
    /// As [`kernel_anonymous`](Self::kernel_anonymous).
    pub fn kernel_anonymous_shared(&self, length: u64) -> Result<SharedAnonymousMemory> {
        let name: Arc<str> = "shared anonymous memory".into();
        let request = KernelRequest {
            bytes: length,
            source: Source::Anonymous,
            sharing: Sharing::Shared,
            protection: Protection::READ_WRITE,
            wishes: self.wishes,
            part: self.part(&name, length)?,
        };
        let range = KernelRange::map(request).map_err(|e| refused(&name, e))?;
        Ok(SharedAnonymousMemory { name, range })
    }
}

impl AnonymousMemory {
    fn range(&self) -> &KernelRange {
        self.pages.range()
    }

    /// Gives back the memory of pages that lie wholly in a range: they are zeros again (`MADV_DONTNEED`, madvise(2)).
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange); [`Error::Host`](crate::Error::Host) if something of it is locked.
    pub fn discard(&mut self, range: Range<u64>) -> Result<()> {
        let range = inside(&self.name, self.pages.range(), &range)?;
        self.pages.discard(range).map_err(|e| refused(&self.name, e))
    }

    /// Makes two of one, as [`Vec::split_off`]: keeps the first `at` bytes, whole pages, and gives the rest. Neither moves.
    ///
    /// # Errors
    /// [`Error::Host`](crate::Error::Host) if `at` is not at a page, or at an end; nothing has changed then.
    pub fn split_off(&mut self, at: u64) -> Result<AnonymousMemory> {
        let at = inside(&self.name, self.pages.range(), &(0..at))?.end;
        let pages = self.pages.split_off(at).map_err(|e| refused(&self.name, e))?;
        Ok(AnonymousMemory { name: self.name.clone(), pages })
    }
}

impl Deref for AnonymousMemory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages
    }
}

impl DerefMut for AnonymousMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages
    }
}

impl AsMut<[u8]> for AnonymousMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl SharedAnonymousMemory {
    fn range(&self) -> &KernelRange {
        &self.range
    }

    /// Its bytes, as atomics.
    pub fn cells(&self) -> &[AtomicU8] {
        self.range.cells().unwrap_or_default()
    }

    /// The 32-bit number at an offset, in the machine's byte order; `None` if it is not inside or not at a multiple of 4.
    pub fn atomic_u32(&self, offset: u64) -> Option<&AtomicU32> {
        omnimap_host::as_u32(part(self.cells(), offset, 4)?)?.first()
    }

    /// As [`atomic_u32`](Self::atomic_u32), with 64 bits and 8 bytes.
    pub fn atomic_u64(&self, offset: u64) -> Option<&AtomicU64> {
        omnimap_host::as_u64(part(self.cells(), offset, 8)?)?.first()
    }

    /// Makes two of one: keeps the first `at` bytes, whole pages, and gives the rest. Neither moves.
    ///
    /// # Errors
    /// As [`AnonymousMemory::split_off`].
    pub fn split_off(&mut self, at: u64) -> Result<SharedAnonymousMemory> {
        let at = inside(&self.name, &self.range, &(0..at))?.end;
        let range = self.range.split_off(at).map_err(|e| refused(&self.name, e))?;
        Ok(SharedAnonymousMemory { name: self.name.clone(), range })
    }
}

/// A part of some cells.
fn part(cells: &[AtomicU8], offset: u64, length: usize) -> Option<&[AtomicU8]> {
    let start = usize::try_from(offset).ok()?;
    cells.get(start..start.checked_add(length)?)
}
