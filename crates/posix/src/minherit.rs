//! minherit(2), as FreeBSD and NetBSD have it; Linux has parts of it in madvise(2).

use std::ffi::c_void;

use omnimap_host::linux::calls;
use omnimap_host::{Address, Sharing};

use crate::address_space::{Leaving, Space, space};
use crate::errno::{Errno, Result};
use crate::fork::{care, make_shared};
use crate::mapping::{Inheritance, Mapping};
use crate::range::{address, range};

/// Says what a child created by fork gets of a range (minherit(2) of FreeBSD).
///
/// It has no effect on exec, which removes everything, and none on this process, but for one: a private mapping that is to
/// be [shared](Inheritance::Share) becomes shared memory of its present bytes at once: no other thread may store to it
/// meanwhile, for that store could be lost. (FreeBSD lets a shared mapping that is
/// to be copied lose its object in the parent; here the parent keeps it.) The child's children get what it says as well.
///
/// # Errors
/// `EINVAL` for an address that is not aligned; `ENOMEM` if some of the range was not mapped through these calls, or there
/// is no memory; `EACCES` for a private mapping that is to be shared and cannot be read. What lies before the part that it
/// fails for has changed.
pub fn minherit(start: *mut c_void, length: usize, inheritance: Inheritance) -> Result<()> {
    let range = range(address(start).0, length, Errno::EINVAL)?;
    care();
    let mut space = space();
    let parts = space.mappings.parts(&range);
    let mut at = range.start;
    for part in &parts {
        if part.addresses().start > at {
            break;
        }
        at = part.addresses().end;
    }
    if at < range.end {
        return Err(Errno::ENOMEM);
    }
    let mut leaving = Vec::new();
    for part in parts {
        leaving.extend(space.set_inheritance(&part, inheritance)?);
    }
    drop(space);
    leaving.into_iter().for_each(Leaving::is_gone);
    Ok(())
}

impl Space {
    fn set_inheritance(&mut self, part: &Mapping, inheritance: Inheritance) -> Result<Option<Leaving>> {
        let addresses = part.addresses();
        let becomes_shared = inheritance == Inheritance::Share && part.sharing == Sharing::Private;
        if becomes_shared {
            let shared = Mapping { inheritance, lock: crate::mapping::Lock::No, ..make_shared(part)? };
            let leaving = self.give_up(&addresses);
            self.insert(shared);
            return Ok(Some(leaving));
        }
        if part.paged().is_none() {
            let advise = |advice| {
                // SAFETY: about children alone.
                unsafe { calls::madvise(Address(addresses.start), addresses.len(), advice) }
            };
            advise(if inheritance == Inheritance::None { libc::MADV_DONTFORK } else { libc::MADV_DOFORK })?;
            // Where the kernel cannot wipe it, the child does.
            let _ = advise(if inheritance == Inheritance::Zero {
                libc::MADV_WIPEONFORK
            } else {
                libc::MADV_KEEPONFORK
            });
        }
        self.change(&addresses, |mapping| mapping.inheritance = inheritance);
        Ok(None)
    }
}
