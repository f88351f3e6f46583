//! An object of a bucket, to be written.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use omnimap_store::{BackingStore, Result, StoreError, Transfer, Writability};

use crate::changes::{BLOCK_BYTES, Blocks, Changes, State};
use crate::location::unusable;
use crate::options::RemoteOptions;
use crate::remote::RemoteStore;
use crate::upload::{Contents, Replace, marked, upload};

/// An object of S3, Google Cloud Storage or Azure whose changes are collected in a local directory, and become a new version
/// when they are synced.
///
/// [`sync`](BackingStore::sync) is all or nothing: it uploads under the condition that the object is still the version that was
/// opened. If it is another, that is [`StoreError::Changed`], nothing is overwritten, and the changes stay in the directory,
/// where [`kept`](Self::kept) finds them. On S3 large objects go up in parts, and those without a change are copied by the
/// service itself (UploadPartCopy). What no sync has published is given up when the store is dropped, or the process ends.
///
/// A sync that was interrupted is finished, or found to be in conflict, when the object is opened again with the same directory.
pub struct WorkingCopy {
    inner: Arc<Inner>,
    /// One sync at a time.
    syncing: Mutex<()>,
    options: RemoteOptions,
}

struct Inner {
    name: String,
    base: RwLock<Arc<RemoteStore>>,
    changes: Changes,
    directory: PathBuf,
    state: RwLock<Present>,
    /// Held while a block is made of what was there and what is written.
    in_parts: Mutex<()>,
}

/// How the object looks now.
#[derive(Clone)]
struct Present {
    length: u64,
    /// Bytes of the version that was opened that still count.
    base_bytes: u64,
    changed: Blocks,
    is_resized: bool,
}

/// Changes that were not published.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptChanges {
    /// The object's URL.
    pub name: String,
    /// The version that they were made to, as its server names it.
    pub version: String,
    /// Bytes of that version.
    pub version_bytes: u64,
    /// The object's length with the changes.
    pub length: u64,
    /// What was changed, in whole blocks of 4 KiB but for the object's end.
    pub ranges: Vec<Range<u64>>,
    /// A file that has the changed bytes where they are in the object.
    pub data: PathBuf,
    /// Bytes of the version that count still: what is behind them, and not changed, is zeros.
    pub base_bytes: u64,
}

impl WorkingCopy {
    /// Opens an object to be changed; what is changed is kept below `changes` until it is published.
    ///
    /// # Errors
    /// As [`RemoteStore::open`]; [`StoreError::Unusable`] if the service has no conditional writes or no strong ETags, another
    /// process has the object open like this, or the directory has changes to another version of it: save them by
    /// `omnimap export`, and forget them by `omnimap diff --discard`.
    pub fn open(url: &str, options: &RemoteOptions, changes: &Path) -> Result<WorkingCopy> {
        let base = Arc::new(RemoteStore::open(url, options)?);
        let name = base.name().to_owned();
        if !base.may_be_replaced() {
            let reason = "it cannot be replaced under the condition that nobody else has: that takes an object of S3, Google \
                          Cloud Storage or Azure with an ETag";
            return Err(unusable(&name, reason));
        }
        let directory = directory_of(changes, &name);
        let opened =
            |source| StoreError::Open { name: format!("{name}, changes in {}", directory.display()), source };
        let (changes, left) = Changes::open(&directory).map_err(opened)?;
        let present = Present {
            length: base.len(),
            base_bytes: base.len(),
            changed: Blocks::default(),
            is_resized: false,
        };
        let inner = Inner {
            name: name.clone(),
            base: RwLock::new(base),
            changes,
            directory: directory.clone(),
            state: RwLock::new(present),
            in_parts: Mutex::default(),
        };
        let copy =
            WorkingCopy { inner: Arc::new(inner), syncing: Mutex::default(), options: options.clone() };
        if let Some((state, blocks)) = left {
            copy.take_up(state, blocks)?;
        }
        Ok(copy)
    }

    /// The changes to an object that a directory keeps, because a sync was interrupted or in conflict.
    ///
    /// # Errors
    /// If the URL is none, or the directory cannot be read.
    pub fn kept(url: &str, changes: &Path) -> Result<Option<KeptChanges>> {
        let name = crate::location::Location::parse(url)?.name;
        let directory = directory_of(changes, &name);
        let look = Changes::look(&directory);
        let found =
            look.map_err(|source| StoreError::Open { name: directory.display().to_string(), source })?;
        Ok(found.filter(|(state, _)| state.syncing.is_some()).map(|(state, blocks)| KeptChanges {
            ranges: blocks
                .iter()
                .map(|blocks| blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(state.length))
                .collect(),
            name: state.name,
            version: state.version,
            version_bytes: state.version_bytes,
            length: state.length,
            base_bytes: state.base_bytes,
            data: directory.join("data"),
        }))
    }

    /// Forgets the changes to an object that a directory keeps.
    ///
    /// # Errors
    /// If somebody has the object open, or the directory cannot be removed.
    pub fn discard(url: &str, changes: &Path) -> Result<()> {
        let name = crate::location::Location::parse(url)?.name;
        let directory = directory_of(changes, &name);
        let remove = || {
            // Nobody else may be at it.
            let (changes, _) = Changes::open(&directory)?;
            fs::remove_dir_all(&directory)?;
            drop(changes);
            Ok(())
        };
        remove().map_err(|source| StoreError::Open { name: directory.display().to_string(), source })
    }

    /// Goes on with a sync that was interrupted.
    fn take_up(&self, state: State, blocks: Blocks) -> Result<()> {
        let inner = &self.inner;
        let base = inner.base();
        let Some(mark) = &state.syncing else { return Ok(()) };
        let (source, asked) = (base.source(), mark.clone());
        let wrap = |error| StoreError::Open { name: inner.name.clone(), source: io::Error::other(error) };
        let look = async move {
            marked(&source, &asked)
                .await
                .map_err(|error| crate::failure::at_opening(&error, &source.location))
        };
        if base.network().wait(look)?.is_some() {
            // It had been published, and only the answer was lost.
            return inner.changes.end_sync(&inner.open_state()).map_err(wrap);
        }
        if state.version != base.server_version() {
            let reason = format!(
                "{} has changes to another version of it ({}, and now it is {}): save them by `omnimap export`, and forget \
                 them by `omnimap diff --discard`",
                inner.directory.display(),
                state.version,
                base.server_version()
            );
            return Err(unusable(&inner.name, &reason));
        }
        *inner.present_mut() =
            Present { length: state.length, base_bytes: state.base_bytes, changed: blocks, is_resized: true };
        self.sync()
    }
}

/// Below which directory the changes to an object are.
fn directory_of(changes: &Path, name: &str) -> PathBuf {
    // Names may be longer than a file's name can be, and have any letters.
    let short: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    let end = short.len().saturating_sub(80);
    changes.join(format!("{}-{:016x}", &short[end..], hash(name)))
}

/// FNV-1a: a name on disk has to be the same with each compiler.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Inner {
    fn base(&self) -> Arc<RemoteStore> {
        self.base.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn present(&self) -> Present {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn present_mut(&self) -> std::sync::RwLockWriteGuard<'_, Present> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn length(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).length
    }

    /// What the directory says when nothing is under way.
    fn open_state(&self) -> State {
        let base = self.base();
        State {
            name: self.name.clone(),
            version: base.server_version(),
            version_bytes: base.len(),
            base_bytes: base.len(),
            length: base.len(),
            syncing: None,
        }
    }

    /// Reads what is inside the object.
    fn read(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        let (parts, base_bytes) = {
            let present = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
            (present.changed.split(blocks), present.base_bytes)
        };
        for (blocks, is_changed) in parts {
            let (from, to) =
                ((blocks.start * BLOCK_BYTES).max(range.start), (blocks.end * BLOCK_BYTES).min(range.end));
            let part = &mut into[(from - range.start) as usize..(to - range.start) as usize];
            if is_changed {
                self.changes
                    .data
                    .read_exact_at(part, from)
                    .map_err(|source| local("read", part.len(), source))?;
                continue;
            }
            let there = to.min(base_bytes).saturating_sub(from) as usize;
            let (old, zeros) = part.split_at_mut(there);
            zeros.fill(0);
            if there > 0 {
                let got = self.base().read_at(from, old)?;
                if got < there {
                    return Err(StoreError::Short { wanted: there as u64, got: got as u64 });
                }
            }
        }
        Ok(())
    }

    /// Writes whole blocks; of the object's last one what is behind its end is not given.
    fn write_blocks(&self, first: u64, bytes: &[u8]) -> Result<()> {
        let at = first * BLOCK_BYTES;
        self.changes.data.write_all_at(bytes, at).map_err(|source| local("write", bytes.len(), source))?;
        let last = first + (bytes.len() as u64).div_ceil(BLOCK_BYTES);
        self.present_mut().changed.add(first..last);
        Ok(())
    }

    /// Writes a part of one block.
    fn write_in_block(&self, offset: u64, bytes: &[u8], length: u64) -> Result<()> {
        let _turn = self.in_parts();
        let block = offset / BLOCK_BYTES;
        let start = block * BLOCK_BYTES;
        let mut whole = vec![0; ((start + BLOCK_BYTES).min(length) - start) as usize];
        self.read(start..start + whole.len() as u64, &mut whole)?;
        whole[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.write_blocks(block, &whole)
    }

    fn in_parts(&self) -> MutexGuard<'_, ()> {
        self.in_parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn local(action: &'static str, length: usize, source: io::Error) -> StoreError {
    StoreError::Io { action, length: length as u64, source }
}

impl Contents for Inner {
    fn len(&self) -> u64 {
        self.length()
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        Inner::read(self, range, &mut bytes)?;
        Ok(bytes)
    }

    fn is_unchanged(&self, range: Range<u64>) -> bool {
        let present = self.present();
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        range.end <= present.base_bytes && present.changed.split(blocks).iter().all(|(_, changed)| !changed)
    }
}

impl BackingStore for WorkingCopy {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn len(&self) -> u64 {
        self.inner.length()
    }

    fn transfer(&self) -> Transfer {
        self.inner.base().transfer().reading_together(std::num::NonZeroUsize::MIN)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let end = offset.saturating_add(into.len() as u64).min(self.len());
        let start = offset.min(end);
        let count = (end - start) as usize;
        self.inner.read(start..end, &mut into[..count])?;
        Ok(count)
    }

    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = self.len();
        let length = bytes.len() as u64;
        if offset.checked_add(length).is_none_or(|last| last > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let in_block = at % BLOCK_BYTES;
            let to_end = (end - at).min(rest.len() as u64);
            // The object's last block is whole where the object ends.
            let whole = if at + to_end == end { to_end } else { to_end / BLOCK_BYTES * BLOCK_BYTES };
            let count = if in_block == 0 && whole > 0 { whole } else { (BLOCK_BYTES - in_block).min(to_end) };
            let (part, after) = rest.split_at(count as usize);
            if in_block == 0 && whole > 0 {
                self.inner.write_blocks(at / BLOCK_BYTES, part)?;
            } else {
                self.inner.write_in_block(at, part, end)?;
            }
            at += count;
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _turn = self.inner.in_parts();
        let mut present = self.inner.present_mut();
        let shorter = length.min(present.length);
        present.changed.cut(shorter.div_ceil(BLOCK_BYTES));
        present.base_bytes = present.base_bytes.min(length);
        // What is cut off, and what a last block has behind its end, is zeros when the object gets longer again.
        self.inner
            .changes
            .data
            .set_len(shorter)
            .and_then(|()| self.inner.changes.data.set_len(length))
            .map_err(|source| local("resizing the changes", 0, source))?;
        present.length = length;
        present.is_resized = true;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &self.inner;
        let present = inner.present();
        if !present.is_resized && present.changed.iter().next().is_none() {
            return Ok(());
        }
        let base = inner.base();
        let mark = format!("{:016x}{:016x}", random(), random());
        let state = State {
            length: present.length,
            base_bytes: present.base_bytes,
            syncing: Some(mark.clone()),
            ..inner.open_state()
        };
        inner.changes.begin_sync(&state, &present.changed).map_err(|source| local("sync", 0, source))?;
        let Some(tag) = base.strong_tag() else {
            return Err(unusable(&inner.name, "its service names no strong ETag any more"));
        };
        let new = upload(base.source(), inner.clone(), Replace { tag, mark });
        let new = base.network().wait(new).map_err(|error| match error {
            StoreError::Changed { how } => StoreError::Changed {
                how: format!(
                    "{how}; nothing was overwritten, and what was stored here is kept in {}: save it by `omnimap export`",
                    inner.directory.display()
                ),
            },
            other => other,
        })?;
        // Published. The next condition is that of the new version.
        let mut options = self.options.clone();
        options.head_bytes(0);
        let now = base.reopen_present(&options)?;
        if new.is_some() && now.strong_tag() != new {
            return Err(StoreError::Changed {
                how: "it was replaced again just after it was synced".to_owned(),
            });
        }
        *inner.base.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        let mut present = inner.present_mut();
        present.changed.clear();
        present.base_bytes = present.length;
        present.is_resized = false;
        drop(present);
        inner.changes.end_sync(&inner.open_state()).map_err(|source| local("sync", 0, source))
    }

    fn is_atomic(&self) -> bool {
        true
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
