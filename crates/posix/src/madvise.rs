//! madvise(2), and posix_madvise(3).

use std::ffi::c_void;
use std::ops::Range;

use omnimap_core::Pattern;
use omnimap_host::Address;
use omnimap_host::linux::calls;

use crate::address_space::{Space, space};
use crate::errno::{Errno, Result};
use crate::flags::{Advice, Prot};
use crate::mapping::{Inheritance, Mapping};
use crate::range::{address, range};

/// Says what a range will be used for, or what to do with its pages (madvise(2)).
///
/// | advice | a paged object |
/// |---|---|
/// | `NORMAL`, `RANDOM`, `SEQUENTIAL` | how much is fetched at a fault, and ahead of a reader |
/// | `WILLNEED` | the range is fetched, and nobody waits for it |
/// | `DONTNEED` | private pages are dropped; what is shared keeps its bytes |
/// | `COLD`, `PAGEOUT` | what is clean leaves the memory |
/// | `POPULATE_READ`, `POPULATE_WRITE` | the range is fetched, now |
/// | `REMOVE` | the object has zeros there |
/// | `COLLAPSE` | large pages are made of what is in memory, of objects that are only read; `EINVAL` if none can be |
/// | `NOHUGEPAGE` | the object has no large pages from now on |
/// | `HUGEPAGE` | nothing: they are made where they help |
/// | `DONTFORK`, `DOFORK` | as [`minherit`](crate::minherit()) with `None` and `Natural` |
///
/// # Errors
/// The kernel's: `EINVAL` for an address that is not aligned, an advice that is none or not for this kind of mapping, or
/// pages that are locked; `ENOMEM` if nothing is mapped in some of the range (the rest is done); `EACCES` for `REMOVE` where
/// stores do not reach the object. `EIO` if a store fails. Guard pages (`MADV_GUARD_INSTALL`) are `EINVAL` where something is
/// paged.
///
/// # Safety
/// `DONTNEED`, `FREE` and `REMOVE` change bytes that nothing may borrow.
pub unsafe fn madvise(start: *mut c_void, length: usize, advice: Advice) -> Result<()> {
    let range = range(address(start).0, length, Errno::EINVAL)?;
    if !space().has_paged(&range) {
        return note_inheritance(&range, advice, kernel(&range, advice));
    }
    match advice {
        Advice::NORMAL | Advice::RANDOM | Advice::SEQUENTIAL => {
            space().change(&range, |mapping| mapping.advice = advice);
            for (part, object) in paged(&range) {
                expect(&part, &object);
            }
            kernel(&range, advice)
        }
        Advice::WILLNEED => {
            for (part, object) in paged(&range) {
                // Best effort, and nobody waits.
                drop(object.live().bytes.prefetch(&[part.bytes_inside(&object)]));
            }
            space().others(&range, advice)
        }
        Advice::COLD | Advice::PAGEOUT => {
            let answer = kernel(&range, advice);
            if answer.is_ok() && advice == Advice::PAGEOUT {
                for (part, object) in served_here(&range) {
                    object.live().bytes.evict(part.bytes_inside(&object))?;
                }
            }
            answer
        }
        Advice::POPULATE_READ | Advice::POPULATE_WRITE => {
            for (part, object) in served_here(&range) {
                if part.prot.intersects(Prot::READ | Prot::WRITE | Prot::EXEC) {
                    object.live().bytes.prefetch(&[part.bytes_inside(&object)])?.wait()?;
                }
            }
            kernel(&range, advice)
        }
        Advice::REMOVE => remove(&range),
        Advice::COLLAPSE => collapse(&range),
        Advice::HUGEPAGE | Advice::NOHUGEPAGE => {
            // Not told to the kernel, which would make large pages of a paged object by itself.
            if advice == Advice::NOHUGEPAGE {
                served_here(&range).iter().for_each(|(_, object)| object.live().object.refuse_large_pages());
            }
            space().others(&range, advice)
        }
        Advice::DONTFORK | Advice::DOFORK => {
            // Views go to a child by the handlers of a fork alone, whatever is advised.
            let answer = space().others(&range, advice);
            note_inheritance(&range, advice, answer)
        }
        Advice::WIPEONFORK | Advice::KEEPONFORK => note_inheritance(&range, advice, kernel(&range, advice)),
        // The kernel would keep marks of its own where the engine has its marks (madvise(2), since Linux 6.13).
        Advice(GUARD_INSTALL | GUARD_REMOVE) if !paged(&range).is_empty() => Err(Errno::EINVAL),
        _ => kernel(&range, advice),
    }
}

const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

/// As the hints of [`madvise`], which change nothing but speed: `DONTNEED` keeps all bytes (posix_madvise(3)).
///
/// # Errors
/// `EINVAL` for an address that is not aligned or an advice that POSIX does not have; `ENOMEM` if nothing is mapped in
/// some of the range.
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "the kernel looks at the range; nothing is dereferenced")]
pub fn posix_madvise(start: *mut c_void, length: usize, advice: Advice) -> Result<()> {
    match advice {
        Advice::DONTNEED => {
            let range = range(address(start).0, length, Errno::EINVAL)?;
            let hole = space().first_hole(&range);
            if hole.is_some() { Err(Errno::ENOMEM) } else { Ok(()) }
        }
        Advice::NORMAL | Advice::RANDOM | Advice::SEQUENTIAL | Advice::WILLNEED => {
            // SAFETY: these are hints, and change no byte.
            unsafe { madvise(start, length, advice) }
        }
        _ => Err(Errno::EINVAL),
    }
}

fn kernel(range: &Range<usize>, advice: Advice) -> Result<()> {
    // SAFETY: the caller of madvise answers for the range.
    Ok(unsafe { calls::madvise(Address(range.start), range.len(), advice.0) }?)
}

/// The paged parts of a range, and what they show.
fn paged(range: &Range<usize>) -> Vec<(Mapping, std::sync::Arc<crate::Object>)> {
    let parts = space().mappings.parts(range);
    parts.into_iter().filter_map(|part| part.paged().cloned().map(|object| (part, object))).collect()
}

/// As [`paged`], of objects that another process does not serve.
fn served_here(range: &Range<usize>) -> Vec<(Mapping, std::sync::Arc<crate::Object>)> {
    paged(range).into_iter().filter(|(_, object)| object.is_served_here()).collect()
}

/// Tells the engine how a mapping will be read.
fn expect(mapping: &Mapping, object: &crate::Object) {
    let pattern = match mapping.advice {
        Advice::RANDOM => Pattern::Random,
        Advice::SEQUENTIAL => Pattern::Sequential,
        _ => Pattern::Normal,
    };
    object.live().cache.expect_at(&mapping.addresses, pattern);
}

/// The advice that a mapping was given goes along where it was made anew.
pub(crate) fn advise_again(mapping: &Mapping, object: &crate::Object) {
    if mapping.advice != Advice::NORMAL {
        expect(mapping, object);
        // A hint: nobody is helped by an error.
        let _ = kernel(&mapping.addresses, mapping.advice);
    }
}

/// Makes large pages of what is in memory. The kernel is not asked, for it would do so behind our back.
fn collapse(range: &Range<usize>) -> Result<()> {
    let mut made = 0;
    for (part, object) in served_here(range) {
        made += object.live().object.collapse_range(part.bytes_inside(&object));
    }
    space().others(range, Advice::COLLAPSE)?;
    if made > 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Paged objects have zeros there; what others mapped between them is the kernel's to remove.
fn remove(range: &Range<usize>) -> Result<()> {
    let parts = space().mappings.parts(range);
    let mut outcome = Ok(());
    let mut remove_others = |others: Range<usize>| match kernel(&others, Advice::REMOVE) {
        // Where there is a hole, it did the rest.
        Err(Errno::ENOMEM) => {
            outcome = Err(Errno::ENOMEM);
            Ok(())
        }
        answer => answer,
    };
    let mut at = range.start;
    for part in &parts {
        remove_others(at..part.addresses.start)?;
        remove_part(part)?;
        at = part.addresses.end;
    }
    remove_others(at..range.end)?;
    outcome
}

/// The zeros are stored as any other bytes, so that they reach the store when those would.
fn remove_part(part: &Mapping) -> Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    if part.is_locked() {
        return Err(Errno::EINVAL);
    }
    let Some(object) = part.paged() else {
        return kernel(&part.addresses, Advice::REMOVE);
    };
    if part.paged_shared().is_none() || part.may_not_write() {
        return Err(Errno::EACCES);
    }
    let bytes = part.bytes_inside(object);
    for at in bytes.clone().step_by(ZEROS.len()) {
        object.live().bytes.write_at(at, &ZEROS[..(bytes.end - at).min(ZEROS.len() as u64) as usize])?;
    }
    Ok(())
}

/// What a child will get, as the advice says, as far as the kernel took it; where there is a hole it took the rest.
fn note_inheritance(range: &Range<usize>, advice: Advice, answer: Result<()>) -> Result<()> {
    // What it becomes, and whether of what it is: the kernel keeps both advices, and what is left out is not wiped.
    type Is = fn(Inheritance) -> bool;
    let (inheritance, of): (Inheritance, Is) = match advice {
        Advice::DONTFORK => (Inheritance::None, |_| true),
        Advice::WIPEONFORK => (Inheritance::Zero, |is| is != Inheritance::None),
        Advice::DOFORK => (Inheritance::Natural, |is| is == Inheritance::None),
        Advice::KEEPONFORK => (Inheritance::Natural, |is| is == Inheritance::Zero),
        _ => return answer,
    };
    let mut space = space();
    let took = |answer| matches!(answer, Ok(()) | Err(Errno::ENOMEM));
    let end = if took(answer) {
        range.end
    } else {
        // What it refuses it refuses for one mapping, and those before that have changed.
        let is_forks = matches!(advice, Advice::DONTFORK | Advice::DOFORK);
        space.done_until(range, |part| is_forks && space.has_paged(&part) || took(kernel(&part, advice)))
    };
    space.change(&(range.start..end), |mapping| {
        if of(mapping.inheritance) {
            mapping.inheritance = inheritance;
        }
    });
    answer
}

impl Space {
    /// Passes an advice to the kernel for all of a range that is no view of a paged object, up to what it refuses.
    fn others(&self, range: &Range<usize>, advice: Advice) -> Result<()> {
        let mut outcome = Ok(());
        let mut at = range.start;
        let views: Vec<Range<usize>> = self
            .mappings
            .parts(range)
            .iter()
            .filter(|m| m.paged().is_some())
            .map(Mapping::addresses)
            .collect();
        for view in views.into_iter().chain(std::iter::once(range.end..range.end)) {
            if at < view.start {
                match kernel(&(at..view.start), advice) {
                    // A hole: the rest is done.
                    Err(Errno::ENOMEM) => outcome = Err(Errno::ENOMEM),
                    answer => answer?,
                }
            }
            at = view.end;
        }
        outcome
    }
}
