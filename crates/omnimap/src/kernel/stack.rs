//! Memory for a stack.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use omnimap_core::{Error, Result};
use omnimap_host::linux::{PrivatePages, Wishes, page_bytes};

use super::residency;
use crate::place::refused;

/// Pages below a stack that cannot be touched: as many as the kernel keeps below one that grows (`stack_guard_gap`).
const GUARD_PAGES: u64 = 256;

/// Memory that grows towards lower addresses as it is touched, up to a bound, and ends at a guard gap.
///
/// The program's first touch of a page is what takes memory for it. Below the lowest byte are pages that cannot be
/// touched: one step too far is SIGSEGV, and never another's memory.
///
/// It has the addresses for all of it from the start: a mapping of the kernel's that takes them only as it grows
/// (`MAP_GROWSDOWN`, mmap(2)) has no bound, and others' mappings may come to lie in its way.
/// ([`posix::mmap`](crate::posix::mmap()) makes those.)
///
/// # Example
/// ```
/// use omnimap::kernel::Stack;
///
/// # fn main() -> omnimap::Result<()> {
/// let mut stack = Stack::new(1 << 30)?;
/// let top = stack.len();
/// stack[top - 8..].copy_from_slice(&7_u64.to_ne_bytes());
/// assert!(stack.committed_bytes()? <= 1 << 22);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Stack {
    name: Arc<str>,
    pages: PrivatePages,
}

impl Stack {
    /// A stack that can grow to `bytes_max`, in whole pages.
    ///
    /// # Errors
    /// [`Error::Host`] if there are no addresses for it.
    pub fn new(bytes_max: u64) -> Result<Stack> {
        let name: Arc<str> = "stack".into();
        let guard = GUARD_PAGES * page_bytes();
        // What overflows is more than there is.
        let bytes = bytes_max.checked_next_multiple_of(page_bytes()).and_then(|b| b.checked_add(guard));
        let wishes = Wishes { no_reserve: true, ..Wishes::default() };
        let pages = PrivatePages::new(bytes.unwrap_or(u64::MAX), wishes, None)
            .and_then(|pages| pages.guarded(guard as usize))
            .map_err(|e| refused(&name, e))?;
        Ok(Stack { name, pages })
    }

    /// The address behind its last byte, where a stack begins.
    pub fn top(&mut self) -> *mut u8 {
        self.as_mut_ptr_range().end
    }

    /// Bytes of it that take memory now.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn committed_bytes(&self) -> Result<u64> {
        let range = self.pages.range();
        let guard = self.pages.guard() as u64;
        Ok(residency(&self.name, range, guard..range.len() as u64)?.resident_bytes())
    }

    /// Gives back the memory of all but the topmost `bytes`, in whole pages: what was there is zeros again.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if it has not so many; [`Error::Host`] if something of the rest is locked.
    pub fn shrink_to(&mut self, bytes: u64) -> Result<()> {
        let (object, end) = (self.name.clone(), self.len() as u64);
        let kept = end.checked_sub(bytes);
        let rest = kept.ok_or(Error::OutOfRange { object, offset: 0, length: bytes, end })?;
        self.pages.discard(0..rest as usize).map_err(|e| refused(&self.name, e))
    }
}

impl Deref for Stack {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages
    }
}

impl DerefMut for Stack {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages
    }
}
