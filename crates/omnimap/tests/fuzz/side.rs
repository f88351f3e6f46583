//! The two sides: the kernel's mapping of files, and ours of paged objects with the same bytes.

use std::path::Path;

use omnimap::posix::{Errno, MapFlags, Prot};

use crate::operation::{OBJECT_PAGES, What};
use crate::probe;
use crate::subject::{Column, Subject, Thing, free_addresses, page, pattern};

/// A mistake made on purpose on our side, which the fuzzer must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// munmap rounds a length down.
    RoundsDown,
    /// mprotect forgets the last page.
    ForgetsProtection,
    /// DONTNEED leaves private pages.
    KeepsPrivatePages,
    /// An occupied range is EINVAL and not EEXIST.
    WrongErrno,
    /// What was stored last is lost when pages are evicted.
    DropsDirty,
}

/// One side.
pub(crate) struct Side {
    pub(crate) calls: Subject,
    pub(crate) base: usize,
    pub(crate) writable: Thing,
    pub(crate) read_only: Thing,
    pub(crate) bug: Option<Bug>,
    /// The byte of the object that was stored to last, and what was there before, where that is known.
    last_store: Option<(u64, u8)>,
}

/// Pages of which an arena is made: what operations name, and what they may grow into.
pub(crate) const COMPARED_PAGES: usize = 48;

impl Side {
    pub(crate) fn new(column: Column, directory: &Path, bug: Option<Bug>) -> Side {
        let calls = Subject::in_directory(column, directory, 8);
        let writable = calls.object(&pattern(OBJECT_PAGES as usize * page() + 100));
        let read_only = calls.read_only(&pattern(5 * page() + page() / 2));
        // As far from a huge page's start as the other side's.
        let base = free_addresses((COMPARED_PAGES + 32) * page() + (4 << 20)).next_multiple_of(2 << 20)
            + 16 * page();
        Side { calls, base, writable, read_only, bug, last_store: None }
    }

    pub(crate) fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn thing(&self, what: What) -> Option<&Thing> {
        match what {
            What::Writable => Some(&self.writable),
            What::ReadOnly => Some(&self.read_only),
            What::Anonymous => None,
        }
    }

    /// An answer that is an address, as it is in every arena; `None` for one outside.
    pub(crate) fn relative(&self, answer: Result<usize, Errno>) -> Result<Option<usize>, Errno> {
        let end = self.base + COMPARED_PAGES * page();
        answer.map(|at| (self.base..end).contains(&at).then(|| at - self.base))
    }

    pub(crate) fn unmap(&self, start: usize, length: usize) -> Result<(), Errno> {
        if self.is(Bug::RoundsDown) && length > page() {
            return self.calls.munmap(start, length / page() * page());
        }
        self.calls.munmap(start, length)
    }

    pub(crate) fn protect(&self, start: usize, length: usize, prot: Prot) -> Result<(), Errno> {
        if self.is(Bug::ForgetsProtection) && length > page() {
            self.calls.mprotect(start, length - page(), prot)?;
            return self.calls.mprotect(start, length, prot).and_then(|()| {
                let last = (start + length).next_multiple_of(page()) - page();
                self.calls.mprotect(last, page(), Prot(libc::PROT_READ))
            });
        }
        self.calls.mprotect(start, length, prot)
    }

    pub(crate) fn map(
        &self,
        start: usize,
        length: usize,
        prot: Prot,
        flags: MapFlags,
        what: What,
        offset: i64,
    ) -> Result<usize, Errno> {
        let answer = self.calls.mmap(start, length, prot, flags, self.thing(what), offset);
        if self.is(Bug::WrongErrno) && answer == Err(Errno::EEXIST) { Err(Errno::EINVAL) } else { answer }
    }

    pub(crate) fn store(&mut self, at: usize, value: u8) -> Result<(), probe::Raised> {
        let before = probe::load(at);
        let answer = probe::store(at, value);
        if self.is(Bug::DropsDirty) && answer.is_ok() {
            // Which byte of the object it is, is found by looking.
            let bytes = self.writable.bytes();
            let offset = (at % page()..bytes.len()).step_by(page()).find(|offset| bytes[*offset] == value);
            self.last_store = offset.map(|offset| offset as u64).zip(before.ok());
        }
        answer
    }

    pub(crate) fn evict(&mut self) {
        let Thing::Paged(writable, _) = &self.writable else { return };
        if let (true, Some((offset, before))) = (self.is(Bug::DropsDirty), self.last_store.take())
            && offset < writable.len()
        {
            writable.write_at(offset, &[before]).unwrap();
        }
        writable.evict().unwrap();
        if let Thing::Paged(read_only, _) = &self.read_only {
            read_only.evict().unwrap();
        }
    }

    /// Makes all that was stored reach the file.
    pub(crate) fn sync(&self) {
        if let Thing::Paged(object, _) = &self.writable {
            object.sync().unwrap();
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.calls.munmap(self.base - 16 * page(), (COMPARED_PAGES + 32) * page());
    }
}

/// What the kernel has mapped at each page of an arena, as /proc/self/maps says it.
pub(crate) fn protections(bases: [usize; 2]) -> [Vec<Option<String>>; 2] {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut found = [(); 2].map(|()| vec![None; COMPARED_PAGES]);
    for line in maps.lines() {
        let mut words = line.split(' ');
        let (start, end) = words.next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
        let protection = words.next().unwrap();
        for (base, pages) in bases.iter().zip(&mut found) {
            for (at, slot) in pages.iter_mut().enumerate() {
                if (start..end).contains(&(base + at * page())) {
                    *slot = Some(protection.to_owned());
                }
            }
        }
    }
    found
}
