//! An object's resident bytes: a sparse memfd.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom};
use rustix::pipe::{IoSliceRaw, PipeFlags, SpliceFlags, pipe_with, splice, vmsplice};

use super::accounting::{Accounting, Adding};
use super::faults::Faults;
use super::figures::{ObjectKind, Published};
use super::guarded::GuardedMemory;
use super::kin::KinView;
use super::truncate::truncate;
use super::view::LinuxView;
use super::view_list::{Filled, ViewList};
use super::window::Window;
use crate::error::During;
use crate::{Address, Counted, Memory, Result, Stores, Use, View, ViewRequest};

/// `st_blocks` counts in units of this, whatever the file system (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// A memfd whose holes are the pages that are not resident, and whose length is the object's length.
pub(super) struct Memfd {
    file: File,
    faults: Arc<Faults>,
    /// Where there is no userfaultfd.
    guarded: Option<Arc<GuardedMemory>>,
    kind: Kind,
    /// The views that there are, for filling through them.
    views: Arc<ViewList>,
    window: Arc<Window>,
    accounting: Accounting,
    /// For who looks from outside.
    figures: Option<Published>,
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
    pub(super) fn create(
        name: &str,
        length: u64,
        kind: Kind,
        faults: Arc<Faults>,
        adding: Arc<Adding>,
    ) -> Result<Memfd> {
        let fd = rustix::fs::memfd_create(memfd_name(PAGED_PREFIX, name), MemfdFlags::CLOEXEC)
            .during("memfd_create")?;
        truncate(&fd, length).during("ftruncate(memfd)")?;
        Ok(Self::over(fd.into(), kind, faults, adding))
    }

    pub(super) fn over(file: File, kind: Kind, faults: Arc<Faults>, adding: Arc<Adding>) -> Memfd {
        let accounting = Accounting::new(adding);
        let guarded = faults.guarded_memory(kind.page_bytes);
        let figures = Published::new(&file, ObjectKind::Paged);
        Memfd {
            file,
            faults,
            guarded,
            kind,
            views: Arc::default(),
            window: Arc::default(),
            accounting,
            figures,
        }
    }
}

/// What the names of memory begin with, by which its kind is known from outside.
pub(super) const PAGED_PREFIX: &str = "omnimap:";
pub(super) const SHARED_PREFIX: &str = "omnimap-shm:";

/// Bytes of memory that an object has, as the kernel counts them.
pub(super) fn bytes_of(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks() * BLOCK_BYTES
}

/// memfd_create(2) takes up to 249 bytes without a NUL; the end of a path says more than its beginning.
pub(super) fn memfd_name(prefix: &str, name: &str) -> String {
    const NAME_BYTES_MAX: usize = 200;
    let mut from = name.len().saturating_sub(NAME_BYTES_MAX);
    while !name.is_char_boundary(from) {
        from += 1;
    }
    format!("{prefix}{}", name[from..].replace('\0', "?"))
}

impl Memfd {
    /// Puts bytes into holes; gives how many. A page made by UFFDIO_COPY is complete before it can be found, and never larger
    /// than a page.
    fn fill_through_a_view(&self, offset: u64, bytes: &[u8], stores: Stores) -> Result<usize> {
        let fill = || {
            let _adding = self.accounting.may_add();
            self.views.fill(offset, bytes, stores)
        };
        let filled = match fill() {
            Some(filled) => Some(filled?),
            None => {
                let length = self.file.metadata().during("fstat(memfd)")?.len();
                let shown = offset..offset + bytes.len() as u64;
                self.window.fill(shown, length, &self.views, |request| self.view(request), fill)?
            }
        };
        let Some(Filled { bytes, was_hidden }) = filled else {
            // Unless a view came meanwhile: then it is tried again.
            let _adding = self.accounting.may_add();
            let all = offset..offset + bytes.len() as u64;
            let written = self.views.unless_shown(all, stores, || self.write_inside(offset, bytes));
            return written.map_or(Ok(0), |written| written.map(|()| bytes.len()));
        };
        if was_hidden {
            self.window.count_fill();
        }
        Ok(bytes)
    }

    /// Writes what there is of an object's pages, where no view is to be had (`vm.max_map_count`, RLIMIT_AS).
    ///
    /// Through a pipe, in which the bytes are pages that stay: a page that is written from there is whole before it can be
    /// found.
    fn write_inside(&self, mut offset: u64, bytes: &[u8]) -> Result<()> {
        let length = self.file.metadata().during("fstat(memfd)")?.len();
        let mut rest = &bytes[..bytes.len().min(length.saturating_sub(offset) as usize)];
        let (from, into) = pipe_with(PipeFlags::CLOEXEC).during("pipe2")?;
        while !rest.is_empty() {
            // SAFETY: the bytes do not change until they have been taken out, below.
            let count = unsafe { vmsplice(&into, &[IoSliceRaw::from_slice(rest)], SpliceFlags::NONBLOCK) }
                .during("vmsplice")?;
            let end = offset + count as u64;
            while offset < end {
                let left = (end - offset) as usize;
                splice(&from, None, &self.file, Some(&mut offset), left, SpliceFlags::empty())
                    .during("splice(memfd)")?;
            }
            rest = &rest[count..];
        }
        Ok(())
    }

    fn view(&self, request: &ViewRequest) -> Result<LinuxView> {
        let faults = (&self.faults, self.guarded.as_ref());
        LinuxView::map(self.file.as_fd(), request, self.kind, faults, (&self.views, &self.window))
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
            at += match &self.guarded {
                Some(guarded) => {
                    let _adding = self.accounting.may_add();
                    guarded.fill(&self.file, at, rest, stores)?;
                    rest.len() as u64
                }
                None => self.fill_through_a_view(at, rest, stores)? as u64,
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
        let _dropping = self.accounting.may_drop(Counted::Exactly);
        match &self.guarded {
            Some(guarded) => guarded.set_len(&self.file, length),
            None => truncate(&self.file, length).during("ftruncate(memfd)"),
        }
    }

    fn note_dirty(&self, pages: i64) {
        if let Some(figures) = &self.figures {
            figures.add_dirty(pages);
        }
    }

    fn used_as(&self) -> Use {
        self.kind.used_as
    }

    fn punch(&self, offset: u64, bytes: u64, counted: Counted) -> Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _dropping = self.accounting.may_drop(counted);
        if let Some(guarded) = &self.guarded {
            return guarded.punch(&self.file, offset, bytes);
        }
        rustix::fs::fallocate(&self.file, mode, offset, bytes).during("fallocate(memfd, PUNCH_HOLE)")
    }

    fn resident_bytes(&self) -> Result<u64> {
        Ok(bytes_of(&self.file.metadata().during("fstat(memfd)")?))
    }

    fn map_as(&self, request: &ViewRequest) -> Result<Arc<dyn View>> {
        Ok(Arc::new(self.view(request)?))
    }

    fn view_of_kin(&self, request: &ViewRequest, start: Address) -> Result<Arc<dyn View>> {
        let member =
            self.faults.kin()?.member(start.kin()).ok_or(rustix::io::Errno::SRCH).during("a view of kin")?;
        let view = KinView::new(request, start, self.kind.page_bytes, member, self.views.clone());
        Ok(Arc::new(view))
    }

    fn present(&self) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => return Ok(found),
                Err(e) => return Err(e).during("lseek(memfd, SEEK_DATA)"),
            };
            let end =
                rustix::fs::seek(&self.file, SeekFrom::Hole(start)).during("lseek(memfd, SEEK_HOLE)")?;
            // The last page ends with the object.
            at = end.next_multiple_of(self.kind.page_bytes);
            found.push(start..at);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGED_PREFIX, memfd_name};

    #[test]
    fn long_names_keep_their_end_and_stay_text() {
        let name = format!("/{}é/index.bin", "directory/".repeat(40));
        let short = memfd_name(PAGED_PREFIX, &name);
        assert!(short.ends_with("é/index.bin") && short.len() < 249, "{short}");
        assert_eq!(memfd_name(PAGED_PREFIX, "a\0b"), "omnimap:a?b");
    }
}
