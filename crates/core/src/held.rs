//! Pages that the user keeps in memory through a mapping (mlock(2)).

use std::ops::Range;

use crate::error::Result;
use crate::mapped_view::{MappedView, Pinned};
use crate::sync::lock;
use crate::units::PageRange;

impl MappedView {
    /// Brings the pages of a range into memory, and keeps them there until [`unlock_range`](Self::unlock_range), or until the
    /// mapping is dropped. Locks do not nest. Gives the parts, in bytes, that were not locked through this mapping before.
    ///
    /// # Errors
    /// If the range is not inside the mapping, the store fails, or more than half of the budget would be pinned or locked;
    /// nothing more is locked then than before.
    pub fn lock_range(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
        let pages = self.object.cache.page.pages_of(wanted);
        let mut new: Vec<PageRange> = Vec::new();
        let taken = {
            let mut held = lock(&self.held);
            let missing =
                held.parts(pages).into_iter().filter(|(_, count)| *count == 0).map(|(part, _)| part);
            // No store is asked for anything here: a lock is of pages that are there or come.
            missing.into_iter().try_for_each(|part| {
                self.lock(part)?;
                held.add(part);
                new.push(part);
                Ok(())
            })
        };
        let outcome = taken.and_then(|()| new.iter().try_for_each(|part| self.bring(*part)));
        if let Err(error) = outcome {
            new.iter().for_each(|part| self.let_go(*part));
            return Err(error);
        }
        Ok(new.into_iter().map(|part| self.bytes_in_mapping(part)).collect())
    }

    /// Lets the pages of a range go again, however often they were locked through this mapping.
    ///
    /// # Errors
    /// If the range is not inside the mapping.
    pub fn unlock_range(&self, range: Range<u64>) -> Result<()> {
        let wanted = self.locate(range.start, range.end.saturating_sub(range.start))?;
        self.let_go(self.object.cache.page.pages_of(wanted));
        Ok(())
    }

    /// Lets everything go.
    pub(crate) fn release(&self) {
        let end = self.offset.saturating_add(self.length);
        self.let_go(self.object.cache.page.pages_of(self.offset..end));
    }

    fn let_go(&self, pages: PageRange) {
        let mut held = lock(&self.held);
        for (part, _) in held.parts(pages).into_iter().filter(|(_, count)| *count > 0) {
            held.remove(part);
            self.unlock(part);
        }
    }

    /// Sees to it that pages which are kept are there.
    fn bring(&self, pages: PageRange) -> Result<()> {
        let mut next = pages.start;
        while next < pages.end {
            let mut there = self.object.pin_resident(next, pages.end);
            if there.is_empty() {
                self.fetch(next, pages, next.0 * self.object.cache.page.bytes())?;
                there = PageRange::single(next);
            }
            next = there.end;
            drop(Pinned { object: &self.object, range: there });
        }
        Ok(())
    }

    fn bytes_in_mapping(&self, pages: PageRange) -> Range<u64> {
        let bytes = self.object.cache.page.bytes_of(pages);
        let cut = |at: u64| at.clamp(self.offset, self.offset + self.len()) - self.offset;
        cut(bytes.start)..cut(bytes.end)
    }

    /// Makes two mappings of one: gives a new view of what begins at `at`, and keeps what is before it, where it is. What is
    /// locked behind `at` is not any more.
    ///
    /// # Errors
    /// If that is not inside, or the machine refuses; nothing has changed then.
    ///
    /// # Panics
    /// If one alone has the right to the bytes.
    pub fn split_off(&mut self, at: u64) -> Result<MappedView> {
        assert!(self.exclusive.is_none(), "an exclusive right is to all bytes");
        let rest = self.locate(at, self.len().saturating_sub(at))?;
        let readahead = self.reader.window_pages_max.saturating_mul(self.object.cache.page.bytes());
        let second = self.cache.map(&self.object, rest.start, self.length - at, readahead)?;
        let page = self.object.cache.page;
        let first = page.pages_of(self.offset..self.offset + at);
        let all = page.pages_of(self.offset..self.offset + self.length);
        self.let_go(PageRange::new(first.end.0.max(first.start.0), all.end.0));
        self.length = at;
        Ok(second)
    }
}
