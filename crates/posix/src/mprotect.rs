//! mprotect(2).

use std::ffi::c_void;
use std::ops::Range;

use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::address_space::{Space, space};
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
    // SAFETY: the caller promised it.
    let answer = unsafe { calls::mprotect(Address(range.start), end - range.start, prot.0) };
    let changed = match answer {
        Ok(()) => range.start..end,
        // Up to the hole.
        Err(libc::ENOMEM) => range.start..space.first_hole(&(range.start..end)).unwrap_or(range.start),
        Err(libc::EINVAL) => range.start..range.start,
        // Up to a mapping that refuses.
        Err(_) => range.start..protected_until(&space, range.start..end, prot),
    };
    space.change(&changed, |mapping| mapping.prot = prot);
    answer?;
    if forbidden.is_some() { Err(Errno::EACCES) } else { Ok(()) }
}

/// Where the first mapping begins that cannot be protected so; those before have been, and are again.
fn protected_until(space: &Space, range: Range<usize>, prot: Prot) -> usize {
    let mut done = range.start;
    let known = space.mappings.parts(&range).into_iter().map(|part| part.addresses());
    let ends = known.flat_map(|part| [part.start, part.end]).chain([range.end]);
    for end in ends {
        // SAFETY: the caller of mprotect promised it.
        if done < end && unsafe { calls::mprotect(Address(done), end - done, prot.0) }.is_err() {
            break;
        }
        done = end;
    }
    done
}
