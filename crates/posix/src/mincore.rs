//! mincore(2).

use std::ffi::c_void;

use omnimap_host::linux::calls;

use crate::errno::{Errno, Result};
use crate::range::{address, page_bytes};

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
    if address(start).0.checked_add(length).is_none() {
        return Err(Errno::ENOMEM);
    }
    // A view of a paged object is a mapping of the memory that holds the resident pages, so the kernel's answer is the
    // cache's.
    // SAFETY: only asks.
    Ok(unsafe { calls::mincore(address(start), length, vector) }?)
}
