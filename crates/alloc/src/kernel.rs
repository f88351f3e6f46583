//! Anonymous pages of the kernel's, for the global allocator: nothing here allocates.

use std::ptr::{self, NonNull};

use omnimap_host::Address;
use omnimap_host::linux::{calls, page_bytes};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Bytes in whole pages; `None` if that overflows.
pub(crate) fn whole_pages(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(page_bytes() as usize)
}

/// Maps zeros, at a multiple of `align`; `None` where the kernel refuses.
pub(crate) fn map(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let bytes = whole_pages(bytes)?;
    let slack = if align > page_bytes() as usize { align } else { 0 };
    let all = bytes.checked_add(slack)?;
    // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
    let start = unsafe { calls::mmap(Address(0), all, READ_WRITE, PRIVATE, -1, 0) }.ok()?.0;
    if slack == 0 {
        return NonNull::new(ptr::with_exposed_provenance_mut(start));
    }
    // before   [------------- all -------------]
    // after      head  [--- bytes ---]  tail
    let aligned = start.next_multiple_of(align);
    let (head, tail) = (aligned - start, start + all - (aligned + bytes));
    for (at, bytes) in [(start, head), (aligned + bytes, tail)] {
        if bytes > 0 {
            // SAFETY: a part of what was mapped here, that nobody knows.
            unsafe { unmap(ptr::with_exposed_provenance_mut(at), bytes) };
        }
    }
    NonNull::new(ptr::with_exposed_provenance_mut(aligned))
}

/// Gives pages back.
///
/// The kernel joins neighbouring mappings, and may refuse to make two of one again (munmap(2), `ENOMEM`): then the memory
/// goes all the same, and the addresses stay.
///
/// # Safety
/// The pages are the caller's, and not used any more.
pub(crate) unsafe fn unmap(start: *mut u8, bytes: usize) {
    let Some(bytes) = whole_pages(bytes) else { return };
    let at = Address(start.expose_provenance());
    // SAFETY: the caller's promise.
    if unsafe { calls::munmap(at, bytes) }.is_err() {
        // SAFETY: as above. There is nobody to tell, should it fail too.
        let _ = unsafe { calls::madvise(at, bytes, libc::MADV_DONTNEED) };
    }
}

/// Makes a range longer or shorter, with zeros, moving it if need be and allowed; `None` if the kernel refuses: then
/// nothing has changed.
///
/// # Safety
/// The pages are the caller's; if they have moved, nothing is at the old address.
pub(crate) unsafe fn remap(start: *mut u8, old: usize, new: usize, may_move: bool) -> Option<NonNull<u8>> {
    let (old, new) = (whole_pages(old)?, whole_pages(new)?);
    if old == new {
        return NonNull::new(start);
    }
    let flags = if may_move { libc::MREMAP_MAYMOVE } else { 0 };
    let at = Address(start.expose_provenance());
    // SAFETY: the caller's promise; no address is asked for, so nothing is replaced.
    let moved = unsafe { calls::mremap(at, old, new, flags, Address(0)) }.ok()?;
    NonNull::new(ptr::with_exposed_provenance_mut(moved.0))
}

/// The arenas' pages, as dlmalloc asks for them.
pub(crate) struct KernelPages;

// SAFETY: what is mapped is new, zeros, and nobody else's. What is given back is dlmalloc's, in whole pages: it gives back
// only what it was given.
unsafe impl dlmalloc::Allocator for KernelPages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        map(size, 1).map_or((ptr::null_mut(), 0, 0), |start| (start.as_ptr(), size, 0))
    }

    fn remap(&self, start: *mut u8, old: usize, new: usize, may_move: bool) -> *mut u8 {
        // SAFETY: dlmalloc's own pages.
        unsafe { remap(start, old, new, may_move) }.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    fn free_part(&self, start: *mut u8, old: usize, new: usize) -> bool {
        // SAFETY: dlmalloc's own pages, of which the last ones go.
        unsafe { calls::munmap(Address(start.expose_provenance() + new), old - new) }.is_ok()
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        // SAFETY: dlmalloc's own pages.
        unsafe { calls::munmap(Address(start.expose_provenance()), size) }.is_ok()
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        page_bytes() as usize
    }
}
