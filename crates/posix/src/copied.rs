//! Bytes of a mapping, as they are at a moment, in memory of their own.

use std::ops::Range;

use omnimap_host::linux::{calls, read_own_memory};
use omnimap_host::{Address, Sharing};

use crate::errno::{Errno, Result};
use crate::flags::Prot;
use crate::mapping::Mapping;
use crate::mlock::bring;
use crate::range::page_bytes;

/// Pages brought at a time: they are to stay until they have been read.
const BROUGHT_PAGES: usize = 4;

/// A copy of a mapping, until it takes its place.
pub(crate) struct Copied {
    of: Range<usize>,
    at: Address,
    missing: Vec<Range<usize>>,
}

impl Copied {
    /// Copies what a mapping shows; behind an object's end there are zeros. Not to be called with the space locked: whoever
    /// brings the bytes may need it.
    ///
    /// # Errors
    /// If there is no memory, or the bytes cannot be had.
    pub(crate) fn new(mapping: &Mapping, sharing: Sharing) -> Result<Copied> {
        let range = mapping.addresses();
        let prot = Prot::READ | Prot::WRITE;
        let shared = if sharing == Sharing::Shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let at =
            unsafe { calls::mmap(Address(0), range.len(), prot.0, shared | libc::MAP_ANONYMOUS, -1, 0) }?;
        // From here on dropping the value unmaps.
        let mut copied = Copied { of: range, at, missing: Vec::new() };
        // SAFETY: as much was just mapped, for nobody else.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at.0 as *mut u8, copied.of.len()) };
        copied.missing = bytes_of(mapping, bytes)?;
        Ok(copied)
    }

    /// The addresses of what was copied.
    pub(crate) fn of(&self) -> &Range<usize> {
        &self.of
    }

    /// Parts that could not be read, by their place in it: zeros here.
    pub(crate) fn missing(&self) -> &[Range<usize>] {
        &self.missing
    }

    /// Moves it to the addresses of what was copied, to be accessed as that.
    ///
    /// # Errors
    /// If the kernel refuses: then nothing has changed.
    ///
    /// # Safety
    /// Nobody minds that what is mapped there is replaced.
    pub(crate) unsafe fn replace(self, prot: Prot) -> Result<()> {
        let bytes = self.of.len();
        // SAFETY: ours.
        unsafe { calls::mprotect(self.at, bytes, prot.0) }?;
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the caller promised it.
        unsafe { calls::mremap(self.at, bytes, bytes, how, Address(self.of.start)) }?;
        let mut moved = std::mem::ManuallyDrop::new(self);
        drop(std::mem::take(&mut moved.missing));
        Ok(())
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // SAFETY: made here, and not moved.
        let _ = unsafe { calls::munmap(self.at, self.of.len()) };
    }
}

/// Copies what a mapping shows, and gives the parts that cannot be read.
fn bytes_of(mapping: &Mapping, into: &mut [u8]) -> Result<Vec<Range<usize>>> {
    if let Some(object) = mapping.paged_shared().filter(|object| object.is_served_here()) {
        // Whatever its protection, and without faults.
        let inside = mapping.bytes_inside(object);
        object.read_at(inside.start, &mut into[..(inside.end - inside.start) as usize])?;
        return Ok(Vec::new());
    }
    let mut read = |part: Range<usize>| -> Result<Vec<Range<usize>>> {
        let start = Address(mapping.addresses().start + part.start);
        let missing = read_own_memory(start, &mut into[part.clone()]).map_err(|e| Errno(e.errno()))?;
        Ok(missing.into_iter().map(|gap| part.start + gap.start..part.start + gap.end).collect())
    };
    let missing = read(0..mapping.addresses().len())?;
    let Some(object) = mapping.paged().filter(|o| o.is_served_here() && mapping.prot().contains(Prot::READ))
    else {
        return Ok(missing);
    };
    // Without privileges, the kernel has no faults of its own served.
    let inside = mapping.bytes_inside(object);
    let mut left = Vec::new();
    for gap in missing {
        for start in gap.clone().step_by(BROUGHT_PAGES * page_bytes()) {
            let part = start..gap.end.min(start + BROUGHT_PAGES * page_bytes());
            let at = |place: usize| (mapping.bytes().start + place as u64).min(inside.end);
            // What cannot be brought is told by who reads it.
            let _best_effort = bring(object, &(at(part.start)..at(part.end)));
            left.extend(read(part)?);
        }
    }
    Ok(left)
}
