//! From a path to a store.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::{BackingStore, FileStore, Result, ZstdStore};

/// What a file's bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// Seekable zstd if the file begins as a zstd file does; else the bytes as they are.
    #[default]
    Auto,
    /// The bytes as they are.
    Plain,
    /// Seekable zstd.
    Zstd,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Format::Auto),
            "plain" => Ok(Format::Plain),
            "zstd" => Ok(Format::Zstd),
            _ => Err(format!("no format {text:?}: auto, plain or zstd")),
        }
    }
}

/// Opens a local file for reading, as what its first bytes say that it is.
///
/// # Errors
/// Those of [`FileStore::open`] and [`ZstdStore::open`]. A zstd file without a seek table is an error, not an object
/// of its packed bytes; ask for [`Format::Plain`] to have those.
pub fn open(path: impl AsRef<Path>, format: Format) -> Result<Arc<dyn BackingStore>> {
    let file: Arc<dyn BackingStore> = Arc::new(FileStore::open(path)?);
    let packed = match format {
        Format::Plain => false,
        Format::Zstd => true,
        Format::Auto => ZstdStore::is_zstd(&*file)?,
    };
    if packed { Ok(Arc::new(ZstdStore::open(file)?)) } else { Ok(file) }
}
