//! A plain buffer pool, as databases have had for decades: frames, a table, a clock, pread and pwrite.

use std::path::Path;

use anyhow::Result;
use omnimap::store::{AlignedBytes, BackingStore, FileStore};

/// Bytes of a page; direct transfers need no less.
const PAGE_BYTES: usize = AlignedBytes::ALIGNMENT;
/// In the table, for pages that are in no frame.
const NOWHERE: u32 = u32::MAX;

/// As many pages of a file as fit in a budget, replaced by CLOCK; what is dirty is written when its turn comes.
///
/// One thread, direct I/O, one page a transfer: what it costs to do without mmap, without further art.
pub(super) struct ClockPool {
    store: Box<dyn BackingStore>,
    /// It has each so many-th page, from this one on.
    first: u64,
    step: u64,
    memory: AlignedBytes,
    frames: Vec<Frame>,
    /// The frame of each of its pages.
    table: Vec<u32>,
    hand: usize,
}

#[derive(Clone, Copy)]
struct Frame {
    /// By its place in the table.
    page: Option<u32>,
    referenced: bool,
    dirty: bool,
}

impl ClockPool {
    /// A pool with nothing in it, over a file of whole pages.
    pub(super) fn open(path: &Path, budget_bytes: u64) -> Result<ClockPool> {
        Ok(Self::new(Box::new(FileStore::open_writable(path)?), budget_bytes))
    }

    /// A pool with nothing in it.
    pub(super) fn new(store: Box<dyn BackingStore>, budget_bytes: u64) -> ClockPool {
        Self::part(store, budget_bytes, 0, 1)
    }

    /// A pool for each `step`-th page, from the `first` on: several of them can be one that threads share.
    pub(super) fn part(store: Box<dyn BackingStore>, budget_bytes: u64, first: u64, step: u64) -> ClockPool {
        let frames = (budget_bytes as usize / PAGE_BYTES).max(1);
        let pages = (store.len() as usize / PAGE_BYTES).div_ceil(step as usize);
        ClockPool {
            store,
            first,
            step,
            memory: AlignedBytes::new(frames * PAGE_BYTES),
            frames: vec![Frame { page: None, referenced: false, dirty: false }; frames],
            table: vec![NOWHERE; pages],
            hand: 0,
        }
    }

    /// A page to be read.
    #[inline]
    pub(super) fn page(&mut self, page: u64) -> Result<&[u8]> {
        let frame = self.frame(page)?;
        Ok(&self.memory[frame * PAGE_BYTES..][..PAGE_BYTES])
    }

    /// Fills the empty pool with the first pages of the file, many at a time, as far as there are frames.
    ///
    /// # Panics
    /// If it is a part of a pool, or not empty.
    pub(super) fn fill(&mut self, pages: u64) -> Result<()> {
        const AT_ONCE: usize = 256;
        assert!(self.step == 1 && self.frames.iter().all(|frame| frame.page.is_none()));
        let count = self.frames.len().min(self.table.len()).min(pages as usize);
        for first in (0..count).step_by(AT_ONCE) {
            let last = count.min(first + AT_ONCE);
            let memory = &mut self.memory[first * PAGE_BYTES..last * PAGE_BYTES];
            self.store.read_at((first * PAGE_BYTES) as u64, memory)?;
        }
        for at in 0..count {
            self.frames[at].page = Some(at as u32);
            self.table[at] = at as u32;
        }
        self.hand = count % self.frames.len();
        Ok(())
    }

    /// A page to be changed; it is dirty from here on.
    pub(super) fn page_mut(&mut self, page: u64) -> Result<&mut [u8]> {
        let frame = self.frame(page)?;
        self.frames[frame].dirty = true;
        Ok(&mut self.memory[frame * PAGE_BYTES..][..PAGE_BYTES])
    }

    /// Where a page is; it is loaded if it is nowhere.
    #[inline]
    fn frame(&mut self, page: u64) -> Result<usize> {
        let index = if self.step == 1 { page } else { page / self.step };
        let frame = match self.table[index as usize] {
            NOWHERE => self.load(index)?,
            frame => frame as usize,
        };
        self.frames[frame].referenced = true;
        Ok(frame)
    }

    fn offset(&self, index: u64) -> u64 {
        (index * self.step + self.first) * PAGE_BYTES as u64
    }

    /// Writes what is dirty, in the file's order, and makes it durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        // The table is in that order.
        for page in 0..self.table.len() {
            if self.table[page] != NOWHERE {
                self.clean(self.table[page] as usize)?;
            }
        }
        Ok(self.store.sync()?)
    }

    fn load(&mut self, index: u64) -> Result<usize> {
        let (frame, offset) = (self.vacate()?, self.offset(index));
        let memory = &mut self.memory[frame * PAGE_BYTES..][..PAGE_BYTES];
        self.store.read_at(offset, memory)?;
        self.frames[frame].page = Some(index as u32);
        self.table[index as usize] = frame as u32;
        Ok(frame)
    }

    /// A frame with nothing in it: the first that was not used since the hand came by.
    fn vacate(&mut self) -> Result<usize> {
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.frames.len();
            if std::mem::take(&mut self.frames[at].referenced) {
                continue;
            }
            self.clean(at)?;
            if let Some(page) = self.frames[at].page.take() {
                self.table[page as usize] = NOWHERE;
            }
            return Ok(at);
        }
    }

    fn clean(&mut self, frame: usize) -> Result<()> {
        if let Frame { page: Some(page), dirty: true, .. } = self.frames[frame] {
            let offset = self.offset(u64::from(page));
            let memory = &self.memory[frame * PAGE_BYTES..][..PAGE_BYTES];
            self.store.write_at(offset, memory)?;
            self.frames[frame].dirty = false;
        }
        Ok(())
    }
}
