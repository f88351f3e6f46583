//! remap_file_pages(2).

use std::ffi::c_void;
use std::sync::Arc;

use omnimap_host::linux::calls;

use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::flags::{Advice, MapFlags, Prot};
use crate::mapping::{Inheritance, Kind, Mapping};
use crate::mmap::{Source, mmap, number};
use crate::range::{address, page_bytes, pointer, range};

/// Shows other pages of the same object in a part of a shared mapping: `length` bytes from page `page` on
/// (remap_file_pages(2), which the kernel emulates by mappings too since 4.0).
///
/// `prot` must be 0: the protection stays as it is. Of `flags`, `NONBLOCK` alone has a meaning, and none here.
///
/// # Errors
/// `EINVAL` for a range that is not inside one shared mapping of an object that can be stored to, a `prot`, a length of 0, or a page number that is too
/// large; `EAGAIN` if the range is locked, and the pages cannot be locked beside those that they replace, as in the kernel.
///
/// # Safety
/// Nothing borrows what the range shows.
pub unsafe fn remap_file_pages(
    start: *mut c_void,
    length: usize,
    prot: i32,
    page: usize,
    flags: MapFlags,
) -> Result<()> {
    let first = address(start).0 - address(start).0 % page_bytes();
    let asked = range(first, length - length % page_bytes(), Errno::EINVAL)?;
    let parts = {
        let mut space = space();
        if !space.has_paged(&asked) {
            // SAFETY: the caller promised it.
            unsafe { calls::remap_file_pages(address(start), length, prot, page, flags.0) }?;
            // A new mapping to the kernel, with nothing of what the old one was advised.
            space.change(&asked, |mapping| {
                mapping.inheritance = Inheritance::Natural;
                mapping.advice = Advice::NORMAL;
                mapping.offset = match mapping.kind {
                    Kind::Anonymous => number(mapping.addresses.len()),
                    _ => (page * page_bytes() + mapping.addresses.start - asked.start) as u64,
                };
            });
            return Ok(());
        }
        space.mappings.parts(&asked)
    };
    let Some(mapping) = parts.first() else { return Err(Errno::EINVAL) };
    // One mapping, or several alike of one object without a hole. Of an object that was opened read-only there is none to
    // the kernel that is shared (`VM_SHARED`).
    let alike = |part: &Mapping| {
        part.paged().zip(mapping.paged()).is_some_and(|(a, b)| Arc::ptr_eq(a, b))
            && part.is_mapped_like(mapping)
    };
    let covered: usize = parts.iter().filter(|part| alike(part)).map(|part| part.addresses().len()).sum();
    if prot != 0 || covered < asked.len() || !mapping.is_shared() || mapping.may_not_write() {
        return Err(Errno::EINVAL);
    }
    let offset = page.checked_mul(page_bytes()).and_then(|o| i64::try_from(o).ok()).ok_or(Errno::EINVAL)?;
    let Some(object) = mapping.paged() else { return Err(Errno::EINVAL) };
    let flags =
        MapFlags::SHARED | MapFlags::FIXED | if mapping.is_locked() { MapFlags::LOCKED } else { MapFlags(0) };
    let at = pointer(omnimap_host::Address(asked.start));
    // SAFETY: the caller promised it.
    unsafe { mmap(at, asked.len(), Prot(mapping.prot().0), flags, Source::Object(object), offset) }?;
    Ok(())
}
