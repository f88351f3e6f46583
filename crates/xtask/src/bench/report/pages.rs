//! What the contenders have in common: pages that can be touched.

use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use omnimap::store::{AlignedBytes, BackingStore, FileStore};

use crate::bench::clock_pool::ClockPool;

/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 4096;

/// One thread's hold on pages.
pub(super) trait Pages: Send {
    /// A byte of a page.
    ///
    /// One byte and not a word: of the kernel's mapping, safe code can have byte cells alone, and eight loads of one
    /// contender are not to be compared with one of another.
    fn touch(&mut self, page: u32) -> Result<u8>;

    /// Brings the first pages into memory.
    fn fill(&mut self, pages: u32) -> Result<()> {
        (0..pages).try_for_each(|page| {
            // A load from a slice whose byte nobody wants would be left out.
            black_box(self.touch(page)?);
            Ok(())
        })
    }
}

/// Where a page is touched: not always in the same line of the processor's cache.
fn place(page: u32) -> usize {
    page as usize * PAGE_BYTES as usize + page as usize * 1_544 % PAGE_BYTES as usize
}

/// Omnimap's slice.
pub(super) struct Slice<'a>(pub(super) &'a [u8]);

impl Pages for Slice<'_> {
    #[inline]
    fn touch(&mut self, page: u32) -> Result<u8> {
        Ok(self.0[place(page)])
    }
}

/// The kernel's mapping.
pub(super) struct Cells<'a>(pub(super) &'a [AtomicU8]);

impl Pages for Cells<'_> {
    #[inline]
    fn touch(&mut self, page: u32) -> Result<u8> {
        Ok(self.0[place(page)].load(Relaxed))
    }
}

/// A pool that one thread has to itself.
impl Pages for &mut ClockPool {
    #[inline]
    fn touch(&mut self, page: u32) -> Result<u8> {
        Ok(self.page(u64::from(page))?[place(page) % PAGE_BYTES as usize])
    }

    fn fill(&mut self, pages: u32) -> Result<()> {
        ClockPool::fill(self, u64::from(pages))
    }
}

/// A pool that threads share: in parts, each with a lock.
pub(super) struct Shared<'a>(pub(super) &'a [Mutex<ClockPool>]);

impl Pages for Shared<'_> {
    fn touch(&mut self, page: u32) -> Result<u8> {
        let mut part = self.0[page as usize % self.0.len()].lock().unwrap_or_else(PoisonError::into_inner);
        Ok(part.page(u64::from(page))?[place(page) % PAGE_BYTES as usize])
    }
}

/// A file that is read in order, much at a time.
pub(super) struct Stream {
    store: FileStore,
    bytes: AlignedBytes,
    /// Which of the pieces is there.
    piece: Option<u64>,
}

const PIECE_BYTES: u64 = 1 << 20;

impl Stream {
    pub(super) fn new(store: FileStore) -> Stream {
        Stream { store, bytes: AlignedBytes::new(PIECE_BYTES as usize), piece: None }
    }
}

impl Pages for Stream {
    fn touch(&mut self, page: u32) -> Result<u8> {
        let place = place(page) as u64;
        let piece = place / PIECE_BYTES;
        if self.piece != Some(piece) {
            let start = piece * PIECE_BYTES;
            let count = PIECE_BYTES.min(self.store.len() - start) as usize;
            self.store.read_at(start, &mut self.bytes[..count])?;
            self.piece = Some(piece);
        }
        Ok(self.bytes[(place % PIECE_BYTES) as usize])
    }
}
