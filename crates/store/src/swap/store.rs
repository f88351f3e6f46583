//! The store of anonymous memory.

use std::ops::Range;
use std::path::PathBuf;

use super::{BLOCK_BYTES, Blocks};
use crate::{Answers, BackingStore, Result, Transfer, Writability};

/// Where a [`SwapStore`] or a [`PrivateStore`](crate::PrivateStore) may keep how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapOptions {
    /// Bytes of memory for compressed blocks, overhead included; what a call is just working on comes on top. 64 MiB
    /// unless told. 0 lets everything go to the file.
    pub compressed_bytes_max: u64,
    /// Where the temporary file is made, when it is needed. Unless told /var/tmp, or else what `TMPDIR` says.
    pub directory: Option<PathBuf>,
    /// Bytes that the file may have; any number unless told. A write needs room beside what it replaces.
    pub file_bytes_max: Option<u64>,
}

impl Default for SwapOptions {
    fn default() -> Self {
        SwapOptions { compressed_bytes_max: 64 << 20, directory: None, file_bytes_max: None }
    }
}

/// What a [`SwapStore`] or a [`PrivateStore`](crate::PrivateStore) holds, in blocks of 4096 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwapCounts {
    /// Blocks of zeros that hide other bytes; a [`SwapStore`] has none, for it forgets zeros.
    pub blocks_zero: u64,
    /// Blocks that are compressed in memory.
    pub blocks_compressed: u64,
    /// Bytes of memory that those take, overhead included.
    pub compressed_bytes: u64,
    /// Blocks in the file.
    pub blocks_in_file: u64,
    /// Bytes that the file takes on its file system, as that says.
    pub file_bytes: u64,
}

/// Bytes that are nowhere else: the store of anonymous memory larger than RAM.
///
/// All zeros at first. What was never written, or was written as zeros, takes nothing. Blocks of 4096 bytes that
/// compress well stay in memory, up to a bound; the oldest of them, and all that do not compress, go to a temporary
/// file without a name. Every block has a checksum of 32 bits, and a read of one that does not match is
/// [`StoreError::Corrupt`](crate::StoreError::Corrupt).
///
/// Nothing outlives the store: [`sync`](BackingStore::sync) succeeds and makes nothing durable.
///
/// A read beside a write of the same block gives the block before or after it, never a mixture; across blocks nothing
/// is promised. Beside about 8 bytes for each block that was written, memory is bounded as the options say.
///
/// # Example
/// ```
/// use omnimap_store::{BackingStore, SwapOptions, SwapStore};
///
/// let store = SwapStore::new("scratch", 1 << 40, SwapOptions::default())?;
/// store.write_at(1 << 39, b"far out")?;
/// let mut bytes = [0; 7];
/// store.read_at(1 << 39, &mut bytes)?;
/// assert_eq!(&bytes, b"far out");
/// assert_eq!(store.counts().blocks_compressed, 1);
/// # Ok::<(), omnimap_store::StoreError>(())
/// ```
pub struct SwapStore {
    name: String,
    blocks: Blocks,
}

impl SwapStore {
    /// An object of `length` bytes, all zeros.
    ///
    /// # Errors
    /// [`StoreError::Open`](crate::StoreError::Open) if the directory for the file is none. The file itself is made
    /// later: that it cannot be is an error of the write that needs it first.
    pub fn new(name: impl Into<String>, length: u64, options: SwapOptions) -> Result<SwapStore> {
        Ok(SwapStore { name: name.into(), blocks: Blocks::new(length, None, options)? })
    }

    /// What it holds now.
    pub fn counts(&self) -> SwapCounts {
        self.blocks.counts()
    }
}

impl BackingStore for SwapStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.blocks.len()
    }

    fn transfer(&self) -> Transfer {
        Transfer::new(1 << 20, 32).answering(Answers::Promptly)
    }

    fn chunk_at(&self, offset: u64) -> Range<u64> {
        let begin = offset - offset % BLOCK_BYTES as u64;
        begin..begin.saturating_add(BLOCK_BYTES as u64).min(self.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.blocks.read(offset, into)
    }

    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }

    /// See [`BackingStore::write_at`]. Where there is no room (ENOSPC), what was there before stays readable, and a
    /// later write may succeed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.blocks.write(offset, bytes)
    }

    /// See [`BackingStore::set_len`]. Cutting a block in two writes its rest, for which there may be no room.
    fn set_len(&self, length: u64) -> Result<()> {
        self.blocks.set_len(length)
    }

    fn is_temporary(&self) -> bool {
        true
    }

    /// Does nothing: what is here is gone with the store anyway.
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
