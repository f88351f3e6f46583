//! Addresses that are set aside, for mappings to be placed in later.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{calls, page_bytes};
use crate::process::ProcessId;
use crate::{Address, Addresses, HostError, Memory, Place, Result, View, ViewRequest};

const NOTHING: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// A range of addresses at which nothing can be accessed (`PROT_NONE`), and nobody else maps anything.
///
/// [`Part`]s of it are replaced by mappings; dropping one gives its addresses back. The range stays as long as there are
/// parts of it.
#[derive(Debug, Clone)]
pub struct Reservation {
    all: Arc<Reserved>,
}

#[derive(Debug)]
struct Reserved {
    start: Address,
    bytes: usize,
    made_in: ProcessId,
    /// Parts that are given out, by where they begin: their ends.
    taken: Mutex<BTreeMap<usize, usize>>,
}

impl Reservation {
    /// Sets whole pages of addresses aside; takes no memory.
    ///
    /// # Errors
    /// ENOMEM where there are not so many addresses; EINVAL for none.
    pub fn new(bytes: u64) -> Result<Reservation> {
        let bytes = whole_pages(bytes).ok_or_else(|| refused(libc::ENOMEM))?;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let start =
            unsafe { calls::mmap(Address(0), bytes, libc::PROT_NONE, NOTHING, -1, 0) }.map_err(refused)?;
        let all = Reserved { start, bytes, made_in: ProcessId::current(), taken: Mutex::default() };
        Ok(Reservation { all: Arc::new(all) })
    }

    /// Where it begins.
    pub fn start(&self) -> Address {
        self.all.start
    }

    /// Its bytes, in whole pages.
    pub fn bytes(&self) -> u64 {
        self.all.bytes as u64
    }

    /// Takes a part of it, in whole pages.
    ///
    /// # Errors
    /// EINVAL if it does not begin at a page, has no bytes, or is not inside; EEXIST if some of it is taken; ECHILD in a
    /// forked child.
    pub fn part(&self, offset: u64, bytes: u64) -> Result<Part> {
        let begin = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(page_bytes() as usize));
        let length = whole_pages(bytes).filter(|bytes| *bytes > 0);
        let end = begin.zip(length).and_then(|(begin, length)| begin.checked_add(length));
        let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= self.all.bytes)) else {
            return Err(refused(libc::EINVAL));
        };
        if !self.all.made_in.is_current() {
            return Err(refused(libc::ECHILD));
        }
        let mut taken = self.all.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.range(..end).next_back().is_some_and(|(_, other_end)| *other_end > begin) {
            return Err(refused(libc::EEXIST));
        }
        taken.insert(begin, end);
        Ok(Part { all: self.all.clone(), range: begin..end, what: What::Nothing })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.made_in.is_current() {
            return; // The child may have something else where a view was in its parent.
        }
        // Parts hold `self`, so what is taken still are those that could not be given back.
        let lost = std::mem::take(self.taken.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut at = 0;
        for (begin, end) in lost.into_iter().chain([(self.bytes, self.bytes)]) {
            if at < begin {
                // SAFETY: ours, and no mapping is placed in it.
                let _ = unsafe { calls::munmap(Address(self.start.0 + at), begin - at) };
            }
            at = end;
        }
    }
}

/// A part of a [`Reservation`], for one mapping; its addresses go back when it is dropped.
#[derive(Debug)]
pub struct Part {
    all: Arc<Reserved>,
    range: Range<usize>,
    what: What,
}

/// What is mapped in a part.
enum What {
    Nothing,
    View(Arc<dyn View>),
    /// A mapping whose owner has the part, and no borrow of whose bytes is left when that is dropped.
    Owned,
    /// Mapping something there went wrong, and the kernel may or may not have unmapped what was there.
    Unknown,
}

impl std::fmt::Debug for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::Nothing => "Nothing",
            What::View(_) => "View",
            What::Owned => "Owned",
            What::Unknown => "Unknown",
        })
    }
}

impl Part {
    /// Where it begins.
    pub fn start(&self) -> Address {
        Address(self.all.start.0 + self.range.start)
    }

    /// Its bytes, in whole pages.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Calls `map`, which maps something over all of it, whose owner is going to have this part.
    pub(super) fn fill<T>(&mut self, map: impl FnOnce(Address) -> Result<T>) -> Result<T> {
        let made = map(self.start());
        self.what = if made.is_ok() { What::Owned } else { What::Unknown };
        made
    }

    /// Makes two of one that is filled, at a page inside: gives what begins there, and keeps the rest.
    pub(super) fn split_off(&mut self, at: usize) -> Part {
        let middle = self.range.start + at;
        let end = std::mem::replace(&mut self.range.end, middle);
        let mut taken = self.all.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(self.range.start, middle);
        taken.insert(middle, end);
        Part { all: self.all.clone(), range: middle..end, what: What::Owned }
    }

    /// Lets there be nothing again; `false` if the addresses cannot be used any more.
    fn empty(&mut self) -> bool {
        let how = match std::mem::replace(&mut self.what, What::Unknown) {
            What::Nothing => return true,
            What::View(mut view) => {
                if Arc::get_mut(&mut view).is_none() {
                    return false; // Somebody has it still, and unmaps it when he is done.
                }
                view.give_up(0..self.bytes() as u64);
                libc::MAP_FIXED
            }
            What::Owned => libc::MAP_FIXED,
            What::Unknown => libc::MAP_FIXED_NOREPLACE,
        };
        let at = self.start();
        // SAFETY: what is replaced is ours, and nobody borrows of it; or nothing is replaced.
        unsafe { calls::mmap(at, self.bytes(), libc::PROT_NONE, NOTHING | how, -1, 0) }.is_ok()
    }
}

impl Addresses for Part {
    fn map(&mut self, memory: &dyn Memory, request: &ViewRequest) -> Result<Arc<dyn View>> {
        if !matches!(self.what, What::Nothing) || whole_pages(request.length) != Some(self.bytes()) {
            return Err(refused(libc::EINVAL));
        }
        self.what = What::Unknown;
        // SAFETY: the range is this part's, and nothing is mapped in it. It is not used for anything else before the view
        // is gone: `empty` asks for the last reference.
        let place = unsafe { Place::over(self.start()) };
        let view = memory.map_as(&ViewRequest { place, ..*request })?;
        self.what = What::View(view.clone());
        Ok(view)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.all.made_in.is_current() && self.empty() {
            self.all.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.range.start);
        }
    }
}

fn whole_pages(bytes: u64) -> Option<usize> {
    usize::try_from(bytes.checked_next_multiple_of(page_bytes())?).ok()
}

fn refused(errno: i32) -> HostError {
    HostError::Call { call: "reserving addresses", source: std::io::Error::from_raw_os_error(errno) }
}
