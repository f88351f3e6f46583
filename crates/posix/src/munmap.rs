//! munmap(2).

use std::ffi::c_void;

use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::range::{address, addresses_end, range};

/// Unmaps whatever is mapped in a range (munmap(2)).
///
/// ```text
/// before   [------ a ------]   [--- b ---]
/// munmap         |------------------|
/// after    [  a  ]                  [ b  ]
/// ```
///
/// What was stored through a shared mapping of a paged object is in its store when this returns, but not durable; a store
/// that did not take it is told about by the next sync of the object.
///
/// # Errors
/// `EINVAL` for an address that is not aligned, a length of 0, or a range that wraps; `ENOMEM` if the process would have
/// too many mappings by cutting one in two.
///
/// # Safety
/// Nothing in the range is used any more.
pub unsafe fn munmap(start: *mut c_void, length: usize) -> Result<()> {
    let range = range(address(start).0, length, Errno::EINVAL)?;
    if range.is_empty() || range.end > addresses_end() {
        return Err(Errno::EINVAL);
    }
    let mut space = space();
    // The kernel refuses a range in the middle of a mapping when there are too many: then nothing must have changed.
    // Taking all access away cuts it in the same way, and can be taken back.
    space.cut_views(&range)?;
    let mut leaving = space.give_up(&range);
    // SAFETY: the caller promised it.
    let answer = unsafe { calls::munmap(Address(range.start), range.len()) };
    if answer.is_err() {
        leaving.stays(&mut space);
    }
    drop(space);
    leaving.is_gone();
    Ok(answer?)
}
