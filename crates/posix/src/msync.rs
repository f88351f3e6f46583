//! msync(2).

use std::ffi::c_void;

use omnimap_host::linux::calls;

use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::family::SyncKind;
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
        // Whoever serves it knows how long it is.
        let bytes = if object.is_served_here() { mapping.bytes_inside(object) } else { mapping.bytes() };
        if object.rights() == crate::Rights::ReadOnly {
            continue; // Held to the version that was opened; nothing is dirty.
        }
        let asked = [
            (SyncFlags::SYNC, SyncKind::Wait),
            (SyncFlags::ASYNC, SyncKind::Start),
            (SyncFlags::INVALIDATE, SyncKind::Invalidate),
        ];
        let mut asked = asked.into_iter().filter(|(flag, _)| flags.contains(*flag));
        outcome = outcome.and(asked.try_for_each(|(_, how)| object.sync_range(bytes.clone(), how)));
    }
    outcome?;
    Ok(answer?)
}
