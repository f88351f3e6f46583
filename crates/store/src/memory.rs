//! A store in memory.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::left_locked;
use crate::{Answers, BackingStore, Result, StoreError, Transfer, Version, Writability};

/// Bytes in memory: for tests, for benchmarks of the engine, for data made by the program.
///
/// `sync` has nothing to do.
pub struct MemoryStore {
    name: String,
    bytes: RwLock<Vec<u8>>,
    writability: Writability,
}

impl MemoryStore {
    /// An object that holds `bytes`, for good.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> MemoryStore {
        MemoryStore { name: name.into(), bytes: RwLock::new(bytes), writability: Writability::ReadOnly }
    }

    /// An object that holds `bytes` at first.
    pub fn writable(name: impl Into<String>, bytes: Vec<u8>) -> MemoryStore {
        MemoryStore { writability: Writability::ReadWrite, ..Self::new(name, bytes) }
    }

    fn check_writable(&self) -> Result<()> {
        match self.writability {
            Writability::ReadWrite => Ok(()),
            Writability::ReadOnly => Err(StoreError::ReadOnly),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackingStore for MemoryStore {
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        self.check_writable().err().ok_or_else(|| StoreError::Unusable {
            name: self.name.clone(),
            reason: "what was written lay in the memory of a process that is gone".to_owned(),
        })?;
        let bytes = self.bytes.try_read().map_err(|_| left_locked(&self.name))?.clone();
        Ok(Arc::new(MemoryStore::new(self.name.clone(), bytes)))
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.read().len() as u64
    }

    fn transfer(&self) -> Transfer {
        Transfer::new(128 << 10, 64).answering(Answers::AtOnce)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let bytes = self.read();
        let start = offset.min(bytes.len() as u64) as usize;
        let count = into.len().min(bytes.len() - start);
        into[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn version(&self) -> Option<Version> {
        (self.writability == Writability::ReadOnly).then(|| Version::new("only"))
    }

    fn writability(&self) -> Writability {
        self.writability
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.check_writable()?;
        let mut bytes = self.write();
        let end = bytes.len() as u64;
        let length = from.len() as u64;
        if offset.checked_add(length).is_none_or(|e| e > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        bytes[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.check_writable()?;
        let unusable = || StoreError::Unusable {
            name: self.name.clone(),
            reason: format!("{length} bytes do not fit in memory"),
        };
        let mut bytes = self.write();
        let length_here = usize::try_from(length).map_err(|_| unusable())?;
        let more = length_here.saturating_sub(bytes.len());
        bytes.try_reserve(more).map_err(|_| unusable())?;
        bytes.resize(length_here, 0);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.check_writable()
    }
}
