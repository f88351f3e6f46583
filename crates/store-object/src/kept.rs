//! Changes that a sync could not publish.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use omnimap_store::{Result, StoreError};

use crate::changes::{BLOCK_BYTES, Changes, data_path};
use crate::location::{Location, hash};
use crate::working_copy::WorkingCopy;

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
    /// The changes to an object that a directory keeps, because a sync was interrupted or in conflict.
    ///
    /// # Errors
    /// If the URL is none, or the directory cannot be read.
    pub fn kept(url: &str, changes: &Path) -> Result<Option<KeptChanges>> {
        let name = Location::parse(url)?.name;
        let directory = directory_of(changes, &name);
        let look = Changes::look(&directory);
        let found =
            look.map_err(|source| StoreError::Open { name: directory.display().to_string(), source })?;
        let Some((state, blocks)) = found else { return Ok(None) };
        let Some(syncing) = state.syncing else { return Ok(None) };
        Ok(Some(KeptChanges {
            ranges: blocks
                .iter()
                .map(|blocks| blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(state.length))
                .collect(),
            name: state.name,
            version: state.version,
            version_bytes: state.version_bytes,
            length: state.length,
            base_bytes: state.base_bytes,
            data: data_path(&directory, syncing.generation),
        }))
    }

    /// Forgets the changes to an object that a directory keeps.
    ///
    /// # Errors
    /// If somebody has the object open, or the directory cannot be removed.
    pub fn discard(url: &str, changes: &Path) -> Result<()> {
        let name = Location::parse(url)?.name;
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
}

/// Below which directory the changes to an object are.
pub(crate) fn directory_of(changes: &Path, name: &str) -> PathBuf {
    // Names may be longer than a file's name can be, and have any letters.
    let short: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    let end = short.len().saturating_sub(80);
    changes.join(format!("{}-{:016x}", &short[end..], hash(name)))
}
