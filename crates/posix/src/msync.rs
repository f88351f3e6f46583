//! msync(2).

use std::ffi::c_void;

use omnimap_host::linux::calls;

use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::flags::SyncFlags;
use crate::range::{address, range, whole_pages};

/// Brings a range into step with what it shows (msync(2)).
///
/// [`SYNC`](SyncFlags::SYNC): what was stored through shared mappings is in the store, and durable as after fsync(2), when
/// it returns. [`ASYNC`](SyncFlags::ASYNC): that begins. [`INVALIDATE`](SyncFlags::INVALIDATE): later accesses see what the
/// store has, but for what is stored here and not written yet. Private mappings are left alone.
///
/// # Errors
/// `EINVAL` for an address that is not aligned, unknown flags, or `SYNC` with `ASYNC`; `ENOMEM` if nothing is mapped in
/// some of the range (the rest is done); `EBUSY` for `INVALIDATE` of something locked; `EIO` or `ENOSPC` if a store did not
/// take something: that stays in memory, and the next sync tries again.
pub fn msync(start: *mut c_void, length: usize, flags: SyncFlags) -> Result<()> {
    // The kernel looks at the arguments, at holes and at locks; of a paged view it has nothing to write.
    // SAFETY: no byte changes: what is invalidated in the kernel's mappings is what others wrote already.
    let answer = unsafe { calls::msync(address(start), length, flags.0) };
    // What wraps when it is rounded is nothing (`SYSCALL_DEFINE3(msync)`).
    if whole_pages(length).is_none()
        || answer.is_err_and(|errno| errno != libc::ENOMEM && errno != libc::EIO && errno != libc::ENOSPC)
    {
        return Ok(answer?);
    }
    let range = range(address(start).0, length, Errno::ENOMEM)?;
    let shared = space().mappings.parts(&range);
    let mut outcome = Ok(());
    for mapping in shared {
        let Some(object) = mapping.paged_shared() else { continue };
        let is_served_here = object.is_served_here();
        // Whoever serves it knows how long it is.
        let bytes = if is_served_here { mapping.bytes_inside(object) } else { mapping.bytes() };
        if object.rights() == crate::Rights::ReadOnly {
            continue; // Held to the version that was opened; nothing is dirty.
        }
        let mut done = Ok(());
        if flags.contains(SyncFlags::SYNC) {
            done = object.sync_range(bytes.clone(), true);
        } else if flags.contains(SyncFlags::ASYNC) {
            done = object.sync_range(bytes.clone(), false);
        }
        if done.is_ok() && flags.contains(SyncFlags::INVALIDATE) && is_served_here {
            done = object.live().bytes.invalidate(bytes).map_err(Errno::from);
        }
        outcome = outcome.and(done);
    }
    outcome?;
    Ok(answer?)
}
