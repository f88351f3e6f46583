//! mlock(2), mlock2(2), munlock(2).

use std::ffi::c_void;
use std::ops::Range;

use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::address_space::{Space, space};
use crate::errno::{Errno, Result};
use crate::flags::LockOn;
use crate::mapping::{Lock, Mapping};
use crate::object::Object;
use crate::range::{address, page_bytes, whole_pages};

/// Brings a range into memory and keeps it there (mlock(2)). The start is rounded down, the end up to a page.
///
/// Locks do not nest: one [`munlock`] undoes any number. They go away with the mapping, and are not inherited by fork. Of
/// paged objects, half of a cache's budget can be locked or pinned at a time.
///
/// # Errors
/// `ENOMEM` if nothing is mapped in some of the range, if it cannot be accessed, or if too much would be locked (by
/// `RLIMIT_MEMLOCK`, or for the budget); `EPERM` where the process may lock nothing; `EIO` if a store does not give what it
/// has.
pub fn mlock(start: *const c_void, length: usize) -> Result<()> {
    mlock2(start, length, LockOn::default())
}

/// As [`mlock`]; with [`ONFAULT`](LockOn::ONFAULT), pages are locked as they come, and none is brought (mlock2(2)).
///
/// # Errors
/// As there; and `EINVAL` for unknown flags.
pub fn mlock2(start: *const c_void, length: usize, flags: LockOn) -> Result<()> {
    let Some(range) = rounded(start, length) else {
        // The kernel looks at limits before it finds that the range wraps.
        // SAFETY: locking changes no byte.
        return Ok(unsafe { calls::mlock2(address(start), length, flags.0) }?);
    };
    if flags.without(LockOn::ONFAULT) != LockOn::default() {
        return Err(Errno::EINVAL);
    }
    let lock = if flags.contains(LockOn::ONFAULT) { Lock::OnFault } else { Lock::Yes };
    let parts = space().lock_paged(&range, lock).map_err(|_| Errno::ENOMEM)?;
    // Of pages that are locked on a fault, too: without privileges the kernel has no faults of its own served.
    let fetched = if lock == Lock::Yes { fetch(&paged_in(&range)) } else { Ok(()) };
    let mut space = space();
    let answer = fetched.and_then(|()| {
        // SAFETY: locking changes no byte.
        unsafe { calls::mlock2(Address(range.start), range.len(), flags.0) }.map_err(Errno)
    });
    if answer.is_err() {
        // As far as the kernel went: it locks up to a hole, and what cannot be accessed as well.
        space.release_unlocked(&range, &parts);
    }
    answer
}

/// Lets a range go again (munlock(2)), however often it was locked.
///
/// # Errors
/// `ENOMEM` if nothing is mapped in some of the range.
pub fn munlock(start: *const c_void, length: usize) -> Result<()> {
    let range = rounded(start, length).ok_or(Errno::EINVAL)?;
    let mut space = space();
    // SAFETY: unlocking changes no byte.
    let answer = unsafe { calls::munlock(Address(range.start), range.len()) };
    let end = if answer.is_ok() { range.end } else { space.first_hole(&range).unwrap_or(range.start) };
    space.change(&(range.start..end), Mapping::release_lock);
    Ok(answer?)
}

/// The kernel rounds the start down for these calls; `None` where the end wraps.
fn rounded(start: *const c_void, length: usize) -> Option<Range<usize>> {
    let start = address(start).0;
    let skipped = start % page_bytes();
    // What wraps when it is rounded is nothing, as in the kernel (`do_mlock`).
    let bytes = whole_pages(length.wrapping_add(skipped)).unwrap_or(0);
    let start = start - skipped;
    Some(start..start.checked_add(bytes)?)
}

/// Asks the kernel whether a new mapping of this length may be locked: an error must leave what it is to replace.
pub(crate) fn may_lock(length: usize) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_LOCKED;
    // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
    match unsafe { calls::mmap(Address(0), length, libc::PROT_NONE, flags, -1, 0) } {
        // SAFETY: made here.
        Ok(made) => Ok(unsafe { calls::munmap(made, length) }?),
        Err(errno) if errno == libc::EPERM || errno == libc::EAGAIN => Err(Errno(errno)),
        Err(_) => Ok(()), // The call itself will tell.
    }
}

/// Locks a mapping that was just made.
pub(crate) fn lock_new(mapping: &Mapping, lock: Lock) -> Result<()> {
    if lock == Lock::No {
        return Ok(());
    }
    space().lock_paged(&mapping.addresses(), lock).map_err(|_| Errno::EAGAIN)?;
    keep_new(&Mapping { lock, ..mapping.clone() })
}

/// Locks a mapping that was just made (`MAP_LOCKED`, `MCL_FUTURE`), and whose pages the cache keeps already if it is to be
/// locked: resident as far as that works.
pub(crate) fn keep_new(mapping: &Mapping) -> Result<()> {
    let range = mapping.addresses();
    match mapping.lock {
        Lock::No => return Ok(()),
        Lock::Yes => {
            let _best_effort = fetch(std::slice::from_ref(mapping));
        }
        Lock::OnFault => {}
    }
    // SAFETY: locking changes no byte.
    match unsafe { calls::mlock2(Address(range.start), range.len(), mapping.lock.flags().0) } {
        Err(_) if locked_ranges().is_some_and(|all| all.iter().any(|l| l.contains(&range.start))) => Ok(()),
        // Too much (mmap(2)); mlock(2) has another number for it.
        Err(libc::ENOMEM) => Err(Errno::EAGAIN),
        answer => Ok(answer?),
    }
}

impl Space {
    /// Lets go of what the kernel has not locked after all; `taken` was not locked before.
    pub(crate) fn release_unlocked(&mut self, range: &Range<usize>, taken: &[Mapping]) {
        let Some(kernel) = locked_ranges() else {
            // Without descriptors nobody knows: what was locked before stays so.
            for part in taken.iter().map(Mapping::addresses) {
                // SAFETY: unlocking changes no byte.
                let _ = unsafe { calls::munlock(Address(part.start), part.len()) };
                self.change(&part, Mapping::release_lock);
            }
            return;
        };
        self.change(range, |mapping| {
            if mapping.is_locked() && !kernel.iter().any(|locked| locked.contains(&mapping.addresses.start)) {
                mapping.release_lock();
            }
        });
    }

    /// Keeps the pages of the paged parts of a range, all or none; gives the parts that were not locked before.
    pub(crate) fn lock_paged(&mut self, range: &Range<usize>, lock: Lock) -> Result<Vec<Mapping>> {
        let mut locked: Vec<Mapping> = Vec::new();
        let new: Vec<Mapping> = self
            .mappings
            .parts(range)
            .into_iter()
            .filter(|m| m.paged().is_some() && m.lock == Lock::No)
            .collect();
        for mut part in new {
            let Some(object) = part.paged() else { continue };
            if let Err(error) = object.live().bytes.lock(part.pages()) {
                locked.iter_mut().for_each(Mapping::release_lock);
                return Err(error.into());
            }
            part.lock = lock;
            locked.push(part);
        }
        // Kernel mappings need nothing but the flag; a mapping that is locked already may change its way.
        self.change(range, |mapping| mapping.lock = lock);
        Ok(locked)
    }
}

/// The paged mappings in a range.
pub(crate) fn paged_in(range: &Range<usize>) -> Vec<Mapping> {
    space().mappings.parts(range).into_iter().filter(|m| m.paged().is_some()).collect()
}

/// Brings pages that are kept.
pub(crate) fn fetch(parts: &[Mapping]) -> Result<()> {
    for part in parts {
        let Some(object) = part.paged() else { continue };
        bring(object, &part.bytes_inside(object))?;
    }
    Ok(())
}

/// Brings some bytes of an object, less at a time where there is no room for all together.
pub(crate) fn bring(object: &Object, bytes: &Range<u64>) -> Result<()> {
    let brought = object.live().bytes.prefetch(std::slice::from_ref(bytes))?.wait()?;
    let page = page_bytes() as u64;
    let middle = bytes.start + (bytes.end - bytes.start).div_ceil(page) / 2 * page;
    if brought.bytes_left_out > 0 && middle > bytes.start {
        bring(object, &(bytes.start..middle))?;
        bring(object, &(middle..bytes.end))?;
    }
    Ok(())
}

/// What the kernel has as locked (`lo` in proc_pid_smaps(5)); `None` if it does not tell.
fn locked_ranges() -> Option<Vec<Range<usize>>> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mut locked = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let current = current.take().filter(|_| flags.split_whitespace().any(|flag| flag == "lo"));
            locked.extend(current);
        } else if let Some(range) = line.split(' ').next().and_then(addresses_of) {
            current = Some(range);
        }
    }
    Some(locked)
}

/// `start-end`, as smaps has it.
fn addresses_of(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}
