//! Stores that add something to another store.

pub(crate) mod counting;
pub(crate) mod faulty;
pub(crate) mod power_cut;
pub(crate) mod throttled;
pub(crate) mod verified;

use std::ops::Range;

use crate::{BackingStore, Result, Transfer, Version, Writability};

/// A store that passes on to another what it does not change itself.
pub trait Decorator: Send + Sync {
    /// The store that it decorates.
    fn inner(&self) -> &dyn BackingStore;

    /// See [`BackingStore::read_at`].
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.inner().read_at(offset, into)
    }

    /// See [`BackingStore::write_at`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.inner().write_at(offset, bytes)
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
        self.inner().transfer()
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
    fn writability(&self) -> Writability {
        self.inner().writability()
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Decorator::write_at(self, offset, bytes)
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
    fn refresh(&self) -> Result<()> {
        Decorator::refresh(self)
    }
}
