//! mlockall(2), munlockall(2).

use omnimap_host::linux::calls;

use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::flags::LockAll;
use crate::mapping::{Lock, Mapping};
use crate::mlock::{fetch, paged_in};

/// Locks everything that is mapped now, or will be (mlockall(2)).
///
/// Mappings of paged objects that were not made through these calls are the kernel's to lock: it brings all of their
/// pages once, and the cache drops them again when it needs room.
///
/// # Errors
/// `EINVAL` for no flags, unknown ones, or [`ONFAULT`](LockAll::ONFAULT) alone; `ENOMEM` if too much would be locked, by
/// `RLIMIT_MEMLOCK` or for a budget; `EPERM` where the process may lock nothing.
pub fn mlockall(flags: LockAll) -> Result<()> {
    let all = LockAll::CURRENT | LockAll::FUTURE | LockAll::ONFAULT;
    if flags.without(all) != LockAll(0) || !flags.intersects(LockAll::CURRENT | LockAll::FUTURE) {
        return Err(Errno::EINVAL);
    }
    let lock = if flags.contains(LockAll::ONFAULT) { Lock::OnFault } else { Lock::Yes };
    let parts = if flags.contains(LockAll::CURRENT) {
        space().lock_paged(&(0..usize::MAX), lock).map_err(|_| Errno::ENOMEM)?
    } else {
        Vec::new()
    };
    let brings = flags.contains(LockAll::CURRENT) && lock == Lock::Yes;
    let fetched = if brings { fetch(&paged_in(&(0..usize::MAX))) } else { Ok(()) };
    // SAFETY: locking changes no byte.
    let answer = fetched.and_then(|()| unsafe { calls::mlockall(flags.0) }.map_err(Errno));
    let mut space = space();
    match answer {
        Ok(()) => space.lock_future = flags.contains(LockAll::FUTURE).then_some(flags),
        Err(_) => space.release_unlocked(&(0..usize::MAX), &parts),
    }
    answer
}

/// Takes all locks back, and that what comes is locked (munlockall(2)).
///
/// # Errors
/// None, on a kernel that has the call.
pub fn munlockall() -> Result<()> {
    let mut space = space();
    // SAFETY: unlocking changes no byte.
    unsafe { calls::munlockall() }?;
    space.lock_future = None;
    space.change(&(0..usize::MAX), Mapping::release_lock);
    Ok(())
}
