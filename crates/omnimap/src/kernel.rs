//! The kernel's own mappings, by the same options and with the same methods: no pager, no budget, no overhead.
//!
//! For a local file that fits in memory, or memory that is not to be larger than RAM, they are the right answer.
//!
//! | | what | borrowed as |
//! |---|---|---|
//! | [`AnonymousMemory`] | zeros, one holder | `&mut [u8]` |
//! | [`SharedAnonymousMemory`] | zeros that forked children share | atomics |
//! | [`KernelMapping`] | a file or a device | copies; atomics if it is shared and writable; a pointer |
//! | [`Stack`] | a stack that grows downwards, to a guard gap | `&mut [u8]` |
//!
//! Of a file that others can change there is no slice: that would not be sound. [`KernelMapping::as_ptr`] is for who knows
//! better, in unsafe code. Checked reads and writes answer with an error where an access by a pointer would be SIGBUS.
//!
//! All of them are inherited by a forked child, as mmap(2) and fork(2) say.

mod anonymous;
mod mapping;
mod stack;

pub use anonymous::{AnonymousMemory, SharedAnonymousMemory};
pub use mapping::KernelMapping;
pub use stack::Stack;

use std::ops::Range;
use std::sync::Arc;

use omnimap_core::{Error, Result};
use omnimap_host::linux::{Expected, KernelRange};

use crate::{Advice, Residency};

/// A range of a mapping, if it is inside.
fn inside(name: &Arc<str>, range: &KernelRange, asked: &Range<u64>) -> Result<Range<usize>> {
    let end = range.len() as u64;
    if asked.start > asked.end || asked.end > end {
        let length = asked.end.saturating_sub(asked.start);
        return Err(Error::OutOfRange { object: name.clone(), offset: asked.start, length, end });
    }
    Ok(asked.start as usize..asked.end as usize)
}

fn expected(advice: Advice) -> Expected {
    match advice {
        Advice::Normal => Expected::Anything,
        Advice::Random => Expected::Random,
        Advice::Sequential => Expected::Sequential,
        Advice::WillNeed => Expected::Soon,
        Advice::DontNeed => Expected::NotSoon,
    }
}

fn residency(name: &Arc<str>, mapping: &KernelRange, asked: Range<u64>) -> Result<Residency> {
    let range = inside(name, mapping, &asked)?;
    let page = omnimap_host::linux::page_bytes();
    let pages = mapping.resident(range).map_err(|e| crate::place::refused(name, e))?;
    let mut resident: Vec<Range<u64>> = Vec::new();
    let first = asked.start - asked.start % page;
    for (at, _) in (first..).step_by(page as usize).zip(pages).filter(|(_, resident)| *resident) {
        let part = at.max(asked.start)..(at + page).min(asked.end);
        match resident.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => resident.push(part),
        }
    }
    Ok(Residency { resident, bytes: asked.end - asked.start })
}

/// What all of them can.
macro_rules! common {
    ($type:ident) => {
        impl $type {
            /// What it is called in errors.
            pub fn name(&self) -> &str {
                &self.name
            }

            /// Brings a range into memory and keeps it there, in whole pages, until it is unlocked or the mapping is dropped
            /// (mlock(2)). Locks do not nest.
            ///
            /// # Errors
            /// [`Error::OutOfRange`](crate::Error::OutOfRange); [`Error::Host`](crate::Error::Host) above the limit of the process (RLIMIT_MEMLOCK).
            pub fn lock(&self, range: Range<u64>) -> Result<()> {
                let mapping = self.range();
                let range = inside(&self.name, mapping, &range)?;
                mapping.lock(range).map_err(|e| refused(&self.name, e))
            }

            /// Lets the pages of a range go again (munlock(2)).
            ///
            /// # Errors
            /// [`Error::OutOfRange`](crate::Error::OutOfRange).
            pub fn unlock(&self, range: Range<u64>) -> Result<()> {
                let mapping = self.range();
                let range = inside(&self.name, mapping, &range)?;
                mapping.unlock(range).map_err(|e| refused(&self.name, e))
            }

            /// What of a range is in memory, at this moment (mincore(2)).
            ///
            /// # Errors
            /// [`Error::OutOfRange`](crate::Error::OutOfRange).
            pub fn residency(&self, range: Range<u64>) -> Result<Residency> {
                residency(&self.name, self.range(), range)
            }

            /// Says what is known about the use of a range (madvise(2)); it changes speed, never bytes.
            ///
            /// # Errors
            /// [`Error::OutOfRange`](crate::Error::OutOfRange).
            pub fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
                let mapping = self.range();
                let range = inside(&self.name, mapping, &range)?;
                mapping.expect(range, expected(advice)).map_err(|e| refused(&self.name, e))
            }
        }
    };
}
use common;
