//! The temporary file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, OFlags};

use super::BLOCK_BYTES;
use crate::file::is_refusal;
use crate::{Result, StoreError};

/// A file without a name, made at the first write; gone with the store, or with the process.
///
/// Direct where the file system has that, for what is written here was just thrown out of memory.
pub(super) struct SwapFile {
    directory: PathBuf,
    file: OnceLock<File>,
    direct: AtomicBool,
    #[cfg(test)]
    pub(super) transfers: std::sync::atomic::AtomicU64,
}

impl SwapFile {
    /// No file yet; it will be in `directory`.
    pub(super) fn new(directory: PathBuf) -> SwapFile {
        SwapFile {
            directory,
            file: OnceLock::new(),
            direct: AtomicBool::new(true),
            #[cfg(test)]
            transfers: Default::default(),
        }
    }

    /// Writes whole, aligned blocks from a slot on.
    pub(super) fn write(&self, slot: u32, blocks: &[u8]) -> Result<()> {
        let file = self.open()?;
        self.transfer(file, slot, blocks.len(), || file.write_all_at(blocks, position(slot)))
            .map_err(|source| StoreError::Io { action: "swap write", length: blocks.len() as u64, source })
    }

    /// Reads whole blocks from a slot on into aligned memory.
    pub(super) fn read(&self, slot: u32, into: &mut [u8]) -> Result<()> {
        let file = self.open()?;
        let length = into.len();
        self.transfer(file, slot, length, || file.read_exact_at(into, position(slot)))
            .map_err(|source| StoreError::Io { action: "swap read", length: length as u64, source })
    }

    /// Gives the disk space of slots back. Where the file system cannot, it stays with the file, to be used again.
    pub(super) fn give_back(&self, slot: u32, count: u32) {
        if let Some(file) = self.file.get() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(file, flags, position(slot), position(count));
        }
    }

    /// Bytes that the file takes on its file system.
    pub(super) fn bytes(&self) -> u64 {
        let stat = self.file.get().and_then(|file| rustix::fs::fstat(file).ok());
        stat.map_or(0, |stat| stat.st_blocks as u64 * 512)
    }

    /// Whether there is a file.
    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.file.get().is_some()
    }

    fn open(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let failed = |source| StoreError::Open {
            name: format!("a swap file in {}", self.directory.display()),
            source,
        };
        let file = tempfile::tempfile_in(&self.directory).map_err(failed)?;
        if set_direct(&file, true).is_err() {
            self.direct.store(false, Ordering::Relaxed);
        }
        // Two threads may have made one: the file of the second is dropped, and with it gone.
        Ok(self.file.get_or_init(|| file))
    }

    /// Makes a transfer, and once more without O_DIRECT if that was refused.
    fn transfer(
        &self,
        file: &File,
        slot: u32,
        length: usize,
        mut transfer: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        #[cfg(test)]
        self.transfers.fetch_add(1, Ordering::Relaxed);
        let mut outcome = transfer();
        if outcome.as_ref().is_err_and(is_refusal) && self.direct.load(Ordering::Relaxed) {
            set_direct(file, false)?;
            self.direct.store(false, Ordering::Relaxed);
            outcome = transfer();
        }
        if !self.direct.load(Ordering::Relaxed) {
            // Advice only: where it is refused, the kernel's cache holds what will hardly be asked for again.
            let length = std::num::NonZeroU64::new(length as u64);
            let _ = rustix::fs::fadvise(file, position(slot), length, Advice::DontNeed);
        }
        outcome
    }
}

fn position(slot: u32) -> u64 {
    u64::from(slot) * BLOCK_BYTES as u64
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}
