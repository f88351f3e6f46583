//! A kernel mapping of a memfd, registered with userfaultfd.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::faults::{Accessible, Faults};
use super::guarded::GuardedMemory;
use super::memory::Kind;
use super::view_list::ViewList;
use super::window::Window;
use super::{failures, kernel_collapses, large_page_bytes, pagemap};
use crate::error::During;
use crate::machine::At;
use crate::process::{ProcessId, die};
use crate::{
    Address, Collapsed, Exclusive, FaultStream, Place, Protection, Result, Sharing, Stores, Use, View,
    ViewRequest,
};

/// Drops page-table entries, of pages that the program has locked too (Linux 5.18).
const MADV_DONTNEED_LOCKED: i32 = 24;
/// Makes one large page of small ones (Linux 6.1).
const MADV_COLLAPSE: i32 = 25;

/// Held by whoever has mapped a view that is not kept from children yet; a fork waits for him.
static UNMARKED: RwLock<()> = RwLock::new(());

/// Waits until all views are kept from children, and lets nobody make more.
pub(super) fn hold_unmarked() -> RwLockWriteGuard<'static, ()> {
    UNMARKED.write().unwrap_or_else(PoisonError::into_inner)
}

/// A view of a memfd.
pub(super) struct LinuxView {
    start: NonNull<u8>,
    length: u64,
    mapped_bytes: usize,
    kind: Kind,
    sharing: Sharing,
    faults: Arc<Faults>,
    siblings: Arc<ViewList>,
    made_in: ProcessId,
    /// What is mapped of it still, and its to unmap: ranges within it.
    parts: Mutex<Vec<Range<u64>>>,
    /// It is shared, and whole: what it shows is what the memory holds.
    borrowable: AtomicBool,
    /// Of a private view: pages that were made to fail, and so have no copy that would be lost.
    poisoned: Mutex<BTreeSet<u64>>,
    /// What a private view is filled through.
    window: Option<Arc<Window>>,
    /// What may be done to it when stores are trapped, if that is more than what may be done now.
    to_come: Mutex<Option<Protection>>,
}

// SAFETY: the mapping belongs to the process, not to a thread; all methods are system calls or reads of memory that
// does not change (see `machine`).
unsafe impl Send for LinuxView {}
// SAFETY: as above.
unsafe impl Sync for LinuxView {}

impl LinuxView {
    pub(super) fn map(
        file: BorrowedFd<'_>,
        request: &ViewRequest,
        kind: Kind,
        (faults, guarded): (&Arc<Faults>, Option<&Arc<GuardedMemory>>),
        (siblings, window): (&Arc<ViewList>, &Arc<Window>),
    ) -> Result<LinuxView> {
        if request.place != Place::anywhere() || request.sharing == Sharing::Private {
            faults.kin()?; // Where signals tell of faults, addresses are known by whole views.
        }
        let too_long = || rustix::io::Errno::NOMEM;
        let mapped_bytes = request
            .length
            .checked_next_multiple_of(kind.page_bytes)
            .and_then(|b| usize::try_from(b).ok())
            .ok_or_else(too_long)
            .during("mmap(memfd)")?;
        let private = request.sharing == Sharing::Private;
        let unmarked = UNMARKED.read().unwrap_or_else(PoisonError::into_inner);
        let start = map_inaccessible(file, request, mapped_bytes, kind.used_as)?;
        // From here on dropping the value unmaps.
        let mut view = LinuxView {
            start,
            length: request.length,
            mapped_bytes,
            kind,
            sharing: request.sharing,
            faults: faults.clone(),
            siblings: siblings.clone(),
            made_in: ProcessId::current(),
            parts: Mutex::new(std::iter::once(0..mapped_bytes as u64).collect()),
            borrowable: AtomicBool::new(!private),
            poisoned: Mutex::default(),
            window: None,
            to_come: Mutex::default(),
        };
        // The registration is not inherited by fork, so a child must not see this range at all (F03): a hole would read as
        // zeros there, and then for everybody. Whoever cares for children lets private views along for the moment of a fork.
        view.advise(0..mapped_bytes as u64, libc::MADV_DONTFORK).during("madvise(DONTFORK)")?;
        drop(unmarked);
        if private {
            window.add_private_view();
            view.window = Some(window.clone());
        }
        if kernel_collapses() {
            // It would make large pages of ours, of which a part cannot be punched.
            view.advise(0..mapped_bytes as u64, libc::MADV_NOHUGEPAGE).during("madvise(NOHUGEPAGE)")?;
        }
        // A hole touched before it is registered would read as zeros, for everybody and for good. Nobody knows the
        // address yet; but after mlockall(MCL_FUTURE) mmap itself would touch all that is accessible.
        let shown = request.offset..request.offset + mapped_bytes as u64;
        let writable = kind.used_as.is_writable();
        if faults.register(view.start(), shown.clone(), writable, guarded)? == Accessible::ByParts {
            return Ok(view);
        }
        let mut protection = request.protection;
        if !private && protection.write && matches!(request.place.0, At::Over(_)) {
            // Who stores there does not wait until he is told.
            *view.to_come() = Some(protection);
            protection.write = false;
        }
        view.protect(protection)?;
        if let (false, Some(userfaultfd)) = (private, faults.userfaultfd()) {
            siblings.add(shown, view.start(), userfaultfd.clone());
        }
        Ok(view)
    }

    /// Of the whole of a mapping that was just made with no access allowed.
    fn protect(&self, protection: Protection) -> Result<()> {
        if protection == Protection::NONE {
            return Ok(());
        }
        // SAFETY: nobody knows yet what becomes of it, so nobody is harmed.
        unsafe { rustix::mm::mprotect(self.start.as_ptr().cast(), self.mapped_bytes, flags_of(protection)) }
            .during("mprotect(memfd)")
    }

    fn to_come(&self) -> MutexGuard<'_, Option<Protection>> {
        self.to_come.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it out of the limit of locked memory, after mlockall(MCL_FUTURE).
    pub(super) fn unlock(&self) {
        // SAFETY: changes no bytes. It fails for no mapping that is there.
        unsafe { libc::munlock(self.start.as_ptr().cast(), self.mapped_bytes) };
    }

    fn check_borrowable(&self) {
        assert!(
            self.borrowable.load(Ordering::Relaxed),
            "addresses that are somebody else's are not borrowed"
        );
    }

    fn check_exclusive(&self, exclusive: &Exclusive) {
        self.check_borrowable();
        assert!(
            self.kind.used_as == Use::Exclusive && exclusive.is(self.kind.exclusive),
            "the bytes of a memory are borrowed with the right that was made with it"
        );
    }

    /// Makes pages of a private view fail that are not there. Those that are may be copies, and stay.
    fn fail_private(&self, start: Address, bytes: usize) -> Result<()> {
        let page_bytes = self.kind.page_bytes;
        for page in (start.0 as u64..(start.0 + bytes) as u64).step_by(page_bytes as usize) {
            let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(userfaultfd) = self.faults.userfaultfd() else { return Ok(()) };
            if userfaultfd.poison_one(Address(page as usize), page_bytes)? {
                poisoned.insert(page);
            } else if !poisoned.contains(&page) {
                failures::forget(Address(page as usize), page_bytes);
            }
        }
        Ok(())
    }

    fn clear_private(&self, start: Address, bytes: usize) -> Result<()> {
        let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = start.0 as u64..(start.0 + bytes) as u64;
        let pages: Vec<u64> = poisoned.range(inside).copied().collect();
        for page in pages {
            poisoned.remove(&page);
            let from = page - self.start().0 as u64;
            self.advise(from..from + self.kind.page_bytes, MADV_DONTNEED_LOCKED)
                .during("madvise(DONTNEED_LOCKED)")?;
        }
        Ok(())
    }

    fn advise(&self, range: Range<u64>, advice: i32) -> io::Result<()> {
        let (start, bytes) = self.locate(&range);
        // SAFETY: the range is inside this mapping. The advices used here (DONTFORK, COLLAPSE, and DONTNEED on a shared
        // mapping, which drops page-table entries and keeps the memfd's bytes) change no byte that a reference shows.
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

/// The mapping of a view, to which no access is allowed yet; where large pages can show it, if they help.
fn map_inaccessible(
    file: BorrowedFd<'_>,
    request: &ViewRequest,
    bytes: usize,
    used_as: Use,
) -> Result<NonNull<u8>> {
    let is_free = matches!(request.place.0, At::Anywhere | At::Near(Address(0)));
    let has_large_pages = request.sharing == Sharing::Shared && !used_as.is_writable();
    let large = large_page_bytes().filter(|large| is_free && has_large_pages && bytes >= *large);
    if let Some(start) = large.and_then(|large| aligned_place(bytes, request.offset, large)) {
        let place = Place(At::Over(start));
        let made = map_at_place(file, &ViewRequest { place, ..*request }, bytes);
        if made.is_ok() {
            return made;
        }
        // SAFETY: set aside for this.
        let _ = unsafe { rustix::mm::munmap(start.0 as *mut _, bytes) };
    }
    // Without room for alignment, wherever there is some.
    map_at_place(file, request, bytes)
}

/// Sets addresses aside that are aligned as an offset is, for a large page of each to be the same.
fn aligned_place(bytes: usize, offset: u64, large: usize) -> Option<Address> {
    let reserved_bytes = bytes.checked_add(large)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let reserved = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved_bytes, ProtFlags::empty(), flags)
    };
    let first = reserved.ok()? as usize;
    let start = first + (offset as usize).wrapping_sub(first) % large;
    for part in [first..start, start + bytes..first + reserved_bytes] {
        if !part.is_empty() {
            // SAFETY: of the mapping just made. What is not unmapped is lost, and nothing else.
            let _ = unsafe { rustix::mm::munmap(part.start as *mut _, part.len()) };
        }
    }
    Some(Address(start))
}

fn map_at_place(file: BorrowedFd<'_>, request: &ViewRequest, bytes: usize) -> Result<NonNull<u8>> {
    let (address, how) = match request.place.0 {
        At::Anywhere => (0, MapFlags::empty()),
        At::Low => (0, MapFlags::from_bits_retain(libc::MAP_32BIT as u32)),
        At::Near(address) => (address.0, MapFlags::empty()),
        At::Empty(address) => (address.0, MapFlags::FIXED_NOREPLACE),
        At::Over(address) => (address.0, MapFlags::FIXED),
        At::There(address) => {
            return NonNull::new(address.0 as *mut u8).ok_or(rustix::io::Errno::INVAL).during("mmap(memfd)");
        }
    };
    let sharing = match request.sharing {
        Sharing::Shared => MapFlags::SHARED,
        Sharing::Private => MapFlags::PRIVATE,
    };
    // SAFETY: only `Place::over` makes a mapping in the place of another, and who made that promised that nobody minds.
    // NORESERVE has no effect on a memfd and says what is meant.
    let start = unsafe {
        rustix::mm::mmap(
            address as *mut _,
            bytes,
            ProtFlags::empty(),
            sharing | MapFlags::NORESERVE | how,
            file,
            request.offset,
        )
    }
    .during("mmap(memfd)")?;
    NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM).during("mmap(memfd)")
}

fn flags_of(protection: Protection) -> MprotectFlags {
    let mut flags = MprotectFlags::empty();
    flags.set(MprotectFlags::READ, protection.read);
    flags.set(MprotectFlags::WRITE, protection.write);
    flags.set(MprotectFlags::EXEC, protection.execute);
    flags
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

/// Calls `work` with ranges, near ones as one: a call costs as much as some tens of pages do.
pub(super) fn together(
    ranges: &[Range<u64>],
    page_bytes: u64,
    mut work: impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let mut parts = ranges.iter().cloned().peekable();
    while let Some(mut part) = parts.next() {
        let near = TRAP_GAP_PAGES_MAX * page_bytes;
        while let Some(next) = parts.next_if(|next| next.start >= part.end && next.start - part.end <= near) {
            part.end = next.end;
        }
        work(part)?;
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

    fn sharing(&self) -> Sharing {
        self.sharing
    }

    fn give_up(&self, range: Range<u64>) {
        let (start, bytes) = self.locate(&range);
        if self.sharing == Sharing::Shared {
            self.siblings.remove(start.0..start.0 + bytes);
        }
        failures::forget(start, bytes as u64);
        let gone = (start.0 - self.start().0) as u64..(start.0 - self.start().0 + bytes) as u64;
        self.borrowable.store(false, Ordering::Relaxed);
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        *parts = parts
            .drain(..)
            .flat_map(|part| [part.start..part.end.min(gone.start), part.start.max(gone.end)..part.end])
            .filter(|part| part.start < part.end)
            .collect();
    }

    fn end_faults(&self, range: Range<u64>) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        if self.sharing == Sharing::Private {
            // Poison would move along, and nobody would know of it.
            self.clear_private(start, bytes)?;
        }
        match self.faults.userfaultfd() {
            Some(userfaultfd) => userfaultfd.unregister(start, bytes as u64),
            None => Ok(()),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.check_borrowable();
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
        self.check_borrowable();
        assert_eq!(self.kind.used_as, Use::Shared, "bytes that are borrowed as slices are no cells");
        // SAFETY: mapped writable until `self` is dropped, and `length` is at most its size. All borrows of this memory's
        // bytes are cells, which allow stores by others.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length as usize) }
    }

    fn trap_stores(&self, ranges: &[Range<u64>]) -> Result<()> {
        together(ranges, self.kind.page_bytes, |part| {
            let (start, bytes) = self.locate(&part);
            self.faults.protect(start, bytes as u64, Stores::Trap)
        })
    }

    fn admit_stores(&self) -> Result<()> {
        self.to_come().take().map_or(Ok(()), |protection| self.protect(protection))
    }

    fn let_stores(&self, range: Range<u64>) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        self.faults.protect(start, bytes as u64, Stores::Let)
    }

    fn fail(&self, range: Range<u64>, why: &str) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        failures::record(start, bytes as u64, self.sharing, why);
        if self.sharing == Sharing::Private {
            return self.fail_private(start, bytes);
        }
        self.faults.poison(start, bytes as u64, self.kind.page_bytes, self.kind.used_as.is_writable())
    }

    fn clear_failure(&self, range: Range<u64>) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        failures::forget(start, bytes as u64);
        if self.sharing == Sharing::Private {
            return self.clear_private(start, bytes);
        }
        self.advise(range, MADV_DONTNEED_LOCKED).during("madvise(DONTNEED_LOCKED)")
    }

    fn forget_touches(&self, ranges: &[Range<u64>]) -> Result<()> {
        if self.sharing == Sharing::Private {
            return Ok(()); // The copied pages would go too.
        }
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

    fn collapse(&self, range: Range<u64>) -> Collapsed {
        let (start, bytes) = self.locate(&range);
        let Some(userfaultfd) = self.faults.userfaultfd().filter(|_| self.sharing == Sharing::Shared) else {
            return Collapsed::Not;
        };
        if !start.0.is_multiple_of(bytes) || self.kind.used_as.is_writable() {
            return Collapsed::Not;
        }
        let collapsed = userfaultfd
            .register_for_collapse(start, bytes as u64)
            .and_then(|()| self.advise(range, MADV_COLLAPSE).during("madvise(COLLAPSE)"));
        // With it, the large page stays as it is shown; and the neighbourhood becomes one mapping again.
        if let Err(error) = userfaultfd.register(start, bytes as u64) {
            die(&format!("a range that was collapsed reports no faults any more: {error}"));
        }
        if collapsed.is_ok() { Collapsed::Done } else { Collapsed::Perhaps }
    }
}

impl Drop for LinuxView {
    fn drop(&mut self) {
        if !self.made_in.is_current() {
            return; // The child never had this range; something else may live there.
        }
        self.faults.forget(self.start());
        let parts = std::mem::take(self.parts.get_mut().unwrap_or_else(PoisonError::into_inner));
        for part in parts {
            let (start, bytes) = self.locate(&part);
            self.siblings.remove(start.0..start.0 + bytes);
            failures::forget(start, bytes as u64);
            // SAFETY: we own the mapping, and nobody holds a reference into it, for those borrow from `self`.
            let _ = unsafe { rustix::mm::munmap(start.0 as *mut _, bytes) };
            // A thread that came by a raw pointer and waits in the range would wait for ever: let it find the hole.
            let _ = self.faults.wake(start, bytes as u64);
        }
        if let Some(window) = &self.window {
            window.remove_private_view();
        }
    }
}
