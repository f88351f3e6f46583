//! Stores that add something to another store.

pub(crate) mod counting;
pub(crate) mod faulty;
pub(crate) mod power_cut;
pub(crate) mod throttled;
pub(crate) mod verified;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::backing_store::read_in_turn;
use crate::{BackingStore, ReadAt, Result, Transfer, Version, Writability, WriteAt};

/// A store that passes on to another what it does not change itself.
pub trait Decorator: Send + Sync {
    /// The store that it decorates.
    fn inner(&self) -> &dyn BackingStore;

    /// See [`BackingStore::read_at`].
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.inner().read_at(offset, into)
    }

    /// See [`BackingStore::read_awaited`]. Goes through [`read_at`](Self::read_at), as `read_each` does.
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        let _ = meanwhile;
        Decorator::read_at(self, offset, into)
    }

    /// See [`BackingStore::write_at`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.inner().write_at(offset, bytes)
    }

    /// See [`BackingStore::read_each`]. Each goes through [`read_at`](Self::read_at), so that no decorator is passed by.
    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        read_in_turn(reads, came, |offset, into| Decorator::read_at(self, offset, into));
    }

    /// See [`BackingStore::write_each`]. Each goes through [`write_at`](Self::write_at), so that no decorator is passed by.
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        for (number, write) in writes.iter().enumerate() {
            written(number, Decorator::write_at(self, write.offset, write.bytes));
        }
    }

    /// See [`BackingStore::set_len`].
    fn set_len(&self, length: u64) -> Result<()> {
        self.inner().set_len(length)
    }

    /// See [`BackingStore::sync`].
    fn sync(&self) -> Result<()> {
        self.inner().sync()
    }

    /// See [`BackingStore::refresh`].
    fn refresh(&self) -> Result<()> {
        self.inner().refresh()
    }

    /// See [`BackingStore::transfer`].
    fn transfer(&self) -> Transfer {
        self.inner().transfer().reading_together(NonZeroUsize::MIN)
    }

    /// See [`BackingStore::reopen`]: what the decorator adds is lost unless it says otherwise.
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        self.inner().reopen()
    }
}

impl<D: Decorator> BackingStore for D {
    fn name(&self) -> &str {
        self.inner().name()
    }
    fn len(&self) -> u64 {
        self.inner().len()
    }
    fn transfer(&self) -> Transfer {
        Decorator::transfer(self)
    }
    fn chunk_at(&self, offset: u64) -> Range<u64> {
        self.inner().chunk_at(offset)
    }
    fn version(&self) -> Option<Version> {
        self.inner().version()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        Decorator::read_at(self, offset, into)
    }
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        Decorator::read_awaited(self, offset, into, meanwhile)
    }
    fn writability(&self) -> Writability {
        self.inner().writability()
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Decorator::write_at(self, offset, bytes)
    }
    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        Decorator::read_each(self, reads, came);
    }
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        Decorator::write_each(self, writes, written);
    }
    fn set_len(&self, length: u64) -> Result<()> {
        Decorator::set_len(self, length)
    }
    fn sync(&self) -> Result<()> {
        Decorator::sync(self)
    }
    fn is_atomic(&self) -> bool {
        self.inner().is_atomic()
    }
    fn is_temporary(&self) -> bool {
        self.inner().is_temporary()
    }
    fn refresh(&self) -> Result<()> {
        Decorator::refresh(self)
    }
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        Decorator::reopen(self)
    }
}
