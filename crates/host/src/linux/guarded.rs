//! A memory whose views need no userfaultfd: what is not resident is behind guard pages, and what may not be stored to is
//! mapped read-only.
//!
//! A view is inaccessible (PROT_NONE) at first. The first page that is touched in a block of it *opens* the block: guards
//! (MADV_GUARD_INSTALL, Linux 6.15 for shared memory) go over all pages of it that are not resident, and the block becomes
//! readable. From then on the guards of the block follow what is resident. Guards are entries in the page tables: they
//! split no mapping, and stay when a hole is punched under them. Stores are let by mprotect(2), which does split: each run
//! of pages that may be stored to is a mapping of its own for the kernel (vm.max_map_count).
//!
//! Everything is done under one lock for each memory, so that no hole is ever without a guard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::FallocateFlags;
use rustix::mm::{MprotectFlags, ProtFlags};

use super::truncate::truncate;
use crate::error::During;
use crate::{Address, HostError, Result, Stores};

/// Linux 6.13; 6.15 for shared memory.
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;
/// Pages of a block: of one page table.
const BLOCK_PAGES: u64 = 512;
const WORDS: usize = BLOCK_PAGES as usize / 64;

/// What is resident of a memory, and the views that follow it.
pub(super) struct GuardedMemory {
    page_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    resident: Resident,
    views: Vec<GuardedView>,
}

struct GuardedView {
    start: Address,
    /// The bytes of the memory that it shows.
    shown: Range<u64>,
    is_writable: bool,
    /// Blocks, by their number in the memory.
    opened: BTreeSet<u64>,
}

/// The resident pages, as bits.
#[derive(Default)]
struct Resident {
    blocks: BTreeMap<u64, [u64; WORDS]>,
}

impl Resident {
    fn set(&mut self, pages: Range<u64>, resident: bool) {
        let blocks = pages.start / BLOCK_PAGES..pages.end.div_ceil(BLOCK_PAGES);
        if !resident {
            for (block, words) in self.blocks.range_mut(blocks.clone()) {
                change(words, *block, &pages, |word, mask| *word &= !mask);
            }
            let empty: Vec<u64> =
                self.blocks.range(blocks).filter(|(_, w)| **w == [0; WORDS]).map(|(b, _)| *b).collect();
            for block in empty {
                self.blocks.remove(&block);
            }
            return;
        }
        for block in blocks {
            change(self.blocks.entry(block).or_default(), block, &pages, |word, mask| *word |= mask);
        }
    }

    /// Runs of resident pages in one block.
    fn runs_of(&self, block: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let Some(words) = self.blocks.get(&block) else { return runs };
        for at in (0..BLOCK_PAGES).filter(|at| words[(at / 64) as usize] >> (at % 64) & 1 == 1) {
            let page = block * BLOCK_PAGES + at;
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }
}

/// Calls `change` with the words of a block, and the bits of each that stand for some of the pages.
fn change(words: &mut [u64; WORDS], block: u64, pages: &Range<u64>, change: impl Fn(&mut u64, u64)) {
    for (word, first) in words.iter_mut().zip((block * BLOCK_PAGES..).step_by(64)) {
        let (from, to) = (pages.start.clamp(first, first + 64), pages.end.clamp(first, first + 64));
        if from < to {
            let mask = u64::MAX >> (64 - (to - from)) << (from - first);
            change(word, mask);
        }
    }
}

impl GuardedView {
    fn address(&self, offset: u64) -> Address {
        Address(self.start.0 + (offset - self.shown.start) as usize)
    }

    fn part(&self, bytes: &Range<u64>) -> Range<u64> {
        let start = bytes.start.max(self.shown.start);
        start..bytes.end.min(self.shown.end).max(start)
    }

    /// The parts of some bytes that are in opened blocks of this view.
    fn opened_parts(&self, bytes: &Range<u64>, block_bytes: u64) -> Vec<Range<u64>> {
        let bytes = self.part(bytes);
        let mut parts: Vec<Range<u64>> = Vec::new();
        for block in self.opened.range(bytes.start / block_bytes..bytes.end.div_ceil(block_bytes)) {
            let start = (block * block_bytes).max(bytes.start);
            let end = ((block + 1) * block_bytes).min(bytes.end);
            match parts.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => parts.push(start..end),
            }
        }
        parts
    }

    fn guard(&self, part: &Range<u64>) -> io::Result<()> {
        advise(self.address(part.start), part.end - part.start, MADV_GUARD_INSTALL)
    }

    fn unguard(&self, part: &Range<u64>) -> io::Result<()> {
        advise(self.address(part.start), part.end - part.start, MADV_GUARD_REMOVE)
    }

    fn protect(&self, part: &Range<u64>, stores: Stores) -> io::Result<()> {
        let mut protection = MprotectFlags::READ;
        protection.set(MprotectFlags::WRITE, stores == Stores::Let);
        let (start, bytes) = (self.address(part.start), part.end - part.start);
        // SAFETY: inside a view of ours, in a block whose holes are guarded; readable bytes stay readable, so no reference
        // is harmed, and stores are let only in views that are borrowed for them.
        Ok(unsafe { rustix::mm::mprotect(start.0 as *mut _, bytes as usize, protection) }?)
    }
}

/// Installs or removes guards in a view of ours.
fn advise(start: Address, bytes: u64, advice: i32) -> io::Result<()> {
    // SAFETY: inside a shared view of ours: entries of page tables come and go, and the memory keeps its bytes.
    match unsafe { libc::madvise(start.0 as *mut libc::c_void, bytes as usize, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl GuardedMemory {
    pub(super) fn new(page_bytes: u64) -> GuardedMemory {
        GuardedMemory { page_bytes, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block_bytes(&self) -> u64 {
        BLOCK_PAGES * self.page_bytes
    }

    fn pages(&self, bytes: &Range<u64>) -> Range<u64> {
        bytes.start / self.page_bytes..bytes.end.div_ceil(self.page_bytes)
    }

    /// Adds a view, all of it inaccessible.
    fn add_view(&self, start: Address, shown: Range<u64>, is_writable: bool) {
        self.state().views.push(GuardedView { start, shown, is_writable, opened: BTreeSet::new() });
    }

    fn remove_view(&self, start: Address) {
        self.state().views.retain(|view| view.start != start);
    }

    /// Puts bytes into holes, and shows them.
    pub(super) fn fill(&self, file: &File, offset: u64, bytes: &[u8], stores: Stores) -> Result<()> {
        let mut state = self.state();
        let length = file.metadata().during("fstat(memfd)")?.len();
        let inside = bytes.len().min(length.saturating_sub(offset) as usize);
        // Nobody sees the pages, which are guarded, so it does not matter that write(2) makes them before they are whole.
        file.write_all_at(&bytes[..inside], offset).during("pwrite(memfd)")?;
        let filled = offset..offset + inside as u64;
        state.resident.set(self.pages(&filled), true);
        // No page beyond the end, if that came nearer meanwhile: it would be a hole without a guard when it is moved back.
        let shown = offset..filled.end.next_multiple_of(self.page_bytes);
        for view in &state.views {
            for part in view.opened_parts(&shown, self.block_bytes()) {
                if view.is_writable && stores == Stores::Let {
                    // Where there may be no more mappings, the store traps, and is let when some have gone.
                    let _ = view.protect(&part, stores);
                }
                view.unguard(&part).during("madvise(GUARD_REMOVE)")?;
            }
        }
        Ok(())
    }

    /// Puts guards over pages and drops them.
    pub(super) fn punch(&self, file: &File, offset: u64, bytes: u64) -> Result<()> {
        let mut state = self.state();
        let dropped = offset..offset + bytes;
        self.hide(&mut state, &dropped)?;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, mode, offset, bytes).during("fallocate(memfd, PUNCH_HOLE)")?;
        state.resident.set(self.pages(&dropped), false);
        Ok(())
    }

    pub(super) fn set_len(&self, file: &File, length: u64) -> Result<()> {
        let mut state = self.state();
        // What comes back when it grows again are holes.
        let gone =
            length.next_multiple_of(self.page_bytes)..u64::MAX / 2 / self.block_bytes() * self.block_bytes();
        self.hide(&mut state, &gone)?;
        state.resident.set(self.pages(&gone), false);
        truncate(file, length).during("ftruncate(memfd)")
    }

    /// Puts guards over pages, in all views or in none.
    fn hide(&self, state: &mut State, bytes: &Range<u64>) -> Result<()> {
        for view in &state.views {
            for part in view.opened_parts(bytes, self.block_bytes()) {
                let trapped = if view.is_writable { view.protect(&part, Stores::Trap) } else { Ok(()) };
                if let Err(error) = trapped.and_then(|()| view.guard(&part)) {
                    self.show_again(state, bytes);
                    return Err(error).during("madvise(GUARD_INSTALL)");
                }
            }
        }
        Ok(())
    }

    /// Takes [`hide`](Self::hide) back where it failed half-way: for the engine, the pages are resident still.
    fn show_again(&self, state: &State, bytes: &Range<u64>) {
        for view in &state.views {
            for part in view.opened_parts(bytes, self.block_bytes()) {
                for block in part.start / self.block_bytes()..part.end.div_ceil(self.block_bytes()) {
                    let runs = state.resident.runs_of(block);
                    for run in runs.iter().map(|r| r.start * self.page_bytes..r.end * self.page_bytes) {
                        let run = run.start.max(part.start)..run.end.min(part.end);
                        if run.start < run.end && view.unguard(&run).is_err() {
                            crate::die("pages that could not be dropped cannot be shown again");
                        }
                    }
                }
            }
        }
    }

    /// Opens the block around an address of a view, if it is not open.
    fn open(&self, start: Address, address: Address) -> Result<()> {
        let mut state = self.state();
        let State { resident, views } = &mut *state;
        let Some(view) = views.iter_mut().find(|view| view.start == start) else { return Ok(()) };
        let offset = view.shown.start + (address.0 - start.0) as u64;
        self.open_block(resident, view, offset / self.block_bytes())
    }

    fn open_block(&self, resident: &Resident, view: &mut GuardedView, block: u64) -> Result<()> {
        if view.opened.contains(&block) {
            return Ok(());
        }
        let part = view.part(&(block * self.block_bytes()..(block + 1) * self.block_bytes()));
        view.guard(&part).during("madvise(GUARD_INSTALL)")?;
        for run in resident.runs_of(block) {
            let run = view.part(&(run.start * self.page_bytes..run.end * self.page_bytes));
            if !run.is_empty() {
                view.unguard(&run).during("madvise(GUARD_REMOVE)")?;
            }
        }
        view.protect(&part, Stores::Trap).during("mprotect(memfd)")?;
        view.opened.insert(block);
        Ok(())
    }

    /// Traps or lets the stores to pages of a view.
    fn protect(&self, start: Address, address: Address, bytes: u64, stores: Stores) -> Result<()> {
        let mut state = self.state();
        let State { resident, views } = &mut *state;
        let Some(view) = views.iter_mut().find(|view| view.start == start) else { return Ok(()) };
        let offset = view.shown.start + (address.0 - start.0) as u64;
        let range = offset..offset + bytes;
        if stores == Stores::Let {
            for block in offset / self.block_bytes()..range.end.div_ceil(self.block_bytes()) {
                self.open_block(resident, view, block)?;
            }
        }
        for part in view.opened_parts(&range, self.block_bytes()) {
            view.protect(&part, stores).during("mprotect(memfd)")?;
        }
        Ok(())
    }
}

/// The guarded views of one host, by address.
#[derive(Default)]
pub(super) struct GuardedSpace {
    views: RwLock<BTreeMap<Address, (u64, Arc<GuardedMemory>)>>,
}

impl GuardedSpace {
    pub(super) fn add(
        &self,
        start: Address,
        shown: Range<u64>,
        is_writable: bool,
        memory: &Arc<GuardedMemory>,
    ) {
        let bytes = shown.end - shown.start;
        memory.add_view(start, shown, is_writable);
        self.views.write().unwrap_or_else(PoisonError::into_inner).insert(start, (bytes, memory.clone()));
    }

    pub(super) fn remove(&self, start: Address) {
        if let Some((_, memory)) = self.views.write().unwrap_or_else(PoisonError::into_inner).remove(&start) {
            memory.remove_view(start);
        }
    }

    fn find(&self, address: Address) -> Option<(Address, Arc<GuardedMemory>)> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let (start, (bytes, memory)) = views.range(..=address).next_back()?;
        (((address.0 - start.0) as u64) < *bytes).then(|| (*start, memory.clone()))
    }

    /// Lets what is resident around an address be seen there.
    pub(super) fn open(&self, address: Address) -> Result<()> {
        self.find(address).map_or(Ok(()), |(start, memory)| memory.open(start, address))
    }

    pub(super) fn protect(&self, address: Address, bytes: u64, stores: Stores) -> Result<()> {
        self.find(address).map_or(Ok(()), |(start, memory)| memory.protect(start, address, bytes, stores))
    }
}

/// Whether guard pages can be had for shared memory; what is missing, if not.
pub(super) fn supported() -> Result<()> {
    let page_bytes = super::page_bytes();
    let attempt = || -> io::Result<()> {
        let fd = rustix::fs::memfd_create("omnimap:probe", rustix::fs::MemfdFlags::CLOEXEC)?;
        truncate(&fd, page_bytes)?;
        // SAFETY: a new mapping at a place of the kernel's choice, which is unmapped below.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                page_bytes as usize,
                ProtFlags::empty(),
                rustix::mm::MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        // As for a view, after mlockall(MCL_FUTURE).
        // SAFETY: changes no bytes.
        unsafe { libc::munlock(at, page_bytes as usize) };
        let outcome = advise(Address(at as usize), page_bytes, MADV_GUARD_INSTALL);
        // SAFETY: ours, and nobody uses it.
        unsafe { rustix::mm::munmap(at, page_bytes as usize) }?;
        outcome
    };
    if !cfg!(target_arch = "x86_64") {
        // Whether an access was a store is read from the registers, as this processor has them.
        return Err(HostError::NoGuards { source: io::ErrorKind::Unsupported.into() });
    }
    attempt().map_err(|source| HostError::NoGuards { source })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Resident, supported};
    use crate::linux::LinuxHost;
    use crate::{Address, FaultMode, Host, Stores, Use};

    /// Cut off with the memory's length, and not by a hole: no store is asked to drop it.
    #[test]
    fn a_page_that_was_cut_off_is_guarded_when_the_memory_grows_again() {
        if supported().is_err() {
            eprintln!("SKIPPED: no guard pages here");
            return;
        }
        let host = LinuxHost::open(Some(FaultMode::Trap)).unwrap();
        let page = host.page_bytes();
        let (memory, _) = host.create_memory("cut", 2 * page, Use::ReadOnly).unwrap();
        let view = memory.map(0, 2 * page).unwrap();
        memory.fill(0, &vec![7; 2 * page as usize], Stores::Trap).unwrap();
        host.faults().wake(view.start(), page).unwrap();
        assert_eq!((view.bytes()[0], view.bytes()[page as usize]), (7, 7), "what is resident is shown");
        memory.set_len(page).unwrap();
        memory.set_len(2 * page).unwrap();
        let shown = view.clone();
        let reader = std::thread::spawn(move || shown.bytes()[page as usize]);
        let begin = Instant::now();
        let fault = loop {
            assert!(begin.elapsed() < Duration::from_secs(20) && !reader.is_finished(), "no fault");
            match host.faults().take().unwrap() {
                Some(fault) => break fault,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        assert_eq!(fault.address, Address(view.start().0 + page as usize));
        memory.fill(page, &vec![8; page as usize], Stores::Trap).unwrap();
        host.faults().wake(fault.address, page).unwrap();
        assert_eq!(reader.join().unwrap(), 8);
    }

    #[test]
    fn what_is_resident_is_kept_page_by_page() {
        let mut resident = Resident::default();
        resident.set(3..70, true);
        resident.set(500..1030, true);
        resident.set(10..12, false);
        assert_eq!(resident.runs_of(0), [3..10, 12..70, 500..512]);
        let later: Vec<_> = [1, 2].into_iter().flat_map(|block| resident.runs_of(block)).collect();
        assert_eq!(later, [512..1024, 1024..1030]);
        resident.set(512..u64::MAX / 2, false);
        resident.set(0..512, false);
        assert!(resident.blocks.is_empty(), "nothing is kept for what is gone");
    }
}
