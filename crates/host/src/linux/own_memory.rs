//! Copies between the caller's bytes and mapped addresses of this process that the kernel makes: up to the first byte that
//! cannot be accessed, and no signal (process_vm_readv(2)).

use std::io;
use std::ops::Range;

use super::page_bytes;
use crate::error::During;
use crate::{Address, Result};

/// Copies bytes out; gives how many there were before one that cannot be read.
///
/// # Errors
/// EPERM or ENOSYS where the call is not allowed (old seccomp profiles of containers).
pub(super) fn read(from: Address, into: &mut [u8]) -> Result<usize> {
    let ours = into.as_mut_ptr();
    copy(from, into.len(), "process_vm_readv", |process, done, rest, remote| {
        let local = libc::iovec { iov_base: ours.wrapping_add(done).cast(), iov_len: rest };
        // SAFETY: the kernel writes at most the rest of `into`, and checks what it reads.
        unsafe { libc::process_vm_readv(process, &raw const local, 1, remote, 1, 0) }
    })
}

/// Copies bytes in; gives how many before one that cannot be stored to.
///
/// # Errors
/// EPERM or ENOSYS where the call is not allowed (old seccomp profiles of containers).
///
/// # Safety
/// Nobody borrows what is mapped there but as cells that others may store to, or mutably by the caller.
pub unsafe fn write_own_memory(to: Address, from: &[u8]) -> Result<usize> {
    copy(to, from.len(), "process_vm_writev", |process, done, rest, remote| {
        let local = libc::iovec { iov_base: from[done..].as_ptr().cast_mut().cast(), iov_len: rest };
        // SAFETY: the kernel reads the rest of `from`; the caller answers for what is stored to.
        unsafe { libc::process_vm_writev(process, &raw const local, 1, remote, 1, 0) }
    })
}

/// Copies bytes out, and gives the parts, in whole pages, that cannot be read; `into` stays as it is there.
///
/// # Errors
/// What process_vm_readv(2) reports for other reasons than a range that cannot be read.
pub fn read_own_memory(from: Address, into: &mut [u8]) -> Result<Vec<Range<usize>>> {
    let page = page_bytes() as usize;
    let mut missing: Vec<Range<usize>> = Vec::new();
    let mut done = 0;
    while done < into.len() {
        done += read(Address(from.0 + done), &mut into[done..])?;
        if done < into.len() {
            let next = ((from.0 + done + 1).next_multiple_of(page) - from.0).min(into.len());
            match missing.last_mut() {
                Some(last) if last.end == done => last.end = next,
                _ => missing.push(done..next),
            }
            done = next;
        }
    }
    Ok(missing)
}

/// Calls `call` with the process, how many bytes are done, how many are left, and where.
fn copy(
    mapped: Address,
    bytes: usize,
    name: &'static str,
    call: impl Fn(i32, usize, usize, *const libc::iovec) -> isize,
) -> Result<usize> {
    // SAFETY: always succeeds.
    let process = unsafe { libc::getpid() };
    let mut done = 0;
    while done < bytes {
        let remote = libc::iovec { iov_base: (mapped.0 + done) as *mut _, iov_len: bytes - done };
        match call(process, done, bytes - done, &raw const remote) {
            count @ 1.. => done += count as usize,
            0 => break,
            _ => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EFAULT) => break,
                    Some(libc::EINTR) => {}
                    _ => return Err(error).during(name),
                }
            }
        }
    }
    Ok(done)
}
