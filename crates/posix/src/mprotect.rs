//! mprotect(2).

use std::ffi::c_void;
use std::ops::Range;

use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::flags::Prot;
use crate::range::{address, range};

/// Gives every page of a range exactly this protection (mprotect(2)).
///
/// ```text
/// before    [----------- a, rw -----------]
/// mprotect          |---- r ----|
/// after     [ a, rw ][ a, r     ][ a, rw  ]
/// ```
///
/// # Errors
/// `EINVAL` for an address that is not aligned or bits that are no protection; `ENOMEM` if nothing is mapped in some of
/// the range, or there would be too many mappings; `EACCES` for stores to a shared mapping of an object that was opened
/// read-only. The pages before the first that it fails for have changed.
///
/// # Safety
/// No reference into the range says that it can be accessed in a way that this takes away.
pub unsafe fn mprotect(start: *mut c_void, length: usize, prot: Prot) -> Result<()> {
    let range = range(address(start).0, length, Errno::ENOMEM)?;
    let mut space = space();
    let forbidden = prot
        .contains(Prot::WRITE)
        .then(|| space.mappings.overlapping(&range).find(|m| m.may_not_write()).map(|m| m.addresses().start))
        .flatten();
    let end = forbidden.map_or(range.end, |start| start.max(range.start));
    let answer = protect(range.start..end, prot);
    let changed = match answer {
        Ok(()) => range.start..end,
        Err(libc::EINVAL) => range.start..range.start,
        // Up to a hole, a mapping that refuses, or one that would have to be cut.
        Err(_) => range.start..space.done_until(&(range.start..end), |part| protect(part, prot).is_ok()),
    };
    space.change(&changed, |mapping| mapping.prot = prot);
    answer?;
    if forbidden.is_some() { Err(Errno::EACCES) } else { Ok(()) }
}

fn protect(range: Range<usize>, prot: Prot) -> Result<(), i32> {
    // SAFETY: the caller of mprotect promised it.
    unsafe { calls::mprotect(Address(range.start), range.len(), prot.0) }
}
