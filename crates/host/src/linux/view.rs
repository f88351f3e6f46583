//! A kernel mapping of a memfd, registered with userfaultfd.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::memory::Kind;
use super::userfaultfd::Userfaultfd;
use super::{failures, pagemap};
use crate::error::During;
use crate::process::ProcessId;
use crate::{Address, Exclusive, Result, Stores, Use, View};

/// Drops page-table entries, of pages that the program has locked too (Linux 5.18).
const MADV_DONTNEED_LOCKED: i32 = 24;

/// A shared view.
pub(super) struct LinuxView {
    start: NonNull<u8>,
    length: u64,
    mapped_bytes: usize,
    kind: Kind,
    faults: Arc<Userfaultfd>,
    siblings: Arc<ViewList>,
    made_in: ProcessId,
}

/// The views of one memfd: where each begins, by the bytes of the memfd that it shows.
#[derive(Default)]
pub(super) struct ViewList {
    views: RwLock<Vec<(Range<u64>, Address)>>,
}

impl ViewList {
    /// Calls `work` with an address that shows the byte at `offset` of the memfd, and how many bytes from it on the view
    /// shows; the view stays until it returns. Without one, the answer is how far there is none.
    pub(super) fn with<T>(&self, offset: u64, work: impl FnOnce(Address, u64) -> T) -> Result<T, u64> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((shown, start)) = views.iter().find(|(shown, _)| shown.contains(&offset)) {
            return Ok(work(Address(start.0 + (offset - shown.start) as usize), shown.end - offset));
        }
        Err(views
            .iter()
            .map(|(shown, _)| shown.start)
            .filter(|start| *start > offset)
            .min()
            .unwrap_or(u64::MAX))
    }

    /// Calls `work` with the part of each view but the first (that [`with`](Self::with) takes) that shows some of the bytes.
    pub(super) fn for_others(
        &self,
        offset: u64,
        bytes: u64,
        mut work: impl FnMut(Address, u64) -> crate::Result<()>,
    ) -> crate::Result<()> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let first = views.iter().position(|(shown, _)| shown.contains(&offset));
        for (i, (shown, start)) in views.iter().enumerate() {
            let (from, to) = (shown.start.max(offset), shown.end.min(offset + bytes));
            if Some(i) != first && from < to {
                work(Address(start.0 + (from - shown.start) as usize), to - from)?;
            }
        }
        Ok(())
    }

    fn add(&self, shown: Range<u64>, start: Address) {
        self.views.write().unwrap_or_else(PoisonError::into_inner).push((shown, start));
    }

    fn remove(&self, start: Address) {
        self.views.write().unwrap_or_else(PoisonError::into_inner).retain(|(_, s)| *s != start);
    }
}

// SAFETY: the mapping belongs to the process, not to a thread; all methods are system calls or reads of memory that
// does not change (see `machine`).
unsafe impl Send for LinuxView {}
// SAFETY: as above.
unsafe impl Sync for LinuxView {}

impl LinuxView {
    pub(super) fn map(
        file: &File,
        offset: u64,
        length: u64,
        kind: Kind,
        faults: &Arc<Userfaultfd>,
        siblings: &Arc<ViewList>,
    ) -> Result<LinuxView> {
        let too_long = || rustix::io::Errno::NOMEM;
        let mapped_bytes = length
            .checked_next_multiple_of(kind.page_bytes)
            .and_then(|b| usize::try_from(b).ok())
            .ok_or_else(too_long)
            .during("mmap(memfd)")?;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing. NORESERVE has no effect on a memfd
        // and says what is meant.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                ProtFlags::empty(),
                MapFlags::SHARED | MapFlags::NORESERVE,
                file.as_fd(),
                offset,
            )
        }
        .during("mmap(memfd)")?;
        let start = NonNull::new(start.cast()).ok_or_else(too_long).during("mmap(memfd)")?;
        // From here on dropping the value unmaps.
        let view = LinuxView {
            start,
            length,
            mapped_bytes,
            kind,
            faults: faults.clone(),
            siblings: siblings.clone(),
            made_in: ProcessId::current(),
        };
        let whole = 0..mapped_bytes as u64;
        // The registration is not inherited by fork, so the child must not see this range at all (F03).
        view.advise(whole, libc::MADV_DONTFORK).during("madvise(DONTFORK)")?;
        // A hole touched before it is registered would read as zeros, for everybody and for good. Nobody knows the
        // address yet; but after mlockall(MCL_FUTURE) mmap itself would touch all that is accessible.
        faults.register(view.start(), mapped_bytes as u64)?;
        let mut protection = MprotectFlags::READ;
        protection.set(MprotectFlags::WRITE, kind.used_as.is_writable());
        // SAFETY: the whole of the mapping just made; nobody knows its address, so nobody is harmed by what becomes of it.
        unsafe { rustix::mm::mprotect(view.start.as_ptr().cast(), mapped_bytes, protection) }
            .during("mprotect(memfd)")?;
        siblings.add(offset..offset + mapped_bytes as u64, view.start());
        Ok(view)
    }

    fn check_exclusive(&self, exclusive: &Exclusive) {
        assert!(
            self.kind.used_as == Use::Exclusive && exclusive.is(self.kind.exclusive),
            "the bytes of a memory are borrowed with the right that was made with it"
        );
    }

    fn advise(&self, range: Range<u64>, advice: i32) -> io::Result<()> {
        let (start, bytes) = self.locate(&range);
        // SAFETY: the range is inside this mapping. The advices used here (DONTFORK, and DONTNEED on a shared mapping,
        // which drops page-table entries and keeps the memfd's bytes) change no byte that a reference shows.
        let answer = unsafe { libc::madvise(start.0 as *mut libc::c_void, bytes, advice) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whole pages of the view, cut to the view.
    fn locate(&self, range: &Range<u64>) -> (Address, usize) {
        let mapped = self.mapped_bytes as u64;
        let start = range.start.min(mapped);
        let end = range.end.next_multiple_of(self.kind.page_bytes).clamp(start, mapped);
        (Address(self.start.as_ptr() as usize + start as usize), (end - start) as usize)
    }
}

/// Drops the page-table entries of parts of shared views of ours: in one call where the kernel can.
fn drop_entries(parts: &[libc::iovec]) -> io::Result<()> {
    // Linux 6.14, both: the process itself as a target, and any advice for it.
    const PIDFD_SELF: libc::c_long = -10000;
    static TOGETHER: AtomicBool = AtomicBool::new(true);
    let mut done = 0;
    while done < parts.len() && TOGETHER.load(Ordering::Relaxed) {
        let batch = &parts[done..(done + libc::UIO_MAXIOV as usize).min(parts.len())];
        // SAFETY: process_madvise(2) reads the array. The parts are in shared views, so DONTNEED drops page-table entries
        // and keeps the memfd's bytes.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                PIDFD_SELF,
                batch.as_ptr(),
                batch.len(),
                libc::c_long::from(MADV_DONTNEED_LOCKED),
                0,
            )
        };
        let whole: usize = batch.iter().map(|part| part.iov_len).sum();
        if advised == whole as libc::c_long {
            done += batch.len();
        } else {
            TOGETHER.store(false, Ordering::Relaxed);
        }
    }
    for part in &parts[done..] {
        // SAFETY: as above.
        if unsafe { libc::madvise(part.iov_base, part.iov_len, MADV_DONTNEED_LOCKED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Pages between two ranges to be trapped that are trapped with them, rather than by a call of their own.
const TRAP_GAP_PAGES_MAX: u64 = 32;

impl View for LinuxView {
    fn start(&self) -> Address {
        Address(self.start.as_ptr() as usize)
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn bytes(&self) -> &[u8] {
        assert_eq!(self.kind.used_as, Use::ReadOnly, "bytes that are stored to are borrowed otherwise");
        // SAFETY: the range is mapped readable until `self` is dropped and `length` is at most its size. The bytes do not
        // change while borrowed: the view shows a memfd that nobody else can write, no view of this memory can be stored
        // to, and the engine keeps the three rules in `machine`: holes alone are filled, and again only with the same
        // bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length as usize) }
    }

    fn bytes_mut<'a>(&'a self, exclusive: &'a mut Exclusive) -> &'a mut [u8] {
        self.check_exclusive(exclusive);
        // SAFETY: mapped writable until `self` is dropped, and `length` is at most its size. Whoever borrows bytes of this
        // memory, in any view, borrows its one `Exclusive`, so there is no other borrow while this one lasts. The engine
        // changes no byte that has been seen (the three rules in `machine`).
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length as usize) }
    }

    fn bytes_of<'a>(&'a self, exclusive: &'a Exclusive) -> &'a [u8] {
        self.check_exclusive(exclusive);
        // SAFETY: as above; the borrow of `exclusive` is shared, and so is this.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length as usize) }
    }

    fn cells(&self) -> &[AtomicU8] {
        assert_eq!(self.kind.used_as, Use::Shared, "bytes that are borrowed as slices are no cells");
        // SAFETY: mapped writable until `self` is dropped, and `length` is at most its size. All borrows of this memory's
        // bytes are cells, which allow stores by others.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length as usize) }
    }

    fn trap_stores(&self, ranges: &[Range<u64>]) -> Result<()> {
        let mut parts = ranges.iter().cloned().peekable();
        while let Some(mut part) = parts.next() {
            // A call costs as much as some tens of pages do.
            let near = TRAP_GAP_PAGES_MAX * self.kind.page_bytes;
            while let Some(next) =
                parts.next_if(|next| next.start >= part.end && next.start - part.end <= near)
            {
                part.end = next.end;
            }
            let (start, bytes) = self.locate(&part);
            self.faults.protect(start, bytes as u64, Stores::Trap)?;
        }
        Ok(())
    }

    fn let_stores(&self, range: Range<u64>) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        self.faults.protect(start, bytes as u64, Stores::Let)
    }

    fn fail(&self, range: Range<u64>, why: &str) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        failures::record(start, bytes as u64, why);
        if self.kind.used_as.is_writable() {
            // Poison does not take the place of a marker; the next fill sets one again.
            self.faults.protect(start, bytes as u64, Stores::Let)?;
        }
        self.faults.poison(start, bytes as u64, self.kind.page_bytes)
    }

    fn clear_failure(&self, range: Range<u64>) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        failures::forget(start, bytes as u64);
        self.advise(range, MADV_DONTNEED_LOCKED).during("madvise(DONTNEED_LOCKED)")
    }

    fn forget_touches(&self, ranges: &[Range<u64>]) -> Result<()> {
        let parts: Vec<libc::iovec> = ranges
            .iter()
            .map(|range| self.locate(range))
            .map(|(start, bytes)| libc::iovec { iov_base: start.0 as *mut libc::c_void, iov_len: bytes })
            .collect();
        drop_entries(&parts).during("madvise(DONTNEED_LOCKED)")
    }

    fn touched(&self, range: Range<u64>, parts: &mut Vec<Range<u64>>) -> Result<()> {
        let base = self.start().0 as u64;
        let (start, bytes) = self.locate(&range);
        pagemap::present(start, bytes as u64, self.kind.page_bytes, |part| {
            parts.push(part.start - base..part.end - base);
        })
    }
}

impl Drop for LinuxView {
    fn drop(&mut self) {
        if !self.made_in.is_current() {
            return; // The child never had this range; something else may live there.
        }
        self.siblings.remove(self.start());
        failures::forget(self.start(), self.mapped_bytes as u64);
        // SAFETY: we own the mapping, and nobody holds a reference into it, for those borrow from `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped_bytes) };
        // A thread that came by a raw pointer and waits in the range would wait for ever: let it find the hole.
        let _ = self.faults.wake(self.start(), self.mapped_bytes as u64);
    }
}
