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
    store: FileStore,
    memory: AlignedBytes,
    frames: Vec<Frame>,
    /// The frame of each page.
    table: Vec<u32>,
    hand: usize,
}

#[derive(Clone, Copy)]
struct Frame {
    page: Option<u32>,
    referenced: bool,
    dirty: bool,
}

impl ClockPool {
    /// A pool with nothing in it, over a file of whole pages.
    pub(super) fn open(path: &Path, budget_bytes: u64) -> Result<ClockPool> {
        let store = FileStore::open_writable(path)?;
        let frames = (budget_bytes as usize / PAGE_BYTES).max(1);
        let pages = store.len() as usize / PAGE_BYTES;
        Ok(ClockPool {
            store,
            memory: AlignedBytes::new(frames * PAGE_BYTES),
            frames: vec![Frame { page: None, referenced: false, dirty: false }; frames],
            table: vec![NOWHERE; pages],
            hand: 0,
        })
    }

    /// A page to be changed; it is dirty from here on.
    pub(super) fn page_mut(&mut self, page: u64) -> Result<&mut [u8]> {
        let frame = match self.table[page as usize] {
            NOWHERE => self.load(page)?,
            frame => frame as usize,
        };
        self.frames[frame].referenced = true;
        self.frames[frame].dirty = true;
        Ok(&mut self.memory[frame * PAGE_BYTES..][..PAGE_BYTES])
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

    fn load(&mut self, page: u64) -> Result<usize> {
        let frame = self.vacate()?;
        let memory = &mut self.memory[frame * PAGE_BYTES..][..PAGE_BYTES];
        self.store.read_at(page * PAGE_BYTES as u64, memory)?;
        self.frames[frame].page = Some(page as u32);
        self.table[page as usize] = frame as u32;
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
            let memory = &self.memory[frame * PAGE_BYTES..][..PAGE_BYTES];
            self.store.write_at(u64::from(page) * PAGE_BYTES as u64, memory)?;
            self.frames[frame].dirty = false;
        }
        Ok(())
    }
}
