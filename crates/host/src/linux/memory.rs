//! An object's resident bytes: a sparse memfd.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{FallocateFlags, MemfdFlags};

use super::userfaultfd::Userfaultfd;
use super::view::{LinuxView, ViewList};
use crate::error::During;
use crate::{Memory, Result, Stores, Use, View};

/// `st_blocks` counts in units of this, whatever the file system (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// A memfd whose holes are the pages that are not resident, and whose length is the object's length.
pub(super) struct Memfd {
    file: File,
    faults: Arc<Userfaultfd>,
    kind: Kind,
    /// The views that there are, for filling through them.
    views: Arc<ViewList>,
    /// Shared by fills, exclusive for punching. The kernel works out how many pages were freed from how many there are,
    /// and a page that is just being added hides one that was just dropped (`shmem_recalc_inode`): without this,
    /// `st_blocks` would be above the budget for a moment.
    accounting: RwLock<()>,
}

/// What a memory and its views are like, for good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) page_bytes: u64,
    pub(super) used_as: Use,
    /// The number of its [`Exclusive`](crate::Exclusive).
    pub(super) exclusive: u64,
}

/// Bytes filled under one lock, so that an eviction waits for tens of microseconds and not for a long fill.
const FILL_BYTES_TOGETHER: usize = 128 << 10;

impl Memfd {
    pub(super) fn create(name: &str, length: u64, kind: Kind, faults: Arc<Userfaultfd>) -> Result<Memfd> {
        let fd = rustix::fs::memfd_create(memfd_name(name), MemfdFlags::CLOEXEC).during("memfd_create")?;
        rustix::fs::ftruncate(&fd, length).during("ftruncate(memfd)")?;
        Ok(Memfd { file: fd.into(), faults, kind, views: Arc::default(), accounting: RwLock::default() })
    }
}

/// memfd_create(2) takes up to 249 bytes without a NUL; the end of a path says more than its beginning.
fn memfd_name(name: &str) -> String {
    const NAME_BYTES_MAX: usize = 200;
    let mut from = name.len().saturating_sub(NAME_BYTES_MAX);
    while !name.is_char_boundary(from) {
        from += 1;
    }
    format!("omnimap:{}", name[from..].replace('\0', "?"))
}

impl Memfd {
    /// Lets the stores to holes be trapped in all views but the one that shows the first byte: before the pages are there,
    /// or a store would go through in another view.
    fn trap_in_others(&self, offset: u64, bytes: u64) -> Result<()> {
        self.views
            .for_others(offset, bytes, |address, bytes| self.faults.protect(address, bytes, Stores::Trap))
    }

    /// Writes what there is of an object's pages.
    fn write_inside(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let length = self.file.metadata().during("fstat(memfd)")?.len();
        let count = bytes.len().min(length.saturating_sub(offset) as usize);
        self.file.write_all_at(&bytes[..count], offset).during("pwrite(memfd)")
    }
}

impl Memory for Memfd {
    fn fill(&self, offset: u64, bytes: &[u8], stores: Stores) -> Result<()> {
        let stores = if self.kind.used_as.is_writable() { stores } else { Stores::Let };
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let rest = &bytes[(at - offset) as usize..];
            let rest = &rest[..rest.len().min(FILL_BYTES_TOGETHER)];
            if stores == Stores::Trap {
                self.trap_in_others(at, rest.len() as u64)?;
            }
            let _adding = self.accounting.read().unwrap_or_else(PoisonError::into_inner);
            // Through a view: a page made by UFFDIO_COPY is complete before it can be found, and never larger than a page.
            // One made by write(2) can be found half written when the copy is interrupted by a fault of the source.
            let copied = self.views.with(at, |address, room| {
                let count = rest.len().min(room as usize);
                self.faults.copy(address, &rest[..count], stores).map(|()| count as u64)
            });
            at += match copied {
                Ok(copied) => copied?,
                // Nobody can look at what no view shows, and checked reads come after.
                Err(no_view_before) => {
                    let count = rest.len().min((no_view_before - at) as usize);
                    self.write_inside(at, &rest[..count])?;
                    count as u64
                }
            };
        }
        Ok(())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, offset).during("pread(memfd)")
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).during("pwrite(memfd)")
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _dropping = self.accounting.write().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::ftruncate(&self.file, length).during("ftruncate(memfd)")
    }

    fn used_as(&self) -> Use {
        self.kind.used_as
    }

    fn punch(&self, offset: u64, bytes: u64) -> Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _dropping = self.accounting.write().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::fallocate(&self.file, mode, offset, bytes).during("fallocate(memfd, PUNCH_HOLE)")
    }

    fn resident_bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().during("fstat(memfd)")?.blocks() * BLOCK_BYTES)
    }

    fn map(&self, offset: u64, length: u64) -> Result<Arc<dyn View>> {
        Ok(Arc::new(LinuxView::map(&self.file, offset, length, self.kind, &self.faults, &self.views)?))
    }
}

#[cfg(test)]
mod tests {
    use super::memfd_name;

    #[test]
    fn long_names_keep_their_end_and_stay_text() {
        let name = format!("/{}é/index.bin", "directory/".repeat(40));
        let short = memfd_name(&name);
        assert!(short.ends_with("é/index.bin") && short.len() < 249, "{short}");
        assert_eq!(memfd_name("a\0b"), "omnimap:a?b");
    }
}
