//! mincore(2).

use std::ffi::c_void;

use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::errno::{Errno, Result};
use crate::range::{address, addresses_end, page_bytes};

/// Tells which pages of a range are in memory: the lowest bit of a byte for each (mincore(2)).
///
/// Of a paged object, in memory means in its cache. The answer may be old when it is read, but for pages that are locked.
/// `vector` has at least a byte for each page.
///
/// # Errors
/// `EINVAL` for an address that is not aligned, `ENOMEM` if nothing is mapped in some of the range, or it wraps; `EFAULT`
/// for a vector that is too short.
pub fn mincore(start: *mut c_void, length: usize, vector: &mut [u8]) -> Result<()> {
    // Before the vector is looked at, as the kernel does.
    if !address(start).0.is_multiple_of(page_bytes()) {
        return Err(Errno::EINVAL);
    }
    let end = address(start).0.checked_add(length).filter(|end| *end <= addresses_end());
    let pages = end.ok_or(Errno::ENOMEM).map(|_| length.div_ceil(page_bytes()))?;
    // A view of a paged object is a mapping of the memory that holds the resident pages, so the kernel's answer is the
    // cache's.
    if let Some(vector) = vector.get_mut(..pages) {
        // SAFETY: only asks.
        return Ok(unsafe { calls::mincore(address(start), length, vector) }?);
    }
    // It fails as soon as it has something to tell for which there is no room, and not where there is a hole.
    let told = vector.len() * page_bytes();
    // SAFETY: only asks.
    unsafe { calls::mincore(address(start), told, vector) }?;
    // SAFETY: only asks.
    unsafe { calls::mincore(Address(address(start).0 + told), page_bytes(), &mut [0]) }?;
    Err(Errno::EFAULT)
}
