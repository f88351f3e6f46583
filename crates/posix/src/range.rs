//! Addresses and lengths as callers give them, checked as the kernel checks them.

use std::ffi::c_void;
use std::ops::Range;

use std::sync::atomic::{AtomicUsize, Ordering};

use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::errno::{Errno, Result};

/// Bytes of a page.
pub(crate) fn page_bytes() -> usize {
    omnimap_host::linux::page_bytes() as usize
}

/// A length in whole pages; `None` where it wraps.
pub(crate) fn whole_pages(length: usize) -> Option<usize> {
    length.checked_next_multiple_of(page_bytes())
}

pub(crate) fn is_aligned(address: usize) -> bool {
    address.is_multiple_of(page_bytes())
}

pub(crate) fn address(pointer: *const c_void) -> Address {
    Address(pointer as usize)
}

pub(crate) fn pointer(address: Address) -> *mut c_void {
    address.0 as *mut c_void
}

/// The addresses from an aligned one on, in whole pages; `wraps` where there are not so many.
pub(crate) fn range(start: usize, length: usize, wraps: Errno) -> Result<Range<usize>> {
    if !is_aligned(start) {
        return Err(Errno::EINVAL);
    }
    let end = whole_pages(length).and_then(|bytes| start.checked_add(bytes)).ok_or(wraps)?;
    Ok(start..end)
}

/// Where the addresses end that the kernel maps at (`TASK_SIZE`). A call that replaces views must know before it lets go
/// of them.
pub(crate) fn addresses_end() -> usize {
    // Not under a lock, for a child may be forked meanwhile: who comes at the same time finds out the same.
    static END: AtomicUsize = AtomicUsize::new(0);
    match END.load(Ordering::Relaxed) {
        0 => {}
        end => return end,
    }
    let is_outside = |at: usize| can_map(at, libc::MAP_FIXED_NOREPLACE) == Err(libc::ENOMEM);
    // The lowest power of two that is not inside, as this stack is; x86-64 keeps the page below it out, too
    // (`TASK_SIZE_MAX`).
    let here = 0_u8;
    let first = (usize::BITS - (&raw const here).addr().leading_zeros()).max(36);
    let power =
        (first..usize::BITS - 1).map(|bits| 1 << bits).find(|end| is_outside(*end)).unwrap_or(usize::MAX);
    let is_less = power < usize::MAX && is_outside(power - page_bytes());
    let end = if is_less { power - page_bytes() } else { power };
    // A process that may map no more is told ENOMEM for addresses inside, too: it asks again.
    if can_map(0, 0).is_ok() {
        END.store(end, Ordering::Relaxed);
    }
    end
}

/// Whether the kernel would map a page, at an address for one; an error number if not.
fn can_map(at: usize, flags: i32) -> Result<(), i32> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | flags;
    // SAFETY: replaces nothing.
    let made = unsafe { calls::mmap(Address(at), page_bytes(), libc::PROT_NONE, flags, -1, 0) }?;
    // SAFETY: made here.
    unsafe { calls::munmap(made, page_bytes()) }
}
