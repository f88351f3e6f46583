//! The system calls of the mmap family as they are, on any addresses of the process; the error is the kernel's number.
//!
//! All are unsafe for one reason: they change what addresses mean. Their callers say for which addresses they answer.

#![allow(clippy::missing_safety_doc, reason = "said once, for all of them, above")]

use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::Address;

/// The kernel's error number (errno(3)).
pub type Errno = i32;

type Answer<T> = std::result::Result<T, Errno>;

fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn done(answer: i32) -> Answer<()> {
    if answer == 0 { Ok(()) } else { Err(errno()) }
}

fn at(address: *mut libc::c_void) -> Answer<Address> {
    if address == libc::MAP_FAILED { Err(errno()) } else { Ok(Address(address as usize)) }
}

/// mmap(2). The descriptor may be none that is open: the kernel says so.
pub unsafe fn mmap(
    address: Address,
    length: usize,
    protection: i32,
    flags: i32,
    fd: RawFd,
    offset: i64,
) -> Answer<Address> {
    // SAFETY: the caller answers for what is replaced.
    at(unsafe { libc::mmap(address.0 as *mut _, length, protection, flags, fd, offset) })
}

/// munmap(2).
pub unsafe fn munmap(address: Address, length: usize) -> Answer<()> {
    // SAFETY: the caller answers for the range.
    done(unsafe { libc::munmap(address.0 as *mut _, length) })
}

/// mprotect(2).
pub unsafe fn mprotect(address: Address, length: usize, protection: i32) -> Answer<()> {
    // SAFETY: the caller answers for the range.
    done(unsafe { libc::mprotect(address.0 as *mut _, length, protection) })
}

/// msync(2).
pub unsafe fn msync(address: Address, length: usize, flags: i32) -> Answer<()> {
    // SAFETY: the caller answers for the range.
    done(unsafe { libc::msync(address.0 as *mut _, length, flags) })
}

/// mlock2(2); with no flags it is mlock(2).
pub unsafe fn mlock2(address: Address, length: usize, flags: u32) -> Answer<()> {
    // SAFETY: locking changes no byte.
    let answer = unsafe { libc::syscall(libc::SYS_mlock2, address.0, length, flags) };
    done(answer as i32)
}

/// munlock(2).
pub unsafe fn munlock(address: Address, length: usize) -> Answer<()> {
    // SAFETY: unlocking changes no byte.
    done(unsafe { libc::munlock(address.0 as *const _, length) })
}

/// mlockall(2).
pub unsafe fn mlockall(flags: i32) -> Answer<()> {
    // SAFETY: locking changes no byte.
    done(unsafe { libc::mlockall(flags) })
}

/// munlockall(2).
pub unsafe fn munlockall() -> Answer<()> {
    // SAFETY: unlocking changes no byte.
    done(unsafe { libc::munlockall() })
}

/// mincore(2); `vector` has a byte for each page.
pub unsafe fn mincore(address: Address, length: usize, vector: &mut [u8]) -> Answer<()> {
    if vector.len() < length.div_ceil(super::page_bytes() as usize) {
        return Err(libc::EFAULT);
    }
    // SAFETY: the kernel writes as many bytes as there are pages, which are there.
    done(unsafe { libc::mincore(address.0 as *mut _, length, vector.as_mut_ptr()) })
}

/// madvise(2).
pub unsafe fn madvise(address: Address, length: usize, advice: i32) -> Answer<()> {
    // SAFETY: the caller answers for the range.
    done(unsafe { libc::madvise(address.0 as *mut _, length, advice) })
}

/// mremap(2).
pub unsafe fn mremap(
    address: Address,
    length: usize,
    new_length: usize,
    flags: i32,
    new_address: Address,
) -> Answer<Address> {
    // SAFETY: the caller answers for both ranges.
    at(unsafe {
        libc::mremap(address.0 as *mut _, length, new_length, flags, new_address.0 as *mut libc::c_void)
    })
}

/// remap_file_pages(2).
pub unsafe fn remap_file_pages(
    address: Address,
    length: usize,
    protection: i32,
    page: usize,
    flags: i32,
) -> Answer<()> {
    // SAFETY: the caller answers for the range.
    done(unsafe { libc::remap_file_pages(address.0 as *mut _, length, protection, page, flags) })
}

/// shm_open(3).
pub fn shm_open(name: &CStr, flags: i32, mode: u32) -> Answer<OwnedFd> {
    // SAFETY: the name ends with a NUL.
    let fd = unsafe { libc::shm_open(name.as_ptr(), flags, mode) };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: just made for us, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// shm_unlink(3).
pub fn shm_unlink(name: &CStr) -> Answer<()> {
    // SAFETY: the name ends with a NUL.
    done(unsafe { libc::shm_unlink(name.as_ptr()) })
}
