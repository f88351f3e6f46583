//! minherit(2), as FreeBSD and NetBSD have it; Linux has parts of it in madvise(2).

use std::ffi::c_void;
use std::ops::Range;

use omnimap_host::linux::calls;
use omnimap_host::{Address, Sharing};

use crate::address_space::{Leaving, Space, space};
use crate::copied::Copied;
use crate::errno::{Errno, Result};
use crate::mapping::{Inheritance, Kind, Lock, Mapping};
use crate::range::{address, range};

/// Says what a child created by fork gets of a range (minherit(2) of FreeBSD).
///
/// It has no effect on exec, which removes everything, and none on this process, but for one: a private mapping that is to
/// be [shared](Inheritance::Share) becomes shared memory of its present bytes at once: no other thread may store to it
/// meanwhile, for that store could be lost. It stays locked, unless there is no room for that any more (`RLIMIT_MEMLOCK`). (FreeBSD lets a shared mapping that is
/// to be copied lose its object in the parent; here the parent keeps it.) The child's children get what it says as well.
///
/// # Errors
/// `EINVAL` for an address that is not aligned; `ENOMEM` if some of the range was not mapped through these calls, or there
/// is no memory; `EACCES` for a private mapping that is to be shared and cannot be read. What lies before the part that it
/// fails for has changed.
pub fn minherit(start: *mut c_void, length: usize, inheritance: Inheritance) -> Result<()> {
    let range = range(address(start).0, length, Errno::EINVAL)?;
    let mut left = parts_backwards(&space(), &range)?;
    while let Some(part) = left.pop() {
        match set_inheritance(&part, inheritance)? {
            Some(leaving) => leaving.is_gone(),
            // Another thread has changed it meanwhile.
            None => left.extend(parts_backwards(&space(), &part.addresses())?),
        }
    }
    Ok(())
}

/// The mappings that a range consists of, the last one first.
fn parts_backwards(space: &Space, range: &Range<usize>) -> Result<Vec<Mapping>> {
    let mut parts = space.mappings.parts(range);
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
    parts.reverse();
    Ok(parts)
}

/// Changes a mapping, if it still is as it was seen; gives what is not there any more.
fn set_inheritance(part: &Mapping, inheritance: Inheritance) -> Result<Option<Leaving>> {
    let addresses = part.addresses();
    let becomes_shared = inheritance == Inheritance::Share && part.sharing == Sharing::Private;
    // Whoever brings the bytes may need the space.
    let copied = becomes_shared.then(|| Copied::new(part, Sharing::Shared)).transpose()?;
    if copied.as_ref().is_some_and(|copied| !copied.missing().is_empty()) {
        return Err(Errno::EACCES); // What cannot be read would be lost.
    }
    let mut space = space();
    let is_as_seen = matches!(space.mappings.parts(&addresses).as_slice(), [now] if now.is_same(part));
    if !is_as_seen {
        return Ok(None);
    }
    if let Some(copied) = copied {
        // SAFETY: the same bytes with the same protection take the place of the old ones.
        unsafe { copied.replace(part.prot()) }?;
        let leaving = space.give_up(&addresses);
        let is_locked = part.lock != Lock::No && {
            // SAFETY: locking changes no byte.
            unsafe { calls::mlock2(Address(addresses.start), addresses.len(), part.lock.flags().0) }.is_ok()
        };
        space.insert(Mapping {
            kind: Kind::Anonymous,
            sharing: Sharing::Shared,
            offset: 0,
            inheritance,
            lock: if is_locked { part.lock } else { Lock::No },
            ..part.clone()
        });
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
    space.change(&addresses, |mapping| mapping.inheritance = inheritance);
    Ok(Some(Leaving::nothing()))
}
