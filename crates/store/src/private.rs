//! A private copy of another store's object.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use crate::swap::Blocks;
use crate::{BackingStore, Result, SwapCounts, SwapOptions, Transfer, Writability};

/// A copy on write: reads give the base's bytes, writes stay here (MAP_PRIVATE of mmap(2)).
///
/// Only blocks of 4096 bytes that were written are held, as a [`SwapStore`](crate::SwapStore) holds them; the base is
/// never written. A write of a part of a block reads the rest of it from the base.
///
/// The length is the base's at first, and its own from then on: made shorter, it hides the base's bytes behind the end
/// for good, and made longer again, it has zeros there.
///
/// An error of the base concerns the blocks that were never written; the others do not need it.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use omnimap_store::{BackingStore, MemoryStore, PrivateStore, SwapOptions};
///
/// let base = Arc::new(MemoryStore::new("base", b"what is there".to_vec()));
/// let copy = PrivateStore::new(base.clone(), SwapOptions::default())?;
/// copy.write_at(5, b"was")?;
/// let mut bytes = [0; 13];
/// copy.read_at(0, &mut bytes)?;
/// assert_eq!(&bytes, b"what wasthere");
/// # Ok::<(), omnimap_store::StoreError>(())
/// ```
pub struct PrivateStore {
    base: Arc<dyn BackingStore>,
    blocks: Blocks,
}

impl PrivateStore {
    /// A copy of the base's object as long as that is now; nothing is read yet.
    ///
    /// # Errors
    /// [`StoreError::Open`](crate::StoreError::Open) if the directory for the swap file is none.
    pub fn new(base: Arc<dyn BackingStore>, swap: SwapOptions) -> Result<PrivateStore> {
        let blocks = Blocks::new(base.len(), Some(Arc::clone(&base)), swap)?;
        Ok(PrivateStore { base, blocks })
    }

    /// What it holds now of its own.
    pub fn counts(&self) -> SwapCounts {
        self.blocks.counts()
    }
}

impl BackingStore for PrivateStore {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn len(&self) -> u64 {
        self.blocks.len()
    }

    fn transfer(&self) -> Transfer {
        self.base.transfer().reading_together(NonZeroUsize::MIN)
    }

    /// The base's chunk, as far as it is inside the object; behind the base's end there are none.
    fn chunk_at(&self, offset: u64) -> Range<u64> {
        if offset >= self.base.len() {
            return offset..offset.saturating_add(1);
        }
        let chunk = self.base.chunk_at(offset);
        chunk.start..chunk.end.min(self.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.blocks.read(offset, into)
    }

    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.blocks.write(offset, bytes)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.blocks.set_len(length)
    }

    fn is_temporary(&self) -> bool {
        true
    }

    /// Does nothing: what is written here is gone with the store anyway.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Takes the base as it is now, where no block was written; the length stays.
    fn refresh(&self) -> Result<()> {
        self.base.refresh()
    }
}
