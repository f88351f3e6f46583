//! mremap(2).

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use omnimap_core::Span;
use omnimap_core::units::PageRange;
use omnimap_host::linux::calls;
use omnimap_host::{Address, Place, Sharing};

use crate::address_space::{Leaving, Space, space};
use crate::errno::{Errno, Result};
use crate::flags::{Prot, RemapFlags};
use crate::mapping::{Lock, Mapping};
use crate::mlock::{lock_new, may_lock};
use crate::object::Object;
use crate::range::{address, addresses_end, is_aligned, page_bytes, pointer, whole_pages};

/// Makes a mapping shorter or longer, in place or elsewhere (mremap(2)).
///
/// ```text
/// before          [--- a ---]
/// longer          [--- a ---|---]             where there is room behind it
/// MAYMOVE                          [--- a ---|---]
/// FIXED                            [--- a ---|---]   at new_address, in the place of what is there
/// DONTUNMAP       [--- a ---]      [--- a ---]       private pages move along
/// shorter         [- a -]
/// ```
/// Contents, protection, lock and privately written pages go along.
///
/// # Errors
/// `EINVAL` for an address that is not aligned, lengths or flags that do not go together, overlapping ranges; `EFAULT` if
/// the old range is not inside one mapping; `ENOMEM` if it cannot grow in place and may not move; `EAGAIN` if too much would
/// be locked.
///
/// # Safety
/// Nothing uses the old range any more where it moves or gets shorter, nor what is mapped at `new_address`.
pub unsafe fn mremap(
    old_address: *mut c_void,
    old_length: usize,
    new_length: usize,
    flags: RemapFlags,
    new_address: *mut c_void,
) -> Result<*mut c_void> {
    let old = address(old_address).0;
    let new = address(new_address);
    // What wraps when it is rounded is nothing (`SYSCALL_DEFINE5(mremap)`).
    let (old_bytes, new_bytes) = (whole_pages(old_length).unwrap_or(0), whole_pages(new_length).unwrap_or(0));
    let range = old..old.saturating_add(old_bytes);
    let mut space = space();
    // The kernel refuses an address that is not aligned; what is not about paged objects it does by itself.
    let target = new.0..new.0.saturating_add(new_bytes);
    let paged = space.mappings.at(old).is_some_and(|m| m.paged().is_some())
        || space.has_paged(&range)
        || (flags.contains(RemapFlags::FIXED) && space.has_paged(&target));
    if !is_aligned(old) || !paged {
        let asked = Kernel { old, old_length, new_length, flags, new };
        let (made, leaving) = asked.call(&mut space)?;
        drop(space);
        leaving.is_gone();
        return Ok(pointer(made));
    }
    let asked = Paged { old: range, bytes: new_bytes, flags, new };
    asked.check()?;
    let remapped = asked.remap(&mut space)?;
    drop(space);
    remapped.leaving.into_iter().for_each(Leaving::is_gone);
    for (mapping, lock) in remapped.locks {
        // It was within the limits before it was moved (`may_lock`), and nobody is helped by an error now.
        let _best_effort = lock_new(&mapping, lock);
    }
    Ok(pointer(remapped.made))
}

/// A mapping of the kernel's.
struct Kernel {
    old: usize,
    old_length: usize,
    new_length: usize,
    flags: RemapFlags,
    new: Address,
}

impl Kernel {
    fn call(&self, space: &mut Space) -> Result<(Address, Leaving)> {
        let old_bytes = whole_pages(self.old_length).unwrap_or(0);
        let new_bytes = whole_pages(self.new_length).unwrap_or(0);
        let old = self.old..self.old.saturating_add(old_bytes);
        let target = self.new.0..self.new.0.saturating_add(new_bytes);
        let fixed = self.flags.contains(RemapFlags::FIXED);
        let over_paged = fixed && is_aligned(self.new.0) && space.has_paged(&target);
        let (made, mut leaving) = if over_paged {
            self.over_paged(space, new_bytes)?
        } else {
            (self.ask(self.new)?, Leaving::nothing())
        };
        let addresses = made.0..made.0 + new_bytes;
        let known = space.mappings.parts(&(old.start..old.end.max(old.start + 1)));
        // Nothing paged is in these ranges now.
        if !old.is_empty() && !self.flags.contains(RemapFlags::DONTUNMAP) {
            space.give_up(&old).is_gone();
        }
        if self.flags.contains(RemapFlags::DONTUNMAP) {
            unlock(space, &old);
        }
        if !over_paged {
            leaving = space.give_up(&addresses);
        }
        for part in known {
            let start = made.0 + (part.addresses.start - old.start);
            // Only the last one can have grown.
            let grown = part.addresses.end >= old.end;
            let end = if grown { addresses.end } else { start + part.addresses.len() };
            if start < addresses.end {
                space.insert(Mapping { addresses: start..end.min(addresses.end), ..part });
            }
        }
        Ok((made, leaving))
    }

    fn ask(&self, new: Address) -> Result<Address> {
        // SAFETY: the caller of mremap answers for the ranges.
        let made =
            unsafe { calls::mremap(Address(self.old), self.old_length, self.new_length, self.flags.0, new) };
        Ok(made?)
    }

    /// In the place of a view it is moved elsewhere first: an error must leave the view as it is.
    fn over_paged(&self, space: &mut Space, bytes: usize) -> Result<(Address, Leaving)> {
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let aside = unsafe { calls::mmap(Address(0), bytes, Prot::NONE.0, reserve, -1, 0) }?;
        if let Err(error) = self.ask(aside) {
            // SAFETY: made here.
            unsafe { calls::munmap(aside, bytes) }?;
            return Err(error);
        }
        let mut leaving = space.give_up(&(self.new.0..self.new.0 + bytes));
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: what was moved aside is known to nobody; the caller answers for what is replaced.
        match unsafe { calls::mremap(aside, bytes, bytes, how, self.new) } {
            Ok(made) => Ok((made, leaving)),
            Err(error) => {
                leaving.stays(space);
                leaving.is_gone();
                Err(error.into())
            }
        }
    }
}

/// A range that has views of paged objects in it, or is moved over some.
struct Paged {
    old: Range<usize>,
    /// The new length.
    bytes: usize,
    flags: RemapFlags,
    new: Address,
}

/// What became of it.
struct Remapped {
    /// Where it is now.
    made: Address,
    /// What is not there any more.
    leaving: Vec<Leaving>,
    /// What is to be locked.
    locks: Vec<(Mapping, Lock)>,
}

impl Paged {
    /// In the kernel's order (`check_mremap_params`).
    fn check(&self) -> Result<()> {
        let known = RemapFlags::MAYMOVE | RemapFlags::FIXED | RemapFlags::DONTUNMAP;
        let too_long = self.bytes == 0 || self.bytes > addresses_end();
        if self.flags.without(known) != RemapFlags(0) || too_long {
            return Err(Errno::EINVAL);
        }
        if !self.flags.intersects(RemapFlags::FIXED | RemapFlags::DONTUNMAP) {
            return Ok(());
        }
        let same = self.old.len() == self.bytes;
        let end = self.new.0.checked_add(self.bytes).filter(|end| *end <= addresses_end());
        let overlaps = |end| self.new.0 < self.old.end && self.old.start < end;
        let good = is_aligned(self.new.0)
            && self.flags.contains(RemapFlags::MAYMOVE)
            && (same || !self.flags.contains(RemapFlags::DONTUNMAP))
            && end.is_some_and(|end| !overlaps(end));
        if good { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn stays(&self) -> bool {
        !self.flags.intersects(RemapFlags::FIXED | RemapFlags::DONTUNMAP)
    }

    fn remap(&self, space: &mut Space) -> Result<Remapped> {
        let kept = self.old.start..self.old.start + self.old.len().min(self.bytes);
        let tail = kept.end..self.old.end;
        if space.first_hole(&(kept.start..kept.start + 1)).is_some() {
            return Err(Errno::EFAULT);
        }
        if self.stays() && !kept.is_empty() && self.bytes <= self.old.len() {
            let leaving = vec![unmap(space, &tail)?];
            return Ok(Remapped { made: Address(kept.start), leaving, locks: Vec::new() });
        }
        let whole = space.mappings.at(kept.start).filter(|m| kept.end <= m.addresses.end).cloned();
        let unknown = space.mappings.at(kept.start).is_none();
        if whole.is_none() && !unknown {
            return self.move_several(space);
        }
        let Some((whole, object)) = whole.and_then(|m| m.paged().cloned().map(|object| (m, object))) else {
            // The kernel's own, and what lies behind it goes.
            let cut = unmap(space, &tail)?;
            let (old, old_length) = (kept.start, kept.len());
            let asked = Kernel { old, old_length, new_length: self.bytes, flags: self.flags, new: self.new };
            let (made, leaving) = asked.call(space)?;
            return Ok(Remapped { made, leaving: vec![cut, leaving], locks: Vec::new() });
        };
        object.check_served_here()?;
        if kept.is_empty() {
            return self.show_again(space, &object, &whole);
        }
        let mapping = whole.part(kept.clone());
        if self.bytes > kept.len() {
            may_grow(&mapping, &object, self.bytes - kept.len())?;
        }
        let may_grow_here = self.stays() && kept.end == whole.addresses.end;
        let grown = if may_grow_here { self.grow(space, &object, &mapping)? } else { None };
        if let Some(locks) = grown {
            return Ok(Remapped { made: Address(kept.start), leaving: Vec::new(), locks });
        }
        if !self.flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let cut = unmap(space, &tail)?;
        let mut remapped = match mapping.sharing {
            Sharing::Shared => self.show_elsewhere(space, &object, &mapping),
            Sharing::Private => self.move_pages(space, &object, &mapping),
        }?;
        remapped.leaving.push(cut);
        Ok(remapped)
    }

    /// A second mapping of the same, of a shared one: what an old length of 0 means.
    fn show_again(&self, space: &mut Space, object: &Arc<Object>, whole: &Mapping) -> Result<Remapped> {
        if whole.paged_shared().is_none() {
            return Err(Errno::EINVAL);
        }
        if !self.flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        may_grow(whole, object, self.bytes)?;
        let offset = whole.part(self.old.start..whole.addresses.end).offset;
        self.show(space, object, &Mapping { offset, ..whole.clone() })
    }

    /// Moves several mappings, with the holes between them, to a fixed place (since Linux 6.17).
    ///
    /// ```text
    /// before   [ a ][ b ]   [ c ]
    /// after                          [ a ][ b ]   [ c ]
    /// ```
    fn move_several(&self, space: &mut Space) -> Result<Remapped> {
        let fixed = self.flags.contains(RemapFlags::FIXED);
        let parts = space.mappings.parts(&self.old);
        let starts = parts.first().is_some_and(|part| part.addresses.start == self.old.start);
        if !fixed || self.old.len() != self.bytes || !starts || space.has_others(&self.old) {
            return Err(Errno::EFAULT);
        }
        parts.iter().filter_map(Mapping::paged).try_for_each(|object| object.check_served_here())?;
        let mut all = Remapped { made: self.new, leaving: Vec::new(), locks: Vec::new() };
        for part in parts {
            let old = part.addresses();
            let new = Address(self.new.0 + (old.start - self.old.start));
            let one = Paged { bytes: old.len(), old, flags: self.flags, new }.remap(space)?;
            all.leaving.extend(one.leaving);
            all.locks.extend(one.locks);
        }
        Ok(all)
    }

    /// Shows more pages behind the old ones; `None`, where there is no room.
    fn grow(
        &self,
        space: &mut Space,
        object: &Arc<Object>,
        mapping: &Mapping,
    ) -> Result<Option<Vec<(Mapping, Lock)>>> {
        let more = Mapping {
            addresses: self.old.end..self.old.start + self.bytes,
            offset: mapping.offset + self.old.len() as u64,
            lock: Lock::No,
            ..mapping.clone()
        };
        match more.place(object, Place::empty_at(Address(self.old.end))) {
            Ok(_) => {}
            Err(Errno::EEXIST) => return Ok(None),
            Err(error) => return Err(error),
        }
        space.insert(more.clone());
        Ok(Some(to_lock(more, mapping.lock)))
    }

    /// The address that the kernel chooses, or the one that was asked for, and what was there.
    fn target(&self, space: &mut Space) -> (Place, Leaving) {
        if !self.flags.contains(RemapFlags::FIXED) {
            return (Place::anywhere(), Leaving::nothing());
        }
        let leaving = space.give_up(&(self.new.0..self.new.0 + self.bytes));
        // SAFETY: the caller of mremap promised it.
        (unsafe { Place::over(self.new) }, leaving)
    }

    /// Shows the same pages at the new addresses.
    fn show(&self, space: &mut Space, object: &Arc<Object>, mapping: &Mapping) -> Result<Remapped> {
        let (place_there, mut replaced) = self.target(space);
        let mut moved = Mapping { addresses: 0..self.bytes, lock: Lock::No, ..mapping.clone() };
        match moved.place(object, place_there) {
            Ok(made) => moved.addresses = made.0..made.0 + self.bytes,
            Err(error) => {
                replaced.stays(space);
                replaced.is_gone();
                return Err(error);
            }
        }
        space.insert(moved.clone());
        let made = Address(moved.addresses.start);
        Ok(Remapped { made, leaving: vec![replaced], locks: to_lock(moved, mapping.lock) })
    }

    fn show_elsewhere(&self, space: &mut Space, object: &Arc<Object>, mapping: &Mapping) -> Result<Remapped> {
        let mut remapped = self.show(space, object, mapping)?;
        if self.flags.contains(RemapFlags::DONTUNMAP) {
            unlock(space, &mapping.addresses());
        } else {
            remapped.leaving.push(unmap(space, &mapping.addresses())?);
        }
        Ok(remapped)
    }

    /// Moves a private view with the pages that it has copied: nothing may be accessed while the engine does not serve it.
    fn move_pages(&self, space: &mut Space, object: &Arc<Object>, mapping: &Mapping) -> Result<Remapped> {
        mapping.protect(Prot::NONE)?;
        let (_, mut replaced) = self.target(space);
        let hint = if self.flags.contains(RemapFlags::FIXED) { self.new } else { Address(0) };
        let fixed = if self.flags.contains(RemapFlags::FIXED) { libc::MAP_FIXED } else { 0 };
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
        // SAFETY: at a place of the kernel's choice, or where the caller of mremap promised that nothing is used.
        let reserved = unsafe { calls::mmap(hint, self.bytes, Prot::NONE.0, reserve, -1, 0) };
        let new = match reserved {
            Ok(new) => new,
            Err(error) => {
                replaced.stays(space);
                replaced.is_gone();
                mapping.protect(mapping.prot)?;
                return Err(error.into());
            }
        };
        let left = space.give_up(&mapping.addresses);
        let (old, length) = (mapping.addresses.start, mapping.addresses.len());
        let keeps = self.flags.contains(RemapFlags::DONTUNMAP);
        let how = RemapFlags::MAYMOVE
            | RemapFlags::FIXED
            | if keeps { RemapFlags::DONTUNMAP } else { RemapFlags(0) };
        let moved = left.may_be_moved().and_then(|()| move_exactly(old..old + length, how, new));
        let mut made = Mapping { addresses: new.0..new.0 + length, lock: Lock::No, ..mapping.clone() };
        if let Err(error) = moved {
            // SAFETY: reserved here.
            unsafe { calls::munmap(new, self.bytes) }?;
            // SAFETY: the view is where it was, with no access.
            mapping.place(object, unsafe { Place::there(Address(old)) })?;
            space.insert(Mapping { lock: Lock::No, ..mapping.clone() });
            replaced.is_gone();
            left.is_gone();
            return Err(error);
        }
        // SAFETY: just moved there, with no access.
        made.place(object, unsafe { Place::there(new) })?;
        if keeps {
            // SAFETY: there still, with no access.
            mapping.place(object, unsafe { Place::there(Address(old)) })?;
            space.insert(Mapping { lock: Lock::No, ..mapping.clone() });
        }
        if length < self.bytes {
            let more = Mapping {
                addresses: new.0 + length..new.0 + self.bytes,
                offset: mapping.offset + length as u64,
                ..made.clone()
            };
            // SAFETY: reserved here.
            more.place(object, unsafe { Place::over(Address(more.addresses.start)) })?;
            made.addresses.end = more.addresses.end;
        }
        space.insert(made.clone());
        Ok(Remapped { made: new, leaving: vec![replaced, left], locks: to_lock(made, mapping.lock) })
    }
}

fn to_lock(mapping: Mapping, lock: Lock) -> Vec<(Mapping, Lock)> {
    if lock == Lock::No { Vec::new() } else { vec![(mapping, lock)] }
}

/// Whether a mapping that is locked may be so many bytes longer: an error must leave it where it is.
fn may_grow(mapping: &Mapping, object: &Object, bytes: usize) -> Result<()> {
    if mapping.lock == Lock::No {
        return Ok(());
    }
    may_lock(bytes)?;
    let first = mapping.pages().end.0;
    let more = PageRange::new(first, first + (bytes / page_bytes()) as u64);
    object.live().bytes.lock(more).map_err(|_| Errno::EAGAIN)?;
    object.live().bytes.unlock(more);
    Ok(())
}

/// What stays behind a move is not locked any more (`move_vma`).
fn unlock(space: &mut Space, range: &Range<usize>) {
    if space.mappings.overlapping(range).any(Mapping::is_locked) {
        // SAFETY: unlocking changes no byte.
        let _ = unsafe { calls::munlock(Address(range.start), range.len()) };
        space.change(range, Mapping::release_lock);
    }
}

/// Moves a range to another of the same length, where nothing is that anybody uses.
///
/// To the kernel it may be several mappings for reasons of its own, and those that are served by userfaultfd it moves one
/// by one alone (`vma_multi_allowed`).
fn move_exactly(old: Range<usize>, how: RemapFlags, new: Address) -> Result<()> {
    let length = old.len();
    // SAFETY: the caller of mremap promised that the old range is not used; the new one was reserved for this.
    match unsafe { calls::mremap(Address(old.start), length, length, how.0, new) } {
        Err(libc::EFAULT) if length > page_bytes() => {
            let half = (length / 2).next_multiple_of(page_bytes());
            move_exactly(old.start..old.start + half, how, new)?;
            move_exactly(old.start + half..old.end, how, Address(new.0 + half))
        }
        answer => answer.map(drop).map_err(Errno),
    }
}

/// Unmaps a part of a view.
fn unmap(space: &mut Space, range: &Range<usize>) -> Result<Leaving> {
    if range.is_empty() {
        return Ok(Leaving::nothing());
    }
    if range.end > addresses_end() {
        return Err(Errno::EINVAL);
    }
    space.cut_views(range)?;
    let mut leaving = space.give_up(range);
    // SAFETY: the caller of mremap promised that it is not used.
    if let Err(error) = unsafe { calls::munmap(Address(range.start), range.len()) } {
        leaving.stays(space);
        leaving.is_gone();
        return Err(error.into());
    }
    Ok(leaving)
}
