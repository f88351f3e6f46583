//! shm_open(3), shm_unlink(3).

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use omnimap_host::linux::calls;

use crate::errno::Result;

/// Opens shared memory by name, for [`mmap`](crate::mmap()) (shm_open(3)).
///
/// `flags` are `O_RDONLY` or `O_RDWR`, with `O_CREAT`, `O_EXCL`, `O_TRUNC`; `mode` the permissions of one that is made. The
/// name begins with a slash and has no other. The descriptor is closed by exec.
///
/// # Errors
/// `EEXIST`, `ENOENT`, `EACCES`, `EINVAL` for a name that is none, `ENAMETOOLONG`, `EMFILE`, `ENFILE`.
///
/// # Example
/// ```
/// use omnimap_posix::{MapFlags, Prot, Source, mmap, munmap, shm_open, shm_unlink};
/// use std::os::fd::AsFd;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let name = std::ffi::CString::new(format!("/omnimap-example-{}", std::process::id()))?;
/// let shared = shm_open(&name, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600)?;
/// std::fs::File::from(shared.try_clone()?).set_len(4096)?;
/// let flags = MapFlags::SHARED;
/// // SAFETY: a new mapping at a place of the kernel's choice; it is written and unmapped here, and nowhere else.
/// unsafe {
///     let bytes = mmap(std::ptr::null_mut(), 4096, Prot::READ | Prot::WRITE, flags, shared.as_fd(), 0)?;
///     bytes.cast::<u8>().write(7);
///     munmap(bytes, 4096)?;
/// }
/// shm_unlink(&name)?;
/// # Ok(())
/// # }
/// ```
pub fn shm_open(name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    Ok(calls::shm_open(name, flags, mode)?)
}

/// Removes a name of shared memory; who has it open or mapped keeps it (shm_unlink(3)).
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENAMETOOLONG`.
pub fn shm_unlink(name: &CStr) -> Result<()> {
    Ok(calls::shm_unlink(name)?)
}
